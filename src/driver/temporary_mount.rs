//! Mounts that have no path: made in a locked temporary directory, opened, and detached at once.
//!
//! Such a mount lives as long as a file in it is open. If the process is killed before it is detached, the recovery of the
//! temporary directory detaches it.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;
use crate::sys::mount::make_private;

/// Has `mount` make a mount in a temporary directory below `temp_dirs`, opens its root directory, and detaches it. The temporary
/// directory is a mount of its own that propagates nothing, so that the mount never shows in another mount namespace.
pub(super) fn open(temp_dirs: &Path, mount: impl FnOnce(&Path) -> Result<()>) -> Result<OwnedFd> {
    // Dropped, the directory is removed; mounts in it are detached first, and never entered.
    let mut temp = TempDir::create(temp_dirs)?;
    let dir = temp.addition();
    let target = dir.join("merged");
    std::fs::create_dir_all(&target).at("creating", &target)?;
    make_private(&dir).at("making a private mount of", &dir)?;
    mount(&target)?;
    let root = at::open_dir(&target).at("opening a private mount at", &target)?;
    temp.remove()?;
    Ok(root)
}
