//! A bounded channel from an async producer to a blocking reader.
//!
//! A reader whose sender was dropped sees an error, never a clean end, so that a layer that was cut off is not taken for a whole one.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use crate::bridge::chunk::Message;
use crate::error::ErrorKind;

/// Messages in flight on the way in. Which side is the slower one changes (large files take long to decode, small ones
/// to create); while it does, the other side works on what the channel holds.
const DEPTH_IN: usize = 6;

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
                        .into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::run;

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
}
