//! The only connection between async and blocking code.
//!
//! `pool` moves finite steps (a reload, a save, a mount) to tokio's blocking pool; `unpack_threads` runs what lasts as
//! long as an incoming stream; `incoming` feeds a blocking reader there from the async side; `outgoing` makes async
//! streams of blocking producers.

mod chunk;
mod incoming;
mod outgoing;
mod pool;
mod unpack_threads;

pub(crate) use chunk::{CHUNK, give};
pub(crate) use incoming::{ChunkReader, ChunkSender, chunks_in};
pub(crate) use outgoing::{ChunkStream, ChunkWriter, chunks_out};
pub(crate) use pool::{Detached, park, run, spawn_detached};
pub(crate) use unpack_threads::unpack;
