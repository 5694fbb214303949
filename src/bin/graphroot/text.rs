//! Text formatted as the Go program formats it.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

/// A text in double quotes, escaped as by Go's `%q`.
pub(crate) fn go_quote(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{7}' => out.push_str("\\a"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{b}' => out.push_str("\\v"),
                letter if is_printable(letter) => out.push(letter),
                letter => {
                    let code = u32::from(letter);
                    // Writing to a String cannot fail.
                    let _written = match code {
                        0..=0x7f => write!(out, "\\x{code:02x}"),
                        0x80..=0xffff => write!(out, "\\u{code:04x}"),
                        _ => write!(out, "\\U{code:08x}"),
                    };
                }
            }
        }
        for byte in chunk.invalid() {
            let _written = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// Whether Go prints a character unescaped. Combining marks are: `escape_debug` escapes them only at the start of a
/// text, so the character is put behind a letter.
fn is_printable(letter: char) -> bool {
    let mut pair = String::from("a");
    pair.push(letter);
    pair.escape_debug().count() == 2
}

/// The text of a system error as Go prints it: in lower case, without Rust's `(os error N)`. Other errors say what they
/// say.
pub(crate) fn system_error(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Numbers as Go prints a slice.
pub(crate) fn numbers(items: &[u32]) -> String {
    let items: Vec<String> = items.iter().map(u32::to_string).collect();
    format!("[{}]", items.join(" "))
}

/// A size with a binary unit and one decimal.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        tenths = (whole % 1024) * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{whole} {name}")
    } else {
        format!("{whole}.{tenths} {name}")
    }
}

/// A duration in the form of Go's `time.ParseDuration`, such as `1h30m` or `1.5s`. A negative one is none.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let is_negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut any = false;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        let digits = rest.strip_suffix(after).unwrap_or_default();
        // The longest unit that matches: `ms` is milliseconds, not minutes.
        let matching = UNITS.iter().filter(|(unit, _)| after.starts_with(unit));
        let (unit, factor) = matching.max_by_key(|(unit, _)| unit.len())?;
        let dots = digits.bytes().filter(|byte| *byte == b'.').count();
        if dots > 1 || digits.len() == dots {
            return None;
        }
        seconds += format!("0{digits}0").parse::<f64>().ok()? / if dots == 0 { 10.0 } else { 1.0 } * factor;
        rest = after.strip_prefix(unit).unwrap_or_default();
        any = true;
    }
    let seconds = if is_negative { 0.0 } else { seconds };
    Duration::try_from_secs_f64(seconds).ok().filter(|_| any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_those_of_go() {
        for (text, expected) in [
            (&b"/plain path"[..], r#""/plain path""#),
            (b"a\"b\\c\x07\n\x01\x7f", r#""a\"b\\c\a\n\x01\x7f""#),
            (b"\xff\xc3\xa4", "\"\\xff\u{e4}\""),
            (
                "\u{a0}\u{200b}\u{e0001}e\u{301}".as_bytes(),
                "\"\\u00a0\\u200b\\U000e0001e\u{301}\"",
            ),
        ] {
            assert_eq!(go_quote(text), expected);
        }
    }

    #[test]
    fn errors_and_sizes_read_well() {
        let missing = io::Error::from_raw_os_error(libc_enoent());
        assert_eq!(system_error(&missing), "no such file or directory");
        assert_eq!(human_size(0), "0 B");
        assert_eq!(human_size(1023), "1023 B");
        assert_eq!(human_size(1536), "1.5 KiB");
        assert_eq!(human_size(u64::MAX), "16777215.9 TiB");
        assert_eq!(numbers(&[]), "[]");
        assert_eq!(numbers(&[1, 2]), "[1 2]");
    }

    #[test]
    fn durations_are_those_of_go() {
        for (good, millis) in [
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("-1.5s", 0),
            ("0", 0),
            ("+0", 0),
            ("3ms", 3),
            (".5h", 1_800_000),
            ("1.h", 3_600_000),
            ("2000µs", 2),
        ] {
            assert_eq!(duration(good), Some(Duration::from_millis(millis)), "{good}");
        }
        for bad in ["", "24", "h", "1x", "1..5s", ".s", "foo", "1h30", "-"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    fn libc_enoent() -> i32 {
        rustix::io::Errno::NOENT.raw_os_error()
    }
}
