//! System calls that need more than a line, and all unsafe code of the crate.

pub(crate) mod at;
pub(crate) mod atomic;
pub(crate) mod boot;
pub(crate) mod child;
mod clean_path;
pub(crate) mod dedupe;
mod heap;
mod lease;
mod list_dir;
pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod mount_namespaces;
pub(crate) mod name_sync;
pub(crate) mod ofd;
mod private_dir;
pub(crate) mod privilege;
mod processors;
pub(crate) mod random;
pub(crate) mod reserve;
pub(crate) mod selinux;
pub(crate) mod spare;
pub(crate) mod sparse_read;
pub(crate) mod sync_tracker;
pub(crate) mod temporary_names;
pub(crate) mod tree;
pub(crate) mod unnamed;
pub(crate) mod userns;
pub(crate) mod verity;
pub(crate) mod writeback;
pub(crate) mod xattr;

pub(crate) use clean_path::clean_path;
pub use heap::return_memory_early;
pub(crate) use list_dir::list_dir_if_there;
pub(crate) use private_dir::{make_private_dir, make_private_subdir};
pub(crate) use processors::processors;
