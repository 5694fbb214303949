//! The only door between async and blocking code.
//!
//! [`run`] moves one whole step (a reload, a save, a layer, a mount) to tokio's blocking pool. Bytes cross in
//! chunks of up to [`CHUNK`] through bounded channels: [`chunks_in`] feeds a blocking reader from the async side,
//! [`chunks_out`] drains a blocking writer into an [`AsyncRead`].
//!
//! A reader whose feeder was dropped sees an error, never a clean end, so that a cut-off layer cannot look whole.

use std::fmt;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::error::{ErrorKind, Result};

/// Bytes per message in either direction: large enough to hide the cost of the hop, small enough to stay in cache.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Messages in flight on the way out; with [`CHUNK`] this bounds what a pipeline holds in memory.
const DEPTH: usize = 4;

/// Messages in flight on the way in. Either side is slower for a while (large files are dear to decode, small ones to
/// make), and what the channel holds carries the other one over that.
const DEPTH_IN: usize = 6;

/// Runs one blocking step on tokio's blocking pool and returns its result; a panic in `step` goes on here.
///
/// If the returned future is dropped the step still runs to its end; what it returns is dropped there. So a step
/// must own everything it needs, and must leave the store consistent by itself.
pub(crate) async fn run<T, F>(step: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let span = tracing::Span::current();
    #[expect(clippy::disallowed_methods, reason = "this is the one door")]
    let task = tokio::task::spawn_blocking(move || span.in_scope(step));
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_shutdown) => Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
    }
}

/// Starts a blocking step that runs beside its caller; nobody waits for it. For work after the last await.
pub(crate) fn spawn_detached<F>(step: F)
where
    F: FnOnce() + Send + 'static,
{
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(step)),
        Err(_no_runtime) => step(),
    }
}

/// Runs a step that may block for ever (waiting for another process's lock) on a thread of its own, so that it
/// takes no place in the blocking pool and a runtime that shuts down does not wait for it.
///
/// If the returned future is dropped, the step's result is dropped on its thread.
pub(crate) async fn park<T, F>(step: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("graphroot-wait".into())
        .spawn(move || {
            // A waiter that has gone away: the value (a lock) is dropped right here.
            drop(sender.send(step()));
        });
    match spawned {
        Ok(_thread) => {}
        Err(error) => return Err(crate::error::Error::io("starting a waiting thread", error)),
    }
    match receiver.await {
        Ok(result) => result,
        Err(_gone) => Err(ErrorKind::Cancelled.err("waiting thread ended early")),
    }
}

enum Message {
    Chunk(Bytes),
    /// The source ended cleanly; its absence means that the feeder was dropped.
    End,
    Failed(io::Error),
}

/// A channel from an async producer to a blocking [`Read`].
pub(crate) fn chunks_in() -> (ChunkSender, ChunkReader) {
    let (sender, receiver) = mpsc::channel(DEPTH_IN);
    (
        ChunkSender { sender },
        ChunkReader {
            receiver,
            current: Bytes::new(),
            ended: false,
        },
    )
}

/// The async end of [`chunks_in`].
pub(crate) struct ChunkSender {
    sender: mpsc::Sender<Message>,
}

impl ChunkSender {
    /// Whether [`ChunkSender::send`] would have to wait for the reader now.
    pub(crate) fn is_full(&self) -> bool {
        self.sender.capacity() == 0
    }

    /// Hands over one chunk; `false` if the reader is gone (its own result says why).
    pub(crate) async fn send(&self, chunk: Bytes) -> bool {
        self.sender.send(Message::Chunk(chunk)).await.is_ok()
    }

    /// Marks the clean end of the stream.
    pub(crate) async fn finish(self) -> bool {
        self.sender.send(Message::End).await.is_ok()
    }

    /// Makes the reader fail with `error`.
    pub(crate) async fn fail(self, error: io::Error) -> bool {
        self.sender.send(Message::Failed(error)).await.is_ok()
    }
}

/// The blocking end of [`chunks_in`].
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl ChunkReader {
    /// Whether [`ChunkReader::next_chunk`] would have to wait for the feeder now.
    pub(crate) fn is_starved(&self) -> bool {
        self.current.is_empty() && !self.ended && self.receiver.is_empty()
    }

    /// The next chunk as a whole, `None` at the clean end. What a partial `read` left over comes first.
    pub(crate) fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        if self.ended {
            return Ok(None);
        }
        loop {
            match self.receiver.blocking_recv() {
                Some(Message::Chunk(chunk)) if chunk.is_empty() => {}
                Some(Message::Chunk(chunk)) => return Ok(Some(chunk)),
                Some(Message::End) => {
                    self.ended = true;
                    return Ok(None);
                }
                Some(Message::Failed(error)) => return Err(error),
                None => {
                    return Err(ErrorKind::Cancelled
                        .err("the stream was dropped before its end")
                        .into_io());
                }
            }
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(mut chunk) = self.next_chunk()? else {
            return Ok(0);
        };
        let count = chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&chunk[..count]);
        chunk.advance(count);
        self.current = chunk;
        Ok(count)
    }
}

