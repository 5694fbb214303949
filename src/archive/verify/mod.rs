//! Checks a layer's files against the tar stream that the layer came from, without unpacking it.
//!
//! ```text
//! tar-split file ─ replay ([`layer_reading`]) ─┬─ digest and size of the stream, checksum of each file
//! the layer's files ───────────────────────────┘
//!                         headers ─ [`expected_tree`]: what the tree should be
//! the layer's tree ─ one walk ([`comparison`]) ─ differences ([`difference`])
//! ```
//!
//! The expected tree follows the rules by which layers are unpacked ([`apply`](super::apply)). Where programs that unpack
//! layers differ, or where the headers do not tell what is on disk, nothing is expected.

mod acl;
pub(crate) mod comparison;
pub(crate) mod difference;
mod expected_item;
pub(crate) mod expected_tree;
pub(crate) mod item_comparison;
pub(crate) mod layer_reading;
pub(crate) mod overlay_marks;
mod resolving;
mod stacking;
