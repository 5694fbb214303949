//! Comparing JSON records by meaning.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The rows of a record file.
#[track_caller]
pub(crate) fn rows(file: &Path) -> Vec<Value> {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The row with this ID.
#[track_caller]
pub(crate) fn row(file: &Path, id: &str) -> Value {
    let found = rows(file).into_iter().find(|row| row["id"] == id);
    found.unwrap_or_else(|| panic!("{} has no row {id}", file.display()))
}

/// Panics with one line for each place in which two values differ in meaning.
#[track_caller]
pub(crate) fn assert_same(what: &str, left: &Value, right: &Value) {
    let found = differences(left, right);
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// One line for each place in which two values differ in meaning.
///
/// Go leaves out what is empty, so a missing key is the same as an empty value; times are compared as moments.
pub(crate) fn differences(left: &Value, right: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", left, right, &mut found);
    found
}

fn compare(place: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    if is_empty(left) && is_empty(right) {
        return;
    }
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                compare(
                    &format!("{place}.{key}"),
                    value,
                    b.get(key).unwrap_or(&Value::Null),
                    found,
                );
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                compare(&format!("{place}.{key}"), &Value::Null, value, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{place}[{index}]"), a, b, found);
            }
        }
        (Value::String(a), Value::String(b)) if same_moment(a, b) => {}
        _ if left == right => {}
        _ => found.push(format!("{place}: {left} / {right}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn same_moment(left: &str, right: &str) -> bool {
    let parse = |text: &str| text.parse::<jiff::Timestamp>().ok();
    matches!((parse(left), parse(right)), (Some(a), Some(b)) if a == b)
}

#[test]
fn meaning_is_compared_not_form() {
    use serde_json::json;
    let differences = |a: Value, b: Value| differences(&a, &b);
    let same = [
        (json!({"a": [], "b": 1}), json!({"b": 1, "c": null})),
        (
            json!({"t": "2026-01-02T03:04:05.10Z"}),
            json!({"t": "2026-01-02T04:04:05.1+01:00"}),
        ),
    ];
    for (a, b) in same {
        assert_eq!(differences(a, b), Vec::<String>::new());
    }
    let different = [
        (json!({"a": 1}), json!({})),
        (json!({"a": [1, 2]}), json!({"a": [1, 3]})),
        (json!({"a": [1]}), json!({"a": [1, 1]})),
        (json!({"a": "1"}), json!({"a": 1})),
        (
            json!({"t": "2026-01-02T03:04:05.1Z"}),
            json!({"t": "2026-01-02T03:04:05.2Z"}),
        ),
    ];
    for (a, b) in different {
        assert_eq!(differences(a.clone(), b.clone()).len(), 1, "{a} {b}");
    }
}
