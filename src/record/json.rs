//! JSON as the Go library writes and reads it.
//!
//! Writing: no white space, keys in the order of the row's fields, `<`, `>`, `&`, U+2028 and U+2029 escaped, control
//! characters as `\u00XX` except for `\n`, `\r` and `\t`. Reading is tolerant where Go is: see [`Field`]. Every row
//! is read together with its own text, so that a save can copy unchanged rows byte for byte.
//!
//! Pure: nothing here touches a file.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::{fmt, io};

use bytes::Bytes;
use serde::de::{self, DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::ser::{CharEscape, Formatter};

use crate::error::{Error, ErrorKind};
use crate::idmap::IdMap;

/// A value as the Go library writes it: compact, with `<`, `>`, `&`, U+2028 and U+2029 escaped. With the store's views
/// ([`Layer`](crate::Layer), [`Image`](crate::Image), [`Container`](crate::Container), [`Change`](crate::Change)) this
/// gives what `containers-storage --json` prints, byte for byte.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a value that has no JSON, such as a map whose keys are no texts.
pub fn go_json<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        ErrorKind::InvalidInput
            .err("writing a value as JSON")
            .with_source(error)
    };
    let bytes = to_bytes(value).map_err(|error| failed(error.into()))?;
    String::from_utf8(bytes).map_err(|error| failed(error.into()))
}

/// A value as Go writes it.
pub(crate) fn to_bytes<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(512);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, GoFormatter))?;
    Ok(out)
}

/// An array of values that are JSON already.
pub(crate) fn join<'a>(texts: impl Iterator<Item = &'a Bytes> + Clone) -> Vec<u8> {
    let size = texts.clone().map(|text| text.len() + 1).sum::<usize>() + 2;
    let mut out = Vec::with_capacity(size);
    out.push(b'[');
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(text);
    }
    out.push(b']');
    out
}

/// [`parse_array_into`] what is read.
#[cfg(test)]
pub(crate) fn parse_array<T: DeserializeOwned>(data: &Bytes) -> serde_json::Result<Vec<(T, Bytes)>> {
    parse_array_into(data, |value| value)
}

/// Reads an array of values, each with its own text (a slice of `data`). Nothing at all, and `null`, are the empty
/// array. Each value is put `into` something at once, which spares large ones a move.
pub(crate) fn parse_array_into<T: DeserializeOwned, U>(
    data: &Bytes,
    into: fn(T) -> U,
) -> serde_json::Result<Vec<(U, Bytes)>> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(values) = split(data, into) {
        return Ok(values);
    }
    if let Some(values) = sanitised(data).and_then(|clean| split(&Bytes::from(clean), into)) {
        return Ok(values);
    }
    // Something is wrong: one parser over the whole says what, with line and column of the file.
    match serde_json::from_slice::<Vec<T>>(data) {
        Err(error) => Err(error),
        Ok(_values) => Err(serde_json::Error::custom("not an array of records")),
    }
}

/// Elements for which room is made ahead, at most.
const MAX_AHEAD: usize = 4096;

/// What JSON takes for white space.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The array's elements; `None` for whatever is not in order.
fn split<T: DeserializeOwned, U>(data: &Bytes, into: fn(T) -> U) -> Option<Vec<(U, Bytes)>> {
    // Checked once for the whole file, so that the parser need not check string by string.
    let text = std::str::from_utf8(data).ok()?.trim_matches(SPACE);
    if text == "null" {
        return Some(Vec::new());
    }
    let text = text.strip_prefix('[')?.strip_suffix(']')?.trim_matches(SPACE);
    if text.is_empty() {
        return Some(Vec::new());
    }
    let mut values = Vec::new();
    let mut rest = text;
    loop {
        let mut parser = serde_json::Deserializer::from_str(rest).into_iter::<T>();
        let value = parser.next()?.ok()?;
        let (element, after) = rest.split_at_checked(parser.byte_offset())?;
        if values.is_empty() {
            // Most are about as long as the first one.
            values.reserve((text.len() / element.len().max(1)).min(MAX_AHEAD));
        }
        values.push((
            into(value),
            data.slice_ref(element.trim_start_matches(SPACE).as_bytes()),
        ));
        match after.trim_start_matches(SPACE) {
            "" => return Some(values),
            more => rest = more.strip_prefix(',')?,
        }
    }
}

