//! Creating layers.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::{CreateOptions, Driver};
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::dirs::{Dirs, check_layer_id, layer_location};
use crate::store::ids::random_id;
use crate::store::inner::Inner;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{
    NewLayer, StagedItem, Start, Unpacked, flags_json, other_mappings,
};
use crate::sys::at;
use crate::time::Time;

/// A layer that has an incomplete record and nothing else yet.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) id: String,
    new: NewLayer,
}

/// The files of a new layer, to be made.
pub(crate) struct Making {
    driver: Arc<dyn Driver>,
    inner: Arc<Inner>,
    new: Announced,
}

/// What making the files of a new layer has come to.
pub(crate) struct Made {
    id: String,
    result: Result<()>,
    durable: bool,
    /// The directory of its big data, on which the record relies.
    data: Option<PathBuf>,
    trash: Vec<TempDir>,
}

impl LayerStore {
    /// Creates a layer, its record last. On failure nothing of it is left.
    pub(crate) fn create(&mut self, new: NewLayer) -> Result<Arc<LayerRow>> {
        let announced = self.announce(new)?;
        self.save()?;
        let id = announced.id.clone();
        let made = self.make(announced).and_then(|()| self.save());
        match made {
            Ok(()) => self.get(&id),
            Err(error) => {
                self.discard_failed(&id);
                Err(error.context(format!("creating layer {id:?}")))
            }
        }
    }

    /// As [`Making::make`], and completes the record; which is to be saved. After an error the layer is to be
    /// [discarded](LayerStore::discard_failed).
    fn make(&mut self, new: Announced) -> Result<()> {
        let made = self.making(new).make();
        self.complete(made)
    }

    /// The files that the saved record of a new layer stands for.
    pub(crate) fn making(&self, new: Announced) -> Making {
        Making {
            driver: Arc::clone(&self.driver),
            inner: Arc::clone(&self.inner),
            new,
        }
    }

    /// Completes the record of a layer whose files were made; which is to be saved. After an error the layer is to be
    /// [discarded](LayerStore::discard_failed).
    pub(crate) fn complete(&mut self, made: Made) -> Result<()> {
        self.trash.extend(made.trash);
        if let Some(dir) = made.data {
            self.rely_on_data(dir);
        }
        made.result?;
        if made.durable {
            self.rely_on_layer(&made.id)?;
        }
        let table = self.guard.table_mut();
        table.update(&made.id, |row| row.set_incomplete(false))?;
        self.has_new_content = true;
        Ok(())
    }

    /// Deletes what a failed creation has left.
    pub(crate) fn discard_failed(&mut self, id: &str) {
        if self.guard.get(id).is_none() {
            return;
        }
        if let Err(error) = self.delete_all(&[id.to_owned()]) {
            tracing::warn!(layer = id, error = %error.chain(), "cannot clean up after a failed creation");
        }
    }

    /// Enters the incomplete record of a new layer. When that is saved, [`LayerStore::make`] goes on.
    pub(crate) fn announce(&mut self, mut new: NewLayer) -> Result<Announced> {
        match self.enter_record(&mut new) {
            Ok(id) => Ok(Announced { id, new }),
            Err(error) => {
                if let Start::Unpacked(unpacked) = new.start {
                    self.discard(*unpacked);
                }
                Err(error)
            }
        }
    }

    /// Returns the ID.
    fn enter_record(&mut self, new: &mut NewLayer) -> Result<String> {
        Self::check_free(&self.guard, &new.id, &new.names)?;
        if new.id.is_empty() {
            new.id = random_id(|id| self.guard.get(id).is_some())?;
        } else {
            check_layer_id(&*self.driver, &new.id)?;
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
            Start::Additional { info, .. } => record_content_of(&mut row, info),
            Start::Template(template) => {
                record_content_of(&mut row, template);
                if row.metadata.is_empty() {
                    row.metadata.clone_from(&template.metadata);
                }
            }
            Start::Unpacked(unpacked) => unpacked.record(&mut row),
        }
        for item in &new.big_data {
            if !row.big_data_names.contains(&item.key) {
                row.big_data_names.push(item.key.clone());
            }
        }
        row.set_incomplete(true);
        if let Some(companion) = &new.companion {
            row.set_intent(&companion.intent());
        }
        let location = match (new.volatile, new.writeable, &self.inner.options.image_store) {
            (true, ..) => layer_location::VOLATILE,
            (false, false, Some(_)) => layer_location::IMAGE_STORE,
            _ => layer_location::STABLE,
        };
        drop(self.guard.table_mut().insert(row, location)?);
        Ok(id)
    }
}

