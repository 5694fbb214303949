//! Flags of records.

use serde::{Deserialize, Serialize};

/// A flag of a record: the JSON values that survive a rewrite by the Go library unchanged.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

impl From<bool> for Flag {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Flag {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Flag {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<String>> for Flag {
    fn from(value: Vec<String>) -> Self {
        Self::List(value)
    }
}
