//! Limits on the layers of containers, by the project quotas of XFS and ext4.
//!
//! The directory of such a layer is a project of its own. Its ID is the layer's, nobody else's on the file system: the IDs of a
//! home begin at that of the home, or at one made of its inode number, as in the Go library, which counts up from the highest
//! that it has found when the store was opened. So an ID is chosen at some distance above the highest in use, where no Go
//! process that runs now will come by soon.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::driver::contract::DiskUsage;
use crate::driver::quota::Quota;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::presence::lstat_if_there;
use crate::sys::project_quota::{self, Amounts, Project};
use crate::sys::{at, list_dir_if_there, random};

/// How many IDs the Go library keeps for one home.
const IDS_OF_HOME: u32 = 10_000;

/// Distance to the highest ID in use.
const DISTANCE: u32 = 16;

/// How often another ID is chosen because somebody has taken the same at the same time.
const ATTEMPTS: u32 = 100;

/// The project quotas of a driver's home.
#[derive(Debug)]
pub(super) struct ProjectQuotas {
    home: PathBuf,
    /// Where there are temporary directories with layers.
    temp_dirs: PathBuf,
    /// The ID of the home; those of layers are above it.
    first: u32,
    /// What is known of directories in the home: inode number and project ID. Neither changes once a layer is made.
    known: Mutex<HashMap<OsString, (u64, u32)>>,
}

impl ProjectQuotas {
    /// Finds out whether the home's file system has project quotas; what is made in the home itself belongs to no layer.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] if it has none, or they are off.
    pub(super) fn open(home: &Path, temp_dirs: PathBuf) -> Result<Self> {
        let dir = at::open_dir(home).at("opening", home)?;
        let unsupported = |error: Errno| {
            let what = "Filesystem does not support Project Quota";
            ErrorKind::NotSupported
                .err(what)
                .with_source(Error::io("asking for the state of quotas", error))
        };
        if !project_quota::is_enforced(dir.as_fd()).map_err(unsupported)? {
            return Err(unsupported(Errno::SRCH));
        }
        let own = project_quota::project_of(dir.as_fd()).map_err(unsupported)?;
        if own.inherited {
            let project = Project {
                inherited: false,
                ..own
            };
            project_quota::set_project(dir.as_fd(), project).at("setting the project of", home)?;
        }
        let first = match own.id {
            0 => first_id(rustix::fs::fstat(&dir).at("looking at", home)?.st_ino),
            id => id,
        };
        Ok(Self {
            home: home.to_owned(),
            temp_dirs,
            first,
            known: Mutex::default(),
        })
    }

    /// Makes an empty directory a project of its own, with these limits.
    pub(super) fn limit(&self, dir: &Path, quota: &Quota) -> Result<()> {
        let open = at::open_dir(dir).at("opening", dir)?;
        let own = rustix::fs::fstat(&open).at("looking at", dir)?.st_ino;
        let mut distance = DISTANCE;
        for _ in 0..ATTEMPTS {
            let id = next_id(self.first, &self.used(own)?, distance).ok_or_else(|| {
                ErrorKind::NotSupported.err(format!("another project quota in {}", self.home.display()))
            })?;
            let project = Project { id, inherited: true };
            project_quota::set_project(open.as_fd(), project).at("setting the project of", dir)?;
            // Of two that have taken the same without a common lock, one at least sees the other.
            if !self.used(own)?.contains(&id) {
                return self.set_limits(open.as_fd(), id, quota);
            }
            distance = DISTANCE + random::number()? % 64;
        }
        Err(ErrorKind::NotSupported.err("finding a project ID that nobody else takes"))
    }

    fn set_limits(&self, dir: BorrowedFd<'_>, id: u32, quota: &Quota) -> Result<()> {
        let limits = Amounts {
            bytes: quota.size.unwrap_or(0),
            inodes: quota.inodes.unwrap_or(0),
        };
        project_quota::set_limits(dir, id, limits)
            .during(format!("limiting project {id} in {}", self.home.display()))
    }

    /// Lifts the limits of a layer that is being removed, so that whoever gets its ID next has none of them.
    pub(super) fn lift(&self, dir: &Path) {
        let lift = || -> Result<()> {
            let Some((open, id)) = self.project(dir)? else {
                return Ok(());
            };
            self.set_limits(open.as_fd(), id, &Quota::default())
        };
        if let Err(error) = lift() {
            tracing::warn!(dir = %dir.display(), error = %error.chain(), "cannot lift the limits of a layer");
        }
    }

    /// What a layer uses; `None` if it is no project of its own.
    pub(super) fn usage(&self, dir: &Path) -> Result<Option<DiskUsage>> {
        let Some((open, id)) = self.project(dir)? else {
            return Ok(None);
        };
        let used = project_quota::usage(open.as_fd(), id).at("measuring the project of", dir)?;
        Ok(Some(DiskUsage {
            size: used.bytes,
            inodes: used.inodes,
        }))
    }

