//! Digests of a stream on its way in, computed by whichever half has time.
//!
//! Decoding is dear for gzip and cheap for zstd, and unpacking is dear for small files and cheap for large ones: a
//! fixed place for the hashing leaves one processor idle. So chunks are put in a line (they are shared, not copied),
//! and each half takes from it when it would have to wait for the other one. Whoever finds too many in the line hashes
//! some at once, which bounds memory.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, TryLockError};

use bytes::Bytes;

use crate::digest::{Digest, Hasher};

/// Bytes that may wait. Chunks that are pushed while the other half is hashing come on top: the channel between the
/// halves bounds how many.
const LIMIT: usize = 1024 * 1024;

/// The chunks of one stream that are still to be hashed, and what has been computed so far.
#[derive(Default)]
pub(crate) struct HashQueue {
    /// Held while a chunk is taken and hashed, which keeps the order.
    hashers: Mutex<Vec<Hasher>>,
    waiting: Mutex<Waiting>,
}

/// Chunks in their order.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl HashQueue {
    /// Says which digests are wanted. To be called before the first chunk.
    pub(crate) fn expect(&self, hashers: Vec<Hasher>) {
        *self.hashers.lock().unwrap_or_else(PoisonError::into_inner) = hashers;
    }

    /// Puts the stream's next chunk in the line.
    pub(crate) fn push(&self, chunk: Bytes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += chunk.len();
        waiting.chunks.push_back(chunk);
        drop(waiting);
        while self.is_long() && self.help() {}
    }

    fn is_long(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes > LIMIT
    }

    /// Hashes one chunk; `false` if there is none or the other half is at it. Never waits.
    pub(crate) fn help(&self) -> bool {
        let mut hashers = match self.hashers.try_lock() {
            Ok(hashers) => hashers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        self.hash_next(&mut hashers)
    }

    /// Hashes the rest of the line, waits for a chunk that the other half has in hand, and returns the digests. To be
    /// called when no more chunks can come.
    pub(crate) fn finish(&self) -> Vec<Digest> {
        let mut hashers = self.hashers.lock().unwrap_or_else(PoisonError::into_inner);
        while self.hash_next(&mut hashers) {}
        hashers.drain(..).map(Hasher::finish).collect()
    }

    fn hash_next(&self, hashers: &mut [Hasher]) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(chunk) = waiting.chunks.pop_front() else {
            return false;
        };
        waiting.bytes -= chunk.len();
        // Others must not wait for it while this one hashes.
        drop(waiting);
        for hasher in hashers {
            hasher.update(&chunk);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn chunks() -> Vec<Bytes> {
        (0..500u32)
            .map(|n| Bytes::from(vec![n.to_le_bytes()[0]; LIMIT / 100]))
            .collect()
    }

    fn waiting(line: &HashQueue) -> usize {
        line.waiting.lock().unwrap().bytes
    }

    #[test]
    fn the_digest_is_the_same_whoever_hashes() {
        let line = Arc::new(HashQueue::default());
        line.expect(vec![Hasher::sha256()]);
        let helper = {
            let line = Arc::clone(&line);
            std::thread::spawn(move || {
                while Arc::strong_count(&line) > 1 {
                    line.help();
                }
            })
        };
        for chunk in chunks() {
            line.push(chunk);
            line.help();
        }
        assert_eq!(line.finish(), [Digest::sha256(chunks().concat())]);
        drop(line);
        helper.join().unwrap();
    }

    #[test]
    fn the_line_stays_short_though_nobody_helps() {
        let line = HashQueue::default();
        line.expect(vec![Hasher::sha256()]);
        for chunk in chunks() {
            line.push(chunk);
            assert!(waiting(&line) <= LIMIT);
        }
        let before = waiting(&line);
        assert!(before > LIMIT / 2);
        assert!(line.help());
        assert!(waiting(&line) < before);
        assert_eq!(line.finish(), [Digest::sha256(chunks().concat())]);
    }
}
