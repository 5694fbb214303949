//! The result of a repair.

use std::fmt;

use crate::error::Error;
use crate::store::check::finding::CheckedItem;
use crate::store::check::rebuild::report::{RebuiltRecord, ReplacedFile};

/// What [`Store::repair`](crate::Store::repair) has done, or would do.
#[non_exhaustive]
#[derive(Debug, Default)]
pub struct RepairReport {
    /// Files of records that were written anew. If there are some nothing else was done; another check tells what is left.
    pub replaced_files: Vec<ReplacedFile>,
    /// The records in them that were made anew or changed, each with what is known, inferred and lost.
    pub rebuilt: Vec<RebuiltRecord>,
    /// Layers whose driver files were made anew. They, and what stands on them, were not removed; another check tells
    /// whether anything else is wrong with them.
    pub mended: Vec<CheckedItem>,
    /// What was removed, in that order; in a dry run what would be. After an image come the layers that go with it.
    pub removed: Vec<CheckedItem>,
    /// What was left, and why.
    pub kept: Vec<Kept>,
    /// Items that are gone from the records, but not all of their files: something keeps them from being removed, such as an
    /// immutable directory. A check tells of what is left, and [`Store::garbage_collect`](crate::Store::garbage_collect)
    /// removes it as soon as that is possible.
    pub left_behind: Vec<RepairFailure>,
    /// What could not be removed.
    pub failures: Vec<RepairFailure>,
}

impl RepairReport {
    /// Whether nothing failed.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty()
    }
}

/// A damaged item that was left as it is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The item.
    pub item: CheckedItem,
    /// Why.
    pub reason: KeptReason,
}

/// Why a damaged item was left as it is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptReason {
    /// It is in a store that can only be read.
    ReadOnly,
    /// It is a container, and the options do not say that those go.
    Container,
    /// A container that stays needs it.
    NeededByContainer,
    /// It may be whole: records are lost, an additional store is missing, or there is data of images or containers without a
    /// record ([`CheckReport::strays`](crate::CheckReport::strays)), which
    /// [`Store::garbage_collect`](crate::Store::garbage_collect) removes if it belongs to nothing.
    MayBeWhole,
    /// Nothing is wrong with it but that layers on which it stands are in none of the stores. They may be in an additional store
    /// that the store was not opened with: see
    /// [`RepairOptions::missing_layers_are_lost`](crate::RepairOptions::missing_layers_are_lost).
    LayersMissing,
    /// It, or what it stands on, was mended: see [`RepairReport::mended`].
    Mended,
    /// Records were rebuilt: see [`RepairReport::rebuilt`].
    RecordsRebuilt,
    /// It is not the item any more that was checked, or is gone.
    Changed,
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "it is in a store that can only be read",
            Self::Container => "it is a container",
            Self::NeededByContainer => "a container needs it",
            Self::MayBeWhole => {
                "it may be whole: records are lost, an additional store is missing, or there is data of images or containers \
                 without a record, which garbage collection removes"
            }
            Self::LayersMissing => {
                "layers on which it stands are in none of the stores; are they in an additional store that was not named?"
            }
            Self::Mended => "it, or what it stands on, was mended; check it again",
            Self::RecordsRebuilt => "records were rebuilt; check it again",
            Self::Changed => "it has changed since, or is gone",
        })
    }
}

/// A damaged item that could not be removed.
#[non_exhaustive]
#[derive(Debug)]
pub struct RepairFailure {
    /// The item.
    pub item: CheckedItem,
    /// Why.
    pub error: Error,
}
