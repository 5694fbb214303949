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
use crate::sys::{atomic, reserve};

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
    /// The table with the token that it was read under; `None` if the content of the file is unknown.
    cache: Mutex<Option<(Token, Arc<MountTable>)>>,
}

impl MountPoints {
    /// Prepares access to the files in `dir`, which is created where missing; loads nothing yet.
    pub(crate) fn open(dir: &Path, lock_timeout: Option<Duration>) -> Result<Self> {
        let lock = LockFile::open(&dir.join("mountpoints.lock"), LockMode::ReadWrite)?;
        Ok(Self(Arc::new(MountPointsInner {
            lock,
            path: dir.join("mountpoints.json"),
            lock_timeout,
            cache: Mutex::new(None),
        })))
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
        // Read first: a writer changes the token before the file.
        let token = self.0.lock.token()?;
        let cache = self.0.cached();
        Ok(cache
            .as_ref()
            .filter(|(known, _)| *known == token)
            .map(|(_, table)| Arc::clone(table)))
    }

    /// Takes the lock exclusively, to change mounts.
    pub(crate) fn lock_blocking(&self) -> Result<MountGuard> {
        let lock = self.0.lock.exclusive_blocking(self.0.lock_timeout)?;
        let token = lock.token()?;
        // Without the reference of the cache this is the last one, unless a reader exists: nothing has to be copied.
        let cached = self.0.cached().take();
        let table = match cached.filter(|(known, _)| *known == token) {
            Some((_, table)) => Arc::unwrap_or_clone(table),
            None => MountTable::load(read_rows(&self.0.path, true, |row| row)?.0),
        };
        Ok(MountGuard {
            table,
            token: Some(token),
            core: Arc::clone(&self.0),
            lock,
        })
    }
}

impl MountPointsInner {
    fn current(&self, token: &Token) -> Result<Arc<MountTable>> {
        let mut cache = self.cached();
        if let Some((known, table)) = &*cache
            && known == token
        {
            return Ok(Arc::clone(table));
        }
        // The file is small; loading it with the cache locked lets others wait for the result.
        let table = Arc::new(MountTable::load(read_rows(&self.path, true, |row| row)?.0));
        *cache = Some((*token, Arc::clone(&table)));
        Ok(table)
    }

    fn cached(&self) -> MutexGuard<'_, Option<(Token, Arc<MountTable>)>> {
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

