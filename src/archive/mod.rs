//! Tar streams in and out.
//!
//! ```text
//! tar/        headers, PAX records, sparse maps; reading and writing the format
//! tar_split/  the record that makes a tar stream reproducible: format, recorder, replay
//! compress/   decoding what comes in, compressing what goes out
//! apply/      a tar stream becomes a tree
//! diff/       two trees, or an overlay diff, become a list of changes or a tar stream
//! ```
//!
//! # The way in ([`apply`])
//!
//! ```text
//! AsyncRead ─ blob reader ─ detect ─ decode ([`compress`]) ─┐ bounded channel; beside it the hashing queue
//!                                                           │
//!                           tar reader ([`tar`]) ───────────┘ one thread from here on
//!            ├─ tar-split recorder ([`tar_split`]): everything that is no file content, and checksums of what is
//!            └─ extract (`extract`, `tree`, `parents`, `metadata`, `aufs`) below an empty directory
//!               then fit to the layers below: `settle` (marks in the driver's form), `merge` (into a whole tree)
//! ```
//!
//! # The way out
//!
//! A layer that has tar-split data is reproduced from it and the layer's files ([`tar_split::replay`]): the same bytes.
//! The changes of other layers are found in their trees ([`diff::changes`]) and written as a new tar stream
//! ([`diff::export`]).
//!
//! Nothing here knows records or drivers: directories come in open, with the format that whiteouts have there.

pub(crate) mod apply;
pub(crate) mod compress;
mod content_hash;
pub(crate) mod diff;
mod lookup;
pub(crate) mod path;
pub(crate) mod same_files;
pub(crate) mod tar;
pub(crate) mod tar_split;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
