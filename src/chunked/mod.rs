//! Layer blobs with a table of contents (TOC): zstd:chunked and eStargz.
//!
//! Such a blob is an ordinary compressed tar stream. Beside it there is a table of all entries, which says of each file
//! which bytes of the blob hold its content, so that single files can be fetched.
//!
//! [`TocLocation`] says where in a blob the table is, and reads it: a checked [`Toc`]. Blobs of the kind are made by
//! [`Store::diff`](crate::Store::diff) with [`Compression::ZstdChunked`](crate::Compression::ZstdChunked).
//!
//! [`ChunkedDiffer`](crate::ChunkedDiffer) makes a layer of such a blob. It reads through a [`BlobSource`], which is a file
//! ([`FileBlob`]), with the feature `pull` a blob of a registry (`Puller::blob_source`), or whatever else parts can be
//! read of.

pub(crate) mod assemble;
pub(crate) mod cache;
mod estargz;
mod file_blob;
pub(crate) mod local;
mod location;
mod pack;
mod positions;
mod read;
mod source;
#[cfg(test)]
mod tests;
mod toc;
pub(crate) mod writer;

pub use file_blob::FileBlob;
pub use location::{TocFormat, TocLocation};
pub use pack::{PackedDirectory, pack_directory};
#[cfg(feature = "pull")]
pub(crate) use read::read_text;
pub(crate) use read::{TarSplitText, read, read_tar_split};
pub use source::BlobSource;
#[cfg(feature = "fuzz")]
pub(crate) use toc::{Bounds, MAX_MEMORY, parse};
pub use toc::{Chunk, EntryKind, Toc, TocEntry};
