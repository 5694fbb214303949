//! What can be seen of a tree.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::sys::{at, xattr};
use crate::test_util::tree_driver::bed::{Fault, ensure};

/// Longest file of which the content is in a report.
const SHORT: usize = 40;

/// The type, and the content, target or device number.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Content {
    File(Arc<[u8]>),
    Other(String),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(what) => f.write_str(what),
            Self::File(content) if content.len() < SHORT => {
                write!(f, "file {:?}", String::from_utf8_lossy(content))
            }
            // Only of what is in a report: a digest of every file would take most of the time in a debug build.
            Self::File(content) => {
                let digest = crate::digest::Digest::sha256(content);
                write!(f, "file of {} bytes, {digest}", content.len())
            }
        }
    }
}

/// What can be seen of one entry.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) content: Content,
    /// Mode, owner, modification time, extended attributes.
    pub(super) attributes: String,
    /// The first path of the same file.
    pub(super) same_as: PathBuf,
    /// Device and inode.
    inode: (u64, u64),
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
            Content::Other("directory".to_owned())
        } else if kind.is_symlink() {
            Content::Other(format!("link to {:?}", fs::read_link(&full)?))
        } else if kind.is_file() {
            Content::File(fs::read(&full)?.into())
        } else if kind.is_fifo() {
            Content::Other("FIFO".to_owned())
        } else if kind.is_block_device() {
            Content::Other(format!("block device {:#x}", meta.rdev()))
        } else {
            Content::Other(format!("device {:#x}", meta.rdev()))
        };
        let inode = (meta.dev(), meta.ino());
        let same_as = match kind.is_dir() {
            true => path.clone(),
            false => first.entry(inode).or_insert_with(|| path.clone()).clone(),
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
            inode,
        };
        seen.insert(path, entry);
    }
    Ok(seen)
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
            return Err(Fault(format!("{path:?} is missing: {:?}", wanted.content)));
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
    compare(expected, found, |seen| {
        (
            seen.content.clone(),
            seen.attributes.clone(),
            seen.same_as.clone(),
        )
    })
}

/// Whether no file or directory is in both trees.
pub(super) fn ensure_separate(
    one: &BTreeMap<PathBuf, Seen>,
    other: &BTreeMap<PathBuf, Seen>,
) -> Result<(), Fault> {
    let inodes: BTreeMap<_, _> = one.iter().map(|(path, seen)| (seen.inode, path)).collect();
    for (path, seen) in other {
        let same = inodes.get(&seen.inode);
        ensure(same.is_none(), || {
            format!("{path:?} has the device and inode number of {same:?} of another tree")
        })?;
    }
    Ok(())
}
