//! Directories that keep their own state while something in them is changed.
//!
//! Making or removing a name changes the times of its directory, and an owner without `CAP_DAC_OVERRIDE` may first have
//! to give himself permission. Both are put back at the end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::archive::lookup;
use crate::error::{IoContext as _, Result};
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::{at, privilege, tree, xattr};
use crate::whiteout::{self, FUSE_OVERRIDE_STAT, OVERRIDE_STAT};

const DOING: &str = "fitting the layer to the layers below";

/// Permissions that an owner needs to create and remove names.
const NEEDED: u32 = 0o700;

/// What a directory gets at the end.
struct Kept {
    times: Timestamps,
    /// Its mode, if it was changed for the time being.
    mode: Option<u32>,
}

/// See the module's head. Paths have no links in them.
pub(crate) struct Visited<'a> {
    root: BorrowedFd<'a>,
    dirs: BTreeMap<Vec<u8>, Kept>,
    /// Permissions matter to this process.
    checked: bool,
}

/// The times that a status tells.
pub(crate) fn times_of(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanos: u64| Timespec {
        tv_sec,
        tv_nsec: nanos.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl<'a> Visited<'a> {
    /// Directories below `root`.
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            dirs: BTreeMap::new(),
            checked: !privilege::overrides_modes(),
        }
    }

    /// The directory that paths start in.
    pub(crate) fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// Opens a directory in which something is about to be changed.
    pub(crate) fn open(&mut self, path: &[u8]) -> Result<OwnedFd> {
        if self.dirs.contains_key(path) {
            return tree::open_dir_below(self.root, path).during(DOING);
        }
        let mut opened_up = None;
        if self.checked {
            // One that cannot be read can be opened like this all the same.
            let pinned = if path.is_empty() {
                rustix::fs::openat(self.root, ".", tree::DIR_FLAGS, Mode::empty())
            } else {
                lookup::open_dir(self.root, path)
            };
            let pinned = pinned.during(DOING)?;
            let mode = rustix::fs::fstat(&pinned).during(DOING)?.st_mode & 0o7777;
            // The mode of another user's directory cannot be changed; the next call in it fails and says why.
            if mode & NEEDED != NEEDED && at::chmod_open(pinned.as_fd(), mode | NEEDED).is_ok() {
                opened_up = Some(mode);
            }
        }
        let dir = tree::open_dir_below(self.root, path).during(DOING)?;
        let stat = rustix::fs::fstat(&dir).during(DOING)?;
        let kept = Kept {
            times: times_of(&stat),
            mode: opened_up,
        };
        self.dirs.insert(path.to_vec(), kept);
        Ok(dir)
    }

    /// Gives the directory `to` at `path` what `from`, whose status is `stat`, has: owner, mode, attributes, times.
    /// Both are open for reading.
    pub(crate) fn describe(
        &mut self,
        path: &[u8],
        to: BorrowedFd<'_>,
        from: BorrowedFd<'_>,
        stat: &Stat,
    ) -> Result<()> {
        copy_attributes(from, to)?;
        let now = rustix::fs::fstat(to).during(DOING)?;
        if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(to, Some(uid), Some(gid)).during("setting the owner of a directory")?;
        }
        let mode = stat.st_mode & 0o7777;
        let working = if self.checked { mode | NEEDED } else { mode };
        rustix::fs::fchmod(to, Mode::from_raw_mode(working)).during("setting the mode of a directory")?;
        let kept = Kept {
            times: times_of(stat),
            mode: (working != mode).then_some(mode),
        };
        self.dirs.insert(path.to_vec(), kept);
        Ok(())
    }

    /// Puts the state of all directories back; as far as `sync_tracker` wants it, all of it is on disk at the latest when
    /// something that comes later is.
    pub(crate) fn restore(self, sync_tracker: SyncTracker) -> Result<()> {
        for (path, kept) in self.dirs.iter().rev() {
            let dir = match tree::open_dir_below(self.root, path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                opened => opened.during(DOING)?,
            };
            rustix::fs::futimens(&dir, &kept.times).during("setting the times of a directory")?;
            if let Some(mode) = kept.mode {
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))
                    .during("setting the mode of a directory")?;
            }
        }
        sync_tracker.commit(self.root)
    }
}

/// Whether an attribute describes the directory, and not what overlayfs makes of it or what the host thinks of it.
fn describes(name: &str) -> bool {
    name == OVERRIDE_STAT
        || name == FUSE_OVERRIDE_STAT
        || !(whiteout::is_driver_attribute(name.as_bytes()) || name == "security.selinux")
}

/// Makes the attributes of `to` those of `from`.
pub(crate) fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let wanted = xattr::flist(from).during("reading the attributes of a directory")?;
    for name in xattr::flist(to).during("reading the attributes of a directory")? {
        if describes(&name) && !wanted.contains(&name) {
            ignore_unsupported(rustix::fs::fremovexattr(to, &name)).during("removing an attribute")?;
        }
    }
    for name in wanted.iter().filter(|name| describes(name)) {
        if let Some(value) = xattr::fget(from, name).during("reading the attributes of a directory")? {
            ignore_unsupported(xattr::fset(to, name.as_bytes(), &value)).during("setting an attribute")?;
        }
    }
    Ok(())
}

/// An attribute that this process may not set, or the file system cannot keep, is left as it is.
pub(super) fn ignore_unsupported(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NODATA) => Ok(()),
        result => result,
    }
}
