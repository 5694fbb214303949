//! A pool of buffers of one size for one incoming stream.
//!
//! Chunks are filled by one thread and dropped by others. An allocator keeps memory for each thread and has to map new
//! pages now and then; these buffers return to their pool, so a stream has no more of them than chunks in use.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The buffers of one stream that are free. See the module's head.
pub(crate) struct Buffers {
    size: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// None yet, each to have room for `size` bytes.
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            size,
            free: Mutex::default(),
        })
    }

    /// An empty buffer with room for as many bytes as all of them.
    pub(crate) fn take(&self) -> Vec<u8> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    /// Shares what a buffer was filled with; it is free again when the last share is dropped.
    pub(crate) fn share(self: &Arc<Self>, filled: Vec<u8>) -> Bytes {
        Bytes::from_owner(Filled {
            buffer: filled,
            pool: Arc::clone(self),
        })
    }
}

/// A buffer in use, which returns to its pool when dropped.
struct Filled {
    buffer: Vec<u8>,
    pool: Arc<Buffers>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_share_is_dropped() {
        let buffers = Buffers::new(100);
        let mut first = buffers.take();
        first.extend_from_slice(b"some bytes");
        let place = first.as_ptr();
        let mut shared = buffers.share(first);
        let part = shared.split_to(4);
        drop(shared);
        let mut second = buffers.take();
        assert_ne!(second.as_ptr(), place);
        second.extend_from_slice(b"others");
        assert_eq!(part, &b"some"[..]);
        drop(part);
        let third = buffers.take();
        assert_eq!((third.as_ptr(), third.len(), third.capacity()), (place, 0, 100));
    }
}
