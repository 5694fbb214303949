//! The metadata files: what is recorded of layers, images, containers and mount points.
//!
//! ```text
//! <root>/<driver>-layers/layers.lock                 the lock, and in it the token of the last writer
//!                        layers.json                 a location: an array of rows
//!                        volatile-layers.json        a location that is not synced
//!                        .tmp-layers.json<digits>    what a killed writer leaves
//! ```
//!
//! (images and containers alike.) [`Records`] joins the lock files, the locations and a cached [`Table`]:
//! [`Records::read`] gives a fresh immutable table that holds the lock shared, [`Records::write`] one to change and
//! [save](WriteGuard::save) that holds it exclusively. Without a guard there is no data.
//!
//! The protocol is the Go library's, which may use the same files at the same time. A writer first puts a new token
//! into every lock file, then renames the new files into place; so a crash in between costs the others a needless
//! reload, and never hides a change. A reader compares the token with that of its cached table, for layers also the
//! times of the files.

pub(crate) mod big_data;
pub(crate) mod container;
mod guard;
pub(crate) mod image;
mod index;
pub(crate) mod inline_id;
pub(crate) mod intent;
pub(crate) mod layer;
pub(crate) mod mount_point;
pub(crate) mod raw_digest;
pub(crate) mod row;
pub(crate) mod table;

#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod records_tests;
#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod table_tests;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::fstat;

use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::json;
use crate::lock::last_write::Token;
use crate::lock::record_lock::{ExclusiveLock, LockFile, LockMode, SharedLock};
use crate::record::table::{Record, Table};
use crate::sys::atomic::Mtime;

pub(crate) use guard::{ReadGuard, WriteGuard};

/// One file of rows.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    /// The JSON file.
    pub(crate) path: PathBuf,
    /// Whether a save forces it to disk.
    pub(crate) sync: bool,
}

/// Where a store's records are.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordsConfig {
    /// All of these are locked, in this order, and get a token at a save; that of the first one is compared.
    pub(crate) lock_files: Vec<PathBuf>,
    /// The files, in the order in which they are loaded; a row's location is an index into this list.
    pub(crate) locations: Vec<Location>,
    /// Whether a file whose time has changed is loaded again even if the token has not changed.
    pub(crate) check_mtimes: bool,
    /// How long to wait for the locks, all together; `None` is for ever.
    pub(crate) lock_timeout: Option<Duration>,
}

/// Bytes of records from which on it takes longer to load them than to hop between threads.
const LARGE: u64 = 64 * 1024;

/// What is shared by all handles on one store's records.
#[derive(Debug)]
struct Core<R: Record> {
    /// Empty only for a read-only store that cannot have lock files.
    locks: Vec<Arc<LockFile>>,
    locations: Vec<Location>,
    read_only: bool,
    check_mtimes: bool,
    lock_timeout: Option<Duration>,
    /// The table as last loaded or saved; `None` if it is not known what the files say. HeldLocks for moments only.
    cache: Mutex<Option<Arc<Snapshot<R>>>>,
    /// HeldLocks by the one reader that loads, so that many readers of a changed store parse it once.
    loading: Arc<tokio::sync::Mutex<()>>,
    beside: OnceLock<Beside>,
}

/// What is to be started when records are loaded.
struct Beside(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Beside")
    }
}

/// A table and what was true of the files when it was the same as they.
#[derive(Debug)]
struct Snapshot<R> {
    table: Table<R>,
    /// `None` without lock files.
    token: Option<Token>,
    /// Per location; `None` if there was no file.
    mtimes: Vec<Option<Mtime>>,
}

/// Guards of all lock files. The first is kept apart, so that the usual case of one allocates nothing.
#[derive(Debug)]
struct HeldLocks<L> {
    first: Option<L>,
    rest: Vec<L>,
}

impl<L> HeldLocks<L> {
    fn new() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
        }
    }

    fn push(&mut self, lock: L) {
        match &self.first {
            None => self.first = Some(lock),
            Some(_) => self.rest.push(lock),
        }
    }
}

/// What remains of a time-out that covers several locks.
struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    fn new(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| (Instant::now(), timeout)))
    }

    fn left(&self) -> Option<Duration> {
        self.0
            .map(|(start, timeout)| timeout.saturating_sub(start.elapsed()))
    }
}

