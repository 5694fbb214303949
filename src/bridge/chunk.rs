//! What the streams of both directions are cut into.

use std::io;

use bytes::Bytes;
use tokio::io::ReadBuf;

/// Bytes per message in either direction: large enough to hide the cost of the hop, small enough to stay in cache.
pub(crate) const CHUNK: usize = 256 * 1024;

/// What crosses a channel.
pub(super) enum Message {
    Chunk(Bytes),
    /// The source ended cleanly; its absence means that the feeder was dropped.
    End,
    Failed(io::Error),
}

/// Moves as many bytes of a chunk into a reader's buffer as have room there.
pub(crate) fn give(chunk: &mut Bytes, buffer: &mut ReadBuf<'_>) {
    let count = chunk.len().min(buffer.remaining());
    buffer.put_slice(&chunk.split_to(count));
}