/// `data` with U+FFFD in place of invalid UTF-8 and of escaped surrogates that have no partner, as Go reads them;
/// `None` if there is nothing of the kind.
fn sanitised(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data);
    let mut out = String::with_capacity(text.len());
    let mut changed = matches!(text, std::borrow::Cow::Owned(_));
    let mut rest = &*text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let length = match (surrogate(escape), surrogate(escape.get(6..).unwrap_or_default())) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push_str("\\ufffd");
                changed = true;
                rest = escape.get(6..).unwrap_or_default();
                continue;
            }
            // The character after a backslash never begins an escape of its own.
            _ => 1 + escape.chars().nth(1).map_or(0, char::len_utf8),
        };
        let (whole, after) = escape.split_at(length);
        out.push_str(whole);
        rest = after;
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// The number in a `\uXXXX` at the start of `text`.
fn surrogate(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// The differences between Go's and serde_json's compact output.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let bytes = fragment.as_bytes();
        let mut done = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let (escape, length) = match byte {
                b'<' => ("\\u003c", 1),
                b'>' => ("\\u003e", 1),
                b'&' => ("\\u0026", 1),
                0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => ("\\u2028", 3),
                0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => ("\\u2029", 3),
                _ => continue,
            };
            writer.write_all(&bytes[done..at])?;
            writer.write_all(escape.as_bytes())?;
            done = at + length;
        }
        writer.write_all(&bytes[done..])
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let text: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::Backspace => b"\\u0008",
            CharEscape::FormFeed => b"\\u000c",
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(text)
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let size = value.abs();
        if size == 0.0 || (1e-6..1e21).contains(&size) {
            return write!(writer, "{value}");
        }
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent
            .strip_prefix('-')
            .map_or(('+', exponent), |digits| ('-', digits));
        write!(writer, "{mantissa}e{sign}{digits:0>2}")
    }
}

/// A field of a row: read with `null` as the zero value at every depth, and left out of the file where it is zero.
pub(crate) trait Field: Sized + Default {
    /// Reads a value that is not `null`.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    /// Whether the field may be left out (Go's `omitempty`).
    fn is_zero(&self) -> bool;
}

/// Reads a [`Field`], or its zero value for `null`.
pub(crate) struct OrNull<T>(pub(crate) T);

struct NotNull<T>(T);

impl<'de, T: Field> Deserialize<'de> for OrNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Option::<NotNull<T>>::deserialize(deserializer)?;
        Ok(Self(value.map(|value| value.0).unwrap_or_default()))
    }
}

impl<'de, T: Field> Deserialize<'de> for NotNull<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

/// Reads a text with `read`, which says why if it does not like it, without keeping it first.
pub(crate) fn read_text<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Visitor<F>(F);
    impl<T, F: FnOnce(&str) -> Result<T, String>> de::Visitor<'_> for Visitor<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Visitor(read))
}

/// Reads a key: what it stands for, or its text if it is none of `keys`.
pub(crate) struct OneOf<K: 'static> {
    pub(crate) keys: &'static [(&'static str, K)],
    /// The one that comes next if the fields are in order, as they mostly are.
    pub(crate) next: usize,
}

impl<K: Copy> OneOf<K> {
    fn find(&self, text: &str) -> Option<K> {
        let (before, from) = self.keys.split_at_checked(self.next)?;
        let mut keys = from.iter().chain(before);
        keys.find(|(key, _)| *key == text).map(|(_, found)| *found)
    }
}

impl<'de, K: Copy> de::DeserializeSeed<'de> for OneOf<K> {
    type Value = Result<K, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        read_text(deserializer, |text| {
            // Case does not matter to Go.
            let found = self.find(text).or_else(|| self.find(&text.to_lowercase()));
            Ok(found.ok_or_else(|| text.to_owned()))
        })
    }
}

macro_rules! plain_fields {
    ($($type:ty: |$value:ident| $zero:expr,)*) => {$(
        impl Field for $type {
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(deserializer)
            }
            fn is_zero(&self) -> bool {
                let $value = self;
                $zero
            }
        }
    )*};
}

plain_fields! {
    String: |value| value.is_empty(),
    i64: |value| *value == 0,
    u32: |value| *value == 0,
    serde_json::Value: |value| value.is_null(),
}