impl Making {
    /// Makes what the record stands for. Needs no records; but nobody else may use the layer.
    pub(crate) fn make(self) -> Made {
        let Self { driver, inner, new } = self;
        let Announced { id, new } = new;
        let mut made = Made {
            durable: inner.sync_content() && !new.volatile,
            id,
            result: Ok(()),
            data: None,
            trash: Vec::new(),
        };
        made.result = made.make(&*driver, &inner.dirs, new);
        made
    }
}

impl Made {
    fn make(&mut self, driver: &dyn Driver, dirs: &Dirs, new: NewLayer) -> Result<()> {
        let staged_items = match &new.start {
            Start::Unpacked(unpacked) => unpacked.items(),
            _ => &[],
        };
        if !new.big_data.is_empty() || !staged_items.is_empty() {
            let dir = dirs.layer_data(&self.id)?;
            big_data::make_dir(&dir)?;
            for item in &new.big_data {
                big_data::write_bytes(&dir, &item.key, &item.data, true)?;
            }
            move_items(staged_items, &dir)?;
            if self.durable {
                self.data = Some(dir);
            }
        }
        let mappings = if new.mapped_by_mount {
            IdMappings::default()
        } else {
            new.mappings
        };
        let below = match &new.start {
            Start::Empty | Start::Unpacked(_) => new.parent.as_deref(),
            Start::Template(template) => Some(&**template),
            Start::Additional { .. } => None,
        };
        let options = CreateOptions {
            read_write: new.writeable,
            parent_mappings: other_mappings(below, &mappings),
            mappings,
            storage_opt: new.storage_opt,
            mount_label: new.mount_label,
            durable: self.durable,
        };
        self.make_content(driver, dirs, new.parent.as_deref(), new.start, &options)
    }

    /// Creates the part of a layer in the driver, and its tar-split.
    fn make_content(
        &mut self,
        driver: &dyn Driver,
        dirs: &Dirs,
        parent: Option<&LayerRow>,
        start: Start,
        options: &CreateOptions,
    ) -> Result<()> {
        let id = self.id.as_str();
        match start {
            Start::Empty => {
                let below = parent.map(|row| row.id.as_str());
                let made = driver.create(id, below, options);
                match below {
                    Some(below) => files_of(below, made),
                    None => made,
                }
            }
            Start::Template(template) => {
                let made = driver.create(id, Some(&template.id), options);
                files_of(&template.id, made)?;
                copy_tar_split(
                    &dirs.tar_split(&template.id)?,
                    &dirs.tar_split(id)?,
                    options.durable,
                )
            }
            Start::Additional { used, .. } => {
                let below = parent.map(|row| row.id.as_str());
                let made = driver.create_additional(id, below, used, options);
                match below {
                    Some(below) => files_of(below, made),
                    None => made,
                }
            }
            Start::Unpacked(unpacked) => {
                let below = parent.map(|row| row.id.as_str());
                unpacked.check_parent(driver, below)?;
                let has_tar_split = unpacked.has_tar_split();
                let Unpacked {
                    staged, tar_split, ..
                } = *unpacked;
                if has_tar_split {
                    let target = dirs.tar_split(id)?;
                    std::fs::rename(&tar_split.path, &target).at("moving tar-split to", &target)?;
                }
                self.trash.push(tar_split.temp);
                staged.commit(id, below, options)
            }
        }
    }
}

/// Writes what is recorded of the content of another layer into a record.
fn record_content_of(row: &mut LayerRow, other: &LayerRow) {
    row.compressed_digest.clone_from(&other.compressed_digest);
    row.compressed_size = other.compressed_size;
    row.diff_digest.clone_from(&other.diff_digest);
    row.diff_size = other.diff_size;
    row.compression = other.compression;
    row.uids.clone_from(&other.uids);
    row.gids.clone_from(&other.gids);
    row.toc_digest.clone_from(&other.toc_digest);
}

/// Moves big data items to the directory of a layer's items.
fn move_items(items: &[StagedItem], dir: &Path) -> Result<()> {
    for item in items {
        let target = dir.join(&*big_data::file_name(&item.key)?);
        std::fs::rename(&item.path, &target).at("moving a big data item to", &target)?;
    }
    Ok(())
}

/// Copies a tar-split; a layer that was not made from a diff has none.
fn copy_tar_split(from: &Path, to: &Path, durable: bool) -> Result<()> {
    let mut file = match at::open_regular(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.at("opening tar-split", from)?,
    };
    let mut copy = std::fs::OpenOptions::new();
    let mut copy = copy
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .at("creating", to)?;
    std::io::copy(&mut file, &mut copy).at("copying tar-split", from)?;
    if !durable {
        return Ok(());
    }
    copy.sync_data().at("syncing", to)
}
