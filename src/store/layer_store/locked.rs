//! The primary layer store under its exclusive lock: its table, its saves, and what is removed after the lock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::{Driver, Staged};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::record::intent::Companion;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::record::table::Table;
use crate::record::{Savepoint, WriteGuard};
use crate::store::inner::Inner;
use crate::store::layer_store::counts::HeldCounts;
use crate::store::layer_store::new_layer::Unpacked;

/// Temporary directories that wait for the lock to be released.
pub(super) const MAX_TRASH: usize = 64;

/// The primary layer store, held exclusively.
pub(crate) struct LayerStore {
    pub(super) guard: WriteGuard<LayerRow>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) driver: Arc<dyn Driver>,
    /// Removed from disk after the lock is released.
    pub(super) trash: Vec<TempDir>,
    /// Unpacked content that is not wanted any more; removed from disk after the lock is released.
    pub(super) discarded: Vec<Box<dyn Staged>>,
    /// The counts of mounts, locked while they are being changed.
    pub(super) counts: HeldCounts,
    /// Whether layers with new content are to be saved.
    pub(super) has_new_content: bool,
}

/// What was deleted and is to be removed from disk.
#[derive(Default)]
pub(crate) struct Waste {
    trash: Vec<TempDir>,
    discarded: Vec<Box<dyn Staged>>,
    /// Whose reserves for a full disk there may be room for afterwards.
    store: Option<Arc<Inner>>,
}

impl Waste {
    pub(crate) fn is_empty(&self) -> bool {
        self.trash.is_empty() && self.discarded.is_empty()
    }

    /// Adds other waste.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.trash.append(&mut other.trash);
        self.discarded.append(&mut other.discarded);
        self.store = self.store.take().or_else(|| other.store.take());
    }
}

/// Removes it. Blocking; to be done without a lock.
impl Drop for Waste {
    fn drop(&mut self) {
        self.discarded.clear();
        for temp in self.trash.drain(..) {
            // The record is gone already; what is left of the content are stale files that the next open removes.
            if let Err(error) = temp.remove() {
                tracing::warn!(error = %error.chain(), "cannot remove a deleted layer's files yet");
            }
        }
        if let Some(inner) = self.store.take() {
            inner.renew_reserves();
        }
    }
}

impl LayerStore {
    /// Keeps what was unpacked for a layer that is not wanted any more until the lock is released: removing it may take
    /// long.
    pub(crate) fn discard(&mut self, unpacked: Unpacked) {
        self.discarded.push(unpacked.staged);
        self.trash.push(unpacked.tar_split.temp);
    }

    /// Runs `change`, releases the lock, then removes from disk what was deleted.
    pub(crate) fn leave<T>(mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = change(&mut self).and_then(|value| {
            self.save_counts()?;
            self.settle().map(|()| value)
        });
        let waste = self.take_waste();
        drop(self);
        drop(waste);
        result
    }

    /// Has temporary directories be removed after the lock is released; at once if there are many, for each has a file open.
    pub(crate) fn throw_away(&mut self, trash: impl IntoIterator<Item = TempDir>) {
        self.trash.extend(trash);
        if self.trash.len() >= MAX_TRASH {
            drop(self.take_waste());
        }
    }

