//! Writes zstd:chunked blobs.
//!
//! ```text
//! producer ─ cutter: frames the tar stream, cuts content into chunks, tar-split data    one step after the other
//!               └─ jobs of about a MiB: sums of chunks, compression                     on all processors
//!                     └─ format: offsets, the table of contents                         in their order
//! ```
//!
//! The blob is an ordinary Zstandard stream of the tar, in which each chunk of a file begins with a frame of its own.
//! The table of contents, the tar-split data and a footer follow in skippable frames.

mod cutter;
mod entry;
mod format;
mod job;
mod paths;
mod splitter;
#[cfg(test)]
mod tests;
mod toc_writer;

pub(crate) use format::{Annotations, compressed};
pub(crate) use toc_writer::TocWriter;
