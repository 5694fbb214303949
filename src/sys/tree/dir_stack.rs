//! The directories between the top of a walk and where it is.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::sys::tree::dir::{DIR_FLAGS, Result, identity};

/// Directories kept open on the way down; the ones above are found again through `..`.
pub(super) const MAX_OPEN: usize = 32;

/// The way from the top of a walk down to the current directory. Only the last [`MAX_OPEN`] directories are open; one
/// further up is opened again as `..` of the one below, and must then be the one that it was.
pub(crate) struct DirStack {
    levels: Vec<Level>,
}

enum Level {
    Open(OwnedFd),
    /// Closed; its device and inode.
    Closed((u64, u64)),
}

impl DirStack {
    /// A walk that starts in `top`.
    pub(crate) fn new(top: OwnedFd) -> Self {
        Self {
            levels: vec![Level::Open(top)],
        }
    }

    /// The directory that the walk is in.
    pub(crate) fn current(&self) -> Result<BorrowedFd<'_>> {
        match self.levels.last() {
            Some(Level::Open(dir)) => Ok(dir.as_fd()),
            // The last level is always open.
            Some(Level::Closed(_)) | None => Err(Errno::BADF),
        }
    }

    /// How many directories are open.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        let open = |level: &&Level| matches!(level, Level::Open(_));
        self.levels.iter().filter(open).count()
    }

    /// Goes down into `dir`, a subdirectory of the current one.
    pub(crate) fn enter(&mut self, dir: OwnedFd) -> Result<()> {
        self.levels.push(Level::Open(dir));
        // The top stays open: `..` of the one below it may be unreachable, or not be it.
        if let Some(far) = self.levels.len().checked_sub(MAX_OPEN).filter(|far| *far > 0)
            && let Some(level) = self.levels.get_mut(far)
            && let Level::Open(dir) = level
        {
            *level = Level::Closed(identity(&rustix::fs::fstat(dir)?));
        }
        Ok(())
    }

    /// Goes one level up; at the top nothing happens.
    pub(crate) fn leave(&mut self) -> Result<()> {
        self.leave_open().map(drop)
    }

    /// Goes one level up and hands over the directory that was left; at the top nothing happens.
    pub(crate) fn leave_open(&mut self) -> Result<Option<OwnedFd>> {
        let [.., above, Level::Open(current)] = self.levels.as_mut_slice() else {
            return Ok(None);
        };
        if let Level::Closed(expected) = above {
            let dir = rustix::fs::openat(&*current, c"..", DIR_FLAGS, Mode::empty())?;
            // The directory was moved: its parent is now not part of the walk.
            if identity(&rustix::fs::fstat(&dir)?) != *expected {
                return Err(Errno::STALE);
            }
            *above = Level::Open(dir);
        }
        match self.levels.pop() {
            Some(Level::Open(left)) => Ok(Some(left)),
            Some(Level::Closed(_)) | None => Ok(None),
        }
    }
}
