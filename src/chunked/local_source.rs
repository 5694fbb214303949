//! Content that is on this machine already.

use std::fs::File;

use super::toc::Sum;

/// Finds content by its sha256 sum. Its methods block, each for a moment.
pub(crate) trait LocalSource: Send + Sync + 'static {
    /// Where some content is.
    type Place: Copy + Send + Sync + 'static;

    /// A file that should have this content, with exactly so many bytes.
    fn find(&self, sum: &Sum, size: u64) -> Option<Self::Place>;

    /// A part of a file that should have this content.
    fn find_chunk(&self, sum: &Sum, size: u64) -> Option<Self::Place>;

    /// Opens the file, and says at which of its bytes the content begins; `None` if it is gone.
    fn open(&self, place: Self::Place, size: u64) -> Option<(File, u64)>;
}

/// No content at all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nowhere;

impl LocalSource for Nowhere {
    type Place = std::convert::Infallible;

    fn find(&self, _sum: &Sum, _size: u64) -> Option<Self::Place> {
        None
    }

    fn find_chunk(&self, _sum: &Sum, _size: u64) -> Option<Self::Place> {
        None
    }

    fn open(&self, place: Self::Place, _size: u64) -> Option<(File, u64)> {
        match place {}
    }
}
