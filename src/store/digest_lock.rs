//! Locks by content digest, for callers who want to do something about one blob once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bridge;
use crate::digest::Digest;
use crate::error::{IoContext as _, Result};
use crate::lock::owners::{self, LockOwner};
use crate::lock::record_lock::{ExclusiveLock, LockFile, LockMode, SharedLock};
use crate::options::StoreOptions;
use crate::store::Store;

/// The lock files in the directories of records, by the end of the directory's name.
const RECORD_LOCKS: [(&str, &[&str]); 3] = [
    ("-layers", &["layers.lock", "mountpoints.lock"]),
    ("-images", &["images.lock"]),
    ("-containers", &["containers.lock"]),
];

/// A lock that belongs to one digest, shared with every process that uses the store, Go's included. Made by
/// [`Store::get_digest_lock`]; not held yet.
#[derive(Clone, Debug)]
pub struct DigestLock {
    file: Arc<LockFile>,
    timeout: Option<Duration>,
}

/// A held [`DigestLock`]; given back when dropped.
#[must_use = "the lock is given back when this is dropped"]
pub struct DigestLockGuard {
    _held: Held,
}

enum Held {
    ExclusiveLock { _guard: ExclusiveLock },
    SharedLock { _guard: SharedLock },
}

impl fmt::Debug for DigestLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self._held {
            Held::ExclusiveLock { .. } => "exclusive",
            Held::SharedLock { .. } => "shared",
        };
        f.debug_tuple("DigestLockGuard").field(&kind).finish()
    }
}

impl DigestLock {
    /// Takes the lock alone.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after the store's time-out,
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// Nothing is held.
    pub async fn lock(&self) -> Result<DigestLockGuard> {
        Ok(DigestLockGuard {
            _held: Held::ExclusiveLock {
                _guard: self.file.exclusive(self.timeout).await?,
            },
        })
    }

    /// Takes the lock together with others who only read.
    ///
    /// # Errors
    /// As [`DigestLock::lock`].
    ///
    /// # Cancellation
    /// Nothing is held.
    pub async fn read_lock(&self) -> Result<DigestLockGuard> {
        Ok(DigestLockGuard {
            _held: Held::SharedLock {
                _guard: self.file.shared(self.timeout).await?,
            },
        })
    }

    /// Takes the lock alone if nobody is in the way.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn try_lock(&self) -> Result<Option<DigestLockGuard>> {
        let guard = self.file.try_exclusive()?;
        Ok(guard.map(|guard| DigestLockGuard {
            _held: Held::ExclusiveLock { _guard: guard },
        }))
    }
}

impl Store {
    /// Who holds the store's lock files at this moment, as far as this process may see (its own always; those of
    /// other users' processes need privileges). For people and logs: it may be out of date when it arrives.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn lock_owners(&self) -> Result<Vec<LockOwner>> {
        let paths = self.inner.lock_files();
        bridge::run(move || owners::owners(&paths)).await
    }

    /// As [`Store::lock_owners`], without opening the store, which would wait for whoever holds `storage.lock`. Looks
    /// into the directories of every driver.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn lock_owners_of(options: &StoreOptions) -> Result<Vec<LockOwner>> {
        let mut roots = vec![options.graph_root.clone(), options.run_root.clone()];
        roots.extend(options.image_store.clone());
        bridge::run(move || {
            let mut paths = Vec::new();
            for root in roots {
                paths.extend(["storage.lock", "userns.lock"].map(|name| root.join(name)));
                let entries = match std::fs::read_dir(&root) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    entries => entries.at("listing", &root)?,
                };
                for entry in entries {
                    let dir = entry.at("listing", &root)?.path();
                    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    for (suffix, files) in RECORD_LOCKS {
                        if name.ends_with(suffix) {
                            paths.extend(files.iter().map(|file| dir.join(file)));
                        }
                    }
                }
            }
            owners::owners(&paths)
        })
        .await
    }

    /// The lock for one digest. What it protects is the caller's business.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn get_digest_lock(&self, digest: &Digest) -> Result<DigestLock> {
        let path = self.inner.dirs.locks().join(digest.as_str());
        let timeout = self.inner.options.lock_timeout;
        bridge::run(move || {
            Ok(DigestLock {
                file: LockFile::open(&path, LockMode::ReadWrite)?,
                timeout,
            })
        })
        .await
    }
}
