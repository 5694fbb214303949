//! What lies in an overlay driver's home, as names and file contents. Pure.
//!
//! ```text
//! <graph root>/overlay/           0755, a private mount on itself while layers are mounted
//!   .has-mount-program            0600  "false": whiteouts are in the kernel's form; "true": they are files
//!   l/<26 characters>             symbolic link to ../<layer ID>/diff; short names keep mount data short
//!   tempdirs/                     what is being built or deleted, each with its lock
//!   staging/                      partial pulls of the Go library
//!   <layer ID>/                   0700
//!     diff/                       the layer's own files; the upper directory of its mount
//!     diff1/ diff2/ …             what lay in diff before owners were changed; higher numbers are lower
//!     link                        the layer's name in l/, without a newline
//!     lower                       l/<name> of every layer below, topmost first, joined by colons
//!     empty/                      stands in for lower where there is no parent
//!     work/ merged/               0700  the kernel's scratch space; the mount point
//!     mapped/<n>/                 mount points of ID-mapped lowers, while a mount is being made
//! <run root>/overlay/
//!   <feature>-true, <feature>-false       what probes of the kernel have found
//!   <layer ID>/merged             mount point of a layer of another store
//! ```
//!
//! The Go library takes every other directory in the home for a layer, and removes it as garbage.

use crate::driver::check_id;
use crate::error::{ErrorKind, Result};

/// The directory of short names.
pub(super) const LINKS: &str = "l";
/// Locked temporary directories.
pub(super) const TEMP_DIRS: &str = "tempdirs";
/// Staging directories of partial pulls.
pub(super) const STAGING: &str = "staging";
/// Tells whether the store's whiteouts are those of a mount program.
pub(super) const MOUNT_PROGRAM_FLAG: &str = ".has-mount-program";

/// Length of the short names that are made; any length is read.
pub(super) const LINK_LENGTH: usize = 26;

/// The kernel's and the Go library's limit on layers below one.
pub(super) const MAX_LOWERS: usize = 500;

/// More than [`MAX_LOWERS`] names of the longest kind need.
pub(super) const MAX_LOWER_FILE: u64 = 256 * 1024;

/// A new short name.
pub(super) fn new_link() -> Result<String> {
    let mut random = [0; 17];
    getrandom::fill(&mut random)
        .map_err(|error| ErrorKind::Io.err("getting random bytes").with_source(error))?;
    Ok(encode_link(random))
}

/// Base 32 (RFC 4648) of the bytes, cut to the length of a short name.
fn encode_link(bytes: [u8; 17]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |index: usize| {
        bytes
            .get(index / 8)
            .is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0)
    };
    let digit = |place: usize| {
        (0..5).fold(0_usize, |digit, index| {
            digit * 2 + usize::from(bit(place * 5 + index))
        })
    };
    (0..LINK_LENGTH)
        .filter_map(|place| ALPHABET.get(digit(place)))
        .map(|byte| char::from(*byte))
        .collect()
}

/// Whether a name read from disk is a single component.
fn is_component(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.bytes().any(|b| matches!(b, b'/' | b':' | 0))
}

/// Reads a `link` file. A newline at the end, which somebody's editor may have left, is dropped.
pub(super) fn parse_link(content: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(content).ok()?.trim_end_matches('\n');
    is_component(name).then_some(name)
}

/// Reads a `lower` file: the short names of the layers below, topmost first.
pub(super) fn parse_lower(content: &str) -> Result<Vec<&str>> {
    if content.is_empty() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for part in content.split(':') {
        let name = part.strip_prefix("l/").filter(|name| is_component(name));
        names.push(name.ok_or_else(|| ErrorKind::CorruptMetadata.err(format!("lower layer {part:?}")))?);
        if names.len() > MAX_LOWERS {
            return Err(too_deep());
        }
    }
    Ok(names)
}

/// The `lower` file of a child, from its parent's short name and own `lower` file.
pub(super) fn format_lower(parent_link: &str, parent_lower: &str) -> Result<String> {
    if parse_lower(parent_lower)?.len() >= MAX_LOWERS {
        return Err(too_deep());
    }
    let separator = if parent_lower.is_empty() { "" } else { ":" };
    Ok(format!("{LINKS}/{parent_link}{separator}{parent_lower}"))
}

fn too_deep() -> crate::error::Error {
    ErrorKind::InvalidInput.err(format!("more than {MAX_LOWERS} layers on top of each other"))
}

/// Where the short name of a layer points. Anything else is removed by the Go library's repair.
pub(super) fn link_target(id: &str) -> String {
    format!("../{id}/diff")
}

/// The layer ID from the target of a short name.
pub(super) fn parse_link_target(target: &[u8]) -> Option<&str> {
    let target = std::str::from_utf8(target).ok()?;
    let id = target.strip_prefix("../")?.strip_suffix("/diff")?;
    check_id(id).is_ok().then_some(id)
}

