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
    /// Where in the stream to begin, in bytes; those before are not sent. The bytes are the same each time, so a stream
    /// that broke off can be resumed, and ranges be served.
    ///
    /// Files that lie before the offset as a whole are not read if the stream is uncompressed; of the file at the
    /// offset the recorded checksum is not checked then. What is compressed is made from its start.
    pub offset: u64,
}

impl DiffOptions {
    /// The stream as the diff ID names it.
    pub fn uncompressed() -> Self {
        Self {
            compression: Some(Compression::None),
            ..Self::default()
        }
    }

    /// The stream compressed in this way.
    pub fn compressed(compression: Compression) -> Self {
        Self {
            compression: Some(compression),
            ..Self::default()
        }
    }

    /// Sets [`DiffOptions::compression`].
    #[must_use]
    pub fn compression(mut self, compression: impl Into<Option<Compression>>) -> Self {
        self.compression = compression.into();
        self
    }

    /// Sets [`DiffOptions::offset`].
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }
}
