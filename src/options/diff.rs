//! How a diff is made.

use std::ops::{Bound, RangeBounds};

use serde::{Deserialize, Serialize};

use crate::compression::Compression;

/// Options of [`Store::diff`](crate::Store::diff).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffOptions {
    /// Compression of the stream; `None`: what the layer's blob had when it came in.
    pub compression: Option<Compression>,
    /// Level of the compression: 1 (fast) to 9 for gzip, to 22 for zstd and zstd:chunked. `None`: the usual one.
    pub level: Option<i32>,
    /// Where in the stream to begin, in bytes; those before are not sent. The bytes are the same each time, so a stream
    /// that broke off can be resumed, and ranges be served.
    ///
    /// Files that lie before the offset as a whole are not read if the stream is uncompressed; of the file at the
    /// offset the recorded checksum is not checked then. What is compressed is made from its start.
    pub offset: u64,
    /// How many bytes to send at the most, from the offset on; `None`: all. Nothing is read that lies behind them.
    pub limit: Option<u64>,
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

    /// Sets [`DiffOptions::level`].
    #[must_use]
    pub fn level(mut self, level: impl Into<Option<i32>>) -> Self {
        self.level = level.into();
        self
    }

    /// Sets [`DiffOptions::offset`].
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Sets [`DiffOptions::limit`].
    #[must_use]
    pub fn limit(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.limit = limit.into();
        self
    }

    /// Sets [`DiffOptions::offset`] and [`DiffOptions::limit`] so that these bytes of the stream come: `range(500..)`,
    /// or `range(500..=999)` as in the HTTP header `Range: bytes=500-999`. A range that ends behind the stream gives
    /// what there is of it.
    #[must_use]
    pub fn range(mut self, range: impl RangeBounds<u64>) -> Self {
        self.offset = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        self.limit = match range.end_bound() {
            Bound::Included(last) => Some(last.saturating_add(1)),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        }
        .map(|end| end.saturating_sub(self.offset));
        self
    }
}
