//! The primary layer store under its exclusive lock: creating and deleting layers. Everything here blocks.
//!
//! # What a crash leaves
//! A layer's record is saved with the flag `incomplete` before the driver makes anything, and again without it when
//! everything is in place; deletion marks it likewise before anything moves. Whoever takes the lock next deletes
//! incomplete layers on entry ([`LayerStore::enter`]). What is deleted is renamed into a locked temporary directory
//! under the lock and unlinked after it; a directory whose owner died is removed by the next open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::apply::pipeline::Applied;
use crate::driver::{CreateOptions, Driver, Staged};
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::options::{Durability, Flag, LayerBigData};
use crate::record::WriteGuard;
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::access::needs_repair;
use crate::store::dirs::layer_location;
use crate::store::ids::random_id;
use crate::store::inner::Inner;
use crate::time::Time;

/// A tar-split file that waits in a locked temporary directory for its layer.
#[derive(Debug)]
pub(crate) struct StagedTarSplit {
    pub(crate) path: PathBuf,
    /// Owns the directory; kept until the file has been renamed out of it.
    pub(crate) temp: TempDir,
}

/// What a new layer starts with.
#[derive(Debug)]
pub(crate) enum Start {
    /// Nothing.
    Empty,
    /// The content (and the recorded digests) of another layer.
    Template(Arc<LayerRow>),
    /// An unpacked diff.
    Unpacked(Box<Unpacked>),
}

/// A diff that was unpacked outside the lock.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) staged: Staged,
    pub(crate) tar_split: StagedTarSplit,
    pub(crate) applied: Applied,
}

/// Everything about a new layer.
#[derive(Debug)]
pub(crate) struct NewLayer {
    /// Empty: a random one.
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) parent: Option<Arc<LayerRow>>,
    pub(crate) start: Start,
    pub(crate) mount_label: String,
    pub(crate) writeable: bool,
    /// Owners to bake in.
    pub(crate) mappings: IdMappings,
    pub(crate) metadata: String,
    pub(crate) flags: BTreeMap<String, Flag>,
    pub(crate) big_data: Vec<LayerBigData>,
    pub(crate) storage_opt: BTreeMap<String, String>,
    pub(crate) volatile: bool,
}

/// The owners baked into a layer.
pub(crate) fn mappings_of(row: &LayerRow) -> IdMappings {
    IdMappings {
        uids: row.uid_map.clone(),
        gids: row.gid_map.clone(),
    }
}

/// JSON of the caller's flags.
pub(crate) fn flags_json(flags: BTreeMap<String, Flag>) -> BTreeMap<String, serde_json::Value> {
    let convert = |flag| match flag {
        Flag::Bool(truth) => serde_json::Value::Bool(truth),
        Flag::Text(text) => serde_json::Value::String(text),
        Flag::List(items) => items.into_iter().map(serde_json::Value::String).collect(),
    };
    flags
        .into_iter()
        .map(|(name, flag)| (name, convert(flag)))
        .collect()
}

/// Writes what unpacking found out into a record.
pub(crate) fn record_applied(row: &mut LayerRow, applied: &Applied) {
    row.compressed_digest = applied.compressed_digest.clone().into();
    row.compressed_size = i64::try_from(applied.compressed_size).unwrap_or(-1);
    row.diff_digest = applied.diff_digest.clone().into();
    row.diff_size = i64::try_from(applied.diff_size).unwrap_or(-1);
    row.compression = applied.compression.as_i64();
    row.uids.clone_from(&applied.uids);
    row.gids.clone_from(&applied.gids);
}

/// The primary layer store, held exclusively.
pub(crate) struct LayerStore {
    guard: WriteGuard<LayerRow>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) driver: Arc<dyn Driver>,
    /// Removed from disk after the lock is released.
    trash: Vec<TempDir>,
}

impl LayerStore {
    /// Takes over a held lock and deletes what a crash left incomplete.
    pub(crate) fn enter(inner: Arc<Inner>, guard: WriteGuard<LayerRow>) -> Result<Self> {
        let driver = inner.driver();
        let mut store = Self {
            guard,
            inner,
            driver,
            trash: Vec::new(),
        };
        if store.guard.reloaded() {
            store.inner.recover()?;
        }
        if needs_repair(&store.guard) {
            let incomplete = store.guard.incomplete();
            for id in &incomplete {
                tracing::warn!(layer = id, "deleting incomplete layer");
            }
            store.delete_all(&incomplete)?;
            // Names that two records claimed were sorted out when the file was read.
            store.guard.save()?;
        }
        Ok(store)
    }

