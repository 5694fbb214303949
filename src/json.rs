//! JSON as the Go library writes and reads it.
//!
//! Writing: no white space, keys in the order of the row's fields, `<`, `>`, `&`, U+2028 and U+2029 escaped, control
//! characters as `\u00XX` except for `\n`, `\r` and `\t`. Reading is tolerant where Go is: see
//! [`row`](crate::record::row). Every row is read together with its text, so that a save can copy unchanged rows byte for
//! byte.
//!
//! Pure: nothing here touches a file.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::ser::{CharEscape, Formatter};

use crate::error::{Error, ErrorKind};

/// A value as the Go library writes it: compact, with `<`, `>`, `&`, U+2028 and U+2029 escaped. With the store's views
/// ([`Layer`](crate::Layer), [`Image`](crate::Image), [`Container`](crate::Container), [`Change`](crate::Change)) this
/// gives what `containers-storage --json` prints, byte for byte.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a value that cannot be written as JSON, such as a map whose keys are not strings.
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

/// A JSON string's inside, escaped as Go does it.
pub(crate) fn push_escaped(line: &mut String, text: &str) {
    use std::fmt::Write as _;
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                write!(line, "\\u{:04x}", u32::from(character)).unwrap_or_default();
            }
            other => line.push(other),
        }
    }
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

/// Reads an array of values, each with its own text (a slice of `data`). Empty input and `null` are the empty
/// array. `into` converts each value at once, which avoids moving large ones.
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
    // One parser over the whole input finds the error, with its line and column.
    match serde_json::from_slice::<Vec<T>>(data) {
        Err(error) => Err(error),
        Ok(_values) => Err(serde_json::Error::custom("not an array of records")),
    }
}

/// Elements for which memory is reserved ahead, at most.
const MAX_AHEAD: usize = 4096;

/// The white space of JSON.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The elements of the array; `None` if anything is wrong.
fn split<T: DeserializeOwned, U>(data: &Bytes, into: fn(T) -> U) -> Option<Vec<(U, Bytes)>> {
    // Checked once for the whole file, so that the parser does not check each string.
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
            // Most elements are about as long as the first one.
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
}
