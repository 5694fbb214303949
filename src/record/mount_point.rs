//! The mount points of layers and their counts.
//!
//! ```text
//! <run root>/<driver>-layers/mountpoints.lock     leaf lock: nothing is locked while it is held
//!                            mountpoints.json     [{"id":…,"path":…,"count":…}]
//! ```
//!
//! A task that takes this lock exclusively holds the lock of the layer store already. Entries of layers that no longer
//! exist are ignored and dropped at the next save. A crash between the token and the rename leaves the old counts.
//!
//! Everything here blocks.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::json;
use crate::lock::last_write::Token;
use crate::lock::record_lock::{ExclusiveLock, LockFile, LockMode};
use crate::record::files::read_rows;
use crate::record::layer::LayerRow;
use crate::record::row::row;
use crate::record::slot::Order;
use crate::record::table::Table;
use crate::sys::{reserve, temporary_names};

row! {
    /// An entry of `mountpoints.json`.
    MountPointRow {
        /// The layer's ID.
        id: String = "id" always,
        /// Where it is mounted.
        path: String = "path" always,
        /// How many users the mount has.
        count: i64 = "count" always,
    }
}

/// A mount with its JSON text, so that a save copies what has not changed.
#[derive(Clone, Debug)]
struct Entry {
    row: MountPointRow,
    text: Option<Bytes>,
}

/// The mounts of all layers, in the order of the file; new ones at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountTable {
    entries: BTreeMap<u64, Entry>,
    positions: HashMap<String, u64>,
    next: u64,
    /// The order of the layers in which the entries are, but for `fresh`; `None` if it is not known.
    order: Option<Order>,
    /// Layers whose entries have been added at the end since.
    fresh: Vec<String>,
}

impl MountTable {
    /// The layer's mount; `None` if it is not mounted.
    pub(crate) fn get(&self, id: &str) -> Option<&MountPointRow> {
        if self.positions.is_empty() {
            return None;
        }
        self.entries.get(self.positions.get(id)?).map(|entry| &entry.row)
    }

    /// The entry of the layer that is mounted at `path`.
    pub(crate) fn by_path(&self, path: &str) -> Option<&MountPointRow> {
        self.rows().find(|row| row.path == path)
    }

    /// All mounts.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &MountPointRow> {
        self.entries.values().map(|entry| &entry.row)
    }

    fn load(rows: Vec<(MountPointRow, Bytes)>) -> Self {
        let mut table = Self::default();
        for (row, text) in rows.into_iter().filter(|(row, _)| is_mounted(row)) {
            table.put(row, Some(text));
        }
        table
    }

    /// Adds a mount or replaces the layer's earlier one.
    fn put(&mut self, row: MountPointRow, text: Option<Bytes>) {
        let next = self.next;
        let position = *self.positions.entry(row.id.clone()).or_insert(next);
        if position == next {
            self.next += 1;
            self.fresh.push(row.id.clone());
        }
        self.entries.insert(position, Entry { row, text });
    }

    fn remove(&mut self, id: &str) {
        if let Some(position) = self.positions.remove(id) {
            self.entries.remove(&position);
        }
    }

    /// Sorts the entries by the positions of their layers. Entries without a position are dropped.
    fn arrange(&mut self, order: Order, position: impl Fn(&str) -> Option<u64>) {
        let known = self.order == Some(order);
        let fresh = std::mem::take(&mut self.fresh);
        let entries: Vec<Entry> = if known {
            let moved = fresh.iter().filter_map(|id| self.positions.remove(id));
            let moved: Vec<u64> = moved.collect();
            moved.iter().filter_map(|at| self.entries.remove(at)).collect()
        } else {
            self.positions.clear();
            std::mem::take(&mut self.entries).into_values().collect()
        };
        for entry in entries {
            if let Some(position) = position(&entry.row.id) {
                self.positions.insert(entry.row.id.clone(), position);
                self.entries.insert(position, entry);
            }
        }
        self.next = self.entries.last_key_value().map_or(0, |(last, _)| last + 1);
        self.order = Some(order);
    }
}

