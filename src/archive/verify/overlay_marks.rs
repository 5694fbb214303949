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
    ) -> Vec<String> {
        const NAMES: [&str; 4] = ["redirect", "metacopy", "whiteout", "protattr"];
        let is_foreign = |attribute: &&String| {
            let own = ["trusted.overlay.", "user.overlay."];
            let Some(what) = own.iter().find_map(|prefix| attribute.strip_prefix(prefix)) else {
                return false;
            };
            let has_value = |value: &[u8]| {
                let found = xattr::get_at(dir, name, attribute.as_str());
                found.is_ok_and(|found| found.as_deref() == Some(value))
            };
            NAMES.contains(&what) || what == "opaque" && !has_value(whiteout::OPAQUE_VALUE)
        };
        found.iter().filter(is_foreign).cloned().collect()
    }

    pub(super) fn is_opaque(&self, dir: BorrowedFd<'_>, name: &[u8]) -> bool {
        let value = xattr::get_at(dir, name, self.namespace.opaque());
        value.is_ok_and(|value| value.as_deref() == Some(whiteout::OPAQUE_VALUE))
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
                || self.is_opaque(dir.as_fd(), name)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
