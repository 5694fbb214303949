//! Finding out what two whole trees differ in.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::archive::diff::changes::{Change, ComparedTree, TreeComparison};
use crate::error::Result;
use crate::idmap::IdMappings;
use crate::sys::btrfs::SnapshotChanges;

#[cfg(test)]
mod tests;

/// Entries of two trees that one step compares.
pub(super) const COMPARED_ENTRIES: usize = 2048;

/// A tree and whose owners it has.
pub(super) struct Tree {
    /// The root directory, perhaps of a private mount.
    pub(super) dir: OwnedFd,
    pub(super) mappings: IdMappings,
}

impl Tree {
    fn compared(&self) -> ComparedTree<'_> {
        ComparedTree {
            root: self.dir.as_fd(),
            mappings: &self.mappings,
        }
    }
}

/// What two trees differ in is being found out, step by step: first in which inodes they can, if the file system knows that.
pub(super) struct TreeSearch {
    snapshot: Option<Box<SnapshotChanges>>,
    comparison: Box<TreeComparison>,
}

impl TreeSearch {
    /// `snapshot`: of these two trees.
    pub(super) fn new(
        new: &Tree,
        old: Option<&Tree>,
        snapshot: Option<Box<SnapshotChanges>>,
    ) -> Result<Self> {
        Ok(Self {
            snapshot,
            comparison: Box::new(TreeComparison::new(new.compared(), old.map(Tree::compared))?),
        })
    }

    /// One step; `false` at the end. Blocking.
    pub(super) fn step(&mut self) -> Result<bool> {
        let Some(mut snapshot) = self.snapshot.take() else {
            return self.comparison.step(COMPARED_ENTRIES);
        };
        match snapshot.step() {
            Ok(true) => self.snapshot = Some(snapshot),
            Ok(false) => self.comparison.look_only_at(snapshot.into_inodes()),
            Err(error) => tracing::debug!(%error, "comparing whole trees"),
        }
        Ok(true)
    }

    /// What has changed, after the last step.
    pub(super) fn into_changes(self) -> Vec<Change> {
        self.comparison.into_changes()
    }
}
