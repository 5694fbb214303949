//! Sums of a stream on its way in, computed by whichever side of the pipeline would have to wait.
//!
//! Decoding is expensive for gzip and cheap for zstd, and unpacking is expensive for small files and cheap for large
//! ones: at a fixed place the hashing would leave one processor idle. So chunks are queued (they are shared, not
//! copied), and each side takes from the queue when it would have to wait for the other one. The side that finds too
//! many bytes in the queue hashes a chunk at once, and waits for its turn if it has to, which bounds memory. Each sum
//! has a queue of its own, so that both sides can hash at the same time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::Bytes;

use super::stream_hash::{ContentSums, StreamHash};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Bytes that may wait; half as many if the other side is not just hashing.
const LIMIT: usize = 2 * 1024 * 1024;

/// What is computed of one stream.
pub(crate) struct HashQueue {
    sums: Vec<Sum>,
}

/// One sum, and the chunks that are still to be added to it.
struct Sum {
    /// Held while a chunk is taken and hashed, which keeps the order.
    hash: Mutex<StreamHash>,
    waiting: Mutex<Waiting>,
}

/// Chunks in their order.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl HashQueue {
    /// An empty queue for the digests that `hashers` compute, and the sums of contents.
    pub(crate) fn new(hashers: Vec<Hasher>, contents: Option<ContentSums>) -> Self {
        let digests = hashers.into_iter().map(StreamHash::Digest);
        Self {
            sums: digests
                .chain(contents.map(StreamHash::Contents))
                .map(Sum::new)
                .collect(),
        }
    }

    /// Queues the stream's next chunk; hashes one if too many bytes wait. For that it may wait until the other side is through
    /// with one.
    pub(crate) fn push(&self, chunk: Bytes) {
        // All of them have it before one is computed, so that the other side finds something to do.
        let waiting: Vec<usize> = self.sums.iter().map(|sum| sum.push(chunk.clone())).collect();
        drop(chunk);
        for (sum, bytes) in self.sums.iter().zip(waiting) {
            if bytes > LIMIT {
                sum.hash_next(&mut sum.hash());
            } else if bytes > LIMIT / 2 {
                sum.help();
            }
        }
    }

    /// Hashes one chunk; `false` if there is none, or the other side is hashing all that there are. Never waits.
    pub(crate) fn help(&self) -> bool {
        self.sums.iter().any(Sum::help)
    }

    /// What was found to be wrong with the chunks that were hashed so far; once, and not while the other side is hashing.
    /// Never waits.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.sums.iter().find_map(|sum| sum.try_hash()?.take_failure())
    }

    /// Hashes what is queued, waits for the chunk that the other side is hashing, and returns the digests. To be
    /// called when no more chunks can come.
    ///
    /// # Errors
    /// Those of [`ContentSums::finish`].
    pub(crate) fn finish(&self) -> Result<Vec<Digest>> {
        // First what the other side is not just hashing.
        while self.help() {}
        let mut digests = Vec::new();
        for sum in &self.sums {
            let mut hash = sum.hash();
            while sum.hash_next(&mut hash) {}
            match &mut *hash {
                StreamHash::Digest(hasher) => {
                    digests.push(std::mem::replace(hasher, Hasher::sha256()).finish());
                }
                StreamHash::Contents(contents) => contents.finish()?,
            }
        }
        Ok(digests)
    }
}

impl Sum {
    fn new(hash: StreamHash) -> Self {
        Self {
            hash: Mutex::new(hash),
            waiting: Mutex::default(),
        }
    }

    /// Queues a chunk; how many bytes wait then.
    fn push(&self, chunk: Bytes) -> usize {
        let mut waiting = self.waiting();
        waiting.bytes += chunk.len();
        waiting.chunks.push_back(chunk);
        waiting.bytes
    }

    /// Hashes one chunk; `false` if there is none or the other side is hashing. Never waits.
    fn help(&self) -> bool {
        self.try_hash().is_some_and(|mut hash| self.hash_next(&mut hash))
    }

    fn hash_next(&self, hash: &mut StreamHash) -> bool {
        let mut waiting = self.waiting();
        let Some(chunk) = waiting.chunks.pop_front() else {
            return false;
        };
        waiting.bytes -= chunk.len();
        // Others must not wait for it while this one hashes.
        drop(waiting);
        hash.update(&chunk);
        true
    }

    fn hash(&self) -> MutexGuard<'_, StreamHash> {
        self.hash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_hash(&self) -> Option<MutexGuard<'_, StreamHash>> {
        match self.hash.try_lock() {
            Ok(hash) => Some(hash),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn waiting(queue: &HashQueue) -> usize {
        queue.sums.iter().map(|sum| sum.waiting().bytes).max().unwrap()
    }

    #[test]
    fn the_digest_is_the_same_whoever_hashes() {
        let queue = Arc::new(HashQueue::new(vec![Hasher::sha256()], None));
        let helper = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                while Arc::strong_count(&queue) > 1 {
                    queue.help();
                }
            })
        };
        for chunk in chunks() {
            queue.push(chunk);
            queue.help();
        }
        assert_eq!(queue.finish().unwrap(), [Digest::sha256(chunks().concat())]);
        drop(queue);
        helper.join().unwrap();
    }

    #[test]
    fn the_queue_stays_short_while_the_other_side_hashes() {
        let queue = Arc::new(HashQueue::new(vec![Hasher::sha256()], None));
        let helper = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                while Arc::strong_count(&queue) > 1 {
                    queue.help();
                    // It comes back when there is more than one to do, and is hashing while they are pushed.
                    std::thread::yield_now();
                }
            })
        };
        for chunk in chunks() {
            queue.push(chunk);
            assert!(waiting(&queue) <= LIMIT);
        }
        assert_eq!(queue.finish().unwrap(), [Digest::sha256(chunks().concat())]);
        drop(queue);
        helper.join().unwrap();
    }

    #[test]
    fn the_queue_stays_short_without_help() {
        let queue = HashQueue::new(vec![Hasher::sha256()], None);
        for chunk in chunks() {
            queue.push(chunk);
            assert!(waiting(&queue) <= LIMIT);
        }
        let before = waiting(&queue);
        assert!(before > LIMIT / 4);
        assert!(queue.help());
        assert!(waiting(&queue) < before);
        assert_eq!(queue.finish().unwrap(), [Digest::sha256(chunks().concat())]);
    }
}
