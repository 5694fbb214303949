//! Where the bytes of a blob come from.

use std::fmt;
use std::ops::Range;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::options::BoxReader;

/// A blob of which parts can be read: one of a registry, a file, or memory.
///
/// Implemented by whoever has the blob; a partial pull reads through it only what it needs.
///
/// ```
/// use std::io::Cursor;
/// use std::ops::Range;
///
/// use futures::future::{BoxFuture, FutureExt as _};
/// use graphroot::chunked::BlobSource;
/// use graphroot::{BoxReader, Error, ErrorKind, Result};
///
/// /// A blob in memory.
/// #[derive(Debug)]
/// struct Memory(Vec<u8>);
///
/// impl BlobSource for Memory {
///     fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
///         async move {
///             let mut bytes = Vec::new();
///             for range in ranges {
///                 // The positions come from the image's manifest: they may be wrong.
///                 let part = self.0.get(range.start as usize..range.end as usize);
///                 let beyond = || Error::new(ErrorKind::InvalidArchive, "a range beyond the blob");
///                 bytes.extend(part.ok_or_else(beyond)?);
///             }
///             Ok(Box::pin(Cursor::new(bytes)) as BoxReader)
///         }
///         .boxed()
///     }
/// }
/// # futures::executor::block_on(async {
/// # use tokio::io::AsyncReadExt as _;
/// # let mut bytes = Vec::new();
/// # Memory(b"0123456".to_vec()).read(vec![1..2, 4..6]).await.unwrap().read_to_end(&mut bytes).await.unwrap();
/// # assert_eq!(bytes, b"145");
/// # });
/// ```
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
