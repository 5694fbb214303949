//! Async streams of what blocking code produces.

use std::fmt;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::bridge::chunk::{CHUNK, Message, give};
use crate::error::ErrorKind;

/// Messages in flight on the way out; with [`CHUNK`] this bounds what a pipeline holds in memory.
const DEPTH: usize = 4;

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
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
        give(&mut self.current, buffer);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::spawn_detached;
    use tokio::io::AsyncReadExt as _;

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