    /// Keeps what was unpacked for a layer that is not wanted any more until the lock is released: removing it may take
    /// long.
    pub(crate) fn discard(&mut self, unpacked: Unpacked) {
        self.trash.push(unpacked.staged.temp);
        self.trash.push(unpacked.tar_split.temp);
    }

    /// Runs `change`, releases the lock, then removes from disk what was deleted.
    pub(crate) fn leave<T>(mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = change(&mut self);
        self.finish(result)
    }

    /// Releases the lock, then removes from disk what was deleted.
    pub(crate) fn finish<T>(self, result: Result<T>) -> Result<T> {
        let Self { guard, trash, .. } = self;
        drop(guard);
        for temp in trash {
            // The record is gone already; what is left of the content is litter that the next open removes.
            if let Err(error) = temp.remove() {
                tracing::warn!(error = %error.chain(), "cannot remove a deleted layer's files yet");
            }
        }
        result
    }

    pub(crate) fn table(&self) -> &Table<LayerRow> {
        &self.guard
    }

    pub(crate) fn table_mut(&mut self) -> &mut Table<LayerRow> {
        self.guard.table_mut()
    }

    /// Removes what killed writers of the records left.
    pub(crate) fn remove_stale(&self) -> Result<()> {
        self.guard.remove_stale().map(drop)
    }

