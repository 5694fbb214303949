//! Subvolumes of a btrfs in a tree that is removed.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::sys::{at, btrfs};

/// Whether a directory may have subvolumes in it.
pub(super) fn may_have(dir: BorrowedFd<'_>) -> bool {
    btrfs::is_btrfs(dir).unwrap_or(false)
}

/// Destroys `name` in `parent`, whose open directory is `dir`, if it is a subvolume and that is allowed. Otherwise it can be
/// emptied and removed as other directories are.
pub(super) fn destroy(parent: BorrowedFd<'_>, name: &CStr, dir: &OwnedFd) -> bool {
    let is_subvolume = rustix::fs::fstat(dir).is_ok_and(|stat| btrfs::is_subvolume(&stat));
    if !is_subvolume {
        return false;
    }
    // The one above may be open without permission to do anything.
    let destroyed = at::open_dir_at(parent, b".")
        .and_then(|parent| btrfs::destroy_with_nested(parent.as_fd(), name.to_bytes(), dir.as_fd()));
    if let Err(error) = destroyed {
        tracing::debug!(%error, "a subvolume is removed file by file");
    }
    destroyed.is_ok()
}
