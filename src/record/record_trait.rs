//! What every kind of record has in common: layers, images, containers and mount points.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// What a digest in an index is the digest of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DigestKind {
    /// A layer's blob as fetched.
    Compressed,
    /// A layer's uncompressed tar.
    Uncompressed,
    /// A layer's table of contents.
    Toc,
    /// An image's manifest.
    Image,
}

/// A row of one of the stores.
pub(crate) trait Record:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// What a row describes, for messages.
    const NOUN: &'static str;
    /// The error for an ID that is not in the table.
    const UNKNOWN: ErrorKind;
    /// The error for a name that two rows of a read-only store have.
    const AMBIGUOUS_NAMES: ErrorKind;
    /// Whether several rows with one ID stay in the file (the last one is found). Else the later ones are passed
    /// over.
    const KEEPS_DUPLICATE_IDS: bool = false;

    /// The error for a key that names no row.
    fn unknown(key: &str) -> Error {
        Self::UNKNOWN.err(format!("locating {} with ID {key:?}", Self::NOUN))
    }

    /// The row's ID.
    fn id(&self) -> &str;

    /// The row's names.
    fn names(&self) -> &[String];

    /// The row's names, to change.
    fn names_mut(&mut self) -> &mut Vec<String>;

    /// Called after the names were changed by name, for records with a history of names.
    fn remember_names(&mut self) {}

    /// Fills in what follows from other fields; `true` if something changed.
    fn normalise(&mut self) -> bool {
        false
    }

    /// Whether the row describes something that was never completed, or whose deletion was not, or that goes with something
    /// else to which one of the two may have happened.
    fn is_incomplete(&self) -> bool {
        false
    }

    /// Whether the row describes something that is being made or deleted: readers do not see it.
    fn is_hidden(&self) -> bool {
        false
    }

    /// What is under way with the row, see [`intent`](crate::record::intent); empty for nothing.
    fn intent(&self) -> &str;

    /// Sets the intent; an empty text is none.
    fn set_intent(&mut self, intent: &str);

    /// The layer that belongs to this row alone, by whose ID it is found too.
    fn layer(&self) -> Option<&str> {
        None
    }

    /// Calls `visit` with the ID of everything that the row stands on: a layer's parent, the top layers of an image, the image
    /// of a container.
    fn each_base(&self, _visit: &mut dyn FnMut(&str)) {}

    /// Calls `visit` for every digest by which the row is found.
    fn each_digest(&self, _visit: &mut dyn FnMut(DigestKind, &Digest)) {}
}
