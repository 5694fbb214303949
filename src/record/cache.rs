//! The table of one store as last loaded or saved, and how to tell whether the files still say the same.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::{ExclusiveLock, LockFile, SharedLock};
use crate::record::files::Content;
use crate::record::published::{Cached, Snapshot};
use crate::record::record_trait::Record;
use crate::record::row_files::RowFiles;
use crate::record::table::Table;
use crate::sys::atomic::Mtime;
use crate::sys::name_sync::NameSync;
use crate::sys::{list_dir_if_there, reserve, temporary_names};

/// One file of rows.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    /// The JSON file.
    pub(crate) path: PathBuf,
    /// Whether a save forces it to disk. Of one that is not a power cut may leave nothing or a part.
    pub(crate) sync: bool,
    /// The directory of what belongs to the rows, if that tells a new store from one that has lost this file.
    pub(crate) items: Option<PathBuf>,
}

/// Where a store's records are.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordsConfig {
    /// All of these are locked, in this order, and a save writes a token into each; the token of the first is compared.
    pub(crate) lock_files: Vec<PathBuf>,
    /// The files, in the order of loading; a row's location is an index into this list.
    pub(crate) locations: Vec<Location>,
    /// Whether a file whose time has changed is loaded again although the token has not changed.
    pub(crate) check_mtimes: bool,
    /// Time-out for all locks together; `None` waits for ever.
    pub(crate) lock_timeout: Option<Duration>,
    /// When the names of the files, and those that the records rely on, are forced to disk.
    pub(crate) names: NameSync,
}

/// Name of the directory of temporary files beside the records of layers.
pub(crate) const TMP: &str = "tmp";

/// What the name of a layer's tar-split ends in, beside the records of layers.
pub(crate) const TAR_SPLIT: &str = ".tar-split.gz";

/// Size in bytes from which loading records takes longer than a change of thread.
const LARGE: u64 = 64 * 1024;

/// Size of a file in bytes; 0 if there is none.
fn size(path: &Path) -> u64 {
    let stat = rustix::fs::stat(path);
    stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// How often a reader looks for a table before it waits for the locks.
const UNLOCKED_ATTEMPTS: usize = 3;

/// The state that all handles on the records of one store share.
#[derive(Debug)]
pub(super) struct RecordsInner<R: Record> {
    /// Empty only for a read-only store that cannot have lock files.
    pub(super) locks: Vec<Arc<LockFile>>,
    pub(super) locations: Vec<Location>,
    read_only: bool,
    check_mtimes: bool,
    pub(super) lock_timeout: Option<Duration>,
    pub(super) names: NameSync,
    /// The mutex is held briefly only.
    cache: Mutex<Cached<R>>,
    /// Held by the one reader that loads, so that many readers of a changed store parse it once.
    pub(super) loading: Arc<tokio::sync::Mutex<()>>,
    pub(super) prefetch: OnceLock<Prefetch>,
    /// Per location, the size of a file up to which its reserves are known to do.
    reserved: Vec<AtomicU64>,
    /// What the last save has left; only used with the locks held exclusively.
    row_files: Mutex<RowFiles>,
    /// Whether what killed writers have left was looked for.
    swept: AtomicBool,
    /// How often the files were saved.
    #[cfg(test)]
    pub(super) saves: AtomicU64,
}

/// Started when records are loaded, see [`Records::prefetch`](super::Records::prefetch).
pub(super) struct Prefetch(pub(super) Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Prefetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prefetch")
    }
}

/// The held locks of all lock files. The first is a field of its own, so that the usual case of one allocates nothing.
#[derive(Debug)]
pub(super) struct HeldLocks<L> {
    pub(super) first: Option<L>,
    pub(super) rest: Vec<L>,
}

impl<L> HeldLocks<L> {
    pub(super) fn new() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, lock: L) {
        match &self.first {
            None => self.first = Some(lock),
            Some(_) => self.rest.push(lock),
        }
    }
}

impl<R: Record> RecordsInner<R> {
    pub(super) fn new(config: RecordsConfig, locks: Vec<Arc<LockFile>>, read_only: bool) -> Arc<Self> {
        let reserved = config.locations.iter().map(|location| {
            let kept = !read_only && location.path.parent().is_some_and(Path::exists);
            AtomicU64::new(if kept {
                reserve::keep(&location.path, size(&location.path))
            } else {
                0
            })
        });
        Arc::new(Self {
            reserved: reserved.collect(),
            row_files: Mutex::default(),
            swept: AtomicBool::new(false),
            #[cfg(test)]
            saves: AtomicU64::new(0),
            check_mtimes: config.check_mtimes || locks.is_empty(),
            locks,
            locations: config.locations,
            read_only,
            lock_timeout: config.lock_timeout,
            names: config.names,
            cache: Mutex::default(),
            loading: Arc::default(),
            prefetch: OnceLock::new(),
        })
    }

