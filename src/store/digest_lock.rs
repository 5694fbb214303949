//! Locks by digest, which callers use to process a blob only once, and the owners of the store's locks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bridge;
use crate::digest::Digest;
use crate::error::Result;
use crate::lock::owners::{self, LockOwner};
use crate::lock::record_lock::{ExclusiveLock, LockFile, LockMode, SharedLock};
use crate::options::StoreOptions;
use crate::store::Store;
use crate::sys::list_dir_if_there;

/// The lock files in the record directories, by the suffix of the directory's name.
const RECORD_LOCKS: [(&str, &[&str]); 3] = [
    ("-layers", &["layers.lock", "mountpoints.lock"]),
    ("-images", &["images.lock"]),
    ("-containers", &["containers.lock"]),
];

/// The lock of one digest, from [`Store::get_digest_lock`]. It excludes every process that uses the store, also those
/// of the Go library. It is not held until one of its methods takes it.
#[derive(Clone, Debug)]
pub struct DigestLock {
    file: Arc<LockFile>,
    timeout: Option<Duration>,
}

/// A held [`DigestLock`], released when dropped.
#[must_use = "the lock is released when this is dropped"]
pub struct DigestLockGuard {
    _guard: AnyGuard,
}

enum AnyGuard {
    Exclusive { _lock: ExclusiveLock },
    Shared { _lock: SharedLock },
}

impl fmt::Debug for DigestLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self._guard {
            AnyGuard::Exclusive { .. } => "exclusive",
            AnyGuard::Shared { .. } => "shared",
        };
        f.debug_tuple("DigestLockGuard").field(&kind).finish()
    }
}

impl DigestLock {
    /// Takes the lock exclusively.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after the store's time-out,
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// The lock is not held.
    pub async fn lock(&self) -> Result<DigestLockGuard> {
        Ok(DigestLockGuard {
            _guard: AnyGuard::Exclusive {
                _lock: self.file.exclusive(self.timeout).await?,
            },
        })
    }

    /// Takes the lock shared.
    ///
    /// # Errors
    /// As [`DigestLock::lock`].
    ///
    /// # Cancellation
    /// The lock is not held.
    pub async fn read_lock(&self) -> Result<DigestLockGuard> {
        Ok(DigestLockGuard {
            _guard: AnyGuard::Shared {
                _lock: self.file.shared(self.timeout).await?,
            },
        })
    }

    /// Takes the lock exclusively if it is free, without waiting.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn try_lock(&self) -> Result<Option<DigestLockGuard>> {
        let guard = self.file.try_exclusive()?;
        Ok(guard.map(|guard| DigestLockGuard {
            _guard: AnyGuard::Exclusive { _lock: guard },
        }))
    }
}

/// # Locks, and who holds them
impl Store {
    /// The processes that hold locks of the store. Processes of other users are found only with privileges. The answer
    /// may be out of date at once; it is meant for diagnostics.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn lock_owners(&self) -> Result<Vec<LockOwner>> {
        let paths = self.inner.lock_files();
        bridge::run(move || owners::owners(&paths)).await
    }

    /// As [`Store::lock_owners`], but without opening the store, which would wait for the owner of `storage.lock`.
    /// Covers the directories of every driver.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn lock_owners_of(options: &StoreOptions) -> Result<Vec<LockOwner>> {
        let mut roots = vec![options.graph_root.clone(), options.run_root.clone()];
        roots.extend(options.image_store.clone());
        bridge::run(move || {
            let mut paths = Vec::new();
            for root in roots {
                paths.extend(["storage.lock", "userns.lock"].map(|name| root.join(name)));
                for entry in list_dir_if_there(&root)? {
                    let dir = entry?.path();
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

    /// The lock of one digest. Nothing in the store takes it; callers agree on what it protects.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect, except that the lock file may have been created.
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