/// The records of a store that may be changed. A cheap handle.
#[derive(Debug)]
pub(crate) struct Records<R: Record>(Arc<Core<R>>);

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
        Ok(Self(Core::new(config, locks, false)))
    }

    /// Takes the locks shared and returns the rows as they are on disk.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn read(&self) -> Result<ReadGuard<R>> {
        self.0.read().await
    }

    /// When these records are loaded, loads `other` at the same time unless it has been already: whoever needs one
    /// mostly needs both.
    pub(crate) fn prefetch<O: Record>(&self, other: &Records<O>) {
        let other = Arc::downgrade(&other.0);
        let load = move || {
            if let Some(other) = other.upgrade()
                && other.cached().is_none()
                && other.is_large()
            {
                bridge::spawn_detached(move || other.load_ahead());
            }
        };
        // Only ever set here, once.
        drop(self.0.beside.set(Beside(Box::new(load))));
    }

    /// A handle for those who only read.
    pub(crate) fn reader(&self) -> ReadOnlyRecords<R> {
        ReadOnlyRecords(Arc::clone(&self.0))
    }

    /// The rows as they were on disk at some moment during this call, without the locks: a writer that comes at the
    /// same time may already have other ones. Waits and reads as [`Records::read`] does where what is known is no
    /// longer true.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn unlocked_snapshot(&self) -> Result<ReadGuard<R>> {
        match self.0.unlocked()? {
            Some(snapshot) => Ok(ReadGuard::new(snapshot, HeldLocks::new(), false)),
            None => self.0.read().await,
        }
    }

    /// As [`Records::read`], for use in a blocking task.
    #[cfg(test)]
    pub(crate) fn read_blocking(&self) -> Result<ReadGuard<R>> {
        self.0.read_blocking()
    }

    /// Takes the locks exclusively and returns the rows as they are on disk, to be changed and saved.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn write(&self) -> Result<WriteGuard<R>> {
        let core = &self.0;
        let deadline = Deadline::new(core.lock_timeout);
        let mut held = HeldLocks::new();
        for lock in &core.locks {
            // Without waiting first: an uncontended lock costs no timer and no turn of the scheduler.
            held.push(match lock.try_exclusive()? {
                Some(lock) => lock,
                None => lock.exclusive(deadline.left()).await?,
            });
        }
        let token = token_of(held.first.as_ref())?;
        if let Some(snapshot) = core.fresh(&token)? {
            return Ok(WriteGuard::new(Arc::clone(core), held, snapshot, false));
        }
        let core = Arc::clone(core);
        bridge::run(move || {
            let snapshot = Arc::new(core.load(token)?);
            Ok(WriteGuard::new(core, held, snapshot, true))
        })
        .await
    }

    /// As [`Records::write`], for use in a blocking task.
    pub(crate) fn write_blocking(&self) -> Result<WriteGuard<R>> {
        let core = &self.0;
        let deadline = Deadline::new(core.lock_timeout);
        let mut held = HeldLocks::new();
        for lock in &core.locks {
            held.push(lock.exclusive_blocking(deadline.left())?);
        }
        let token = token_of(held.first.as_ref())?;
        let (snapshot, reloaded) = match core.fresh(&token)? {
            Some(snapshot) => (snapshot, false),
            None => (Arc::new(core.load(token)?), true),
        };
        Ok(WriteGuard::new(Arc::clone(core), held, snapshot, reloaded))
    }
}

/// Records that are only read, those of an additional store for instance. A cheap handle.
#[derive(Debug)]
pub(crate) struct ReadOnlyRecords<R: Record>(Arc<Core<R>>);

impl<R: Record> Clone for ReadOnlyRecords<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Record> ReadOnlyRecords<R> {
    /// Prepares access. On a read-only file system without lock files there is nothing to lock and nobody to lock
    /// out: the times of the files then tell whether to load again.
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
        Ok(Self(Core::new(config, locks, true)))
    }

    /// Takes the locks shared and returns the rows as they are on disk.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn read(&self) -> Result<ReadGuard<R>> {
        self.0.read().await
    }
}

