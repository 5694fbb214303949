//! Digests of a stream on its way in, computed by whichever side of the pipeline would have to wait.
//!
//! Decoding is expensive for gzip and cheap for zstd, and unpacking is expensive for small files and cheap for large
//! ones: at a fixed place the hashing would leave one processor idle. So chunks are queued (they are shared, not
//! copied), and each side takes from the queue when it would have to wait for the other one. The side that finds too
//! many bytes in the queue hashes a chunk at once, which bounds memory.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, TryLockError};

use bytes::Bytes;

use crate::digest::{Digest, Hasher};

/// Bytes that may wait. Chunks that are pushed while the other side is hashing come on top: the channel between the
/// sides bounds how many.
const LIMIT: usize = 1024 * 1024;

/// The chunks of one stream that are still to be hashed, and what has been computed so far.
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
    /// An empty queue for the digests that `hashers` compute.
    pub(crate) fn new(hashers: Vec<Hasher>) -> Self {
        Self {
            hashers: Mutex::new(hashers),
            waiting: Mutex::default(),
        }
    }

    /// Queues the stream's next chunk; hashes one if too many bytes wait.
    pub(crate) fn push(&self, chunk: Bytes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += chunk.len();
        waiting.chunks.push_back(chunk);
        let is_long = waiting.bytes > LIMIT;
        drop(waiting);
        if is_long {
            self.help();
        }
    }

    /// Hashes one chunk; `false` if there is none or the other side is hashing. Never waits.
    pub(crate) fn help(&self) -> bool {
        let mut hashers = match self.hashers.try_lock() {
            Ok(hashers) => hashers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        self.hash_next(&mut hashers)
    }

    /// Hashes what is queued, waits for the chunk that the other side is hashing, and returns the digests. To be
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

    fn waiting(queue: &HashQueue) -> usize {
        queue.waiting.lock().unwrap().bytes
    }

    #[test]
    fn the_digest_is_the_same_whoever_hashes() {
        let queue = Arc::new(HashQueue::new(vec![Hasher::sha256()]));
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
        assert_eq!(queue.finish(), [Digest::sha256(chunks().concat())]);
        drop(queue);
        helper.join().unwrap();
    }

    #[test]
    fn the_queue_stays_short_without_help() {
        let queue = HashQueue::new(vec![Hasher::sha256()]);
        for chunk in chunks() {
            queue.push(chunk);
            assert!(waiting(&queue) <= LIMIT);
        }
        let before = waiting(&queue);
        assert!(before > LIMIT / 2);
        assert!(queue.help());
        assert!(waiting(&queue) < before);
        assert_eq!(queue.finish(), [Digest::sha256(chunks().concat())]);
    }
}
