//! Guards: a lock together with the data that it protects.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::{ExclusiveLock, SharedLock};
use crate::record::cache::{HeldLocks, RecordsInner};
use crate::record::index::Position;
use crate::record::published::Snapshot;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::undo::Savepoint;
use crate::sys::atomic::{self, Mtime};
use crate::sys::name_sync::{self, NameSync};
use crate::sys::{reserve, temporary_names};

/// The rows as they are on disk. While it exists, no task or process can change them, unless it comes from
/// [`Records::unlocked_snapshot`](super::Records::unlocked_snapshot).
///
/// Owned and `Send`: it may move into a blocking task or a stream. Dropping it releases the locks.
#[derive(Debug)]
pub(crate) struct ReadGuard<R> {
    snapshot: Arc<Snapshot<R>>,
    reloaded: bool,
    /// Whether a writer of this process exists, which completes what is not complete.
    writing: bool,
    /// Empty for an unlocked snapshot, and for a read-only store without lock files.
    _held: HeldLocks<SharedLock>,
}

impl<R> ReadGuard<R> {
    pub(super) fn new(snapshot: Arc<Snapshot<R>>, held: HeldLocks<SharedLock>, reloaded: bool) -> Self {
        Self {
            snapshot,
            reloaded,
            writing: false,
            _held: held,
        }
    }

    /// Without the locks; `writing` if a writer of this process has them.
    pub(super) fn unlocked(snapshot: Arc<Snapshot<R>>, writing: bool) -> Self {
        Self {
            snapshot,
            reloaded: false,
            writing,
            _held: HeldLocks::new(),
        }
    }

    /// Whether the files were read for this guard: another process has changed them, or this is the first read.
    pub(crate) fn reloaded(&self) -> bool {
        self.reloaded
    }
}

impl<R: Record> ReadGuard<R> {
    /// As [`Table::needs_repair`]; what a writer of this process is in the middle of needs none.
    pub(crate) fn needs_repair(&self) -> bool {
        !self.writing && self.snapshot.table.needs_repair()
    }
}

impl<R> Deref for ReadGuard<R> {
    type Target = Table<R>;

    fn deref(&self) -> &Table<R> {
        &self.snapshot.table
    }
}

/// The rows as they are on disk, to be changed. While it exists, no other task or process reads or changes them.
///
/// Owned and `Send`: it moves into the blocking task that saves. Changes that are not saved are lost when it is dropped.
/// Its table is the cached one, taken out of the cache and put back on drop, so that a change needs no copy of the
/// table; or another copy of it, see [`published`](super::published).
#[derive(Debug)]
pub(crate) struct WriteGuard<R: Record> {
    /// Empty while it is the same as the `published` one.
    own: Table<R>,
    published: Option<Arc<Snapshot<R>>>,
    /// `None` after a failed save: then the content of the files is unknown.
    token: Option<Token>,
    mtimes: Vec<Option<Mtime>>,
    /// The table's count of changes when it last agreed with the files.
    clean: u64,
    reloaded: bool,
    /// Directories whose names the next save relies on.
    relied_on: BTreeSet<PathBuf>,
    /// Directories of files that were saved and whose names [`WriteGuard::settle`] forces to disk.
    unsettled: BTreeSet<PathBuf>,
    /// Why a save has failed.
    failed: Option<Error>,
    core: Arc<RecordsInner<R>>,
    /// Declared last, so that the locks are released after drop has put the table back.
    held: HeldLocks<ExclusiveLock>,
}

impl<R: Record> WriteGuard<R> {
    pub(super) fn new(
        core: Arc<RecordsInner<R>>,
        held: HeldLocks<ExclusiveLock>,
        snapshot: Arc<Snapshot<R>>,
        reloaded: bool,
    ) -> Self {
        let (publishing, old) = core.cached().begin(&snapshot, reloaded);
        drop(old);
        let mut guard = Self {
            clean: snapshot.table.changes(),
            own: Table::default(),
            published: None,
            token: snapshot.token,
            mtimes: snapshot.mtimes.clone(),
            reloaded,
            relied_on: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            failed: None,
            core,
            held,
        };
        if publishing {
            guard.go_on_from(snapshot);
        } else {
            // Without the reference of the cache this is the last one, unless a reader has it.
            guard.own =
                Arc::try_unwrap(snapshot).map_or_else(|shared| shared.table.clone(), |last| last.table);
            guard.own.show_all();
        }
        guard
    }

