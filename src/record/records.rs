//! Handles on the records of one store: taking the locks and returning guards.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::{Deadline, ExclusiveLock, LockFile, LockMode, Patience, SharedLock};
use crate::record::cache::{HeldLocks, Prefetch, RecordsConfig, RecordsInner, token_of};
use crate::record::guard::{ReadGuard, WriteGuard};
use crate::record::record_trait::Record;

/// The records of a store that may be changed. A cheap handle.
#[derive(Debug)]
pub(crate) struct Records<R: Record>(Arc<RecordsInner<R>>);

impl<R: Record> Clone for Records<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Record> Records<R> {
    /// Prepares access: opens (and where missing creates) the lock files, loads nothing yet.
    pub(crate) fn open(config: RecordsConfig) -> Result<Self> {
        if config.lock_files.is_empty() {
            return Err(ErrorKind::InvalidInput.err(format!("{} store without a lock file", R::NOUN)));
        }
        let locks = config
            .lock_files
            .iter()
            .map(|path| LockFile::open(path, LockMode::ReadWrite));
        let locks = locks.collect::<Result<Vec<_>>>()?;
        Ok(Self(RecordsInner::new(config, locks, false)))
    }

    /// What all handles share.
    pub(super) fn inner(&self) -> &Arc<RecordsInner<R>> {
        &self.0
    }

    /// See [`RecordsInner::renew_reserves`].
    pub(crate) fn renew_reserves(&self) {
        self.0.renew_reserves();
    }

    /// Takes the locks shared and returns the rows as they are on disk.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn read(&self) -> Result<ReadGuard<R>> {
        self.0.read().await
    }

    /// Whenever these records are loaded, loads `other` at the same time unless it is cached: callers that need one mostly
    /// need both.
    pub(crate) fn prefetch<O: Record>(&self, other: &Records<O>) {
        let other = Arc::downgrade(&other.0);
        let load = move || {
            if let Some(other) = other.upgrade()
                && other.cached().current.is_none()
                && other.is_large()
            {
                bridge::spawn_detached(move || other.load_ahead());
            }
        };
        // Called once per handle.
        drop(self.0.prefetch.set(Prefetch(Box::new(load))));
    }

    /// The files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let locations = self.0.locations.iter();
        locations.map(|location| location.path.clone()).collect()
    }

    /// The lock files.
    pub(crate) fn lock_files(&self) -> &[Arc<LockFile>] {
        &self.0.locks
    }

    /// A handle that only reads.
    pub(crate) fn reader(&self) -> ReadOnlyRecords<R> {
        ReadOnlyRecords(Arc::clone(&self.0))
    }

    /// The rows as they were on disk at some moment during this call, without the locks: a concurrent writer may have
    /// changed them already. Waits and reads as [`Records::read`] does if the cached table is out of date. While a writer of
    /// this process is active, rows that it has not completed, or is deleting, are not there.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn unlocked_snapshot(&self) -> Result<ReadGuard<R>> {
        match self.0.unlocked()? {
            Some((snapshot, writing)) => Ok(ReadGuard::unlocked(snapshot, writing)),
            None => self.0.read().await,
        }
    }

    /// How often the files were saved by this process.
    #[cfg(test)]
    pub(crate) fn saves(&self) -> u64 {
        self.0.saves.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether a loaded table is known.
    #[cfg(test)]
    pub(super) fn is_cached(&self) -> bool {
        self.0.cached().current.is_some()
    }

    /// As [`Records::read`], for use in a blocking task.
    #[cfg(test)]
    pub(crate) fn read_blocking(&self) -> Result<ReadGuard<R>> {
        self.0.read_blocking()
    }

    /// Takes the locks exclusively and returns the rows as they are on disk, to be changed and saved.
    ///
    /// If dropped: nothing happened.
    #[cfg(test)]
    pub(crate) async fn write(&self) -> Result<WriteGuard<R>> {
        let core = &self.0;
        let deadline = Deadline::new(core.lock_timeout);
        let mut held = HeldLocks::new();
        for lock in &core.locks {
            // Tried first without waiting: an uncontended lock needs no timer and no turn of the scheduler.
            held.push(match lock.try_exclusive()? {
                Some(lock) => lock,
                None => lock.exclusive(deadline.left()).await?,
            });
        }
        let token = token_of(held.first.as_ref())?;
        if let Some(snapshot) = core.fresh(&token)?
            && !core.may_be_lost(&snapshot)
        {
            return Ok(WriteGuard::new(Arc::clone(core), held, snapshot, false));
        }
        let core = Arc::clone(core);
        bridge::run(move || core.write_guard(held, token)).await
    }

    /// As [`Records::write_with`], for as long as the time-out of the store says.
    pub(crate) fn write_blocking(&self) -> Result<WriteGuard<R>> {
        let core = &self.0;
        let deadline = Deadline::new(core.lock_timeout);
        let mut held = HeldLocks::new();
        for lock in &core.locks {
            held.push(lock.exclusive_blocking(deadline.left())?);
        }
        let token = token_of(held.first.as_ref())?;
        Arc::clone(core).write_guard(held, token)
    }

    /// Takes the locks exclusively and returns the rows as they are on disk, to be changed and saved, on a thread that waits as
    /// long as `patience` says; `None` if they are not free by then.
    pub(crate) fn write_with(&self, patience: Patience) -> Result<Option<WriteGuard<R>>> {
        let core = &self.0;
        let mut held = HeldLocks::new();
        for lock in &core.locks {
            match lock.exclusive_with(patience)? {
                Some(lock) => held.push(lock),
                None => return Ok(None),
            }
        }
        let token = token_of(held.first.as_ref())?;
        Arc::clone(core).write_guard(held, token).map(Some)
    }

    /// As [`Records::read`], on a thread that waits as long as `patience` says.
    pub(crate) fn read_with(&self, patience: Patience) -> Result<Option<ReadGuard<R>>> {
        self.0.read_with(patience)
    }
}