/// A channel from a blocking [`Write`] to an [`AsyncRead`].
pub(crate) fn chunks_out() -> (ChunkWriter, ChunkStream) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    let writer = ChunkWriter {
        sender,
        buffer: Vec::new(),
    };
    (
        writer,
        ChunkStream {
            receiver,
            current: Bytes::new(),
            ended: false,
        },
    )
}

/// The blocking end of [`chunks_out`]. Dropped without [`ChunkWriter::finish`] it makes the reader fail.
pub(crate) struct ChunkWriter {
    sender: mpsc::Sender<Message>,
    /// Room for [`CHUNK`] bytes once it is used; a full one goes out when more arrives.
    buffer: Vec<u8>,
}

impl ChunkWriter {
    fn push(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender
            .blocking_send(Message::Chunk(chunk))
            .map_err(|_gone| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    /// Makes room for at least one byte.
    fn make_room(&mut self) -> io::Result<()> {
        if self.buffer.len() >= CHUNK {
            self.push()?;
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(CHUNK);
        }
        Ok(())
    }

    /// Lets `fill` append to the spare room of the buffer (never none, and never to be grown), and returns what it
    /// appended: saves the copy of a `write`.
    pub(crate) fn fill_with(
        &mut self,
        fill: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<&[u8]> {
        self.make_room()?;
        let start = self.buffer.len();
        fill(&mut self.buffer)?;
        Ok(self.buffer.get(start..).unwrap_or_default())
    }

    /// Marks the end: clean for `Ok`, else the reader fails with this error after the bytes written so far.
    pub(crate) fn finish(mut self, result: io::Result<()>) {
        let last = match result.and_then(|()| self.push()) {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        // A reader that has gone away needs no end.
        drop(self.sender.blocking_send(last));
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        self.make_room()?;
        let count = data.len().min(CHUNK - self.buffer.len());
        self.buffer
            .extend_from_slice(data.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

/// The async end of [`chunks_out`].
pub(crate) struct ChunkStream {
    receiver: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl fmt::Debug for ChunkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkStream")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for ChunkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.receiver.poll_recv(cx)) {
                Some(Message::Chunk(chunk)) => self.current = chunk,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => {
                    self.ended = true;
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.ended = true;
                    let error = ErrorKind::Cancelled.err("the producer of the stream ended early");
                    return Poll::Ready(Err(error.into_io()));
                }
            }
        }
        give(&mut self.current, buffer);
        Poll::Ready(Ok(()))
    }
}

/// Moves as many bytes of a chunk into a reader's buffer as have room there.
pub(crate) fn give(chunk: &mut Bytes, buffer: &mut ReadBuf<'_>) {
    let count = chunk.len().min(buffer.remaining());
    buffer.put_slice(&chunk.split_to(count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn bytes_arrive_whole_and_end_cleanly() {
        let (sender, mut reader) = chunks_in();
        let task = tokio::spawn(async move {
            for i in 0..100u8 {
                assert!(sender.send(Bytes::from(vec![i; 1000])).await);
            }
            sender.finish().await
        });
        let all = run(move || {
            let mut all = Vec::new();
            reader
                .read_to_end(&mut all)
                .map(|_| all)
                .map_err(|e| crate::error::Error::io("reading", e))
        })
        .await
        .unwrap();
        assert_eq!(all.len(), 100_000);
        assert!(task.await.unwrap());
    }

    #[tokio::test]
    async fn a_dropped_feeder_is_an_error_and_not_an_end() {
        let (sender, mut reader) = chunks_in();
        assert!(sender.send(Bytes::from_static(b"half")).await);
        drop(sender);
        let error = run(move || {
            let mut all = Vec::new();
            reader
                .read_to_end(&mut all)
                .map_err(|e| crate::error::Error::io("reading", e))
        })
        .await
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn a_writer_that_fails_or_vanishes_fails_the_stream() {
        for vanish in [false, true] {
            let (mut writer, mut stream) = chunks_out();
            spawn_detached(move || {
                writer.write_all(&[7; 300_000]).unwrap();
                if !vanish {
                    writer.finish(Err(io::Error::other("boom")));
                }
            });
            let mut all = Vec::new();
            assert!(stream.read_to_end(&mut all).await.is_err());
        }
    }
}
