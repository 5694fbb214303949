//! The cache file of a layer: where in it which contents are, by digest.
//!
//! A layer that has a table of contents gets it as the big data item [`CACHE_KEY`]; whoever needs it first makes it.
//!
//! Beside digests of contents there are fingerprints of files: those with the same one are the same in everything but
//! their times, so that they can be hard links to each other.
//!
//! Nothing in such a file can be trusted: it says where to look, not what is found there.

mod filter;
mod fingerprint;
mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use filter::Key;
pub(crate) use format::{CACHE_KEY, FORMAT_KEY, TOC_KEY};
pub(crate) use reader::{CacheFile, Location, ReadAt, Unusable};
pub(crate) use writer::{CacheWriter, LayerFormat};