    /// Removes the temporary files that killed writers have left, the first time. The locks are held exclusively, and exclude
    /// a living writer.
    pub(super) fn sweep_once(&self) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let paths: Vec<&Path> = self.locations.iter().map(|location| &*location.path).collect();
        match temporary_names::remove_stale(&paths) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed what killed writers of records have left"),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "cannot remove what killed writers have left");
            }
        }
    }

    /// The cached table, if the files have not changed since. The token was read with the locks held, or just now.
    pub(super) fn fresh(&self, token: &Option<Token>) -> Result<Option<Arc<Snapshot<R>>>> {
        let Some(snapshot) = self.cached().current.as_ref().map(Arc::clone) else {
            return Ok(None);
        };
        if snapshot.token != *token {
            return Ok(None);
        }
        if self.check_mtimes {
            for (location, remembered) in self.locations.iter().zip(&snapshot.mtimes) {
                // Compat: a file that was removed does not count as changed.
                let now = Mtime::at(&location.path)?;
                if now.is_some() && now != *remembered {
                    return Ok(None);
                }
            }
        }
        Ok(Some(snapshot))
    }

    /// As [`RecordsInner::fresh`] without the locks; and whether a [`WriteGuard`](super::WriteGuard) exists.
    pub(super) fn unlocked(&self) -> Result<Option<(Arc<Snapshot<R>>, bool)>> {
        for _ in 0..UNLOCKED_ATTEMPTS {
            if let Some(published) = self.cached().while_writing() {
                return Ok(published.map(|snapshot| (snapshot, true)));
            }
            let Some(lock) = self.locks.first() else {
                return Ok(None);
            };
            // A writer changes the token before the files: if it is the token of the table, the files are unchanged.
            if let Some(snapshot) = self.fresh(&Some(lock.token()?))? {
                return Ok(Some((snapshot, false)));
            }
            // Perhaps a writer of this process has begun meanwhile.
        }
        Ok(None)
    }

    /// Whether loading takes long enough for a change of thread.
    pub(super) fn is_large(&self) -> bool {
        let sizes = self.locations.iter().map(|location| size(&location.path));
        sizes.sum::<u64>() >= LARGE
    }

    /// What is known of the files from the last save. The locks are held exclusively.
    pub(super) fn take_row_files(&self) -> RowFiles {
        std::mem::take(&mut *self.row_files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known of the files from this save.
    pub(super) fn put_row_files(&self, files: RowFiles) {
        *self.row_files.lock().unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// The names in a directory are on disk.
    pub(super) fn settle_row_files(&self, dir: &Path) {
        let mut files = self.row_files.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, location) in self.locations.iter().enumerate() {
            if location.path.parent() == Some(dir) {
                files.settle(index);
            }
        }
    }

    /// Has reserves for the file of a location that has just been written with `size` bytes, with one of them if it is `spent`.
    pub(super) fn keep_reserve(&self, location: usize, size: u64, spent: bool) {
        if let (Some(reserved), Some(location)) = (self.reserved.get(location), self.locations.get(location))
            && (spent || reserved.load(Ordering::Relaxed) < size)
        {
            reserved.store(reserve::keep(&location.path, size), Ordering::Relaxed);
        }
    }

    /// Makes reserves for which there was no space; to be called when some may have become free. Takes no lock.
    pub(super) fn renew_reserves(&self) {
        for (reserved, location) in self.reserved.iter().zip(&self.locations) {
            let missing = !self.read_only && reserved.load(Ordering::Relaxed) == 0;
            if missing && location.path.parent().is_some_and(Path::exists) {
                reserved.store(
                    reserve::keep(&location.path, size(&location.path)),
                    Ordering::Relaxed,
                );
            }
        }
    }

    /// Loads the rows before they are asked for. Does nothing while a writer or another reader holds the locks or loads.
    /// Errors are reported to the next reader only.
    pub(super) fn load_ahead(&self) {
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
            Some(_already_loaded) => Ok(()),
            None => self.load_and_publish(token).map(drop),
        });
        if let Err(error) = loaded {
            tracing::debug!(error = %error.chain(), "cannot load the {} records ahead", R::NOUN);
        }
    }

    /// A copy of a published table, to be changed.
    pub(super) fn copy(&self, published: &Table<R>) -> Table<R> {
        let earlier = self.cached().take_earlier();
        let recycled = earlier.and_then(|earlier| earlier.catch_up(published));
        let mut copy = recycled.unwrap_or_else(|| published.clone());
        copy.show_all();
        copy
    }

    pub(super) fn load_and_publish(&self, token: Option<Token>) -> Result<Arc<Snapshot<R>>> {
        let snapshot = Arc::new(self.load(token)?);
        let old = self.cached().load(&snapshot);
        drop(old);
        Ok(snapshot)
    }

    /// Reads all files. `token` was read before, so a change in between only causes another load. Of a table that is known
    /// only the rows that have changed are read again.
    pub(super) fn load(&self, token: Option<Token>) -> Result<Snapshot<R>> {
        let files = self
            .locations
            .iter()
            .map(|location| Content::read(&location.path, location.sync));
        let files = files.collect::<Result<Vec<_>>>()?;
        // Not in the same expression: the mutex is not to be held meanwhile.
        let (known, earlier) = self.cached().forget();
        drop(earlier);
        let lists = || files.iter().map(Content::list).collect::<Vec<_>>();
        let table = known.and_then(|known| Arc::unwrap_or_clone(known).table.reload(&lists()));
        if let Some(table) = table {
            let mtimes = files.iter().map(|file| file.mtime).collect();
            tracing::debug!(rows = table.len(), "reloaded the {} records", R::NOUN);
            return Ok(Snapshot { table, token, mtimes });
        }
        let mut rows = Vec::with_capacity(files.len());
        let mut mtimes = Vec::with_capacity(files.len());
        for file in files {
            let (file, mtime) = file.rows(Arc::new)?;
            rows.push(file);
            mtimes.push(mtime);
        }
        let table = Table::load(rows, self.read_only)?;
        tracing::debug!(rows = table.len(), "loaded the {} records", R::NOUN);
        Ok(Snapshot { table, token, mtimes })
    }

    /// A location whose file has no list of rows, as its time in `mtimes` says: missing, or destroyed by a power cut.
    pub(super) fn unwritten(&self, location: usize, mtimes: &[Option<Mtime>]) -> Option<&Location> {
        let written = mtimes.get(location).is_some_and(Option::is_some);
        self.locations.get(location).filter(|_| !written)
    }

    /// Whether [`RecordsInner::check_not_lost`] has to look at the disk.
    #[cfg(test)]
    pub(super) fn may_be_lost(&self, snapshot: &Snapshot<R>) -> bool {
        self.suspects(snapshot).next().is_some()
    }

    /// Refuses rows that are not all there: a file is missing, and there is something that belongs to none of the rows. A
    /// save would make the loss look like a store in which nothing but this is left.
    pub(super) fn check_not_lost(&self, snapshot: &Snapshot<R>) -> Result<()> {
        for (location, items) in self.suspects(snapshot) {
            if let Some(name) = unknown_item(items, |id| snapshot.table.get(id).is_some())? {
                return Err(lost(&location.path, &format!("{name:?} beside it")));
            }
        }
        Ok(())
    }

    /// The files that may have been lost, with the directory of what belongs to their rows.
    fn suspects<'a>(&'a self, snapshot: &'a Snapshot<R>) -> impl Iterator<Item = (&'a Location, &'a Path)> {
        let unwritten = (0..self.locations.len()).filter_map(|index| self.unwritten(index, &snapshot.mtimes));
        unwritten.filter_map(|location| Some((location, location.items.as_deref()?)))
    }

    pub(super) fn cached(&self) -> std::sync::MutexGuard<'_, Cached<R>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a file of records that is missing or says nothing, although `evidence` belongs to one of its rows.
pub(crate) fn lost(file: &Path, evidence: &str) -> Error {
    let what = format!("no records although there is {evidence}; restore the file. Not changing");
    ErrorKind::CorruptMetadata.err(what).at(file)
}

/// The name of something in a directory of items that belongs to an item which is not `known`.
pub(crate) fn unknown_item(dir: &Path, known: impl Fn(&str) -> bool) -> Result<Option<String>> {
    for entry in list_dir_if_there(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let id = match name.strip_suffix(TAR_SPLIT) {
            Some(id) => id,
            // The directory of temporary files is no item.
            None if name != TMP && entry.file_type().at("looking at", dir)?.is_dir() => &name,
            None => continue,
        };
        if !known(id) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A lock whose file holds a token.
pub(super) trait Tokened {
    fn token(&self) -> Result<Token>;
}

pub(super) fn token_of<L: Tokened>(lock: Option<&L>) -> Result<Option<Token>> {
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
