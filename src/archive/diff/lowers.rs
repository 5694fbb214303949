//! What lies below one layer's own tree: the trees of the layers under it, merged by overlayfs' rules.
//!
//! [`Lowers`] goes down together with a walk of the upper tree and knows for each directory in which of the lower
//! trees it exists and shows through. That ends at the first tree where the name is a whiteout, no directory, or an
//! opaque directory, and at once below an opaque directory of the upper tree. So one lookup is one `fstatat` per tree
//! that matters, with no links followed, and most directories of an upper tree matter in one or two trees only.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::error::{IoContext as _, Result};
use crate::sys::{at, xattr};
use crate::whiteout::{Namespace, OPAQUE_VALUE};

use crate::archive::diff::walk::absolute;
use crate::archive::lookup::open_dir;
use crate::archive::path;

/// Trees of which the current directory stays open; the others are looked into by path.
const MAX_OPEN: usize = 64;

/// Whether it is overlayfs' mark for a deleted name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the directory `name` in `dir` hides what is below it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>, name: &[u8], namespace: Namespace) -> rustix::io::Result<bool> {
    match xattr::get_at(dir, name, namespace.opaque()) {
        Ok(value) => Ok(value.as_deref() == Some(OPAQUE_VALUE)),
        // Gone meanwhile.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lower trees, seen from one directory.
pub(crate) struct Lowers<T> {
    trees: T,
    namespace: Namespace,
    /// For each directory on the way down the indexes of the trees that show through in it, topmost first.
    levels: Vec<Vec<usize>>,
    /// The current directory in the first of these trees, if `open_at` is its level.
    open: Vec<OwnedFd>,
    open_at: usize,
}

impl<T: AsRef<[OwnedFd]>> Lowers<T> {
    /// Starts in the root, which is never opaque.
    pub(crate) fn new(trees: T, namespace: Namespace) -> Self {
        let levels = vec![(0..trees.as_ref().len()).collect()];
        Self {
            trees,
            namespace,
            levels,
            open: Vec::new(),
            open_at: 0,
        }
    }

    /// Goes back up until `depth` directories deep (1 is the root).
    pub(crate) fn leave_to(&mut self, depth: usize) {
        self.levels.truncate(depth.max(1));
    }

    /// What the layers below show as `name` in the current directory, whose path is `dir`.
    pub(crate) fn find(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<Stat>> {
        self.visit(dir, |_, below| {
            let stat = at::lstat_at(below, name);
            match stat.at("looking below the layer at", absolute(&joined(dir, name)))? {
                Some(stat) => Ok(Some((!is_whiteout(&stat)).then_some(stat))),
                None => Ok(None),
            }
        })
        .map(Option::flatten)
    }

    /// Goes down into `name` of the current directory, whose path is `dir`; `opaque` says that the upper tree's
    /// directory hides what is below it.
    pub(crate) fn enter(&mut self, dir: &[u8], name: &[u8], opaque: bool) -> Result<()> {
        let mut showing = Vec::new();
        let mut open = Vec::new();
        if !opaque {
            let attribute = self.namespace.opaque();
            self.visit(dir, |index, below| {
                let what = || absolute(&joined(dir, name));
                let below = match at::open_dir_at(below, name) {
                    Ok(below) => below,
                    Err(Errno::NOENT) => return Ok(None),
                    Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Some(())),
                    Err(error) => return Err(error).at("opening directory below the layer", what()),
                };
                let value = xattr::fget(below.as_fd(), attribute).at("looking below the layer at", what())?;
                showing.push(index);
                if open.len() < MAX_OPEN {
                    open.push(below);
                }
                Ok((value.as_deref() == Some(OPAQUE_VALUE)).then_some(()))
            })?;
        }
        self.levels.push(showing);
        self.open = open;
        self.open_at = self.levels.len() - 1;
        Ok(())
    }

    /// Calls `look` with the directory `dir` in each tree that shows through in it, until it returns something.
    fn visit<Found>(
        &mut self,
        dir: &[u8],
        mut look: impl FnMut(usize, BorrowedFd<'_>) -> Result<Option<Found>>,
    ) -> Result<Option<Found>> {
        let level = self.levels.len() - 1;
        let Some(showing) = self.levels.last() else {
            return Ok(None);
        };
        if self.open_at != level {
            self.open.clear();
            self.open_at = level;
        }
        for (position, index) in showing.iter().enumerate() {
            let Some(tree) = self.trees.as_ref().get(*index) else {
                continue;
            };
            let tree = tree.as_fd();
            let temporary;
            let below = if level == 0 {
                tree
            } else if let Some(below) = self.open.get(position) {
                below.as_fd()
            } else {
                let opened = open_dir(tree, dir).at("opening directory below the layer", absolute(dir))?;
                if position == self.open.len() && position < MAX_OPEN {
                    self.open.push(opened);
                    match self.open.last() {
                        Some(opened) => opened.as_fd(),
                        None => continue,
                    }
                } else {
                    temporary = opened;
                    temporary.as_fd()
                }
            };
            if let Some(found) = look(*index, below)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = dir.to_vec();
    path::push(&mut joined, name);
    joined
}
