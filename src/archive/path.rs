//! Names from an archive: cleaned lexically, confined to the root. Pure.

use std::borrow::Cow;

/// The longest path that the kernel takes in one call.
pub(crate) const MAX_PATH: usize = 4095;

/// What cleaning found out about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cleaned {
    /// The name is exactly the start of a relative name, `.` or nothing (after cleaning): overlay layers ignore that
    /// entry, while `/` or `..` stand for the root directory itself.
    pub(crate) dot: bool,
    /// A `..` led above the root and was dropped.
    pub(crate) clamped: bool,
}

/// Writes the components of `name` to `out`, without a slash in front: `.` and empty ones dropped, `..` applied to
/// the text and stopped at the root. Empty means the root.
pub(crate) fn clean(name: &[u8], out: &mut Vec<u8>) -> Cleaned {
    out.clear();
    let mut clamped = false;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                clamped |= out.is_empty();
                out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            }
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    let absolute = name.first() == Some(&b'/');
    // `/..` is the root and nothing was lost.
    Cleaned {
        dot: out.is_empty() && !absolute && !clamped,
        clamped,
    }
}

/// Directory and base name of a clean path; both empty for the root.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (parent, rest) = path.split_at(slash);
            (parent, rest.get(1..).unwrap_or_default())
        }
        None => (&[], path),
    }
}

/// Appends a component.
pub(crate) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// A name for a message: printable and not too long.
pub(crate) fn show(name: &[u8]) -> String {
    const KEEP: usize = 120;
    let text = match name.get(..KEEP) {
        Some(start) if name.len() > KEEP => {
            let cut: Cow<'_, str> = String::from_utf8_lossy(start);
            return format!("{cut:?}… ({} bytes)", name.len());
        }
        _ => String::from_utf8_lossy(name),
    };
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_clamped() {
        let cases: [(&str, &str, bool, bool); 14] = [
            ("a//b/./c/", "a/b/c", false, false),
            ("/abs", "abs", false, false),
            ("//abs/", "abs", false, false),
            ("../evil", "evil", false, true),
            ("a/../../evil", "evil", false, true),
            ("a/../b", "b", false, false),
            ("a/b/..", "a", false, false),
            ("", "", true, false),
            (".", "", true, false),
            ("./", "", true, false),
            ("a/..", "", true, false),
            ("/", "", false, false),
            ("/a/..", "", false, false),
            ("..", "", false, true),
        ];
        let mut out = Vec::new();
        for (name, path, dot, clamped) in cases {
            assert_eq!(
                clean(name.as_bytes(), &mut out),
                Cleaned { dot, clamped },
                "{name:?}"
            );
            assert_eq!(String::from_utf8_lossy(&out), path, "{name:?}");
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
        assert_eq!(split(b""), (&b""[..], &b""[..]));
    }

    #[test]
    fn long_names_are_cut_in_messages() {
        assert_eq!(show(b"a\xff\n"), "\"a\u{fffd}\\n\"");
        let shown = show(&[b'x'; 10_000]);
        assert!(shown.len() < 200 && shown.contains("10000 bytes"), "{shown}");
    }
}
