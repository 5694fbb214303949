//! The trees of which one is to show what the other does.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::Stat;

use crate::driver::contract::LayerTree;
use crate::driver::copy_entry::owner;
use crate::driver::new_owners::NewOwners;
use crate::idmap::IdMappings;
use crate::whiteout::WhiteoutFormat;

/// How many losses are told of one tree.
pub(super) const MAX_LOSSES: usize = 1000;

/// A tree as it is shown: of a layer together with those below it.
#[derive(Debug)]
pub(crate) struct ShownTree {
    /// Its root, perhaps of a private mount.
    pub(crate) root: OwnedFd,
    /// What the topmost layer has changed, where the driver keeps that apart.
    pub(crate) own: Option<OwnFiles>,
    /// The number of a file's names is right.
    pub(crate) counts_names: bool,
    /// What is mounted in it is no part of it.
    pub(crate) one_mount: bool,
    /// In a user namespace: devices cannot be made.
    pub(crate) in_user_namespace: bool,
}

/// What a layer has changed.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    pub(crate) dir: OwnedFd,
    pub(crate) whiteouts: WhiteoutFormat,
    /// What is not in it is as the layers below have it.
    pub(crate) complete: bool,
}

/// From the mappings that a file's owner has to those that it gets. `None`: it is the same owner, whoever that is.
pub(crate) type Remap = Option<(IdMappings, IdMappings)>;

/// A change of mappings, if it is one.
pub(crate) fn remap(from: IdMappings, to: IdMappings) -> Remap {
    (from != to).then_some((from, to))
}

/// The owners that files get.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remaps {
    /// Those that the layer itself has.
    pub(crate) own: Remap,
    /// Those that it shows of the layers below.
    pub(crate) below: Remap,
    /// Those of what the layer that is compared or written shows of the layers below it.
    pub(crate) base: Remap,
    /// Those of what a layer that is compared has itself.
    pub(crate) base_own: Remap,
}

impl Remaps {
    /// Whether files that neither layer has changed have the same owners in both.
    pub(crate) fn agree(&self) -> bool {
        self.below == self.base
    }
}

/// The status of a file with its new owner. One that the mappings do not know stays.
pub(super) fn with_owner(stat: &Stat, remap: &Remap) -> Stat {
    let mut stat = *stat;
    if let Some((from, to)) = remap
        && let Ok(new) = (NewOwners { from, to }).of(owner(&stat))
    {
        (stat.st_uid, stat.st_gid) = (new.uid, new.gid);
    }
    stat
}

/// Something that the new tree cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// From the root.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) what: String,
}

/// What is to show what another tree does.
pub(crate) struct NewTree<'a> {
    /// Where changes go. A whole tree has everything already that the layer below has.
    pub(crate) tree: &'a LayerTree,
    /// What the layer below shows, where the tree is not whole.
    pub(crate) below: Option<BorrowedFd<'a>>,
    /// A directory in the root that is no part of it.
    pub(crate) ignored: Option<BorrowedFd<'a>>,
    /// The tree is on disk afterwards, or will be with what is written later.
    pub(crate) durable: bool,
}
