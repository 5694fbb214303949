//! How a diff is made.

use serde::{Deserialize, Serialize};

use crate::compression::Compression;

/// Options of [`Store::diff`](crate::Store::diff).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffOptions {
    /// Compression of the stream; `None`: what the layer's blob had when it came in.
    pub compression: Option<Compression>,
}

impl DiffOptions {
    /// The stream as the diff ID names it.
    pub fn uncompressed() -> Self {
        Self {
            compression: Some(Compression::None),
        }
    }

    /// The stream compressed in this way.
    pub fn compressed(compression: Compression) -> Self {
        Self {
            compression: Some(compression),
        }
    }

    /// Sets [`DiffOptions::compression`].
    #[must_use]
    pub fn compression(mut self, compression: impl Into<Option<Compression>>) -> Self {
        self.compression = compression.into();
        self
    }
}
