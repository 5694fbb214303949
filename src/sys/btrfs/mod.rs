//! What btrfs can do beyond other file systems: subvolumes, snapshots, and limits on their space.

mod nested;
mod quota;
mod search;
mod snapshot_changes;
mod subvolume;

pub(crate) use nested::destroy_with_nested;
pub(crate) use quota::{enable_quota, is_quota_enabled, limit};
pub(crate) use snapshot_changes::SnapshotChanges;
pub(crate) use subvolume::{
    clear_read_only, create_subvolume, is_btrfs, is_subvolume, snapshot, subvolume_or_inode,
};