impl<R: Record> Core<R> {
    fn new(config: RecordsConfig, locks: Vec<Arc<LockFile>>, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            check_mtimes: config.check_mtimes || locks.is_empty(),
            locks,
            locations: config.locations,
            read_only,
            lock_timeout: config.lock_timeout,
            cache: Mutex::new(None),
            loading: Arc::default(),
            beside: OnceLock::new(),
        })
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
            // From here: the caller's processor is free by now.
            if let Some(Beside(start)) = core.beside.get() {
                start();
            }
            let snapshot = core.load_and_publish(token)?;
            Ok(ReadGuard::new(snapshot, held, true))
        })
        .await
    }

    #[cfg(test)]
    fn read_blocking(self: &Arc<Self>) -> Result<ReadGuard<R>> {
        let deadline = Deadline::new(self.lock_timeout);
        let mut held = HeldLocks::<SharedLock>::new();
        for lock in &self.locks {
            held.push(lock.shared_blocking(deadline.left())?);
        }
        let token = token_of(held.first.as_ref())?;
        if let Some(snapshot) = self.fresh(&token)? {
            return Ok(ReadGuard::new(snapshot, held, false));
        }
        let _loading = self.loading.blocking_lock();
        let (snapshot, reloaded) = match self.fresh(&token)? {
            Some(snapshot) => (snapshot, false),
            None => (self.load_and_publish(token)?, true),
        };
        Ok(ReadGuard::new(snapshot, held, reloaded))
    }

    /// The cached table, if it is what the files say. The token was read with the locks held, or just now.
    fn fresh(&self, token: &Option<Token>) -> Result<Option<Arc<Snapshot<R>>>> {
        let Some(snapshot) = self.cached().as_ref().map(Arc::clone) else {
            return Ok(None);
        };
        if snapshot.token != *token {
            return Ok(None);
        }
        if self.check_mtimes {
            for (location, remembered) in self.locations.iter().zip(&snapshot.mtimes) {
                // Compat: a file that has vanished does not count.
                let now = Mtime::at(&location.path)?;
                if now.is_some() && now != *remembered {
                    return Ok(None);
                }
            }
        }
        Ok(Some(snapshot))
    }

    /// As [`Core::fresh`] without the locks; `None` also while a writer of this process is at work.
    fn unlocked(&self) -> Result<Option<Arc<Snapshot<R>>>> {
        // Whoever writes puts the token first: with the one of the table nothing can have changed yet.
        match self.locks.first() {
            Some(lock) => self.fresh(&Some(lock.token()?)),
            None => Ok(None),
        }
    }

    /// Whether loading takes a while.
    fn is_large(&self) -> bool {
        let sizes = self.locations.iter().map(|location| {
            let stat = rustix::fs::stat(&location.path);
            stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
        });
        sizes.sum::<u64>() >= LARGE
    }

    /// Loads the rows before anybody asks for them. Does nothing while a writer or another reader is at work; errors are
    /// left to whoever asks.
    fn load_ahead(&self) {
        let Ok(_loading) = self.loading.try_lock() else {
            return;
        };
        let mut held = HeldLocks::<SharedLock>::new();
        for lock in &self.locks {
            match lock.try_shared() {
                Ok(Some(lock)) => held.push(lock),
                Ok(None) | Err(_) => return,
            }
        }
        let loaded = token_of(held.first.as_ref()).and_then(|token| match self.fresh(&token)? {
            Some(_somebody_was_quicker) => Ok(()),
            None => self.load_and_publish(token).map(drop),
        });
        if let Err(error) = loaded {
            tracing::debug!(error = %error.chain(), "cannot load the {} records ahead", R::NOUN);
        }
    }

    fn load_and_publish(&self, token: Option<Token>) -> Result<Arc<Snapshot<R>>> {
        let snapshot = Arc::new(self.load(token)?);
        *self.cached() = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Reads all files. `token` was read before, so a change in between costs no more than another load.
    fn load(&self, token: Option<Token>) -> Result<Snapshot<R>> {
        let mut files = Vec::with_capacity(self.locations.len());
        let mut mtimes = Vec::with_capacity(self.locations.len());
        for location in &self.locations {
            let (rows, mtime) = read_rows(&location.path, Arc::new)?;
            files.push(rows);
            mtimes.push(mtime);
        }
        let table = Table::load(files, self.read_only)?;
        tracing::debug!(rows = table.len(), "loaded the {} records", R::NOUN);
        Ok(Snapshot { table, token, mtimes })
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, Option<Arc<Snapshot<R>>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock whose file holds a token.
trait Tokened {
    fn token(&self) -> Result<Token>;
}

fn token_of<L: Tokened>(lock: Option<&L>) -> Result<Option<Token>> {
    lock.map(Tokened::token).transpose()
}

impl Tokened for SharedLock {
    fn token(&self) -> Result<Token> {
        Self::token(self)
    }
}

impl Tokened for ExclusiveLock {
    fn token(&self) -> Result<Token> {
        Self::token(self)
    }
}

type Rows<T> = Vec<(T, Bytes)>;

/// The rows in one file, each put `into` something, and the file's time; no file is no rows.
fn read_rows<T: serde::de::DeserializeOwned, U>(
    path: &Path,
    into: fn(T) -> U,
) -> Result<(Rows<U>, Option<Mtime>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(error) => return Err(error).at("opening", path),
    };
    let mtime = Mtime::of(&fstat(&file).at("reading the status of", path)?);
    let mut content = Vec::new();
    file.read_to_end(&mut content).at("reading", path)?;
    let rows = json::parse_array_into(&Bytes::from(content), into).map_err(|error| {
        ErrorKind::CorruptMetadata
            .err("loading")
            .at(path)
            .with_source(error)
    })?;
    Ok((rows, Some(mtime)))
}
