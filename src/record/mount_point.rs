//! Which layers are mounted where, and how often.
//!
//! ```text
//! <run root>/<driver>-layers/mountpoints.lock     leaf lock: nothing is locked while it is held
//!                            mountpoints.json     [{"id":…,"path":…,"count":…}]
//! ```
//!
//! Whoever takes this lock exclusively holds the layer store's lock already. Entries of layers that no longer exist
//! are ignored and vanish at the next save. A crash between the token and the rename leaves the old counts.
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::{Exclusive, LockFile, LockMode};
use crate::record::json::{self, row};
use crate::record::read_rows;
use crate::sys::atomic;

row! {
    /// An entry of `mountpoints.json`.
    MountPointRow {
        /// The layer's ID.
        id: String = "id" always,
        /// Where it is mounted.
        path: String = "path" always,
        /// How many have asked for the mount.
        count: i64 = "count" always,
    }
}

/// The mounts of all layers, by layer ID.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountTable(HashMap<String, MountPointRow>);

impl MountTable {
    /// The layer's mount; `None` if it is not mounted.
    pub(crate) fn get(&self, id: &str) -> Option<&MountPointRow> {
        self.0.get(id)
    }

    /// The entry of the layer that is mounted at `path`.
    pub(crate) fn by_path(&self, path: &str) -> Option<&MountPointRow> {
        self.0.values().find(|row| row.path == path)
    }

    /// All mounts, in no order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &MountPointRow> {
        self.0.values()
    }

    fn load(rows: Vec<(MountPointRow, Bytes)>) -> Self {
        let mounted = rows.into_iter().map(|(row, _)| row).filter(is_mounted);
        Self(mounted.map(|row| (row.id.clone(), row)).collect())
    }
}

fn is_mounted(row: &MountPointRow) -> bool {
    row.count > 0 && !row.path.is_empty()
}

/// The mount points of one run root. A cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct MountPoints(Arc<Core>);

#[derive(Debug)]
struct Core {
    lock: Arc<LockFile>,
    path: PathBuf,
    lock_timeout: Option<Duration>,
    /// The table with the token under which it was true; `None` if it is not known what the file says.
    cache: Mutex<Option<(Token, Arc<MountTable>)>>,
}

impl MountPoints {
    /// Prepares access to the files in `dir`, which is created where missing; loads nothing yet.
    pub(crate) fn open(dir: &Path, lock_timeout: Option<Duration>) -> Result<Self> {
        let lock = LockFile::open(&dir.join("mountpoints.lock"), LockMode::ReadWrite)?;
        Ok(Self(Arc::new(Core {
            lock,
            path: dir.join("mountpoints.json"),
            lock_timeout,
            cache: Mutex::new(None),
        })))
    }

    /// The mounts as they are on disk, read under a short shared lock.
    pub(crate) fn read_blocking(&self) -> Result<Arc<MountTable>> {
        let lock = self.0.lock.shared_blocking(self.0.lock_timeout)?;
        self.0.current(&lock.token()?)
    }

    /// As [`MountPoints::read_blocking`] if that needs neither waiting nor reading the file, else `None`.
    pub(crate) fn try_read(&self) -> Result<Option<Arc<MountTable>>> {
        let Some(lock) = self.0.lock.try_shared()? else {
            return Ok(None);
        };
        let token = lock.token()?;
        let cache = self.0.cached();
        Ok(cache
            .as_ref()
            .filter(|(known, _)| *known == token)
            .map(|(_, table)| Arc::clone(table)))
    }

    /// Takes the lock exclusively, to change mounts.
    pub(crate) fn lock_blocking(&self) -> Result<MountGuard> {
        let lock = self.0.lock.exclusive_blocking(self.0.lock_timeout)?;
        let table = self.0.current(&lock.token()?)?;
        Ok(MountGuard {
            table: MountTable::clone(&table),
            core: Arc::clone(&self.0),
            lock,
        })
    }
}