    /// The project of a layer's own.
    fn project(&self, dir: &Path) -> Result<Option<(OwnedFd, u32)>> {
        let open = match at::open_dir(dir) {
            Err(Errno::NOENT) => return Ok(None),
            open => open.at("opening", dir)?,
        };
        let project = project_quota::project_of(open.as_fd()).at("asking for the project of", dir)?;
        Ok((project.id != 0 && project.id != self.first && project.inherited).then_some((open, project.id)))
    }

    /// The IDs of everything else than the directory with the inode number `own`.
    fn used(&self, own: u64) -> Result<BTreeSet<u32>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = HashMap::with_capacity(known.len());
        let mut used = BTreeSet::new();
        for entry in list_dir_if_there(&self.home)? {
            let entry = entry?;
            if !entry.file_type().at("listing", &self.home)?.is_dir() || entry.ino() == own {
                continue;
            }
            let name = entry.file_name();
            let id = match known.get(&name) {
                Some((inode, id)) if *inode == entry.ino() => Some((*inode, *id)),
                _ => None,
            };
            let (id, is_made) = match id {
                Some((_, id)) => (id, true),
                None => {
                    // A layer gets its ID when it is empty.
                    let is_made = entry.path().join("diff").exists();
                    (id_of(&entry.path())?, is_made)
                }
            };
            used.insert(id);
            if id != 0 || is_made {
                found.insert(name, (entry.ino(), id));
            }
        }
        *known = found;
        drop(known);
        // Layers that are being made or removed.
        for temp in list_dir_if_there(&self.temp_dirs)? {
            let temp = temp?;
            // Beside each is its lock file. What cannot be looked at may have an ID that would be taken twice.
            if !temp.file_type().at("listing", &self.temp_dirs)?.is_dir() {
                continue;
            }
            for layer in list_dir_if_there(&temp.path())? {
                let path = layer?.path();
                let stat = lstat_if_there(&path)?;
                let is_dir = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if stat.is_some_and(|stat| is_dir(&stat) && stat.st_ino != own) {
                    used.insert(id_of(&path)?);
                }
            }
        }
        used.remove(&0);
        Ok(used)
    }
}

/// The project ID of a directory that may be gone by now.
fn id_of(dir: &Path) -> Result<u32> {
    let project = at::open_dir(dir).and_then(|open| project_quota::project_of(open.as_fd()));
    match project {
        Ok(project) => Ok(project.id),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(0),
        Err(error) => Err(error).at("asking for the project of", dir),
    }
}

/// The ID of a home that has none, from its inode number. Compat: the Go library's formula, overflow included.
fn first_id(inode: u64) -> u32 {
    let range = u64::from(u32::MAX - IDS_OF_HOME);
    let offset = inode.wrapping_mul(u64::from(IDS_OF_HOME)) % range;
    u32::try_from(offset).map_or(IDS_OF_HOME, |offset| IDS_OF_HOME + offset)
}

/// An ID that is not in use: above the highest of the home's at some distance, or if the home's IDs end there the lowest free
/// one; `None` if all are in use.
fn next_id(first: u32, used: &BTreeSet<u32>, distance: u32) -> Option<u32> {
    let last = first.saturating_add(IDS_OF_HOME - 1);
    let highest = used.range(first..=last).next_back().map_or(first, |id| *id);
    let above = highest.checked_add(distance).filter(|id| *id <= last);
    above.or_else(|| (first.saturating_add(1)..=last).find(|id| !used.contains(id)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_a_home_begin_where_the_go_library_has_them() {
        // Recorded from its command.
        assert_eq!(first_id(262_272), 2_622_730_000);
        assert_eq!(first_id(0), 10_000);
        assert!(first_id(u64::MAX) >= 10_000);
    }

    #[test]
    fn an_id_keeps_its_distance_and_holes_are_filled_at_the_end() {
        let used = |ids: &[u32]| ids.iter().copied().collect();
        assert_eq!(next_id(10_000, &used(&[]), 16), Some(10_016));
        assert_eq!(next_id(10_000, &used(&[10_001, 10_016]), 16), Some(10_032));
        // IDs of others are not looked at.
        assert_eq!(
            next_id(10_000, &used(&[5, 9_999, 20_000, u32::MAX]), 16),
            Some(10_016)
        );
        assert_eq!(next_id(10_000, &used(&[19_984, 10_001]), 16), Some(10_002));
        assert_eq!(next_id(10_000, &(10_001..20_000).collect(), 16), None);
        assert_eq!(next_id(u32::MAX - 1, &used(&[]), 16), Some(u32::MAX));
        assert_eq!(next_id(u32::MAX, &used(&[]), 16), Some(u32::MAX));
    }

    proptest! {
        /// Beside a model that has all IDs in a row.
        #[test]
        fn no_id_is_given_twice(
            mut ids in prop::collection::btree_set(20_000_u32..30_000, 0..50),
            rounds in 1_usize..40,
            distance in 1_u32..3_000,
        ) {
            for _ in 0..rounds {
                let id = next_id(20_000, &ids, distance).unwrap();
                prop_assert!((20_001..30_000).contains(&id));
                let is_hole = ids.last().is_some_and(|last| last + distance >= 30_000);
                prop_assert_eq!(is_hole && (20_001..id).all(|below| ids.contains(&below)), is_hole);
                prop_assert!(ids.insert(id), "{} twice", id);
            }
        }
    }
}
