//! Where the bytes of a blob come from.

use std::fmt;
use std::ops::Range;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::options::BoxReader;

/// A blob of which parts can be read: one of a registry, a file, or memory.
///
/// Implemented by whoever has the blob; a partial pull reads through it only what it needs.
pub trait BlobSource: Send + Sync + fmt::Debug {
    /// The bytes of `ranges`, one range after the other, in one stream.
    ///
    /// The ranges are ascending, do not overlap, and none is empty; there may be thousands. The stream ends with the
    /// last of them. Whoever implements it bounds how many requests it makes at a time. Dropping the future or the
    /// stream ends them.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported) if parts of this blob cannot be read: the layer is
    /// then pulled as a whole. Any other error ends the pull, as an error of the stream does.
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>>;
}
