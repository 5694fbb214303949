//! What can be wrong with a file of records.

use std::fmt;

use serde::Serialize;

/// What is wrong with a file of records, or a part of it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordDamage {
    /// There is nothing in it, or nothing but zeros and white space.
    Empty,
    /// It is no list of records.
    NoList,
    /// It ends in the middle of its records.
    Truncated {
        /// Where what cannot be read begins, in bytes.
        at: u64,
    },
    /// There is something in it that is no record.
    Garbage {
        /// Where it begins, in bytes.
        at: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A record is no object, or has no ID.
    NoRecord {
        /// Its place in the list, from 0.
        index: usize,
        /// Why it is none.
        reason: String,
    },
    /// A field of a record has another type than it must have.
    Field {
        /// The ID of the record.
        id: String,
        /// The name of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Several records have one ID.
    DuplicateId {
        /// The ID.
        id: String,
    },
    /// Several records have one name.
    DuplicateName {
        /// The name.
        name: String,
        /// The IDs of the records; the last one keeps the name.
        ids: Vec<String>,
    },
    /// Layers stand on each other in a circle.
    ParentLoop {
        /// Their IDs, each followed by that of its parent.
        ids: Vec<String>,
    },
}

impl RecordDamage {
    /// Whether records may be missing because of it.
    pub(crate) fn loses_records(&self) -> bool {
        match self {
            Self::Empty
            | Self::NoList
            | Self::Truncated { .. }
            | Self::Garbage { .. }
            | Self::NoRecord { .. } => true,
            Self::Field { .. }
            | Self::DuplicateId { .. }
            | Self::DuplicateName { .. }
            | Self::ParentLoop { .. } => false,
        }
    }

    /// Whether programs load the file in spite of it, and leave it as it is.
    pub(crate) fn can_be_loaded(&self) -> bool {
        matches!(self, Self::ParentLoop { .. })
    }
}

impl fmt::Display for RecordDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "there is nothing in it"),
            Self::NoList => write!(f, "it is no list of records"),
            Self::Truncated { at } => write!(f, "it ends in the middle of its records, after byte {at}"),
            Self::Garbage { at, length } => write!(f, "{length} bytes from byte {at} on are no record"),
            Self::NoRecord { index, reason } => write!(f, "entry {index} is no record: {reason}"),
            Self::Field { id, field, reason } => write!(f, "record {id:?}: field {field:?}: {reason}"),
            Self::DuplicateId { id } => write!(f, "several records have the ID {id:?}"),
            Self::DuplicateName { name, ids } => {
                write!(f, "the records {} have the name {name:?}", ids.join(", "))
            }
            Self::ParentLoop { ids } => {
                write!(f, "layers stand on each other in a circle: {}", ids.join(", "))
            }
        }
    }
}