    /// Saves the records.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.guard.save()
    }

    /// Saves the records after content has changed; with the driver option `sync=filesystem` the file system of the
    /// records is synced before. With [`Durability::Full`] directories in which names have changed are synced too.
    pub(crate) fn save_content(&mut self) -> Result<()> {
        let full = self.inner.options.durability == Durability::Full;
        let records = self.inner.dirs.layers();
        if full {
            let home = self.driver.home();
            for dir in [home, &home.join("l"), &records] {
                sync_dir(dir)?;
            }
        }
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
        })?;
        if full { sync_dir(&records) } else { Ok(()) }
    }

    /// The layer with exactly this ID, as a record or an earlier look has it: another one may have it for a name.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<LayerRow>> {
        self.guard
            .get(id)
            .map(Arc::clone)
            .ok_or_else(|| ErrorKind::LayerUnknown.err(format!("locating layer with ID {id:?}")))
    }

    /// Finds a layer by ID, name or ID prefix.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<LayerRow>> {
        self.guard
            .find(key)
            .map(Arc::clone)
            .ok_or_else(|| ErrorKind::LayerUnknown.err(format!("locating layer with ID {key:?}")))
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

    /// Creates a layer, its record last. On failure nothing of it is left.
    pub(crate) fn create(&mut self, new: NewLayer) -> Result<Arc<LayerRow>> {
        self.create_with(new, |_layer| Ok(()))
    }

    /// As [`LayerStore::create`]; `record` is called when everything is in place but the layer's own record, which
    /// until then says that a crash shall undo it all.
    pub(crate) fn create_with(
        &mut self,
        new: NewLayer,
        record: impl FnOnce(&LayerRow) -> Result<()>,
    ) -> Result<Arc<LayerRow>> {
        let mut record = Some(record);
        let record = |layer: &LayerRow| record.take().map_or(Ok(()), |record| record(layer));
        let none = || Err(ErrorKind::LayerUnknown.err("creating no layer"));
        self.create_each(vec![Ok(new)], record).pop().unwrap_or_else(none)
    }

    /// As [`LayerStore::create`] for several layers, none of which stands on another: all of them share the save that
    /// announces them and the one that completes them. What went wrong before stays as it is.
    pub(crate) fn create_all(&mut self, wanted: Vec<Result<NewLayer>>) -> Vec<Result<Arc<LayerRow>>> {
        self.create_each(wanted, |_layer| Ok(()))
    }

    fn create_each(
        &mut self,
        wanted: Vec<Result<NewLayer>>,
        mut record: impl FnMut(&LayerRow) -> Result<()>,
    ) -> Vec<Result<Arc<LayerRow>>> {
        let mut announced: Vec<_> = wanted
            .into_iter()
            .map(|new| new.and_then(|new| self.announce(new)))
            .collect();
        if let Err(error) = self.guard.save() {
            for result in announced.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.again());
            }
        }
        let mut failed = Vec::new();
        let mut made = Vec::with_capacity(announced.len());
        for new in announced {
            made.push(new.and_then(|(id, new)| {
                let complete = self.make(&id, new).and_then(|()| {
                    record(&*self.get(&id)?)?;
                    let table = self.guard.table_mut();
                    table.update(&id, |row| row.set_incomplete(false))
                });
                complete.map(|_| id.clone()).map_err(|error| {
                    let error = error.context(format!("creating layer {id:?}"));
                    failed.push(id);
                    error
                })
            }));
        }
        if made.iter().any(Result::is_ok)
            && let Err(error) = self.save_content()
        {
            for result in &mut made {
                if let Ok(id) = result {
                    failed.push(id.clone());
                    *result = Err(error.again().context(format!("creating layer {id:?}")));
                }
            }
        }
        for id in &failed {
            if let Err(error) = self.delete_all(std::slice::from_ref(id)) {
                tracing::warn!(layer = id, error = %error.chain(), "cannot clean up after a failed creation");
            }
        }
        made.into_iter().map(|id| self.get(&id?)).collect()
    }

    /// Enters the incomplete record of a new layer.
    fn announce(&mut self, mut new: NewLayer) -> Result<(String, NewLayer)> {
        Self::check_free(&self.guard, &new.id, &new.names)?;
        if new.id.is_empty() {
            new.id = random_id(|id| self.guard.get(id).is_some())?;
        } else {
            crate::driver::check_id(&new.id)?;
        }
        let id = new.id.clone();
        let mut row = LayerRow {
            id: id.as_str().into(),
            names: new.names.clone(),
            parent: new
                .parent
                .as_ref()
                .map(|parent| parent.id.clone())
                .unwrap_or_default(),
            metadata: std::mem::take(&mut new.metadata),
            mount_label: new.mount_label.clone(),
            created: Time::now(),
            flags: flags_json(std::mem::take(&mut new.flags)),
            uid_map: new.mappings.uids.clone(),
            gid_map: new.mappings.gids.clone(),
            ..LayerRow::default()
        };
        match &new.start {
            Start::Empty => {}
            Start::Template(template) => {
                row.compressed_digest.clone_from(&template.compressed_digest);
                row.compressed_size = template.compressed_size;
                row.diff_digest.clone_from(&template.diff_digest);
                row.diff_size = template.diff_size;
                row.compression = template.compression;
                row.uids.clone_from(&template.uids);
                row.gids.clone_from(&template.gids);
                row.toc_digest.clone_from(&template.toc_digest);
                if row.metadata.is_empty() {
                    row.metadata.clone_from(&template.metadata);
                }
            }
            Start::Unpacked(unpacked) => record_applied(&mut row, &unpacked.applied),
        }
        for item in &new.big_data {
            if !row.big_data_names.contains(&item.key) {
                row.big_data_names.push(item.key.clone());
            }
        }
        row.set_incomplete(true);
        let location = match (new.volatile, new.writeable, &self.inner.options.image_store) {
            (true, ..) => layer_location::VOLATILE,
            (false, false, Some(_)) => layer_location::IMAGE_STORE,
            _ => layer_location::STABLE,
        };
        drop(self.guard.table_mut().insert(row, location)?);
        Ok((id, new))
    }

    /// The driver's and the files' part of creating a layer.
    fn make(&mut self, id: &str, new: NewLayer) -> Result<()> {
        let dirs = &self.inner.dirs;
        if !new.big_data.is_empty() {
            let dir = dirs.layer_data(id)?;
            crate::sys::make_private_dir(&dir)?;
            for item in &new.big_data {
                big_data::write_bytes(&dir, &item.key, &item.data, true)?;
            }
        }
        let options = CreateOptions {
            read_write: new.writeable,
            mappings: new.mappings,
            mount_label: new.mount_label,
            storage_opt: new.storage_opt,
            durable: self.inner.sync_content() && !new.volatile,
        };
        let parent = new.parent.as_deref();
        match new.start {
            Start::Empty => {
                self.driver
                    .create(id, parent.map(|row| row.id.as_str()), &options)?;
                self.map_owners(id, parent, &options)
            }
            Start::Template(template) => {
                self.driver.create(id, Some(&template.id), &options)?;
                self.map_owners(id, Some(&template), &options)?;
                let (from, to) = (dirs.tar_split(&template.id)?, dirs.tar_split(id)?);
                match std::fs::copy(&from, &to) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    result => result.map(drop).at("copying tar-split", from),
                }
            }
            Start::Unpacked(unpacked) => {
                let Unpacked {
                    staged,
                    tar_split,
                    applied: _,
                } = *unpacked;
                let target = dirs.tar_split(id)?;
                std::fs::rename(&tar_split.path, &target).at("moving tar-split to", &target)?;
                self.trash.push(tar_split.temp);
                self.driver
                    .commit_staged(id, parent.map(|row| row.id.as_str()), &options, staged)
            }
        }
    }

    /// Re-owns the files that a new layer shows from below, where its mapping is another one.
    fn map_owners(&self, id: &str, below: Option<&LayerRow>, options: &CreateOptions) -> Result<()> {
        let Some(below) = below else { return Ok(()) };
        let from = mappings_of(below);
        if from == options.mappings {
            return Ok(());
        }
        self.driver
            .update_id_map(id, &from, &options.mappings, &options.mount_label)
    }

    /// Deletes layers and their records, without asking who uses them.
    ///
    /// The records are marked in one save: from then on the layers are as good as deleted, whatever happens. Then
    /// they are unmounted, everything is renamed away, and one save drops the records.
    pub(crate) fn delete_all(&mut self, ids: &[String]) -> Result<()> {
        let (mut doomed, mut marked) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let row = self.get(id)?;
            // Before it is marked: what cannot be deleted would be marked for ever.
            crate::driver::check_id(&row.id)?;
            if !row.is_incomplete() {
                marked.push(row.id.to_string());
            }
            doomed.push(row.id.to_string());
        }
        self.mark_incomplete(&marked, true)?;
        for id in &doomed {
            if let Err(error) = self.unmount_all(id) {
                // Nothing is lost yet, and the next one would fail on it too.
                self.mark_incomplete(&marked, false)?;
                return Err(error);
            }
        }
        let mut result = Ok(());
        for id in &doomed {
            let removed = self.move_away(id).context(|| format!("deleting layer {id:?}"));
            match removed {
                Ok(()) => drop(self.guard.table_mut().remove(id)),
                // The record stays, marked: whoever takes the lock next tries again.
                Err(error) if result.is_ok() => result = Err(error),
                Err(error) => tracing::warn!(layer = id, error = %error.chain(), "cannot delete layer"),
            }
        }
        self.guard.save()?;
        result
    }

    fn mark_incomplete(&mut self, ids: &[String], incomplete: bool) -> Result<()> {
        for id in ids {
            let table = self.guard.table_mut();
            table.update(id, |row| row.set_incomplete(incomplete))?;
        }
        self.guard.save()
    }

    /// Renames a layer's content and files into temporary directories that are removed after the lock is released.
    pub(crate) fn move_away(&mut self, id: &str) -> Result<()> {
        if let Some(temp) = self.driver.defer_remove(id)? {
            self.trash.push(temp);
        }
        let dirs = &self.inner.dirs;
        let (tar_split, data) = (dirs.tar_split(id)?, dirs.layer_data(id)?);
        if exists(&tar_split)? || exists(&data)? {
            let mut temp = TempDir::create(&dirs.layers_tmp())?;
            temp.stage_deletion(&tar_split)?;
            temp.stage_deletion(&data)?;
            self.trash.push(temp);
        }
        Ok(())
    }
}

/// Waits until the names in a directory are on disk; one that does not exist has none.
fn sync_dir(dir: &std::path::Path) -> Result<()> {
    match crate::sys::at::open_dir(dir) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        opened => rustix::fs::fsync(opened.at("opening", dir)?).at("syncing", dir),
    }
}

fn exists(path: &std::path::Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("looking at", path),
    }
}
