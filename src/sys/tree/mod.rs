//! Removing and measuring whole directory trees.
//!
//! Trees come from layers, so nothing about them can be trusted: they may be tens of thousands of levels deep, hold
//! millions of entries, or be changed by another process meanwhile. Everything goes through open directories and single
//! names, links are never followed, and neither the thread's stack nor the number of open files grows with the depth
//! ([`DirStack`]).

mod dir;
mod dir_stack;
mod parallel_remove;
mod remove;
mod subvolumes;
mod usage;

#[cfg(test)]
mod tests;

pub(crate) use dir::{
    DIR_FLAGS, identity, is_directory, last_name, list_names, listing_buffer, mount_id, open_dir_below,
    open_on_same_mount, pop_name,
};
pub(crate) use dir_stack::DirStack;
pub(crate) use remove::remove_tree;
pub(crate) use usage::{UsageWalk, usage};