/// Records that are only read, such as those of an additional store. A cheap handle.
#[derive(Debug)]
pub(crate) struct ReadOnlyRecords<R: Record>(Arc<RecordsInner<R>>);

impl<R: Record> Clone for ReadOnlyRecords<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Record> ReadOnlyRecords<R> {
    /// Prepares access. On a read-only file system without lock files nothing is locked, and the times of the files tell
    /// whether to load again.
    pub(crate) fn open(config: RecordsConfig) -> Result<Self> {
        let mut locks = Vec::with_capacity(config.lock_files.len());
        for path in &config.lock_files {
            match LockFile::open(path, LockMode::ReadOnly) {
                Ok(lock) => locks.push(lock),
                Err(error) if error.io_kind() == Some(io::ErrorKind::ReadOnlyFilesystem) => {
                    tracing::debug!(path = %path.display(), "read-only file system: no lock");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self(RecordsInner::new(config, locks, true)))
    }

    /// What all handles share.
    pub(super) fn inner(&self) -> &Arc<RecordsInner<R>> {
        &self.0
    }

    /// Takes the locks shared and returns the rows as they are on disk.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn read(&self) -> Result<ReadGuard<R>> {
        self.0.read().await
    }

    /// As [`ReadOnlyRecords::read`], on a thread that waits as long as `patience` says.
    pub(crate) fn read_with(&self, patience: Patience) -> Result<Option<ReadGuard<R>>> {
        self.0.read_with(patience)
    }
}

impl<R: Record> RecordsInner<R> {
    /// The rows as they are on disk, to be changed with the locks that are held. Blocking.
    fn write_guard(
        self: Arc<Self>,
        held: HeldLocks<ExclusiveLock>,
        token: Option<Token>,
    ) -> Result<WriteGuard<R>> {
        let (snapshot, reloaded) = match self.fresh(&token)? {
            Some(snapshot) => (snapshot, false),
            None => (Arc::new(self.load(token)?), true),
        };
        self.check_not_lost(&snapshot)?;
        self.sweep_once();
        Ok(WriteGuard::new(self, held, snapshot, reloaded))
    }

    async fn read(self: &Arc<Self>) -> Result<ReadGuard<R>> {
        let deadline = Deadline::new(self.lock_timeout);
        let mut held = HeldLocks::<SharedLock>::new();
        for lock in &self.locks {
            held.push(match lock.try_shared()? {
                Some(lock) => lock,
                None => lock.shared(deadline.left()).await?,
            });
        }
        let token = token_of(held.first.as_ref())?;
        if let Some(snapshot) = self.fresh(&token)? {
            return Ok(ReadGuard::new(snapshot, held, false));
        }
        let loading = Arc::clone(&self.loading).lock_owned().await;
        if let Some(snapshot) = self.fresh(&token)? {
            return Ok(ReadGuard::new(snapshot, held, false));
        }
        let core = Arc::clone(self);
        bridge::run(move || {
            let _loading = loading;
            // Here rather than before, when the caller's thread was still busy.
            if let Some(Prefetch(start)) = core.prefetch.get() {
                start();
            }
            let snapshot = core.load_and_publish(token)?;
            Ok(ReadGuard::new(snapshot, held, true))
        })
        .await
    }

    #[cfg(test)]
    fn read_blocking(self: &Arc<Self>) -> Result<ReadGuard<R>> {
        let forever = Patience::Until(Deadline::new(self.lock_timeout));
        let read = self.read_with(forever)?;
        read.ok_or_else(|| ErrorKind::LockTimeout.err("a wait that has no end"))
    }

    fn read_with(self: &Arc<Self>, patience: Patience) -> Result<Option<ReadGuard<R>>> {
        let mut held = HeldLocks::<SharedLock>::new();
        for lock in &self.locks {
            match lock.shared_with(patience)? {
                Some(lock) => held.push(lock),
                None => return Ok(None),
            }
        }
        let token = token_of(held.first.as_ref())?;
        if let Some(snapshot) = self.fresh(&token)? {
            return Ok(Some(ReadGuard::new(snapshot, held, false)));
        }
        // Not a wait for the one reader that loads: it may need the thread that would wait.
        let snapshot = self.load_and_publish(token)?;
        Ok(Some(ReadGuard::new(snapshot, held, true)))
    }
}
