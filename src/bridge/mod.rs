//! The only connection between async and blocking code.
//!
//! `pool` moves finite steps (a reload, a save, a mount) to tokio's blocking pool; `incoming` feeds a blocking reader
//! from the async side; `outgoing` makes async streams of blocking producers.

mod chunk;
mod incoming;
mod outgoing;
mod pool;

pub(crate) use chunk::{CHUNK, give};
pub(crate) use incoming::{ChunkReader, ChunkSender, chunks_in};
pub(crate) use outgoing::{ChunkStream, ChunkWriter, chunks_out};
pub(crate) use pool::{park, run, spawn_detached};
