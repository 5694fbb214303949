//! Mounts of lowers that are there only while an overlay mount is made: that keeps references of its own.

use std::path::Path;

use crate::sys::mount::unmount_lazily;

/// Unmounts and removes what is mounted at the directories in `dir`, also by a killed process, and `dir`.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let target = entry.path();
        let gone = unmount_lazily(&target).and_then(|()| Ok(rustix::fs::rmdir(&target)?));
        if let Err(error) = gone {
            tracing::warn!(path = %target.display(), %error, "cannot remove a mount of a lower layer");
        }
    }
    if let Err(error) = rustix::fs::rmdir(dir) {
        tracing::debug!(path = %dir.display(), %error, "the directory of mounts of lower layers stays");
    }
}
