//! What was made anew, and what could not be.

use std::fmt;
use std::path::PathBuf;

use crate::error::Error;
use crate::store::check::finding::{CheckedItem, Finding};
use crate::store::check::report::StoreProblem;

/// What [`Store::heal`](crate::Store::heal) has done.
#[non_exhaustive]
#[derive(Debug, Default)]
pub struct HealReport {
    /// What was made anew, in that order.
    pub healed: Vec<Healed>,
    /// What could not be made anew, and why.
    pub failures: Vec<HealFailure>,
    /// What is still wrong with the items that were asked for: all that a check finds now. Layers that nothing refers to, which
    /// are not damaged, are left out.
    pub left: Vec<Finding>,
    /// What is wrong with the store as a whole. Records are not made for what is missing as long as there is such a thing;
    /// [`Store::repair`](crate::Store::repair) rebuilds damaged files of records.
    pub store_problems: Vec<StoreProblem>,
}

impl HealReport {
    /// Whether nothing is wrong any more with what was asked for.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty() && self.left.is_empty() && self.store_problems.is_empty()
    }
}

/// Something that was made anew.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healed {
    /// The layer or image.
    pub item: CheckedItem,
    /// How.
    pub how: HealedHow,
}

/// How something was made anew.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealedHow {
    /// The whole layer was made of its stream.
    Layer {
        /// Which source gave it.
        source: String,
        /// Bytes of the uncompressed stream.
        size: u64,
    },
    /// Some files of the layer were made anew of its stream, of which all was read.
    Files {
        /// Which source gave it.
        source: String,
        /// Their paths in the layer, also of those that were there and should not be.
        paths: Vec<PathBuf>,
    },
    /// The layer was put together of its own whole files, those of other layers, and parts of its blob.
    Parts {
        /// Which source gave these.
        source: String,
        /// Bytes of the blob that were fetched.
        fetched: u64,
        /// Bytes of the blob that were not, because files have what they hold.
        reused: u64,
    },
    /// A record was made for a layer of an image that had none any more. Another check tells what else is wrong with it.
    Record {
        /// The layer below.
        parent: Option<String>,
    },
    /// The driver's files that say what the layer stands on, by the records.
    DriverData,
    /// A manifest or config, or what a layer has of the table of contents of its blob.
    Data {
        /// Its key.
        key: String,
        /// Which source gave it.
        source: String,
    },
}

impl fmt::Display for Healed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let item = &self.item;
        match &self.how {
            HealedHow::Layer { source, size } => write!(f, "{item}: made anew of {size} bytes from {source}"),
            HealedHow::Files { source, paths } => {
                let (count, paths) = (paths.len(), paths.iter().map(|path| path.display().to_string()));
                let paths = paths.collect::<Vec<_>>().join(" ");
                write!(f, "{item}: {count} files made anew from {source}: {paths}")
            }
            HealedHow::Parts {
                source,
                fetched,
                reused,
            } => write!(
                f,
                "{item}: made anew of {fetched} bytes from {source}, {reused} were there"
            ),
            HealedHow::Record { parent: None } => write!(f, "{item}: a record was made"),
            HealedHow::Record { parent: Some(parent) } => {
                write!(f, "{item}: a record was made, on layer {parent}")
            }
            HealedHow::DriverData => write!(f, "{item}: the driver's files were made anew"),
            HealedHow::Data { key, source } => write!(f, "{item}: data item {key:?} was taken from {source}"),
        }
    }
}

/// Something that could not be made anew. It is as it was.
#[non_exhaustive]
#[derive(Debug)]
pub struct HealFailure {
    /// The layer or image.
    pub item: CheckedItem,
    /// Why.
    pub reason: NotHealed,
}

impl fmt::Display for HealFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.item, self.reason)
    }
}

/// Why something could not be made anew.
#[non_exhaustive]
#[derive(Debug)]
pub enum NotHealed {
    /// It is in a store that can only be read.
    ReadOnly,
    /// It is a container's own layer, which no source has.
    OfContainer,
    /// It is a copy of another layer with other owners. Without containers on it, [`Store::repair`](crate::Store::repair)
    /// may remove it: the next container that needs it has it made anew.
    Copy,
    /// Neither a record nor an image says which content it has.
    UnknownContent,
    /// It is missing, and it may be whole: records are lost, or an additional store is missing.
    MayBeWhole,
    /// The layer below it is not whole, and it is made on that.
    Below {
        /// Its ID.
        layer: String,
    },
    /// No source has it, or none that is right.
    NoSource {
        /// Why sources could not give it: their names, and the errors.
        failed: Vec<(String, Error)>,
    },
    /// It was made anew of a stream with the right digest, and is still not what its record, its tar-split data or the layers
    /// below say: one of these is wrong, too.
    StillDamaged,
    /// It could not be put in place.
    Failed(Error),
}

impl fmt::Display for NotHealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("it is in a store that can only be read"),
            Self::OfContainer => f.write_str("it is a container's own layer, which no source has"),
            Self::Copy => f.write_str("it is a copy of another layer with other owners"),
            Self::UnknownContent => f.write_str("neither a record nor an image says which content it has"),
            Self::MayBeWhole => {
                f.write_str("it may be whole: records are lost, or an additional store is missing")
            }
            Self::Below { layer } => write!(f, "layer {layer} below it is not whole"),
            Self::NoSource { failed } if failed.is_empty() => f.write_str("no source has it"),
            Self::NoSource { failed } => {
                f.write_str("no source has it")?;
                for (source, error) in failed {
                    write!(f, "; {source}: {}", error.chain())?;
                }
                Ok(())
            }
            Self::StillDamaged => f.write_str(
                "it was made anew and is still damaged: its record, or that of a layer below, is wrong too",
            ),
            Self::Failed(error) => write!(f, "{}", error.chain()),
        }
    }
}
