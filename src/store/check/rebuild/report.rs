//! What a rebuild of records has done.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::store::check::finding::CheckedItem;

/// A record that was made anew, or changed, because a file of records was damaged.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RebuiltRecord {
    /// The item.
    pub item: CheckedItem,
    /// What is known of it for sure, and from where.
    pub known: Vec<String>,
    /// What was inferred, and from what.
    pub inferred: Vec<String>,
    /// What is lost.
    pub lost: Vec<String>,
}

impl RebuiltRecord {
    pub(crate) fn new(item: CheckedItem) -> Self {
        Self {
            item,
            known: Vec::new(),
            inferred: Vec::new(),
            lost: Vec::new(),
        }
    }

    pub(crate) fn known(&mut self, text: impl Into<String>) {
        self.known.push(text.into());
    }

    pub(crate) fn inferred(&mut self, text: impl Into<String>) {
        self.inferred.push(text.into());
    }

    pub(crate) fn lost(&mut self, text: impl Into<String>) {
        self.lost.push(text.into());
    }
}

impl fmt::Display for RebuiltRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the record was rebuilt", self.item)?;
        for (what, texts) in [
            ("known", &self.known),
            ("inferred", &self.inferred),
            ("lost", &self.lost),
        ] {
            if !texts.is_empty() {
                write!(f, "; {what}: {}", texts.join(", "))?;
            }
        }
        Ok(())
    }
}

/// A file of records that was replaced.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplacedFile {
    /// The file.
    pub path: PathBuf,
    /// Where the old one is kept; `None` if there was none, or in a dry run.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for ReplacedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: written anew", self.path.display())?;
        match &self.kept {
            Some(kept) => write!(f, "; the damaged file is kept as {}", kept.display()),
            None => Ok(()),
        }
    }
}
