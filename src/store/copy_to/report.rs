//! What was copied to another store.

use serde::Serialize;

use crate::store::check::finding::ItemKind;

/// What [`Store::copy_to`](crate::Store::copy_to) has done.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// What was copied, or would be. Layers come after those below them, then images, then containers.
    pub copied: Vec<CopiedItem>,
    /// What was there already.
    pub present: Vec<CopiedItem>,
    /// What was deleted from the source before it was copied.
    pub gone: Vec<CopiedItem>,
    /// Containers among those copied that were mounted: each of their files is as it was when it was read.
    pub mounted: Vec<CopiedItem>,
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
