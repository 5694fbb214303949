//! A reader that digests what goes through it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sha2::Digest as _;
use tokio::io::{AsyncRead, ReadBuf};

use crate::digest::Digest;

/// Bytes that one poll reads at the most: hashing them takes well under a millisecond, which no other task of the
/// thread has to wait longer.
const MAX_READ: usize = 256 * 1024;

/// An [`AsyncRead`] that computes the SHA-256 digest of the bytes while they are read, for instance of a
/// [`DiffStream`](crate::DiffStream) that is being sent, or of a download before its digest is compared.
///
/// ```
/// # async fn demo() -> std::io::Result<()> {
/// use graphroot::{Digest, DigestReader};
/// use tokio::io::AsyncReadExt as _;
///
/// let mut reader = DigestReader::new(&b"content"[..]);
/// let mut bytes = Vec::new();
/// reader.read_to_end(&mut bytes).await?;
/// assert_eq!(reader.bytes_read(), 7);
/// assert_eq!(reader.digest(), Digest::sha256("content"));
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(demo()).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct DigestReader<R> {
    inner: R,
    hasher: sha2::Sha256,
    count: u64,
}

impl<R> DigestReader<R> {
    /// Digests what is read from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: sha2::Sha256::new(),
            count: 0,
        }
    }

    /// The digest of everything read so far: of the whole stream once a read has returned no bytes.
    pub fn digest(&self) -> Digest {
        Digest::of_sha256(self.hasher.clone())
    }

    /// How many bytes have been read.
    pub fn bytes_read(&self) -> u64 {
        self.count
    }

    /// The reader below.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Gives the reader below back.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for DigestReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Cleared room is what safe code can read into; a buffer that is used again is clear already.
        let room = buffer.remaining().min(MAX_READ);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
        let count = part.filled().len();
        this.hasher.update(part.filled());
        this.count = this.count.saturating_add(count as u64);
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn every_byte_is_digested_once_however_it_is_read() {
        let content: Vec<u8> = (0..1_000_003u32).map(|number| number.to_le_bytes()[1]).collect();
        for size in [1000, MAX_READ, 2 * MAX_READ + 1] {
            let mut reader = DigestReader::new(&content[..]);
            let (mut all, mut buffer) = (Vec::new(), vec![0xff; size]);
            loop {
                let count = reader.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                all.extend_from_slice(&buffer[..count]);
                assert_eq!(reader.bytes_read(), all.len() as u64);
            }
            assert!(all == content);
            assert_eq!(reader.digest(), Digest::sha256(&content));
            // Into a buffer that is partly filled.
            let mut reader = DigestReader::new(&content[..]);
            let mut all = b"before".to_vec();
            reader.read_to_end(&mut all).await.unwrap();
            assert!(all.strip_prefix(b"before") == Some(&content[..]));
            assert_eq!(reader.digest(), Digest::sha256(&content));
        }
    }
}