    fn save_in(&mut self, order: Order, position: impl Fn(&str) -> Option<u64>) -> Result<()> {
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
        atomic::remove_stale(&self.core.path).map(drop)
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            *self.core.cached() = Some((token, Arc::new(std::mem::take(&mut self.table))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(table: &MountTable) -> Vec<(String, String, i64)> {
        let mut counts: Vec<_> = table
            .rows()
            .map(|row| (row.id.clone(), row.path.clone(), row.count))
            .collect();
        counts.sort();
        counts
    }

    fn one(id: &str, path: &str, count: i64) -> (String, String, i64) {
        (id.into(), path.into(), count)
    }

    /// An order that no table has.
    fn order() -> Order {
        Table::<LayerRow>::default().order()
    }

    #[test]
    fn entries_stand_in_the_order_of_their_layers() {
        let tmp = tempfile::tempdir().unwrap();
        let mounts = MountPoints::open(tmp.path(), None).unwrap();
        let saved = |guard: &mut MountGuard, layers: &Table<LayerRow>| {
            guard.save(layers).unwrap();
            let ids: Vec<String> = guard.rows().map(|row| row.id.clone()).collect();
            let text = std::fs::read(tmp.path().join("mountpoints.json")).unwrap();
            let rows: Vec<MountPointRow> = serde_json::from_slice(&text).unwrap();
            assert!(rows.iter().map(|row| &row.id).eq(&ids));
            assert!(
                ids.iter()
                    .all(|id| guard.get(id).is_some_and(|row| row.id == *id))
            );
            ids.concat()
        };
        let mut layers = Table::<LayerRow>::empty(1);
        let row = |id: &str| LayerRow {
            id: id.into(),
            ..LayerRow::default()
        };
        for id in ["a", "b", "c", "d"] {
            layers.insert(row(id), 0).unwrap();
        }
        let mut guard = mounts.lock_blocking().unwrap();
        for (id, expected) in [("c", "c"), ("a", "ac"), ("d", "acd"), ("b", "abcd")] {
            guard.set(id, "/somewhere", 1);
            assert_eq!(saved(&mut guard, &layers), expected);
        }
        guard.set("a", "/somewhere", 2);
        guard.set("c", "", 0);
        guard.set("unknown", "/somewhere", 1);
        assert_eq!(saved(&mut guard, &layers), "abd");
        assert!(guard.get("unknown").is_none());
        guard.set("c", "/somewhere", 1);
        layers.insert(row("e"), 0).unwrap();
        guard.set("e", "/somewhere", 1);
        assert_eq!(saved(&mut guard, &layers), "abcde");
        let order = layers.order();
        layers.remove("b").unwrap();
        assert_ne!(layers.order(), order);
        assert_eq!(saved(&mut guard, &layers), "acde");
        let mut turned = Table::<LayerRow>::empty(1);
        for id in ["e", "d", "a"] {
            turned.insert(row(id), 0).unwrap();
        }
        assert_eq!(saved(&mut guard, &turned), "eda");
    }

    #[test]
    fn mounts_are_shared_by_all_handles() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("vfs-layers");
        let (here, there) = (
            MountPoints::open(&dir, None).unwrap(),
            MountPoints::open(&dir, None).unwrap(),
        );
        assert!(here.read_blocking().unwrap().rows().next().is_none());
        let mut guard = here.lock_blocking().unwrap();
        for (id, path, count) in [
            ("b", "/b", 2),
            ("a", "/a", 1),
            ("gone", "/g", 1),
            ("none", "/n", 0),
            ("x", "", 1),
        ] {
            guard.set(id, path, count);
        }
        guard
            .save_in(order(), |id| {
                ["a", "unmounted", "b", "none"]
                    .iter()
                    .zip(0..)
                    .find(|(name, _)| **name == id)
                    .map(|(_, at)| at)
            })
            .unwrap();
        drop(guard);
        let expected = r#"[{"id":"a","path":"/a","count":1},{"id":"b","path":"/b","count":2}]"#;
        assert_eq!(
            std::fs::read_to_string(dir.join("mountpoints.json")).unwrap(),
            expected
        );
        for handle in [&here, &there] {
            let table = handle.read_blocking().unwrap();
            assert_eq!(counts(&table), [one("a", "/a", 1), one("b", "/b", 2)]);
            assert_eq!(table.by_path("/b").unwrap().id, "b");
            assert!(
                Arc::ptr_eq(&table, &handle.read_blocking().unwrap()),
                "unchanged: not loaded again"
            );
            assert!(Arc::ptr_eq(&table, &handle.try_read().unwrap().unwrap()));
        }
        let mut guard = there.lock_blocking().unwrap();
        guard.set("b", "", 0);
        guard.set("a", "/a", 3);
        guard.save_in(order(), |_| Some(7)).unwrap();
        drop(guard);
        assert!(here.try_read().unwrap().is_none(), "changed: this needs the file");
        assert_eq!(counts(&here.read_blocking().unwrap()), [one("a", "/a", 3)]);
        let guard = there.lock_blocking().unwrap();
        assert!(
            here.try_read().unwrap().is_some(),
            "locked, but nothing has changed"
        );
        drop(guard);
        let mut guard = here.lock_blocking().unwrap();
        guard.set("a", "/a", 4);
        assert!(
            here.try_read().unwrap().is_none(),
            "being changed here: this needs waiting"
        );
        drop(guard);
    }

    #[test]
    fn what_is_not_saved_or_cannot_be_saved_is_forgotten() {
        let tmp = tempfile::tempdir().unwrap();
        let mounts = MountPoints::open(tmp.path(), None).unwrap();
        let path = tmp.path().join("mountpoints.json");
        std::fs::write(
            &path,
            r#"[{"id":"a","path":"/a","count":1,"new":1},{"id":"b","path":"","count":4},{"id":"c","path":"/c"}]"#,
        )
        .unwrap();
        assert_eq!(counts(&mounts.read_blocking().unwrap()), [one("a", "/a", 1)]);
        let mut guard = mounts.lock_blocking().unwrap();
        guard.set("a", "/a", 9);
        drop(guard);
        assert_eq!(counts(&mounts.read_blocking().unwrap()), [one("a", "/a", 1)]);
        let mut guard = mounts.lock_blocking().unwrap();
        guard.set("a", "/a", 2);
        guard.save_in(order(), |_| Some(0)).unwrap();
        drop(guard);
        let expected = r#"[{"id":"a","path":"/a","count":2,"new":1}]"#;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("full")).unwrap();
        let mut guard = mounts.lock_blocking().unwrap();
        guard.set("a", "/a", 3);
        assert_eq!(
            guard.save_in(order(), |_| Some(0)).unwrap_err().kind(),
            ErrorKind::Io
        );
        drop(guard);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "[").unwrap();
        let error = mounts.read_blocking().unwrap_err();
        assert_eq!(
            (error.kind(), error.path()),
            (ErrorKind::CorruptMetadata, Some(path.as_path()))
        );
    }
}