    /// Goes on with a published table, of which a copy is made when it is to be changed.
    fn go_on_from(&mut self, published: Arc<Snapshot<R>>) {
        match published.table.hides() {
            true => self.own = self.core.copy(&published.table),
            false => self.published = Some(published),
        }
    }

    /// Leaves what was saved to readers, if there may be some. These rows differ from what was published before.
    fn publish(&mut self, changed: Vec<Position>) {
        if self.published.is_some() || !self.core.cached().wants(&changed) {
            return;
        }
        let mut table = std::mem::take(&mut self.own);
        table.hide_incomplete();
        let snapshot = Arc::new(Snapshot {
            table,
            token: self.token,
            mtimes: self.mtimes.clone(),
        });
        let old = self.core.cached().publish(&snapshot, changed);
        drop(old);
        self.go_on_from(snapshot);
    }

    /// Whether the files were read for this guard: another process has changed them, or this is the first access.
    pub(crate) fn reloaded(&self) -> bool {
        self.reloaded
    }

    /// The table to change; [`WriteGuard::save`] writes the changes.
    pub(crate) fn table_mut(&mut self) -> &mut Table<R> {
        if let Some(published) = self.published.take() {
            self.own = self.core.copy(&published.table);
        }
        &mut self.own
    }

    /// The next save relies on names in `dir`: what was made, renamed or removed there must not be lost while the saved
    /// records are found. Without a save [`WriteGuard::settle`] forces them to disk. If the records do not promise anything
    /// this does nothing.
    pub(crate) fn rely_on(&mut self, dir: PathBuf) {
        if self.core.names != NameSync::Off {
            self.relied_on.insert(dir);
        }
    }

    /// Waits until what was saved survives a power cut, if these records promise that, and until names that no save has
    /// relied on do where names are not kept in order. Blocking. To be called when all changes of an operation are saved.
    pub(crate) fn settle(&mut self) -> Result<()> {
        match self.core.names {
            NameSync::Off => {}
            NameSync::InOrder => self
                .relied_on
                .iter()
                .try_for_each(|dir| name_sync::sync_after(dir))?,
            NameSync::Always => self.unsettled.append(&mut self.relied_on),
        }
        self.relied_on.clear();
        while let Some(dir) = self.unsettled.pop_first() {
            name_sync::sync_dir(&dir)?;
            self.core.settle_row_files(&dir);
        }
        Ok(())
    }

