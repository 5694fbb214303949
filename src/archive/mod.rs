//! Tar streams in and out.
//!
//! # The way in ([`apply`])
//!
//! ```text
//! AsyncRead ─ count ─ detect ─ decode ([`compression`]) ─────────┐ bounded channel, and beside it what is to be
//!                                                                │ hashed (`hash_line`), by whoever would wait
//!          frame ([`framing`], [`header`], [`pax`], [`sparse`]) ─┘ one blocking step from here on
//!            ├─ tape (`tape`, [`tar_split`]): everything that is no file content, and checksums of what is
//!            └─ unpack (`extract`, `parents`, `metadata`, `deletions`, `aufs`) below an open directory
//! ```
//!
//! # The way out
//!
//! A layer that has a tar-split tape is put together again from it and the layer's files ([`replay`]): the same bytes.
//! Others are told from their trees ([`changes`]) and written afresh ([`export`], `tar_writer`).
//!
//! Nothing here knows records or drivers: directories come in open, with word on the form that deletions take there.

pub(crate) mod apply;
mod aufs;
mod buffers;
pub(crate) mod changes;
pub(crate) mod compression;
pub(crate) mod copy_content;
mod deflate_blocks;
mod deletions;
mod durable;
pub(crate) mod export;
mod extract;
pub(crate) mod framing;
pub(crate) mod gzip;
mod hash_line;
pub(crate) mod header;
mod held;
mod ledger;
mod lookup;
mod lowers;
mod metadata;
pub(crate) mod parallel;
mod parents;
mod path;
pub(crate) mod pax;
mod payload;
mod prune;
pub(crate) mod replay;
mod seen;
pub(crate) mod sent;
pub(crate) mod sink;
pub(crate) mod sparse;
pub(crate) mod tape;
pub(crate) mod tar_split;
mod tar_writer;
#[cfg(test)]
pub(crate) mod test_tar;
#[cfg(test)]
mod tests;
mod walk;
pub(crate) mod zstd_frames;
