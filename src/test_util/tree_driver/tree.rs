//! A tree with everything in it that a layer can have, and what can be seen of a tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use crate::error::Result;
use crate::sys::{at, privilege, xattr};
use crate::test_util::tree_driver::bed::{Fault, write};

/// Longest file of which the content is in a report.
const SHORT: usize = 40;

/// What can be seen of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The type, and the content, target or device number.
    pub(super) content: String,
    /// Mode, owner, modification time, extended attributes.
    pub(super) attributes: String,
    /// The first path of the same file.
    pub(super) same_as: PathBuf,
}

/// Everything in a tree, its root as the empty path.
pub(super) fn look(tree: &Path) -> Result<BTreeMap<PathBuf, Seen>, Fault> {
    let (mut seen, mut first, mut waiting) = (BTreeMap::new(), BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(path) = waiting.pop() {
        let full = tree.join(&path);
        let meta = full.symlink_metadata()?;
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            let mut below = Vec::new();
            for entry in fs::read_dir(&full)? {
                below.push(path.join(entry?.file_name()));
            }
            below.sort();
            waiting.extend(below.into_iter().rev());
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&full)?)
        } else if kind.is_file() {
            describe(&fs::read(&full)?)
        } else if kind.is_fifo() {
            "FIFO".to_owned()
        } else {
            format!("device {:#x}", meta.rdev())
        };
        let same_as = match kind.is_dir() {
            true => path.clone(),
            false => first
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| path.clone())
                .clone(),
        };
        let attributes = format!(
            "mode {:o}, owner {}:{}, modified {}.{:09}, {:?}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            attributes_of(&full)?
        );
        let entry = Seen {
            content,
            attributes,
            same_as,
        };
        seen.insert(path, entry);
    }
    Ok(seen)
}

fn describe(content: &[u8]) -> String {
    match content.len() {
        0..SHORT => format!("file {:?}", String::from_utf8_lossy(content)),
        length => format!(
            "file of {length} bytes, {}",
            crate::digest::Digest::sha256(content)
        ),
    }
}

/// The extended attributes that belong to a layer.
fn attributes_of(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, Fault> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(BTreeMap::new());
    };
    let dir = at::open_dir(above)?;
    let mut found = BTreeMap::new();
    for attribute in xattr::list_at(dir.as_fd(), name.as_bytes())? {
        let belongs = attribute.starts_with("user.")
            || attribute.starts_with("system.posix_acl_")
            || attribute == "security.capability";
        if belongs && let Some(value) = xattr::get_at(dir.as_fd(), name.as_bytes(), attribute.as_str())? {
            found.insert(attribute, value);
        }
    }
    Ok(found)
}

/// The first difference between two trees in what `part` gives.
pub(super) fn compare<T: PartialEq + std::fmt::Debug>(
    expected: &BTreeMap<PathBuf, Seen>,
    found: &BTreeMap<PathBuf, Seen>,
    part: impl Fn(&Seen) -> T,
) -> Result<(), Fault> {
    for (path, wanted) in expected {
        let Some(seen) = found.get(path) else {
            return Err(Fault(format!("{path:?} is missing: {}", wanted.content)));
        };
        let (wanted, seen) = (part(wanted), part(seen));
        if wanted != seen {
            return Err(Fault(format!("{path:?} should be {wanted:?}, and is {seen:?}")));
        }
    }
    match found.keys().find(|path| !expected.contains_key(*path)) {
        Some(path) => Err(Fault(format!("{path:?} should not be there"))),
        None => Ok(()),
    }
}

/// Whether two trees are the same in everything.
pub(super) fn ensure_same(
    expected: &BTreeMap<PathBuf, Seen>,
    found: &BTreeMap<PathBuf, Seen>,
) -> Result<(), Fault> {
    compare(expected, found, Seen::clone)
}

/// Puts everything into an empty tree that the caller and the file system allow.
pub(super) fn fill(tree: &Path) -> Result<(), Fault> {
    fs::create_dir_all(tree.join("d/e/f"))?;
    fs::create_dir(tree.join("empty directory"))?;
    write(tree, "empty", "")?;
    write(tree, "d/short", "content")?;
    let long: Vec<u8> = (0..100_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    fs::write(tree.join("d/long"), long)?;
    let mut sparse = fs::File::create(tree.join("sparse"))?;
    sparse.set_len(1 << 22)?;
    sparse.write_all(b"begin")?;
    for name in ["linked", "d/e/linked again"] {
        fs::hard_link(tree.join("d/short"), tree.join(name))?;
    }
    symlink("/nowhere/at all", tree.join("d/e/dangling"))?;
    symlink("d", tree.join("to a directory"))?;
    fs::write(tree.join(OsStr::from_bytes(b"not \xff utf-8\n")), "odd")?;
    rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0)?;
    let dir = at::open_dir(tree)?;
    if xattr::is_supported_at(dir.as_fd(), b"empty", "user.test") {
        xattr::set_at(dir.as_fd(), b"empty", b"user.test", b"a \0 value")?;
        xattr::set_at(dir.as_fd(), b"d", b"user.test", b"")?;
        xattr::set_at(dir.as_fd(), b".", b"user.root", b"1")?;
    }
    // u::rw-, u:1234:r--, g::r--, m::r--, o::---
    let list = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    // Where there are none the tree is without.
    let _listed = xattr::set_at(dir.as_fd(), b"sparse", b"system.posix_acl_access", list);
    if privilege::is_root() {
        chown(tree.join("d/e"), Some(5), Some(6))?;
        chown(tree.join("d/long"), Some(7), Some(8))?;
        rustix::fs::chownat(
            CWD,
            tree.join("to a directory"),
            Some(rustix::fs::Uid::from_raw(9)),
            None,
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if !privilege::is_rootless() {
            rustix::fs::mknodat(
                CWD,
                tree.join("null"),
                FileType::CharacterDevice,
                Mode::RUSR,
                rustix::fs::makedev(1, 3),
            )?;
        }
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let _set = xattr::set_at(dir.as_fd(), b"empty", b"security.capability", capability);
    }
    let mut modes = vec![
        ("d/long", 0o4755),
        ("d/e", 0o2710),
        ("empty directory", 0o1777),
        ("linked", 0o400),
        ("d/e/f", 0o555),
        ("", 0o751),
    ];
    if privilege::overrides_modes() {
        modes.push(("empty", 0));
    }
    for (name, mode) in modes {
        fs::set_permissions(tree.join(name), Permissions::from_mode(mode))?;
    }
    // From the bottom up: nothing is changed in a directory after its time was set.
    let paths: Vec<PathBuf> = look(tree)?.into_keys().rev().collect();
    for (number, path) in (1_i64..).zip(paths) {
        let time = Timespec {
            tv_sec: 1_000_000_000 + number,
            tv_nsec: 123_456_000 + number,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let full = match path.as_os_str().is_empty() {
            true => tree.to_owned(),
            false => tree.join(path),
        };
        rustix::fs::utimensat(CWD, full, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
