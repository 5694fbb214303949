//! Removing what killed processes have left: temporary directories, and the datasets and snapshots with their numbers.

use crate::driver::contract::{Leftover, LeftoverKind};
use crate::driver::zfs::state::Zfs;
use crate::error::IoContext as _;
use crate::error::Result;
use crate::lock::temp_dir;
use crate::sys::mount::mounts_below;

impl Zfs {
    /// The temporary directories whose locks are free.
    pub(super) fn stale(&self) -> Result<Vec<Leftover>> {
        let mut found = temp_dir::stale(&self.temp_dirs())?;
        found.extend(temp_dir::stale(&self.mount_dirs())?);
        let kind = LeftoverKind::TempDir;
        Ok(found.into_iter().map(|path| Leftover { path, kind }).collect())
    }

    /// Removes them. Without one, nothing is asked of `zfs`.
    pub(super) fn recover(&self) -> Result<()> {
        let mounts = temp_dir::recover(&self.mount_dirs());
        let dirs = temp_dir::recover_with(&self.temp_dirs(), &mut |number| {
            let dir = self.temp_dirs().join(format!("temp-dir-{number}"));
            // The daemon does not survive that files in it are open when this is detached; those of a killed process are not.
            for mounted in mounts_below(&dir).during("reading the table of mounts")? {
                self.mounter.unmount(&mounted)?;
            }
            // Listed while the lock is held: what has its number is changed by nobody else then.
            self.datasets.destroy_temporary(number)
        });
        mounts.and(dirs)
    }
}