impl Core {
    fn current(&self, token: &Token) -> Result<Arc<MountTable>> {
        let mut cache = self.cached();
        if let Some((known, table)) = &*cache
            && known == token
        {
            return Ok(Arc::clone(table));
        }
        // The file is small; loading it with the cache locked lets others wait for the result.
        let table = Arc::new(MountTable::load(read_rows(&self.path)?.0));
        *cache = Some((*token, Arc::clone(&table)));
        Ok(table)
    }

    fn cached(&self) -> MutexGuard<'_, Option<(Token, Arc<MountTable>)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mounts, with the lock held exclusively. Dropped without [`MountGuard::save`], changes are forgotten.
#[derive(Debug)]
pub(crate) struct MountGuard {
    table: MountTable,
    core: Arc<Core>,
    lock: Exclusive,
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
        let row = MountPointRow {
            id: id.to_owned(),
            path: path.to_owned(),
            count,
            ..MountPointRow::default()
        };
        if is_mounted(&row) {
            let old = self.table.0.insert(id.to_owned(), row);
            if let (Some(old), Some(new)) = (old, self.table.0.get_mut(id)) {
                new.extra = old.extra;
            }
        } else {
            self.table.0.remove(id);
        }
    }

    /// Writes the mounts of these layers in this order; what is not among them is gone.
    pub(crate) fn save<'a>(&mut self, order: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let rows: Vec<MountPointRow> = order
            .into_iter()
            .filter_map(|id| self.table.0.remove(id))
            .collect();
        let content = json::to_bytes(&rows).map_err(|error| {
            ErrorKind::InvalidInput
                .err("encoding the mount points")
                .with_source(error)
        })?;
        self.table = MountTable(rows.into_iter().map(|row| (row.id.clone(), row)).collect());
        *self.core.cached() = None;
        // Compat: the token first, as for all records.
        let token = self.lock.write_token()?;
        if let Some(dir) = self.core.path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .at("creating", dir)?;
        }
        atomic::write_file(&self.core.path, &content, 0o600, true)?;
        *self.core.cached() = Some((token, Arc::new(self.table.clone())));
        Ok(())
    }
}

impl MountGuard {
    /// Removes temporary files of killed writers; the lock says that they are nobody's.
    pub(crate) fn remove_litter(&self) -> Result<()> {
        atomic::remove_litter(&self.core.path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(table: &MountTable) -> Vec<(String, String, i64)> {
        let mut counts: Vec<_> = table
            .iter()
            .map(|row| (row.id.clone(), row.path.clone(), row.count))
            .collect();
        counts.sort();
        counts
    }

    fn one(id: &str, path: &str, count: i64) -> (String, String, i64) {
        (id.into(), path.into(), count)
    }

    #[test]
    fn mounts_are_shared_by_all_handles() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("run/vfs-layers");
        let (here, there) = (
            MountPoints::open(&dir, None).unwrap(),
            MountPoints::open(&dir, None).unwrap(),
        );
        assert!(here.read_blocking().unwrap().iter().next().is_none());
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
        guard.save(["a", "unmounted", "b", "b", "none"]).unwrap();
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
        guard.save(["a", "b"]).unwrap();
        drop(guard);
        assert!(here.try_read().unwrap().is_none(), "changed: this needs the file");
        assert_eq!(counts(&here.read_blocking().unwrap()), [one("a", "/a", 3)]);
        let guard = there.lock_blocking().unwrap();
        assert!(here.try_read().unwrap().is_none(), "locked: this needs waiting");
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
        guard.save(["a"]).unwrap();
        drop(guard);
        let expected = r#"[{"id":"a","path":"/a","count":2,"new":1}]"#;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("full")).unwrap();
        let mut guard = mounts.lock_blocking().unwrap();
        guard.set("a", "/a", 3);
        assert_eq!(guard.save(["a"]).unwrap_err().kind(), ErrorKind::Io);
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
