//! Creating layers.

use std::path::Path;
use std::sync::Arc;

use crate::driver::CreateOptions;
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::dirs::{check_layer_id, layer_location};
use crate::store::ids::random_id;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{
    NewLayer, Start, Unpacked, flags_json, mappings_of, record_applied,
};
use crate::time::Time;

/// A layer that has an incomplete record and nothing else yet.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) id: String,
    new: NewLayer,
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

    /// Makes what the saved record of a new layer stands for, and completes the record; which is to be saved. After an error
    /// the layer is to be [discarded](LayerStore::discard_failed).
    pub(crate) fn make(&mut self, new: Announced) -> Result<()> {
        let Announced { id, new } = new;
        self.make_files(&id, new)?;
        self.guard
            .table_mut()
            .update(&id, |row| row.set_incomplete(false))?;
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

    /// Creates the files of a layer and its part in the driver.
    fn make_files(&mut self, id: &str, new: NewLayer) -> Result<()> {
        let durable = self.inner.sync_content() && !new.volatile;
        let dirs = &self.inner.dirs;
        if !new.big_data.is_empty() {
            let dir = dirs.layer_data(id)?;
            crate::sys::make_private_subdir(&dir)?;
            for item in &new.big_data {
                big_data::write_bytes(&dir, &item.key, &item.data, true)?;
            }
            if durable {
                self.rely_on_data(dir);
            }
        }
        let options = CreateOptions {
            read_write: new.writeable,
            mappings: if new.mapped_by_mount {
                IdMappings::default()
            } else {
                new.mappings
            },
            mount_label: new.mount_label,
            storage_opt: new.storage_opt,
            durable,
        };
        let parent = new.parent.as_deref();
        self.make_content(id, parent, new.start, &options)?;
        if durable {
            self.rely_on_layer(id)?;
        }
        Ok(())
    }

    /// Creates the part of a layer in the driver, and its tar-split.
    fn make_content(
        &mut self,
        id: &str,
        parent: Option<&LayerRow>,
        start: Start,
        options: &CreateOptions,
    ) -> Result<()> {
        let dirs = &self.inner.dirs;
        match start {
            Start::Empty => {
                let below = parent.map(|row| row.id.as_str());
                let made = self.driver.create(id, below, options);
                match below {
                    Some(below) => files_of(below, made)?,
                    None => made?,
                }
                self.map_owners(id, parent, options)
            }
            Start::Template(template) => {
                let made = self.driver.create(id, Some(&template.id), options);
                files_of(&template.id, made)?;
                self.map_owners(id, Some(&template), options)?;
                copy_tar_split(
                    &dirs.tar_split(&template.id)?,
                    &dirs.tar_split(id)?,
                    options.durable,
                )
            }
            Start::Unpacked(unpacked) => {
                let below = parent.map(|row| row.id.as_str());
                unpacked.check_parent(&*self.driver, below)?;
                let Unpacked {
                    staged, tar_split, ..
                } = *unpacked;
                let target = dirs.tar_split(id)?;
                std::fs::rename(&tar_split.path, &target).at("moving tar-split to", &target)?;
                self.trash.push(tar_split.temp);
                staged.commit(id, below, options)
            }
        }
    }

    /// Changes the owners of the files of the layer below, if the mapping of the new layer differs.
    fn map_owners(&self, id: &str, below: Option<&LayerRow>, options: &CreateOptions) -> Result<()> {
        let Some(below) = below else { return Ok(()) };
        let from = mappings_of(below);
        if from == options.mappings {
            return Ok(());
        }
        self.driver
            .update_id_map(id, &from, &options.mappings, &options.mount_label)?;
        if options.durable {
            // Any number of files was changed, and some copied, by a mount program perhaps.
            let dir = self.driver.layer_tree(id)?.dir;
            rustix::fs::syncfs(&dir).during(format!("syncing layer {id:?}"))?;
        }
        Ok(())
    }
}

/// Copies a tar-split; a layer that was not made from a diff has none.
fn copy_tar_split(from: &Path, to: &Path, durable: bool) -> Result<()> {
    match std::fs::copy(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        copied => copied.map(drop).at("copying tar-split", from)?,
    }
    if !durable {
        return Ok(());
    }
    let copy = std::fs::File::open(to).at("opening", to)?;
    copy.sync_data().at("syncing", to)
}
