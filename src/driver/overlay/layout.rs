//! The directories and files of the overlay driver: names and contents. Pure.
//!
//! ```text
//! <graph root>/overlay/           0755, a private mount on itself while layers are mounted
//!   .has-mount-program            0600  "false": whiteouts are in the kernel's form; "true": they are files
//!   l/<link ID>                   symbolic link to ../<layer ID>/diff; 26 characters, which keep mount data short
//!   tempdirs/                     layers that are being built or deleted, each with its lock
//!   staging/                      staged layers of the Go library
//!   <layer ID>/                   0700
//!     diff/                       the layer's own files; the upper directory of its mount
//!     diff -> /…/diff             in its place: the files of a layer in an additional layer store
//!     additionallayer             the directory of that layer, without a newline
//!     diff/ab/cdef…               in its place: contents by digest (see `composefs`)
//!     composefs-data/             what says how they are named
//!     replaced0/ replaced1/ …     trees that others have replaced while a mount showed them
//!     diff1/ diff2/ …             older generations: diff before owners were changed; higher numbers are lower
//!     link                        the layer's link ID, without a newline
//!     lower-layers                ID of every layer below, topmost first, joined by colons, without a newline
//!     lower                       the same for programs that do not know `lower-layers`: l/<link ID> of every layer
//!     empty/                      the lower directory of a layer without a parent
//!     work/ merged/               0700  the kernel's scratch space; the mount point
//!     composefs-layers/<n>/       mount points of images, while a mount is being made
//!     mapped/<n>/                 mount points of ID-mapped lowers, while a mount is being made
//! <run root>/overlay/
//!   <feature>-true, <feature>-false       results of probes of the kernel
//!   <layer ID>/merged             mount point of a layer of another store
//!   tempdirs/                     mount points of private mounts while they are made, each with its lock
//! ```
//!
//! The Go library takes every other directory in the home for a layer, and removes it as garbage.

use crate::driver::contract::EntryKind;
use crate::driver::layer_id;
use crate::error::{ErrorKind, Result};
use crate::sys::random;

/// The driver's name, and that of its directories.
pub(super) const NAME: &str = "overlay";

/// The directory of link IDs.
pub(super) const LINKS: &str = "l";
/// Locked temporary directories.
pub(super) const TEMP_DIRS: &str = "tempdirs";
/// Staged layers of the Go library.
pub(super) const STAGING: &str = "staging";
/// File that says whether whiteouts are written as a mount program reads them.
pub(super) const MOUNT_PROGRAM_FLAG: &str = ".has-mount-program";

/// Length of new link IDs; any length is read.
pub(super) const LINK_LENGTH: usize = 26;

/// The kernel's and the Go library's limit on layers below one.
pub(super) const MAX_LOWERS: usize = 500;

/// Most bytes that are read of a `link`, `lower` or `lower-layers` file; [`MAX_LOWERS`] names of the greatest length take
/// less.
pub(super) const MAX_LOWER_FILE: u64 = 256 * 1024;

/// File with the link IDs of the layers below.
pub(super) const LOWER: &str = "lower";
/// File with the directory of a layer in an additional layer store.
pub(super) const ADDITIONAL_LAYER: &str = "additionallayer";
/// File with the IDs of the layers below.
pub(super) const LOWER_LAYERS: &str = "lower-layers";

/// A new link ID.
pub(super) fn new_link() -> Result<String> {
    random::bytes().map(encode_link)
}

/// Base 32 (RFC 4648) of the bytes, cut to the length of a link ID.
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

/// Reads a `link` file. Newlines at the end, which an editor may have added, are dropped.
pub(super) fn parse_link(content: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(content).ok()?.trim_end_matches('\n');
    is_component(name).then_some(name)
}

/// Reads a `lower` file: the link IDs of the layers below, topmost first.
pub(super) fn parse_lower(content: &str) -> Result<Vec<&str>> {
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

/// The `lower` file of a child, from its parent's link ID and the link IDs of the layers below the parent.
pub(super) fn format_lower<'a>(
    parent_link: &'a str,
    below: impl IntoIterator<Item = &'a str>,
) -> Result<String> {
    let links = std::iter::once(parent_link).chain(below);
    let parts: Vec<String> = links.map(|link| format!("{LINKS}/{link}")).collect();
    if parts.len() > MAX_LOWERS {
        return Err(too_deep());
    }
    Ok(parts.join(":"))
}

/// Reads a `lower-layers` file: the IDs of the layers below, topmost first.
pub(super) fn parse_lower_layers(content: &str) -> Result<Vec<&str>> {
    let mut ids = Vec::new();
    for id in content.split(':') {
        if !can_be_listed(id) {
            return Err(ErrorKind::CorruptMetadata.err(format!("lower layer {id:?}")));
        }
        ids.push(id);
        if ids.len() > MAX_LOWERS {
            return Err(too_deep());
        }
    }
    Ok(ids)
}

/// The `lower-layers` file of a child, from its parent's ID and the IDs of the layers below the parent; `None` if one of
/// them cannot be written in it.
pub(super) fn format_lower_layers(parent: &str, below: &[String]) -> Result<Option<String>> {
    if below.len() >= MAX_LOWERS {
        return Err(too_deep());
    }
    let ids = || std::iter::once(parent).chain(below.iter().map(String::as_str));
    Ok(ids()
        .all(can_be_listed)
        .then(|| ids().collect::<Vec<_>>().join(":")))
}

/// Whether an ID can be one of a list that is separated by colons. A line break is no part of one that a program made.
fn can_be_listed(id: &str) -> bool {
    check_id(id).is_ok() && !id.chars().any(|c| c == ':' || c.is_control())
}

