//! A tar stream becomes a tree below an open directory.

mod aufs;
mod deferred_modes;
mod digests;
mod extract;
mod extract_state;
mod metadata;
mod parents;
mod payload;
pub(crate) mod pipeline;
mod prune;
mod seen;
mod target;
mod tree;
mod unpack;
mod whiteouts;
