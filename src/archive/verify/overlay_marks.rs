//! The marks by which overlayfs hides what the layers below have: whiteouts and opaque directories.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};

use crate::archive::apply::metadata::kind;
use crate::archive::apply::settle::literal_dir;
use crate::archive::path::split;
use crate::error::{IoContext as _, Result};
use crate::sys::{at, xattr};
use crate::whiteout::{self, Namespace};

const DOING: &str = "looking at a file of the layer";

/// A layer's own changes in overlayfs' form.
#[derive(Debug)]
pub(crate) struct Marks {
    /// The trees of the layers below, topmost first.
    pub(crate) lowers: Vec<OwnedFd>,
    /// Which attributes mark opaque directories.
    pub(crate) namespace: Namespace,
}

impl Marks {
    /// The type of what the layers below have at a path, through no link.
    pub(super) fn below(&self, path: &[u8]) -> Result<Option<FileType>> {
        Ok(self.stat_below(path)?.map(|stat| kind(&stat)))
    }

    /// The status of what the layers below have at a path, through no link.
    pub(super) fn stat_below(&self, path: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = split(path);
        for lower in &self.lowers {
            let dir = literal_dir(lower.as_fd(), parent)?;
            if let Some(dir) = dir
                && let Some(stat) = at::lstat_at(dir.as_fd(), name).during(DOING)?
            {
                let is_whiteout = kind(&stat) == FileType::CharacterDevice && stat.st_rdev == 0;
                return Ok((!is_whiteout).then_some(stat));
            }
            if self.is_hidden_above(lower.as_fd(), path)? {
                break;
            }
        }
        Ok(None)
    }

    /// Those of the attributes of `name` by which overlayfs would show something else than what is there. No layer that was
    /// unpacked has them.
    pub(super) fn foreign_attributes(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        found: &[String],
    ) -> Result<Vec<String>> {
        const NAMES: [&str; 4] = ["redirect", "metacopy", "whiteout", "protattr"];
        let mut foreign = Vec::new();
        for attribute in found {
            let own = ["trusted.overlay.", "user.overlay."];
            let Some(what) = own.iter().find_map(|prefix| attribute.strip_prefix(prefix)) else {
                continue;
            };
            if NAMES.contains(&what) || what == "opaque" && !says_opaque(dir, name, attribute)? {
                foreign.push(attribute.clone());
            }
        }
        Ok(foreign)
    }

    pub(super) fn is_opaque(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
        says_opaque(dir, name, self.namespace.opaque())
    }

    /// Whether a directory above `path` in a tree is opaque, or no directory, and so hides everything below it.
    pub(super) fn is_hidden_above(&self, root: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (end, _) in slashes {
            let (parent, name) = split(path.get(..end).unwrap_or_default());
            let Some(dir) = literal_dir(root, parent)? else {
                return Ok(false);
            };
            let stat = at::lstat_at(dir.as_fd(), name).during(DOING)?;
            if stat.is_some_and(|stat| kind(&stat) != FileType::Directory)
                || self.is_opaque(dir.as_fd(), name)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether an attribute of `name` says that it is an opaque directory; not if it cannot be read for good.
fn says_opaque(dir: BorrowedFd<'_>, name: &[u8], attribute: &str) -> Result<bool> {
    match xattr::get_at(dir, name, attribute).during("reading an attribute of a file of the layer") {
        Ok(value) => Ok(value.as_deref() == Some(whiteout::OPAQUE_VALUE)),
        Err(error) if error.is_passing() => Err(error),
        Err(_unreadable) => Ok(false),
    }
}
