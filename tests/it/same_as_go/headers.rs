//! Two archives that are not the same bytes, header by header.

use std::fmt::Write as _;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 512;

/// Name, offset and length of a header's fields.
const FIELDS: [(&str, usize, usize); 11] = [
    ("mode", 100, 8),
    ("uid", 108, 8),
    ("gid", 116, 8),
    ("size", 124, 12),
    ("type", 156, 1),
    ("link", 157, 100),
    ("magic", 257, 8),
    ("uname", 265, 32),
    ("gname", 297, 32),
    ("major", 329, 8),
    ("minor", 337, 8),
];

/// A header and what follows it.
struct Entry<'a> {
    header: &'a [u8],
    content: &'a [u8],
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field[..end].escape_ascii().to_string()
}

impl Entry<'_> {
    fn field(&self, at: usize, len: usize) -> String {
        text(&self.header[at..at + len])
    }

    /// Prefix and name. An extended header has the name of what it extends, near enough.
    fn name(&self) -> String {
        let (prefix, name) = (self.field(345, 155), self.field(0, 100));
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        if self.header[156] == b'x' {
            format!("(extended) {name}")
        } else {
            name
        }
    }

    /// Accepted: `creation-times`.
    fn mtime(&self, started: Timestamp) -> String {
        let field = self.field(136, 12);
        match i64::from_str_radix(field.trim(), 8) {
            Ok(0) => "0".into(),
            Ok(seconds) if seconds >= started.as_second() => "now".into(),
            _ => field,
        }
    }

    fn digest(&self) -> String {
        let mut hex = String::new();
        for byte in Sha256::digest(self.content) {
            write!(hex, "{byte:02x}").unwrap();
        }
        hex
    }
}

/// The entries up to the end mark, and where that is.
fn entries(archive: &[u8]) -> (Vec<Entry<'_>>, usize) {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = archive
        .get(at..at + BLOCK)
        .filter(|block| block.iter().any(|byte| *byte != 0))
    {
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        at += BLOCK;
        let content = &archive[at..at + size];
        at += size.next_multiple_of(BLOCK);
        found.push(Entry { header, content });
    }
    (found, at)
}

/// One line for each difference in meaning; at least one if the bytes differ otherwise than in accepted ways.
pub(super) fn differences(ours: &[u8], theirs: &[u8], started: Timestamp) -> Vec<String> {
    let ((a, a_end), (b, b_end)) = (entries(ours), entries(theirs));
    let mut lines = Vec::new();
    if ours[a_end..] != theirs[b_end..] {
        lines.push("diff: the ends differ".into());
    }
    let (mut i, mut j) = (0, 0);
    loop {
        match (a.get(i), b.get(j)) {
            (None, None) => return lines,
            (Some(one), Some(other)) if one.name() == other.name() => {
                compare(one, other, started, &mut lines);
                (i, j) = (i + 1, j + 1);
            }
            (Some(one), _) if b.iter().skip(j).all(|other| other.name() != one.name()) => {
                lines.push(format!("diff {}: only in the first ({})", one.name(), kind(one)));
                i += 1;
            }
            (_, Some(other)) if a.iter().skip(i).all(|one| one.name() != other.name()) => {
                lines.push(format!(
                    "diff {}: only in the second ({})",
                    other.name(),
                    kind(other)
                ));
                j += 1;
            }
            (Some(one), Some(other)) => {
                lines.push(format!(
                    "diff: {} comes in the place of {}",
                    one.name(),
                    other.name()
                ));
                return lines;
            }
            (one, other) => unreachable!("{} {}", one.is_some(), other.is_some()),
        }
    }
}

fn kind(entry: &Entry<'_>) -> &'static str {
    if entry.header[156] == b'5' {
        "directory"
    } else {
        "other"
    }
}

fn compare(one: &Entry<'_>, other: &Entry<'_>, started: Timestamp, lines: &mut Vec<String>) {
    let name = one.name();
    let mut differs = |what: &str, a: String, b: String| {
        if a != b {
            lines.push(format!("diff {name}: {what} {a} / {b}"));
        }
    };
    for (what, at, len) in FIELDS {
        differs(what, one.field(at, len), other.field(at, len));
    }
    differs("mtime", one.mtime(started), other.mtime(started));
    differs("content", one.digest(), other.digest());
}

#[test]
fn differences_of_headers_are_told_field_by_field() {
    use crate::support::tar::{Header, Tar};
    let started = Timestamp::now();
    let now = started.as_second();
    let file = |name: &str| Header::new(b'0', name).size(1);
    let one = Tar::new()
        .entry(file("a").mode(0o600).content("x"))
        .entry(file("b").mtime(now).content("x"))
        .dir("c/")
        .build();
    let other = Tar::new()
        .entry(file("a").content("y"))
        .entry(file("b").mtime(now + 5).content("x"))
        .build();
    let lines = differences(&one, &other, started);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "diff a: mode 0000600 / 0000644");
    assert!(lines[1].starts_with("diff a: content "));
    assert_eq!(lines[2], "diff c/: only in the first (directory)");
    let swapped = Tar::new().file("b", "x").file("a", "x").build();
    assert_eq!(differences(&one, &swapped, started).len(), 1);
}
