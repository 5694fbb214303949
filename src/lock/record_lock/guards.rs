//! Held locks.

use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use crate::error::{IoContext as _, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::lock_file::LockFile;

/// A shared lock; released when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct SharedLock {
    pub(super) lock: Arc<LockFile>,
    /// Dropped after `drop` has released the kernel's lock.
    pub(super) _gate: OwnedRwLockReadGuard<()>,
}

impl SharedLock {
    /// The token of the last write.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }

    /// The lock file.
    #[cfg(test)]
    pub(crate) fn file(&self) -> &Arc<LockFile> {
        &self.lock
    }
}

impl Drop for SharedLock {
    fn drop(&mut self) {
        self.lock.leave_shared();
    }
}

/// An exclusive lock; released when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct ExclusiveLock {
    pub(super) lock: Arc<LockFile>,
    /// Dropped after `drop` has released the kernel's lock.
    pub(super) _gate: OwnedRwLockWriteGuard<()>,
}

impl ExclusiveLock {
    /// The token of the last write.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }

    /// Writes a new token and returns it. To be called before the data changes.
    pub(crate) fn write_token(&self) -> Result<Token> {
        let token = Token::new()?;
        let bytes = token.as_bytes();
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(self.lock.as_fd(), bytes, 0));
        let complete = written.and_then(|count| {
            if count == bytes.len() {
                Ok(())
            } else {
                Err(Errno::NOSPC)
            }
        });
        complete.at("writing the token of the last write to", &self.lock.path)?;
        Ok(token)
    }
}

impl Drop for ExclusiveLock {
    fn drop(&mut self) {
        self.lock.release();
    }
}