    /// Writes every dirty location. Blocking. Without changes it does nothing. What the records rely on is on disk before
    /// they are, also where the file system keeps no order of changes; and so is a saved record before what is done after
    /// it.
    ///
    /// If it fails, some locations may have been written and others not. The table is then as it was at the last save, and
    /// the next save writes every location again.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.save_with(|_| Ok(()))
    }

    /// As [`WriteGuard::save`]; `before` is called with the path of each file after the token and before the file is
    /// written, to sync what the records refer to.
    pub(crate) fn save_with(&mut self, mut before: impl FnMut(&Path) -> Result<()>) -> Result<()> {
        if self.published.is_some() {
            // Not changed since.
            return Ok(());
        }
        let saved = self.save_dirty(&mut before).and_then(|()| {
            if self.own.clear_takers() {
                self.save_dirty(&mut before)?;
            }
            Ok(())
        });
        match &saved {
            Ok(()) => {
                let changed = self.own.keep_changes();
                self.publish(changed);
            }
            Err(error) => {
                self.own.undo_failed_save();
                drop(self.core.cached().forget());
                self.failed.get_or_insert_with(|| error.again());
            }
        }
        saved
    }

    /// Why a save has failed since the last call, if one has: with it the changes of others are undone too, who are to be
    /// told. What was changed since is undone as well.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        let failed = self.failed.take();
        if failed.is_some() {
            self.table_mut().undo_failed_save();
        }
        failed
    }

    /// The state of the table at this moment.
    pub(crate) fn savepoint(&self) -> Savepoint {
        (**self).savepoint()
    }

    /// Undoes the changes since, but for those that were saved.
    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        if self.published.is_none() {
            self.own.roll_back(to);
        }
    }

    fn save_dirty(&mut self, before: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        let dirty = self.own.dirty_locations();
        if dirty.is_empty() {
            return Ok(());
        }
        // Put back when all is written: after an error nothing is known of the files.
        let mut row_files = self.core.take_row_files();
        row_files.check(&self.own, self.token);
        let mut files = Vec::with_capacity(dirty.len());
        for location in dirty {
            if let Some(file) = self.core.locations.get(location) {
                let change = row_files.change(&mut self.own, location, &file.path, file.sync)?;
                files.push((location, file, change));
            }
        }
        let names = self.core.names;
        let durable = files.iter().map(|(_, file, _)| file);
        let durable = durable.filter(|file| file.sync && names != NameSync::Off);
        let dirs: Vec<PathBuf> = durable
            .filter_map(|file| file.path.parent().map(Path::to_owned))
            .collect();
        if !dirs.is_empty() {
            name_sync::sync_before(&self.relied_on, dirs.iter().map(PathBuf::as_path))?;
            self.relied_on.clear();
        }
        self.token = None;
        // Compat: the token is written first, so that a crash before the rename causes a reload and hides nothing.
        let mut first = None;
        let mut released = false;
        for lock in self.held.first.iter().chain(&self.held.rest) {
            let token = match files.first() {
                Some((_, file, _)) => {
                    let (token, gone) = reserve::or_release(&file.path, || lock.write_token())?;
                    released |= gone;
                    token
                }
                None => lock.write_token()?,
            };
            first.get_or_insert(token);
        }
        for (location, file, change) in files {
            before(&file.path)?;
            let written = row_files.write(change, &self.own, location, &file.path, file.sync)?;
            self.core
                .keep_reserve(location, written.size, released || written.spent);
            if let Some(remembered) = self.mtimes.get_mut(location) {
                *remembered = Some(written.mtime);
            }
            self.own.saved(location);
        }
        for dir in dirs {
            name_sync::sync_after(&dir)?;
            if names == NameSync::Always {
                self.unsettled.insert(dir);
            }
        }
        #[cfg(test)]
        self.core.saves.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        row_files.saved(&self.own, first);
        self.core.put_row_files(row_files);
        self.token = first;
        self.clean = self.own.changes();
        Ok(())
    }

    /// The file of a location without a list of rows: missing, or destroyed by a power cut.
    pub(crate) fn unwritten(&self, location: usize) -> Option<&Path> {
        let location = self.core.unwritten(location, &self.mtimes);
        location.map(|location| location.path.as_path())
    }

    /// Writes the file of a location that has none yet: before anything is made that its rows will name, so that it is
    /// missing beside something only if it was lost. Blocking.
    pub(crate) fn ensure_written(&mut self, location: usize) -> Result<()> {
        if self.unwritten(location).is_some() {
            self.table_mut().set_dirty(location);
            self.save()?;
        }
        Ok(())
    }

    /// Writes an empty list where the file of a location is missing. What another process writes there at the same time,
    /// which these locks do not keep from it, stays. Blocking.
    pub(crate) fn ensure_there(&mut self, location: usize) -> Result<()> {
        let Some(file) = self.core.unwritten(location, &self.mtimes) else {
            return Ok(());
        };
        // In most cases another one has written it since.
        if file.path.exists() {
            return Ok(());
        }
        let made = atomic::write_new_file(&file.path, b"[]", 0o600, file.sync)?;
        if let (Some(mtime), Some(remembered)) = (made, self.mtimes.get_mut(location)) {
            *remembered = Some(mtime);
        }
        Ok(())
    }

    /// Removes stale temporary files, which killed writers have left: the exclusive locks exclude a living writer.
    /// Blocking. Returns how many there were.
    pub(crate) fn remove_stale(&self) -> Result<usize> {
        let paths: Vec<&Path> = self
            .core
            .locations
            .iter()
            .map(|location| &*location.path)
            .collect();
        temporary_names::remove_stale(&paths)
    }
}

impl<R: Record> Deref for WriteGuard<R> {
    type Target = Table<R>;

    fn deref(&self) -> &Table<R> {
        let published = self.published.as_ref().map(|published| &published.table);
        published.unwrap_or(&self.own)
    }
}

impl<R: Record> Drop for WriteGuard<R> {
    fn drop(&mut self) {
        let agrees = self.published.is_none() && self.token.is_some() && self.own.changes() == self.clean;
        let unchanged = agrees.then(|| Snapshot {
            table: std::mem::take(&mut self.own),
            token: self.token,
            mtimes: std::mem::take(&mut self.mtimes),
        });
        self.core.cached().end(unchanged);
    }
}
