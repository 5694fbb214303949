//! The only connection between async and blocking code.
//!
//! `pool` moves finite steps (a reload, a save, a mount) to tokio's blocking pool; `unpack_threads` runs what lasts as
//! long as an incoming stream; `incoming` feeds a blocking reader there from the async side; `outgoing` makes async
//! streams of blocking producers.

mod chunk;
mod file_part;
mod incoming;
mod outgoing;
mod pool;
mod unpack_threads;

pub(crate) use chunk::{CHUNK, give};
pub(crate) use file_part::{FilePart, read_spare, read_spare_at};
pub(crate) use incoming::{ChunkReader, ChunkSender, chunks_in};
#[cfg(test)]
pub(crate) use outgoing::run_to_end;
pub(crate) use outgoing::{ByteStream, PollChunks, Producer, Progress};
pub(crate) use pool::{Detached, Pool, Running, park, run, run_to_completion, runtime, spawn_detached};
pub(crate) use unpack_threads::unpack;
