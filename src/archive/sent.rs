//! A layer stream as it is sent: the bottom of the way in, before anything is decoded.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, ReadBuf};

use super::compression::Compression;
use crate::digest::Hasher;
use crate::error::Error;

/// How many bytes are looked at to tell the compression.
const PEEK: usize = 10;

/// Size of the buffer before the decoder.
const BUFFER: usize = 64 * 1024;

/// A layer stream as it is sent: buffered, counted, and hashed on demand.
pub(crate) struct Sent<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    count: u64,
    hashers: Vec<Hasher>,
}

impl<R: AsyncRead + Unpin> Sent<R> {
    /// A stream at its start.
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            count: 0,
            hashers: Vec::new(),
        }
    }

    /// Looks at the first bytes, as many as are needed, however slowly they come. Nothing may have been read before.
    pub(crate) async fn detect(&mut self) -> io::Result<Compression> {
        while self.end < PEEK {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            let count = self.inner.read(room).await.map_err(source_failed)?;
            if count == 0 {
                break;
            }
            self.end += count;
            self.count += count as u64;
        }
        Ok(Compression::detect(self.buffered()))
    }

    /// Hashes everything from the start on; to be called before anything is consumed.
    pub(crate) fn hash(&mut self, mut hashers: Vec<Hasher>) {
        for hasher in &mut hashers {
            hasher.update(self.buffered());
        }
        self.hashers = hashers;
    }

    /// Bytes received.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The hashes of everything received that were asked for.
    pub(crate) fn into_hashers(self) -> Vec<Hasher> {
        self.hashers
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

/// Marks a failure of the caller's reader, so that it isn't taken for damaged data.
fn source_failed(error: io::Error) -> io::Error {
    Error::io("reading the layer stream", error).into_io()
}

impl<R: AsyncRead + Unpin> AsyncBufRead for Sent<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.start >= this.end {
            let mut room = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut room)).map_err(source_failed)?;
            (this.start, this.end) = (0, room.filled().len());
            this.count += this.end as u64;
            for hasher in &mut this.hashers {
                hasher.update(this.buffer.get(..this.end).unwrap_or_default());
            }
        }
        Poll::Ready(Ok(this.buffered()))
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        let this = self.get_mut();
        this.start = this.end.min(this.start + count);
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Sent<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start >= this.end && out.remaining() >= BUFFER {
            // Nothing is buffered: straight into the caller's memory.
            let before = out.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, out)).map_err(source_failed)?;
            let received = out.filled().get(before..).unwrap_or_default();
            this.count += received.len() as u64;
            for hasher in &mut this.hashers {
                hasher.update(received);
            }
            return Poll::Ready(Ok(()));
        }
        let buffered = ready!(Pin::new(&mut *this).poll_fill_buf(cx))?;
        let count = buffered.len().min(out.remaining());
        out.put_slice(buffered.get(..count).unwrap_or_default());
        Pin::new(this).consume(count);
        Poll::Ready(Ok(()))
    }
}
