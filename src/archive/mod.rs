//! Tar streams in and out: compression, applying layers, the tar-split tape, producing layers.
//!
//! Everything here is blocking and works below open directories; how bytes get to and from async code is the
//! [bridge](crate::bridge)'s business. Neither drivers nor records are known here: the store hands over a layer's
//! directories and what form deletions have in them.
//!
//! # The way in
//! `sent` counts and hashes the stream as it is sent, [`compression`] tells what it is packed with and unpacks it.
//! [`framing`] cuts the tar stream into entries (with [`header`], `pax` and `sparse`); [`apply`] turns each into
//! objects below the layer's directory (`extract`, `payload`, `metadata`) and into deletions (`deletions`, `aufs`,
//! `prune`), while `tape` keeps the bytes between file contents for the layer's [`tar_split`] file. `path` cleans
//! names, `parents` keeps directories open, `seen` and `ledger` remember what the archive has named and what is left
//! to do, `durable` gets everything to disk.
//!
//! # The way out
//! ```text
//! layer has a tar-split file:   tar_split ─┐
//!                               tree(s)  ──┴─ replay::replay ──────────────────────────┐
//! overlay, direct parent:       upper + lowers ── export::write_upper ──┐              ├─► sink
//! two mounted trees:            changes::tree_changes ─ export::write_changes ─┤ tar_writer ─┘
//! no parent:                    one mounted tree ── export::write_tree ────────┘
//! ```
//! [`replay`] gives back the bytes that were unpacked. Where there are none to give back (a container's layer),
//! [`export`] makes a new stream, the same bytes as long as the layer does not change. [`changes`] tells what differs
//! without making a stream. Both walk trees with `walk` (sorted, no recursion, few open directories) and look below an
//! overlay upper directory with `lowers`; `lookup` finds single paths.
//!
//! A [`sink::Sink`] takes file content straight into the chunk that goes to the reader. Whoever reads a stream takes
//! an error at any point as fatal: part of the bytes may be out already. Nothing on this way writes to disk.

pub(crate) mod apply;
mod aufs;
pub(crate) mod changes;
pub(crate) mod compression;
mod deletions;
mod durable;
pub(crate) mod export;
mod extract;
pub(crate) mod framing;
pub(crate) mod header;
mod ledger;
mod lookup;
mod lowers;
mod metadata;
mod parents;
mod path;
mod pax;
mod payload;
mod prune;
pub(crate) mod replay;
mod seen;
mod sent;
pub(crate) mod sink;
mod sparse;
mod tape;
pub(crate) mod tar_split;
mod tar_writer;
#[cfg(test)]
pub(crate) mod test_tar;
#[cfg(test)]
mod tests;
mod walk;
