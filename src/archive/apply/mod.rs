//! A tar stream becomes a tree below an open directory.

mod aufs;
mod deferred_modes;
mod digests;
mod extract;
mod extract_state;
mod hard_links;
mod holes;
mod linked_files;
mod links;
pub(crate) mod marks;
pub(crate) mod merge;
pub(crate) mod metadata;
mod new_file;
pub(crate) mod origins;
mod parents;
mod payload;
pub(crate) mod pipeline;
pub(crate) mod present_tree;
mod prune;
mod seen;
pub(crate) mod selection;
pub(crate) mod settle;
pub(crate) mod shared_files;
mod target;
mod tree;
mod unpack;
mod visited;
