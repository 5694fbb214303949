//! Puts the tar stream of a layer together, bit for bit: what is no content from tar-split data, content from files that
//! are there already and from ranges of the blob.
//!
//! ```text
//! table of contents ─ plan: where each file's content comes from, and which ranges of the blob are needed
//! tar-split data ──┐
//! local files ─────┼─ assembler, in steps ─ stream: a tar stream as any other, which is unpacked as any other
//! ranges ─ frames ─┘                        (`check`: its headers say what the table of contents says)
//! ```
//!
//! Without tar-split data the headers are written as the table has them (`headers`), and the digest of the stream says
//! nothing: the digests of the single files are verified instead.
//!
//! Else a layer that was pulled in part has the tree that the whole pull gives it, refuses what that refuses, and its
//! digest is verified like that of any other.

mod assembler;
mod check;
mod contents;
mod frames;
mod headers;
mod input;
mod plan;
mod stream;

pub(crate) use assembler::{Assembler, Lines};
pub(crate) use check::HeaderCheck;
pub(crate) use headers::Headers;
pub(crate) use plan::Plan;
pub(crate) use stream::stream;
