//! A tar stream becomes a tree below an open directory.

mod aufs;
mod deferred_modes;
mod digests;
mod extract;
mod extract_state;
mod links;
pub(crate) mod marks;
pub(crate) mod merge;
mod metadata;
mod parents;
mod payload;
pub(crate) mod pipeline;
mod prune;
mod seen;
pub(crate) mod settle;
mod target;
mod tree;
mod unpack;
mod visited;
