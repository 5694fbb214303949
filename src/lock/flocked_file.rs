//! A file that is locked with `flock` for as long as it is open here.
//!
//! The Go library does not see these locks: they are for files that only this library uses.

use std::fs::File;
use std::io;
use std::ops::Deref;

use fd_lock::RwLock;

/// An exclusively locked file. Dropping it releases the lock, though a child that another thread has just forked may have it open
/// too.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub(crate) struct FlockedFile(File);

impl FlockedFile {
    /// Locks a file; gives it back if another open file has the lock.
    pub(crate) fn try_lock(file: File) -> io::Result<std::result::Result<Self, File>> {
        // The guard would only borrow the file.
        match RwLock::new(&file).try_write().map(std::mem::forget) {
            Ok(()) => Ok(Ok(Self(file))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Err(file)),
            Err(error) => Err(error),
        }
    }

    /// Waits for the lock of a file. Blocking.
    pub(crate) fn lock(file: File) -> io::Result<Self> {
        loop {
            match RwLock::new(&file).write().map(std::mem::forget) {
                Ok(()) => return Ok(Self(file)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Deref for FlockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for FlockedFile {
    fn drop(&mut self) {
        // Taking the lock that is held anew changes nothing; the guard then releases it.
        if let Err(error) = RwLock::new(&self.0).try_write().map(drop) {
            tracing::error!(%error, "unlocking a file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lock_is_free_though_a_child_has_the_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let open = || File::create(&path).unwrap();
        let held = FlockedFile::try_lock(open()).unwrap().unwrap();
        let Err(other) = FlockedFile::try_lock(open()).unwrap() else {
            panic!("two have the lock");
        };
        // As `fork` does it: another descriptor of the same open file.
        let _inherited = held.try_clone().unwrap();
        drop(held);
        let held = FlockedFile::try_lock(other).unwrap();
        assert!(held.is_ok(), "the lock is still held");
        drop(held);
        drop(FlockedFile::lock(open()).unwrap());
    }
}
