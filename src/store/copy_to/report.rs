//! What was copied to another store.

use std::path::PathBuf;

use serde::Serialize;

use crate::store::check::finding::ItemKind;

/// What [`Store::copy_to`](crate::Store::copy_to) has done.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// What was copied, or would be. Layers come after those below them, then images, then containers.
    pub copied: Vec<CopiedItem>,
    /// Containers whose older copies were replaced, or would be.
    pub refreshed: Vec<CopiedItem>,
    /// What was there already. Containers, and layers without a digest, are compared, but for what the other store cannot have; other
    /// layers and images are known by their IDs and digests.
    pub present: Vec<CopiedItem>,
    /// Containers, and layers without a digest, that were there already and are not what they are in the source now. They were left as
    /// they are.
    pub different: Vec<DifferentItem>,
    /// What was deleted from the source before it was copied.
    pub gone: Vec<CopiedItem>,
    /// Containers among those copied that were mounted: each of their files is as it was when it was read.
    pub mounted: Vec<CopiedItem>,
    /// What the other store cannot have of what was copied, or of what was compared because it was there already, of each item the
    /// first thousand.
    pub lost: Vec<LostContent>,
}

impl CopyReport {
    /// Whether a loss is one of an item that was there already: the report of its copy has named it.
    pub fn is_known(&self, lost: &LostContent) -> bool {
        self.present.contains(&lost.item)
    }
}

/// An item that is another one in the other store.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DifferentItem {
    /// The item.
    pub item: CopiedItem,
    /// The first difference that was found.
    pub difference: String,
}

/// Something that the copy of an item lacks.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LostContent {
    /// The item.
    pub item: CopiedItem,
    /// The file, from the root of the layer.
    pub path: PathBuf,
    /// What it lacks, or why it is not there.
    pub what: String,
}

impl std::fmt::Display for DifferentItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.item, self.difference)
    }
}

impl std::fmt::Display for LostContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.item, self.path.display(), self.what)
    }
}

/// An item of a store.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CopiedItem {
    /// What it is.
    pub kind: ItemKind,
    /// Its ID.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
}

impl std::fmt::Display for CopiedItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.noun(), self.id)?;
        match &self.names[..] {
            [] => Ok(()),
            names => write!(f, " ({})", names.join(", ")),
        }
    }
}

impl CopiedItem {
    pub(super) fn new(kind: ItemKind, id: &str, names: &[String]) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            names: names.to_vec(),
        }
    }
}
