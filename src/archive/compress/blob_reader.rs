//! A layer stream as it is sent: the bottom of the way in, before anything is decoded.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::archive::compress::buffers::Buffers;
use crate::archive::compress::hash_queue::HashQueue;
use crate::bridge::give;
use crate::compression::Compression;
use crate::error::Error;

/// How many bytes are looked at to tell the compression.
const PEEK: usize = 10;

/// Size of the buffer before the decoder.
const BUFFER: usize = 256 * 1024;

/// A layer stream as it is sent: buffered, counted, and put in line for hashing on demand.
pub(crate) struct BlobReader<R> {
    inner: R,
    buffers: Arc<Buffers>,
    /// Where the next bytes go.
    room: Vec<u8>,
    /// What was read and not consumed yet.
    buffered: Bytes,
    count: u64,
    line: Option<Arc<HashQueue>>,
}

impl<R: AsyncRead + Unpin> BlobReader<R> {
    /// A stream at its start.
    pub(crate) fn new(inner: R) -> Self {
        let buffers = Buffers::new(BUFFER);
        Self {
            inner,
            room: buffers.take(),
            buffers,
            buffered: Bytes::new(),
            count: 0,
            line: None,
        }
    }

    /// Looks at the first bytes, as many as are needed, however slowly they come. Nothing may have been read before.
    pub(crate) async fn detect(&mut self) -> io::Result<Compression> {
        while self.room.len() < PEEK {
            let count = self.inner.read_buf(&mut self.room).await.map_err(source_failed)?;
            if count == 0 {
                break;
            }
            self.count += count as u64;
        }
        self.share_room();
        Ok(Compression::detect(&self.buffered))
    }

    /// Puts everything from the start on in `line`; to be called before anything is consumed.
    pub(crate) fn hash_with(&mut self, line: Arc<HashQueue>) {
        line.push(self.buffered.clone());
        self.line = Some(line);
    }

    /// Makes what was read available; the next bytes go elsewhere, as these may stay in line for a while.
    fn share_room(&mut self) {
        let filled = std::mem::replace(&mut self.room, self.buffers.take());
        self.buffered = self.buffers.share(filled);
    }

    /// Bytes received.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// Marks a failure of the caller's reader, so that it isn't taken for damaged data.
fn source_failed(error: io::Error) -> io::Error {
    Error::io("reading the layer stream", error).into_io()
}

impl<R: AsyncRead + Unpin> AsyncBufRead for BlobReader<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.buffered.is_empty() {
            // Nothing is lost when this future is dropped: its state is in the reader.
            let read = pin!(this.inner.read_buf(&mut this.room));
            let count = ready!(read.poll(cx)).map_err(source_failed)?;
            this.count += count as u64;
            if count > 0 {
                this.share_room();
                if let Some(line) = &this.line {
                    line.push(this.buffered.clone());
                }
            }
        }
        Poll::Ready(Ok(&this.buffered))
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        let buffered = &mut self.get_mut().buffered;
        buffered.advance(count.min(buffered.len()));
    }
}

/// Only for streams that are not compressed, which are hashed behind the decoder that does nothing.
impl<R: AsyncRead + Unpin> AsyncRead for BlobReader<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffered.is_empty() {
            // Straight into the caller's memory.
            let before = out.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, out)).map_err(source_failed)?;
            this.count += (out.filled().len() - before) as u64;
        } else {
            give(&mut this.buffered, out);
        }
        Poll::Ready(Ok(()))
    }
}
