//! Lock files that exist while something temporary is in use, and are unlinked afterwards.
//!
//! Such a lock is never waited for: a process that finds it free may remove what it protects. Because the file is
//! unlinked, a process can lock a file that no longer has its name; [`StagingLock::try_acquire`] checks that after
//! locking and starts again. A crash leaves the file, unlocked.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::ofd;

/// How often to start again when the file is unlinked while it is being locked.
const MAX_RACES: usize = 1000;

/// An exclusive lock on a file of its own. Dropping it releases the lock and leaves the file, as a crash does.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub(crate) struct StagingLock {
    path: PathBuf,
    file: OwnedFd,
}

impl Drop for StagingLock {
    fn drop(&mut self) {
        // Closing the file is not enough: until they run another program, children that other threads have just forked have
        // it open too, and the lock is that of all of them.
        if let Err(error) = ofd::unlock(self.file.as_fd()) {
            tracing::error!("unlocking {}: {error}", self.path.display());
        }
    }
}

impl StagingLock {
    /// Locks the file at `path`, which is created (0600) if missing; `None` if it is in use, also by this process. Does
    /// not wait.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>> {
        for _ in 0..MAX_RACES {
            match Self::attempt(path, OFlags::empty())? {
                Attempt::Locked(lock) => return Ok(Some(lock)),
                Attempt::Busy => return Ok(None),
                Attempt::Gone => {}
            }
        }
        Err(ErrorKind::Io
            .err("lock file keeps vanishing while it is locked")
            .at(path))
    }

    /// Creates the file at `path` and locks it; `None` if it exists or is removed by a process that cleans up.
    pub(crate) fn try_create(path: &Path) -> Result<Option<Self>> {
        match Self::attempt(path, OFlags::EXCL) {
            Ok(Attempt::Locked(lock)) => Ok(Some(lock)),
            Ok(Attempt::Busy | Attempt::Gone) => Ok(None),
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::AlreadyExists) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn attempt(path: &Path, extra: OFlags) -> Result<Attempt> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
        let file =
            rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).at("opening lock file", path)?;
        if !ofd::try_lock(file.as_fd(), ofd::Kind::Exclusive).at("locking", path)? {
            return Ok(Attempt::Busy);
        }
        let ours = rustix::fs::fstat(&file).at("reading the status of", path)?;
        match rustix::fs::lstat(path) {
            Ok(there) if there.st_dev == ours.st_dev && there.st_ino == ours.st_ino => {
                Ok(Attempt::Locked(Self {
                    path: path.to_path_buf(),
                    file,
                }))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(Attempt::Gone),
            Err(error) => Err(error).at("reading the status of", path),
        }
    }

    /// The lock file.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, then releases the lock.
    pub(crate) fn remove(self) -> Result<()> {
        self.unlink()
    }

    /// Removes the file and keeps the lock until dropped, so that a process that opened the file before, and does not
    /// check its name after locking, cannot lock it meanwhile.
    pub(crate) fn unlink(&self) -> Result<()> {
        match rustix::fs::unlink(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("removing lock file", &self.path),
        }
    }
}

/// Whether nobody holds the lock of the file at `path`; `None` if there is no file. Changes nothing.
pub(crate) fn is_free(path: &Path) -> Result<Option<bool>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).at("opening lock file", path),
    };
    let holder = ofd::holder(file.as_fd(), ofd::Kind::Exclusive).at("looking for the holder of", path)?;
    Ok(Some(holder.is_none()))
}

enum Attempt {
    Locked(StagingLock),
    Busy,
    /// Locked, but the path no longer names this file.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_no_file_after_removal() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("staging.lock");
        assert_eq!(is_free(&path).unwrap(), None);
        let lock = StagingLock::try_acquire(&path).unwrap().unwrap();
        assert_eq!(is_free(&path).unwrap(), Some(false));
        assert!(StagingLock::try_acquire(&path).unwrap().is_none());
        assert!(StagingLock::try_create(&path).unwrap().is_none());
        drop(lock);
        assert!(path.exists(), "a dropped lock leaves its file");
        assert_eq!(is_free(&path).unwrap(), Some(true));
        assert!(StagingLock::try_create(&path).unwrap().is_none(), "it exists");
        let lock = StagingLock::try_acquire(&path).unwrap().unwrap();
        assert_eq!(lock.path(), path);
        lock.remove().unwrap();
        assert!(!path.exists());
        StagingLock::try_create(&path).unwrap().unwrap().remove().unwrap();
    }

    /// A child has the files of its parent between `fork` and `exec`, and a child that runs no other program until it ends.
    #[test]
    fn a_dropped_lock_is_free_though_a_child_has_its_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let lock = StagingLock::try_acquire(&path).unwrap().unwrap();
        // As `fork` does it: another descriptor of the same open file.
        let _inherited = rustix::io::dup(&lock.file).unwrap();
        drop(lock);
        assert_eq!(is_free(&path).unwrap(), Some(true));
        assert!(StagingLock::try_acquire(&path).unwrap().is_some());
    }

    /// Threads that lock and unlink the same name all the time: two must never believe to have it at once.
    #[test]
    fn an_unlinked_file_is_never_taken_for_the_lock() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let (holders, won) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let Some(lock) = StagingLock::try_acquire(&path).unwrap() else {
                            continue;
                        };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        won.fetch_add(1, Ordering::SeqCst);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        lock.remove().unwrap();
                    }
                });
            }
        });
        assert!(won.load(Ordering::SeqCst) > 0);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let error = StagingLock::try_acquire(&path).unwrap_err();
        assert_eq!(error.path(), Some(&*path));
        assert!(!tmp.path().join("elsewhere").exists());
    }
}
