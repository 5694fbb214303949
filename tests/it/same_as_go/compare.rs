//! One line for each difference between the two sides.

use serde_json::Value;

use super::Side;
use super::answer::{Answer, Outcome};
use super::headers;
use crate::support::{json, manifest};

/// What an operation gave.
pub(super) fn outcomes(ours: (&Side, &Outcome), theirs: (&Side, &Outcome)) -> Vec<String> {
    let form = |side: &Side, text: &str| side.normaliser().text(text).replace('\n', " ");
    match (ours.1, theirs.1) {
        (Ok(a), Ok(b)) => answers((ours.0, a), (theirs.0, b)),
        // Both fail; with the same sentinel if the peer's text has one.
        (Err(a), Err(b)) if b.sentinel.is_none() || a.sentinel == b.sentinel => Vec::new(),
        (Err(a), Err(b)) => vec![format!(
            "answer failed: {} / failed: {}",
            form(ours.0, &a.text),
            form(theirs.0, &b.text)
        )],
        (Ok(a), Err(b)) => vec![format!(
            "answer {} / failed: {}",
            brief(a),
            form(theirs.0, &b.text)
        )],
        (Err(a), Ok(b)) => vec![format!("answer failed: {} / {}", form(ours.0, &a.text), brief(b))],
    }
}

fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Bytes(bytes, how) => format!("{} bytes ({how})", bytes.len()),
        other => format!("{other:?}"),
    }
}

fn answers((our_side, ours): (&Side, &Answer), (their_side, theirs): (&Side, &Answer)) -> Vec<String> {
    let (our_form, their_form) = (our_side.normaliser(), their_side.normaliser());
    match (ours, theirs) {
        (Answer::Json(a), Answer::Json(b)) => json::differences(&our_form.json(a), &their_form.json(b))
            .into_iter()
            .map(|line| format!("answer {line}"))
            .collect(),
        (Answer::Text(a), Answer::Text(b)) if our_form.text(a) == their_form.text(b) => Vec::new(),
        (Answer::List(a), Answer::List(b)) => {
            let a: Vec<String> = a.iter().map(|item| our_form.text(item)).collect();
            let b: Vec<String> = b.iter().map(|item| their_form.text(item)).collect();
            if a == b {
                return Vec::new();
            }
            let only = |one: &[String], other: &[String]| -> Vec<String> {
                one.iter().filter(|item| !other.contains(item)).cloned().collect()
            };
            vec![format!(
                "answer {:?} / {:?} of {} / {}",
                only(&a, &b),
                only(&b, &a),
                a.len(),
                b.len()
            )]
        }
        (Answer::Bytes(a, how), Answer::Bytes(b, their_how)) if how == their_how => {
            if a == b {
                Vec::new()
            } else if a.len() >= 1024 && b.len() >= 1024 {
                headers::differences(a, b, our_side.started)
            } else {
                vec![format!("answer {} / {}", a.escape_ascii(), b.escape_ascii())]
            }
        }
        _ if ours == theirs => Vec::new(),
        _ => vec![format!("answer {} / {}", brief(ours), brief(theirs))],
    }
}

/// The record files and the mounts.
pub(super) fn records(ours: &Side, theirs: &Side) -> Vec<String> {
    let mut found = Vec::new();
    let (our_form, their_form) = (ours.normaliser(), theirs.normaliser());
    for ((file, a), (_, b)) in ours.records.files().into_iter().zip(theirs.records.files()) {
        let a = our_form.json(&Value::Array(a.clone()));
        let b = their_form.json(&Value::Array(b.clone()));
        let lines = json::differences(&a, &b);
        found.extend(lines.into_iter().map(|line| format!("{file}.json {line}")));
    }
    let (a, b) = (our_form.mounts(), their_form.mounts());
    if a != b {
        found.push(format!("mounted: {a:?} / {b:?}"));
    }
    found
}

/// Every file of both roots.
pub(super) fn files(ours: &Side, theirs: &Side) -> Vec<String> {
    manifest::differences(&ours.normaliser().files(), &theirs.normaliser().files())
}