    /// See [`WriteGuard::settle`].
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.guard.settle()
    }

    /// What was deleted, to be removed from disk after the lock is released.
    pub(crate) fn take_waste(&mut self) -> Waste {
        Waste {
            store: (!self.trash.is_empty()).then(|| Arc::clone(&self.inner)),
            trash: std::mem::take(&mut self.trash),
            discarded: std::mem::take(&mut self.discarded),
        }
    }

    /// See [`WriteGuard::savepoint`].
    pub(crate) fn savepoint(&self) -> Savepoint {
        self.guard.savepoint()
    }

    /// See [`WriteGuard::roll_back`].
    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        self.guard.roll_back(to);
    }

    /// Saves what several steps have changed, and returns why that has failed.
    pub(crate) fn save_for_all(&mut self) -> Option<Error> {
        self.guard.take_failure().or_else(|| self.save().err())
    }

    pub(crate) fn table(&self) -> &Table<LayerRow> {
        &self.guard
    }

    pub(crate) fn table_mut(&mut self) -> &mut Table<LayerRow> {
        self.guard.table_mut()
    }

    /// The file of a location of the records that has no list of rows.
    pub(crate) fn unwritten(&self, location: usize) -> Option<&Path> {
        self.guard.unwritten(location)
    }

    /// See [`WriteGuard::ensure_written`].
    pub(crate) fn ensure_written(&mut self, location: usize) -> Result<()> {
        if self.guard.unwritten(location).is_some() {
            self.guard.table_mut().set_dirty(location);
            self.save()?;
        }
        Ok(())
    }

    /// Removes what killed writers of the records left.
    pub(crate) fn remove_stale(&self) -> Result<()> {
        self.guard.remove_stale().map(drop)
    }

    /// Saves the records, with new content or without.
    pub(crate) fn save(&mut self) -> Result<()> {
        match std::mem::take(&mut self.has_new_content) {
            true => self.save_content(),
            false => self.guard.save(),
        }
    }

    /// Marks layers as going with another item, or takes the mark off; which is to be saved. See
    /// [`intent`](crate::record::intent).
    pub(crate) fn mark(&mut self, ids: &[String], companion: Option<&Companion>) -> Result<()> {
        let intent = companion.map(Companion::intent).unwrap_or_default();
        for id in ids {
            self.guard.table_mut().update(id, |row| row.set_intent(&intent))?;
        }
        Ok(())
    }

    /// The layers with such a mark.
    pub(crate) fn marked(&self) -> Vec<(String, Companion)> {
        let marked = self.guard.incomplete().into_iter().filter_map(|id| {
            let companion = self.guard.get(&id)?.companion()?;
            Some((id, companion))
        });
        marked.collect()
    }

    /// The next save relies on the names of this layer and of its tar-split.
    pub(crate) fn rely_on_layer(&mut self, id: &str) -> Result<()> {
        self.guard.rely_on(self.inner.dirs.layers());
        for dir in self.driver.names_to_sync(id)? {
            self.guard.rely_on(dir);
        }
        Ok(())
    }

    /// The next save relies on the names of big data in the directory `dir` of a layer; without a save they are settled.
    pub(crate) fn rely_on_data(&mut self, dir: PathBuf) {
        self.guard.rely_on(self.inner.dirs.layers());
        self.guard.rely_on(dir);
    }

    /// Saves the records after content has changed; with the driver option `sync=filesystem` the file system of the
    /// records is synced before.
    pub(crate) fn save_content(&mut self) -> Result<()> {
        let sync = self.driver.sync_filesystem();
        self.guard.save_with(|path| {
            let Some(dir) = path.parent().filter(|_| sync) else {
                return Ok(());
            };
            let opened = match crate::sys::at::open_dir(dir) {
                // It is made together with the file.
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                opened => opened.at("opening", dir)?,
            };
            rustix::fs::syncfs(&opened).at("syncing the file system of", dir)
        })
    }

    /// The layer with exactly this ID, as records refer to it; a layer that has it as a name does not match.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<LayerRow>> {
        self.guard
            .get(id)
            .map(Arc::clone)
            .ok_or_else(|| LayerRow::unknown(id))
    }

    /// Finds a layer by ID, name or ID prefix that no other step is making or deleting.
    pub(crate) fn find_complete(&self, key: &str) -> Result<Arc<LayerRow>> {
        let found = self.guard.find_complete(key).map(Arc::clone);
        found.ok_or_else(|| LayerRow::unknown(key))
    }

    /// Refuses an ID or a name that is taken.
    pub(crate) fn check_free(table: &Table<LayerRow>, id: &str, names: &[String]) -> Result<()> {
        if !id.is_empty() && table.get(id).is_some() {
            return Err(ErrorKind::DuplicateId.err(format!("creating layer with ID {id:?}")));
        }
        match names.iter().find(|name| table.by_name(name).is_some()) {
            Some(name) => Err(ErrorKind::DuplicateName.err(format!("creating layer with name {name:?}"))),
            None => Ok(()),
        }
    }
}

/// What the driver says about the layer `id`, which has a record: that the driver does not know it means that its files are
/// lost.
pub(crate) fn files_of<T>(id: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error.kind() {
        ErrorKind::LayerUnknown => {
            let what =
                format!("layer {id:?} has a record, but its files are lost: no such file or directory");
            ErrorKind::CorruptMetadata.err(what)
        }
        _ => error,
    })
}