pub(super) fn too_deep() -> crate::error::Error {
    ErrorKind::InvalidInput.err(format!("more than {MAX_LOWERS} layers on top of each other"))
}

/// The target of a layer's symbolic link in `l/`. The Go library's repair removes links with any other target.
pub(super) fn link_target(id: &str) -> String {
    format!("../{id}/diff")
}

/// The layer ID from the target of a link in `l/`.
pub(super) fn parse_link_target(target: &[u8]) -> Option<&str> {
    let target = std::str::from_utf8(target).ok()?;
    let id = target.strip_prefix("../")?.strip_suffix("/diff")?;
    check_id(id).is_ok().then_some(id)
}

/// Refuses IDs that are no single file name, and names that the driver needs itself.
///
/// # Errors
/// [`ErrorKind::UnsafePath`].
pub(super) fn check_id(id: &str) -> Result<()> {
    if matches!(id, LINKS | TEMP_DIRS | STAGING) {
        return Err(ErrorKind::UnsafePath.err(format!("ID {id:?}, a directory of the overlay driver")));
    }
    layer_id::check_id(id)
}

/// What a name in the home stands for.
pub(super) fn kind_of(name: &str, is_dir: bool) -> EntryKind {
    match name {
        LINKS | TEMP_DIRS | STAGING if is_dir => EntryKind::Internal,
        MOUNT_PROGRAM_FLAG => EntryKind::Internal,
        _ if is_dir && check_id(name).is_ok() => EntryKind::Layer,
        _ => EntryKind::Unknown,
    }
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
    fn link_ids_are_base_32() {
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
    fn lower_files_list_link_ids() {
        assert_eq!(parse_lower("l/A:l/B").unwrap(), ["A", "B"]);
        for bad in [
            "",
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
        let mut below = Vec::new();
        let mut lower = String::new();
        for depth in 1..=MAX_LOWERS {
            lower = format_lower("X", below.iter().copied()).unwrap();
            below = vec!["X"; depth];
            assert_eq!(parse_lower(&lower).unwrap(), below);
        }
        assert_eq!(
            format_lower("X", below).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        assert!(parse_lower(&format!("{lower}:l/Y")).is_err());
    }

    #[test]
    fn lower_layers_are_ids_and_nothing_else() {
        let below = ["b".to_owned(), "c".to_owned()];
        let content = format_lower_layers("a", &below).unwrap().unwrap();
        assert_eq!(content, "a:b:c");
        assert_eq!(parse_lower_layers(&content).unwrap(), ["a", "b", "c"]);
        assert_eq!(format_lower_layers("a", &[]).unwrap().unwrap(), "a");
        for id in ["a:b", "a\nb", ".."] {
            assert_eq!(format_lower_layers(id, &below).unwrap(), None);
            assert_eq!(format_lower_layers("a", &[id.to_owned()]).unwrap(), None);
        }
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "a::b",
            "..",
            "a:../../etc",
            "/a",
            "a/diff",
            "a\n",
            "a\0",
            "l",
            "l/A",
            "tempdirs",
            "a:staging",
        ] {
            let error = parse_lower_layers(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{bad:?}");
        }
        assert!(parse_lower_layers(&"x".repeat(201)).is_err());
        let many = vec!["a".to_owned(); MAX_LOWERS];
        assert_eq!(parse_lower_layers(&many.join(":")).unwrap().len(), MAX_LOWERS);
        let kind = ErrorKind::InvalidInput;
        assert_eq!(format_lower_layers("a", &many).unwrap_err().kind(), kind);
        assert_eq!(
            parse_lower_layers(&format!("{}:a", many.join(":")))
                .unwrap_err()
                .kind(),
            kind
        );
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
    }

    #[test]
    fn names_in_the_home_have_kinds() {
        assert_eq!(kind_of("abc", true), EntryKind::Layer);
        for name in ["l", "staging", "tempdirs"] {
            assert_eq!(kind_of(name, true), EntryKind::Internal);
            assert_eq!(kind_of(name, false), EntryKind::Unknown);
            assert_eq!(check_id(name).unwrap_err().kind(), ErrorKind::UnsafePath);
        }
        assert_eq!(kind_of(".has-mount-program", false), EntryKind::Internal);
        assert_eq!(kind_of("abc", false), EntryKind::Unknown);
        assert_eq!(kind_of(&"x".repeat(201), true), EntryKind::Unknown);
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
        fn whatever_is_read_can_be_extended_and_read_again(names in prop::collection::vec("[A-Z2-7]{1,26}", 1..20)) {
            let lower = names.iter().map(|name| format!("l/{name}")).collect::<Vec<_>>().join(":");
            prop_assert_eq!(parse_lower(&lower).unwrap(), names.iter().map(String::as_str).collect::<Vec<_>>());
            let extended = format_lower("TOP", parse_lower(&lower).unwrap()).unwrap();
            let again = parse_lower(&extended).unwrap();
            prop_assert_eq!(again[0], "TOP");
            prop_assert_eq!(&again[1..], &names[..]);
        }

        #[test]
        fn no_content_leads_out_of_the_links(content in ".{0,40}") {
            for name in parse_lower(&content).unwrap_or_default() {
                prop_assert!(!name.contains('/') && name != ".." && !name.is_empty());
            }
            for id in parse_lower_layers(&content).unwrap_or_default() {
                prop_assert!(!id.contains('/') && id != ".." && !id.is_empty());
            }
            if let Some(id) = parse_link_target(content.as_bytes()) {
                prop_assert!(!id.contains('/') && id != "..");
            }
        }
    }
}