fn is_mounted(row: &MountPointRow) -> bool {
    row.count > 0 && !row.path.is_empty()
}

/// The mount points of one run root. A cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct MountPoints(Arc<MountPointsInner>);

#[derive(Debug)]
struct MountPointsInner {
    lock: Arc<LockFile>,
    path: PathBuf,
    lock_timeout: Option<Duration>,
    cache: Mutex<Cached>,
}

/// The table that this process knows.
#[derive(Debug, Default)]
struct Cached {
    /// With the token that it was read under; `None` if the content of the file is unknown, or a writer has it.
    known: Option<(Token, Arc<MountTable>)>,
    /// Whether a writer of this process exists: until it has saved, the file says what it said before.
    writing: bool,
    /// Whether a reader has come while a writer had the table: the next one leaves it here, and changes a copy.
    wanted: bool,
}

impl MountPoints {
    /// Prepares access to the files in `dir`, which is created where missing; loads nothing yet.
    pub(crate) fn open(dir: &Path, lock_timeout: Option<Duration>) -> Result<Self> {
        let lock = LockFile::open(&dir.join("mountpoints.lock"), LockMode::ReadWrite)?;
        Ok(Self(Arc::new(MountPointsInner {
            lock,
            path: dir.join("mountpoints.json"),
            lock_timeout,
            cache: Mutex::default(),
        })))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The lock, and how long to wait for it.
    pub(super) fn lock(&self) -> (&Arc<LockFile>, Option<Duration>) {
        (&self.0.lock, self.0.lock_timeout)
    }

    /// Makes reserves for which there was no space. Takes no lock.
    pub(crate) fn renew_reserves(&self) {
        let stat = rustix::fs::stat(&self.0.path);
        let size = stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        if size > 0 {
            reserve::keep(&self.0.path, size);
        }
    }

    /// The mounts as they are on disk, read under a short shared lock.
    pub(crate) fn read_blocking(&self) -> Result<Arc<MountTable>> {
        let lock = self.0.lock.shared_blocking(self.0.lock_timeout)?;
        self.0.current(&lock.token()?)
    }

    /// As [`MountPoints::read_blocking`] if the cached table is up to date; takes no lock.
    pub(crate) fn try_read(&self) -> Result<Option<Arc<MountTable>>> {
        {
            let mut cache = self.0.cached();
            if cache.writing {
                cache.wanted = true;
                let known = cache.known.as_ref();
                return Ok(known.map(|(_token, table)| Arc::clone(table)));
            }
        }
        // Read first: a writer changes the token before the file.
        let token = self.0.lock.token()?;
        let cache = self.0.cached();
        let fresh = cache.known.as_ref().filter(|(known, _)| *known == token);
        Ok(fresh.map(|(_, table)| Arc::clone(table)))
    }

    /// Takes the lock exclusively, to change mounts.
    pub(crate) fn lock_blocking(&self) -> Result<MountGuard> {
        let lock = self.0.lock.exclusive_blocking(self.0.lock_timeout)?;
        let token = lock.token()?;
        let mut cache = self.0.cached();
        cache.writing = true;
        cache.known = cache.known.take().filter(|(known, _)| *known == token);
        // Without the reference of the cache this is the last one, unless a reader exists: nothing has to be copied.
        let cached = match std::mem::take(&mut cache.wanted) {
            true => cache.known.clone(),
            false => cache.known.take(),
        };
        drop(cache);
        // From here on it ends the writing, also after an error.
        let mut guard = MountGuard {
            table: MountTable::default(),
            token: None,
            core: Arc::clone(&self.0),
            lock,
        };
        guard.table = match cached {
            Some((_, table)) => Arc::unwrap_or_clone(table),
            None => MountTable::load(read_rows(&self.0.path, true, |row| row)?.0),
        };
        guard.token = Some(token);
        Ok(guard)
    }
}

impl MountPointsInner {
    fn current(&self, token: &Token) -> Result<Arc<MountTable>> {
        let mut cache = self.cached();
        if let Some((known, table)) = &cache.known
            && known == token
        {
            return Ok(Arc::clone(table));
        }
        // The file is small; loading it with the cache locked lets others wait for the result.
        let table = Arc::new(MountTable::load(read_rows(&self.path, true, |row| row)?.0));
        cache.known = Some((*token, Arc::clone(&table)));
        Ok(table)
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mounts, with the lock held exclusively. Without [`MountGuard::save`] changes are lost when it is dropped.
#[derive(Debug)]
pub(crate) struct MountGuard {
    table: MountTable,
    /// The token in the lock file, if the table agrees with the other file.
    token: Option<Token>,
    core: Arc<MountPointsInner>,
    /// Declared last, so that the lock is released after drop has put the table back.
    lock: ExclusiveLock,
}

impl Deref for MountGuard {
    type Target = MountTable;

    fn deref(&self) -> &MountTable {
        &self.table
    }
}

impl MountGuard {
    /// Records that the layer is mounted at `path` for `count` users; a count of zero, or an empty path, that it is
    /// not mounted.
    pub(crate) fn set(&mut self, id: &str, path: &str, count: i64) {
        self.token = None;
        let row = MountPointRow {
            id: id.to_owned(),
            path: path.to_owned(),
            count,
            extra: self
                .table
                .get(id)
                .map(|old| old.extra.clone())
                .unwrap_or_default(),
        };
        if is_mounted(&row) {
            self.table.put(row, None);
        } else {
            self.table.remove(id);
        }
    }

    /// Whether there is something to save.
    pub(crate) fn is_changed(&self) -> bool {
        self.token.is_none()
    }

    /// Writes the mounts of the layers in `layers`, in their order; the others are dropped.
    pub(crate) fn save(&mut self, layers: &Table<LayerRow>) -> Result<()> {
        self.save_in(layers.order(), |id| layers.position(id))
    }

    /// Writes all mounts, of whatever layers.
    pub(crate) fn save_all(&mut self) -> Result<()> {
        let ids: Vec<String> = self.table.rows().map(|row| row.id.clone()).collect();
        let position = |id: &str| {
            ids.iter()
                .zip(0..)
                .find(|(known, _)| *known == id)
                .map(|(_, at)| at)
        };
        // An order that no other table has.
        self.save_in(Table::<LayerRow>::default().order(), position)
    }

    pub(super) fn save_in(&mut self, order: Order, position: impl Fn(&str) -> Option<u64>) -> Result<()> {
        self.table.arrange(order, position);
        for entry in self.table.entries.values_mut() {
            if entry.text.is_none() {
                let text = json::to_bytes(&entry.row).map_err(|error| {
                    let what = format!("encoding the mount point of layer {:?}", entry.row.id);
                    ErrorKind::InvalidInput.err(what).with_source(error)
                })?;
                entry.text = Some(Bytes::from(text));
            }
        }
        let texts = self.table.entries.values();
        let content = json::join(texts.filter_map(|entry| entry.text.as_ref()));
        self.token = None;
        // Compat: the token first, as for all records.
        let (token, _released) = reserve::or_release(&self.core.path, || self.lock.write_token())?;
        reserve::write_file(&self.core.path, &content, 0o600, true)?;
        reserve::keep(&self.core.path, content.len() as u64);
        self.token = Some(token);
        Ok(())
    }

    /// Removes stale temporary files, which killed writers have left: the lock excludes a living writer.
    pub(crate) fn remove_stale(&self) -> Result<()> {
        temporary_names::remove_stale(&[&self.core.path]).map(drop)
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        let table = Arc::new(std::mem::take(&mut self.table));
        let mut cache = self.core.cached();
        cache.writing = false;
        cache.known = self.token.map(|token| (token, table));
    }
}
