//! Removing what killed processes have left: temporary directories, and the datasets and snapshots with their numbers.

use std::collections::BTreeSet;

use crate::driver::contract::{Leftover, LeftoverKind};
use crate::driver::zfs::state::Zfs;
use crate::error::IoContext as _;
use crate::error::Result;
use crate::lock::temp_dir;
use crate::sys::make_private_dir;
use crate::sys::mount::mounts_below;
use crate::sys::presence::lstat_if_there;

impl Zfs {
    /// The temporary directories whose locks are free.
    pub(super) fn stale(&self) -> Result<Vec<Leftover>> {
        let mut found = temp_dir::stale(&self.temp_dirs())?;
        found.extend(temp_dir::stale(&self.mount_dirs())?);
        let kind = LeftoverKind::TempDir;
        Ok(found.into_iter().map(|path| Leftover { path, kind }).collect())
    }

    /// Removes what has the number of a temporary directory that is not there. A crash can leave it: the home may be on
    /// another file system than the datasets, which are on disk at once.
    pub(super) fn recover_without_dir(&self) -> Result<()> {
        let listed = self.datasets.list(false)?;
        let ours = listed.iter().filter(|found| found.is_ours);
        let numbers: BTreeSet<&str> = ours
            .filter_map(|found| {
                found
                    .removed
                    .as_deref()
                    .or_else(|| self.datasets.root.number_of(&found.name))
            })
            .filter(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        let mut is_any = false;
        for number in numbers {
            // Its owner may have ended since the list was made. Who holds its lock keeps it.
            let dir = temp_dir::of_number(&self.temp_dirs(), number);
            if lstat_if_there(&dir)?.is_none() {
                make_private_dir(&dir)?;
                is_any = true;
            }
        }
        if is_any { self.recover() } else { Ok(()) }
    }

    /// Removes them. Without one, nothing is asked of `zfs`.
    pub(super) fn recover(&self) -> Result<()> {
        let mounts = temp_dir::recover(&self.mount_dirs());
        let dirs = temp_dir::recover_with(&self.temp_dirs(), &mut |number| {
            let dir = temp_dir::of_number(&self.temp_dirs(), number);
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