impl<T: Field> Field for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Field> de::Visitor<'de> for Visitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = access.next_element::<OrNull<T>>()? {
                    if list.is_empty() {
                        // One name, one owner: most lists stay as short as that.
                        list.reserve_exact(1);
                    }
                    list.push(value.0);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Visitor(PhantomData))
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Field> de::Visitor<'de> for Visitor<T> {
            type Value = BTreeMap<String, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, OrNull<T>>()? {
                    map.insert(key, value.0);
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Field for IdMap {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut range = Self::default();
        for (key, value) in BTreeMap::<String, serde_json::Value>::deserialize(deserializer)? {
            let target = match canonical(&key, &["container_id", "host_id", "size"]) {
                "container_id" => &mut range.container_id,
                "host_id" => &mut range.host_id,
                "size" => &mut range.size,
                _ => continue,
            };
            *target = match value {
                serde_json::Value::Null => 0,
                value => value
                    .as_i64()
                    .ok_or_else(|| D::Error::custom(format!("{key} is not an integer")))?,
            };
        }
        Ok(range)
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// The one of `keys` that `key` means (case does not matter to Go), else `key` itself.
fn canonical<'a>(key: &'a str, keys: &[&'static str]) -> &'a str {
    if let Some(exact) = keys.iter().find(|candidate| **candidate == key) {
        return exact;
    }
    let lower = key.to_lowercase();
    keys.iter()
        .find(|candidate| **candidate == lower)
        .map_or(key, |found| found)
}

/// Declares a row: its fields in file order, each with its key and either `always` or `omit` (left out if zero),
/// plus `extra`, which keeps what other writers put there.
macro_rules! row {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$field_doc:meta])* $field:ident: $type:ty = $key:literal $when:ident, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name {
            $( $(#[$field_doc])* pub(crate) $field: $type, )*
            /// Fields that this version does not know; written back after all others.
            pub(crate) extra: std::collections::BTreeMap<String, serde_json::Value>,
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                $(
                    if $crate::record::json::row!(@$when self.$field) {
                        map.serialize_entry($key, &self.$field)?;
                    }
                )*
                for (key, value) in &self.extra {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                /// The fields.
                #[expect(non_camel_case_types, reason = "named like the fields")]
                #[derive(Clone, Copy)]
                enum Key {
                    $($field,)*
                }

                const KEYS: &[(&str, Key)] = &[$(($key, Key::$field),)*];

                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a record")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut row = $name::default();
                        let mut next = 0;
                        while let Some(key) = map.next_key_seed($crate::record::json::OneOf { keys: KEYS, next })? {
                            match key {
                                Ok(key) => {
                                    next = key as usize + 1;
                                    match key {
                                        $(Key::$field => {
                                            row.$field =
                                                map.next_value::<$crate::record::json::OrNull<$type>>()?.0;
                                        })*
                                    }
                                }
                                Err(unknown) => drop(row.extra.insert(unknown, map.next_value()?)),
                            }
                        }
                        Ok(row)
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
    };
    (@always $value:expr) => { true };
    (@omit $value:expr) => { !$crate::record::json::Field::is_zero(&$value) };
}
pub(crate) use row;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn go(value: &Value) -> String {
        String::from_utf8(to_bytes(value).unwrap()).unwrap()
    }

    #[test]
    fn output_is_gos() {
        for (value, expected) in [
            (
                json!("a<b>&\u{2028}\u{2029}z"),
                r#""a\u003cb\u003e\u0026\u2028\u2029z""#,
            ),
            (
                json!("\n\r\t\u{8}\u{c}\u{1}\u{1f}\"\\"),
                r#""\n\r\t\u0008\u000c\u0001\u001f\"\\""#,
            ),
            (
                json!("\u{7f}/é€\u{2027}\u{202a}☃"),
                "\"\u{7f}/é€\u{2027}\u{202a}☃\"",
            ),
            (
                json!({"b": [1, true, null], "a": {}}),
                r#"{"a":{},"b":[1,true,null]}"#,
            ),
            (json!(1e-7), "1e-07"),
            (json!(1e22), "1e+22"),
            (
                json!([1.5, 5.0, -0.25, 1e20, 1e-6]),
                "[1.5,5,-0.25,100000000000000000000,0.000001]",
            ),
        ] {
            assert_eq!(go(&value), expected);
        }
    }

    #[test]
    fn arrays_come_with_the_text_of_each_element() {
        let read = |text: &'static str| {
            parse_array::<Value>(&Bytes::from_static(text.as_bytes())).map(|values| {
                values
                    .into_iter()
                    .map(|(_, text)| String::from_utf8(text.to_vec()).unwrap())
                    .collect::<Vec<_>>()
            })
        };
        for (text, expected) in [
            ("", &[] as &[&str]),
            ("null", &[]),
            (" null\n", &[]),
            ("[]", &[]),
            ("[ ]\n", &[]),
            (r#"[{"a":1}]"#, &[r#"{"a":1}"#]),
            (" [ {\"a\" : 1} ,\n{}\t] \r\n", &["{\"a\" : 1}", "{}"]),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text:?}");
        }
        for (bad, line, column) in [
            (" ", 1, 1),
            ("nul", 1, 3),
            ("{}", 1, 0),
            ("[{}", 1, 3),
            ("[{},]", 1, 5),
            ("[{} {}]", 1, 5),
            ("[{}]\n[]", 2, 1),
            ("[{}]x", 1, 5),
            ("null x", 1, 4),
            ("[{\"a\":\n  tru}]", 2, 6),
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!((error.line(), error.column()), (line, column), "{bad:?}: {error}");
        }
    }

    #[test]
    fn what_is_no_unicode_is_read_as_the_replacement_character() {
        for (text, expected) in [
            (&b"[\"a\xffb\"]"[..], "a\u{fffd}b"),
            (b"[\"\\ud800x\"]", "\u{fffd}x"),
            (b"[\"\\udc00\\ud83d\\ude00\\ud800\"]", "\u{fffd}\u{1f600}\u{fffd}"),
            (b"[\"\\\\ud800\\ud800\\n\"]", "\\ud800\u{fffd}\n"),
            (b"[\"\\ud800\\u0041\"]", "\u{fffd}A"),
        ] {
            let values = parse_array::<String>(&Bytes::copy_from_slice(text)).unwrap();
            assert_eq!(values[0].0, expected);
        }
        for bad in [&b"[\"\\ud8"[..], b"[\"\\", b"[\"\\u12", b"\xff"] {
            assert!(parse_array::<String>(&Bytes::copy_from_slice(bad)).is_err());
        }
    }

    row! {
        /// A row with a field of each type.
        Sample {
            /// Text.
            id: String = "id" always,
            /// List.
            names: Vec<String> = "names" omit,
            /// Number.
            count: i64 = "big-count" omit,
            /// Small numbers.
            owners: Vec<u32> = "owners" omit,
            /// Anything.
            flags: BTreeMap<String, Value> = "flags" omit,
            /// Ranges.
            maps: Vec<IdMap> = "maps" omit,
        }
    }

    fn sample(text: &str) -> serde_json::Result<Sample> {
        parse_array::<Sample>(&Bytes::from(format!("[{text}]"))).map(|mut rows| rows.remove(0).0)
    }

    #[test]
    fn fields_are_read_tolerantly_and_written_in_order() {
        let text = |text: &str| String::from_utf8(to_bytes(&sample(text).unwrap()).unwrap()).unwrap();
        for (given, expected) in [
            ("{}", r#"{"id":""}"#),
            (
                r#"{"id":null,"names":null,"big-count":null,"flags":null,"maps":null}"#,
                r#"{"id":""}"#,
            ),
            (
                r#"{"NAMES":["a",null],"Id":"x","BIG-Count":-3}"#,
                r#"{"id":"x","names":["a",""],"big-count":-3}"#,
            ),
            (r#"{"id":"x","ID":"y"}"#, r#"{"id":"y"}"#),
            (
                r#"{"zz":1,"new-field":{"b":[],"a":null},"id":"x"}"#,
                r#"{"id":"x","new-field":{"a":null,"b":[]},"zz":1}"#,
            ),
            (
                r#"{"maps":[{"Host_ID":5,"size":null,"other":1}]}"#,
                r#"{"id":"","maps":[{"container_id":0,"host_id":5,"size":0}]}"#,
            ),
        ] {
            assert_eq!(text(given), expected, "{given}");
        }
        for bad in [
            r#"{"big-count":1.0}"#,
            r#"{"big-count":"1"}"#,
            r#"{"big-count":9223372036854775808}"#,
            r#"{"owners":[-1]}"#,
            r#"{"owners":[4294967296]}"#,
            r#"{"id":1}"#,
            r#"{"names":"a"}"#,
            r#"{"maps":[{"size":1.5}]}"#,
            "null",
            "1",
        ] {
            assert!(sample(bad).is_err(), "{bad}");
        }
    }
}
