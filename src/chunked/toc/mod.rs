//! Reads tables of contents, which come from whoever made the image.
//!
//! `parse` goes through the JSON text once, in a stream, and hands each entry to a sink: to `builder`, which checks it
//! and puts it into the `table`. Memory is bounded whatever the text says, and nothing is taken on trust: see [`builder`].

mod builder;
mod parse;
mod raw_entry;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use builder::{Bounds, MAX_MEMORY};
pub(crate) use parse::{parse, parse_entries};
pub(crate) use raw_entry::{RawEntry, SUM_OF_NOTHING, Sink};
pub use table::{Chunk, EntryKind, Toc, TocEntry};
pub(crate) use table::{Moment, Part};
