//! Contents of an assembled stream that are compared with the digests of the table of contents, by whoever hashes the stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::toc::Toc;
use crate::archive::compress::stream_hash::{CheckContents, Content};
use crate::archive::path::show;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// Those that have begun and are not hashed yet. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Begun(Arc<Mutex<VecDeque<Content>>>);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Contents {
    toc: Arc<Toc>,
    begun: Begun,
}

impl Begun {
    /// Says that a content begins, before its bytes come.
    pub(super) fn add(&self, content: Content) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.push_back(content);
    }
}

impl Contents {
    pub(super) fn new(toc: Arc<Toc>, begun: Begun) -> Self {
        Self { toc, begun }
    }
}

impl CheckContents for Contents {
    fn next(&mut self, end: u64) -> Option<Content> {
        let mut begun = self.begun.0.lock().unwrap_or_else(PoisonError::into_inner);
        match begun.front() {
            Some(content) if content.start < end => begun.pop_front(),
            _ => None,
        }
    }

    fn check(&mut self, number: usize, sum: &[u8; 32]) -> Result<()> {
        let Some(entry) = self.toc.entry(number).filter(|entry| entry.sum() != sum) else {
            return Ok(());
        };
        let (name, found, expected) = (show(entry.name()), Digest::of_sum(sum), entry.digest());
        let expected = expected.as_ref().map_or("", |digest| digest.as_str());
        Err(ErrorKind::DigestMismatch.err(format!("{name} has digest {found}, expected {expected}")))
    }
}