/// Whether a directory in the home is a layer.
pub(super) fn is_layer(name: &str) -> bool {
    check_id(name).is_ok() && !matches!(name, LINKS | TEMP_DIRS | STAGING)
}

/// Owner and mode of a directory as `user.containers.override_stat` has them.
pub(super) fn format_override_stat(uid: u32, gid: u32, mode: u32) -> String {
    format!("{uid}:{gid}:{:04o}:dir", mode & 0o7777)
}

/// Owner and mode from `user.containers.override_stat`: `uid:gid:mode` and possibly more parts.
pub(super) fn parse_override_stat(value: &[u8]) -> Option<(u32, u32, u32)> {
    let mut parts = std::str::from_utf8(value).ok()?.split(':');
    let (uid, gid) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((uid, gid, u32::from_str_radix(parts.next()?, 8).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_are_base_32() {
        assert_eq!(encode_link([0; 17]), "A".repeat(26));
        assert_eq!(encode_link([0xff; 17]), "7".repeat(26));
        // "foobarfoobarfooba" by coreutils' base32: MZXW6YTBOJTG633CMFZGM33PMJQQ====
        assert_eq!(encode_link(*b"foobarfoobarfooba"), "MZXW6YTBOJTG633CMFZGM33PMJ");
        let name = new_link().unwrap();
        assert_eq!(name.len(), LINK_LENGTH);
        assert_ne!(name, new_link().unwrap());
        assert_eq!(parse_link(name.as_bytes()), Some(&*name));
    }

    #[test]
    fn link_files_hold_one_name() {
        assert_eq!(parse_link(b"ABC\n"), Some("ABC"));
        for bad in [
            &b""[..],
            b"\n",
            b".",
            b"..",
            b"a/b",
            b"a:b",
            b"a\0",
            b"\xff",
            &[b'a'; 256],
        ] {
            assert_eq!(parse_link(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lower_files_list_short_names() {
        assert_eq!(parse_lower("").unwrap(), [""; 0]);
        assert_eq!(parse_lower("l/A:l/B").unwrap(), ["A", "B"]);
        for bad in [
            "A",
            "l/",
            "l/..",
            "l/A:",
            ":l/A",
            "l/A/../../x",
            "l/A\n:l/B/",
            "/l/A",
        ] {
            assert_eq!(
                parse_lower(bad).unwrap_err().kind(),
                ErrorKind::CorruptMetadata,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn depth_ends_at_the_limit() {
        let mut lower = String::new();
        for depth in 0..MAX_LOWERS {
            assert_eq!(parse_lower(&lower).unwrap().len(), depth);
            lower = format_lower("X", &lower).unwrap();
        }
        assert_eq!(parse_lower(&lower).unwrap().len(), MAX_LOWERS);
        assert_eq!(
            format_lower("X", &lower).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        assert!(parse_lower(&format!("{lower}:l/Y")).is_err());
    }

    #[test]
    fn link_targets_name_a_layer_of_the_same_home() {
        assert_eq!(parse_link_target(link_target("abc").as_bytes()), Some("abc"));
        for bad in [
            "abc/diff",
            "../../abc/diff",
            "../abc",
            "/abc/diff",
            "../abc/diff/",
            "..//diff",
            "../a/b/diff",
        ] {
            assert_eq!(parse_link_target(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_link_target(b"../../diff"), None);
        assert_eq!(parse_link_target(b"../l/diff"), None);
        assert!(is_layer("abc") && !is_layer("l") && !is_layer("staging") && !is_layer("tempdirs"));
    }

    #[test]
    fn override_stat_is_decimal_and_octal() {
        assert_eq!(parse_override_stat(b"1:2:0755:dir"), Some((1, 2, 0o755)));
        assert_eq!(parse_override_stat(b"1:2:40555"), Some((1, 2, 0o40555)));
        assert_eq!(format_override_stat(7, 8, 0o40755), "7:8:0755:dir");
        for bad in [&b""[..], b"1:2", b"1:2:9", b"-1:2:7", b"a:b:c"] {
            assert_eq!(parse_override_stat(bad), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_can_be_extended_and_read_again(names in prop::collection::vec("[A-Z2-7]{1,26}", 0..20)) {
            let lower = names.iter().map(|name| format!("l/{name}")).collect::<Vec<_>>().join(":");
            prop_assert_eq!(parse_lower(&lower).unwrap(), names.iter().map(String::as_str).collect::<Vec<_>>());
            let extended = format_lower("TOP", &lower).unwrap();
            let again = parse_lower(&extended).unwrap();
            prop_assert_eq!(again[0], "TOP");
            prop_assert_eq!(&again[1..], &names[..]);
        }

        #[test]
        fn no_content_leads_out_of_the_links(content in ".{0,40}") {
            for name in parse_lower(&content).unwrap_or_default() {
                prop_assert!(!name.contains('/') && name != ".." && !name.is_empty());
            }
            if let Some(id) = parse_link_target(content.as_bytes()) {
                prop_assert!(!id.contains('/') && id != "..");
            }
        }
    }
}
