//! The stream of a layer as its source sends it (the blob): counted, queued for hashing, its compression detected.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::archive::compress::buffers::Buffers;
use crate::archive::compress::hash_queue::HashQueue;
use crate::archive::compress::pace::Pace;
use crate::bridge::give;
use crate::compression::Compression;
use crate::error::Error;

/// How many bytes are looked at to detect the compression.
const PEEK: usize = 10;

/// Size of the buffer before the decoder: one read of the source.
const BUFFER: usize = 256 * 1024;

/// How many bytes a decoder gets at once. A hostile stream of empty members keeps it busy for longest per byte.
const INPUT_STEP: usize = 64 * 1024;

/// Reads a blob and yields in between (see [`Pace`]).
pub(crate) struct BlobReader<R> {
    inner: R,
    buffers: Arc<Buffers>,
    /// Where the next bytes go.
    room: Vec<u8>,
    /// What was read and not consumed yet.
    buffered: Bytes,
    count: u64,
    queue: Option<Arc<HashQueue>>,
    pace: Pace,
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
            queue: None,
            pace: Pace::default(),
        }
    }

    /// Detects the compression from the first bytes, however slowly they come. Nothing may have been read before.
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

    /// Queues everything from the start on for hashing; to be called before anything is consumed.
    pub(crate) fn hash_with(&mut self, queue: Arc<HashQueue>) {
        queue.push(self.buffered.clone());
        self.queue = Some(queue);
    }

    /// Makes what was read available. The next bytes go into another buffer, since these may stay queued for a while.
    fn share_room(&mut self) {
        let filled = std::mem::replace(&mut self.room, self.buffers.take());
        self.buffered = self.buffers.share(filled);
    }

    /// The next bytes as they are, `None` at the end.
    pub(crate) async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.fill_buf().await?;
        let chunk = std::mem::take(&mut self.buffered);
        self.pace.spend(chunk.len());
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// The pace of the task that reads.
    pub(crate) fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// Bytes received.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// Marks a failure of the caller's reader, so that it is not reported as damaged data.
fn source_failed(error: io::Error) -> io::Error {
    Error::io("reading the layer stream", error).into()
}

impl<R: AsyncRead + Unpin> AsyncBufRead for BlobReader<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.pace.poll(cx));
        if this.buffered.is_empty() {
            // Nothing is lost when this future is dropped: its state is in the reader.
            let read = pin!(this.inner.read_buf(&mut this.room));
            let Poll::Ready(count) = read.poll(cx) else {
                this.pace.rested();
                return Poll::Pending;
            };
            let count = count.map_err(source_failed)?;
            this.count += count as u64;
            if count > 0 {
                this.share_room();
                if let Some(queue) = &this.queue {
                    queue.push(this.buffered.clone());
                }
            }
        }
        let step = this.buffered.len().min(INPUT_STEP);
        Poll::Ready(Ok(this.buffered.get(..step).unwrap_or_default()))
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        let this = self.get_mut();
        this.pace.spend(count);
        this.buffered.advance(count.min(this.buffered.len()));
    }
}

/// Only for streams that are not compressed, whose bytes are hashed after they passed the decoder that does nothing.
impl<R: AsyncRead + Unpin> AsyncRead for BlobReader<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffered.is_empty() {
            // Straight into the caller's memory.
            let before = out.filled().len();
            let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, out) else {
                this.pace.rested();
                return Poll::Pending;
            };
            read.map_err(source_failed)?;
            this.count += (out.filled().len() - before) as u64;
        } else {
            give(&mut this.buffered, out);
        }
        Poll::Ready(Ok(()))
    }
}
