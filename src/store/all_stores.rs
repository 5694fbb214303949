//! Layers, images and containers locked together: deleting what has parts in several of them, and completing the
//! intents of killed processes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::record::WriteGuard;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::intent;
use crate::record::record_trait::Record;
use crate::store::dirs::{Dirs, item_dir};
use crate::store::layer_store::locked::LayerStore;

/// All stores that can be written, locked exclusively.
pub(crate) struct AllStores {
    pub(crate) containers: WriteGuard<ContainerRow>,
    /// The primary image store, then that of the graph root if images lie apart.
    pub(crate) images: Vec<LockedImages>,
    pub(crate) layers: LayerStore,
}

/// One of the image stores that can be written, and the directory of its images' data.
pub(crate) struct LockedImages {
    pub(crate) dir: PathBuf,
    pub(crate) records: WriteGuard<ImageRow>,
}

/// Removes directories that belong to one record; missing ones are fine.
pub(crate) fn remove_dirs(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        crate::sys::tree::remove_tree(dir).map_err(|error| Error::io_at("removing", dir, error))?;
    }
    Ok(())
}

/// Sets the intent of a record, or clears it with an empty text; see [`intent`].
pub(crate) fn set_intent<R: Record>(records: &mut WriteGuard<R>, id: &str, intent: &str) -> Result<()> {
    records
        .table_mut()
        .update(id, |row| intent.clone_into(row.intent_mut()))?;
    records.save()
}

/// Deletes the layer and the directories of a container and then its record, whose intent is a deletion.
fn finish_deletion(
    containers: &mut WriteGuard<ContainerRow>,
    layers: &mut LayerStore,
    dirs: &Dirs,
    row: &ContainerRow,
) -> Result<()> {
    let layer = layers.table().get(&row.layer);
    if layer.is_some_and(|layer| row.intent == intent::deletion_with(&layer.created)) {
        layers.delete_all(&[row.layer.to_string()])?;
    }
    remove_dirs(&[
        item_dir(dirs.containers(), &row.id)?,
        item_dir(dirs.run_containers(), &row.id)?,
    ])?;
    drop(containers.table_mut().remove(&row.id));
    containers.rely_on(dirs.containers());
    containers.save()
}

/// Completes the intents of killed processes in the container records. Incomplete layers have been deleted before.
pub(crate) fn finish_containers(
    containers: &mut WriteGuard<ContainerRow>,
    layers: &mut LayerStore,
    dirs: &Dirs,
) -> Result<()> {
    for id in containers.incomplete() {
        let Some(row) = containers.get(&id).map(Arc::clone) else {
            continue;
        };
        tracing::warn!(
            container = id,
            intent = row.intent,
            "completing the intent of a killed process"
        );
        let complete = layers.table().get(&row.layer).is_some();
        if intent::is_deletion(&row.intent) || row.intent == intent::CREATE && !complete {
            match finish_deletion(containers, layers, dirs, &row) {
                Ok(()) => continue,
                Err(error) => {
                    tracing::warn!(container = id, error = %error.chain(), "cannot finish deleting a container");
                }
            }
        }
        set_intent(containers, &id, "")?;
    }
    Ok(())
}

impl AllStores {
    /// See [`WriteGuard::settle`].
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.layers.settle()?;
        self.images
            .iter_mut()
            .try_for_each(|store| store.records.settle())?;
        self.containers.settle()
    }

    /// Completes the intents of killed processes. An intent that cannot be completed is cleared and the item left as it
    /// is, so that the store stays usable.
    pub(crate) fn finish_interrupted(&mut self, dirs: &Dirs) -> Result<()> {
        finish_containers(&mut self.containers, &mut self.layers, dirs)?;
        for index in 0..self.images.len() {
            for id in self.images[index].records.incomplete() {
                tracing::warn!(image = id, "completing the intent of a killed process");
                let used = self.containers.rows().any(|row| row.image == id);
                if used {
                    tracing::warn!(image = id, "not deleting an image that has got a user");
                } else if let Err(error) = self.delete_image(dirs, &id) {
                    tracing::warn!(image = id, error = %error.chain(), "cannot finish deleting an image");
                }
                set_intent(&mut self.images[index].records, &id, "")?;
            }
        }
        Ok(())
    }

    /// Deletes a container, its layer and its directories. The record goes last, so that a deletion that
    /// failed can be tried again.
    pub(crate) fn delete_container(&mut self, dirs: &Dirs, id: &str) -> Result<()> {
        let Some(row) = self.containers.find(id) else {
            return Err(ErrorKind::NotAContainer.err(format!("deleting container {id:?}")));
        };
        let mut row = ContainerRow::clone(row);
        let layer = self.layers.table().get(&row.layer);
        row.intent = layer.map_or_else(
            || intent::DELETE.to_owned(),
            |layer| intent::deletion_with(&layer.created),
        );
        set_intent(&mut self.containers, &row.id, &row.intent)?;
        let deleted = finish_deletion(&mut self.containers, &mut self.layers, dirs, &row);
        if deleted.is_err() {
            set_intent(&mut self.containers, &row.id, "")?;
        }
        deleted.context(|| format!("deleting container {:?}", row.id))
    }

    /// Deletes an image and the layers that go with it, and returns these. The record goes last.
    pub(crate) fn delete_image(&mut self, dirs: &Dirs, id: &str) -> Result<Vec<String>> {
        let layers = self.layers_to_delete(id);
        if !layers.is_empty()
            && let Some(index) = self
                .images
                .iter()
                .position(|store| store.records.get(id).is_some())
        {
            set_intent(&mut self.images[index].records, id, intent::DELETE)?;
            if let Err(error) = self.layers.delete_all(&layers) {
                set_intent(&mut self.images[index].records, id, "")?;
                return Err(error.context(format!("deleting image {id:?}")));
            }
        }
        self.delete_image_record(dirs, id)?;
        Ok(layers)
    }

    /// The ID of the image with this ID, name or ID prefix in the first store that has it.
    pub(crate) fn find_image(&self, key: &str) -> Option<String> {
        let mut found = self.images.iter().filter_map(|store| store.records.find(key));
        found.next().map(|row| row.id.to_string())
    }

    /// Every image of the stores that can be written.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Arc<ImageRow>> {
        self.images.iter().flat_map(|store| store.records.rows())
    }

    /// Deletes an image's records, then its data. Its layers stay. The last record to go is that of the first store:
    /// as long as anything is left, the image can be found and deleted again.
    pub(crate) fn delete_image_record(&mut self, dirs: &Dirs, id: &str) -> Result<()> {
        for store in self.images.iter_mut().rev() {
            if store.records.get(id).is_none() {
                continue;
            }
            drop(store.records.table_mut().remove(id));
            store
                .records
                .save()
                .context(|| format!("deleting image {id:?}"))?;
            remove_dirs(&[item_dir(store.dir.clone(), id)?])?;
        }
        remove_dirs(&[
            item_dir(dirs.graph_images(), id)?,
            item_dir(dirs.run_images(), id)?,
        ])
    }

    /// The layers that go with an image: from the top layer (and its copies with other owners) downwards, as long as
    /// nothing else needs them.
    pub(crate) fn layers_to_delete(&self, image: &str) -> Vec<String> {
        let table = self.layers.table();
        // Only these can go, so only their children matter: a store may have many thousands of others.
        let mut chain: HashSet<&str> = HashSet::new();
        for row in self.images().filter(|row| row.id == image) {
            let mut next = row.layer.as_str();
            while let Some(layer) = table.get(next) {
                // The parents in damaged records may form a circle.
                if !chain.insert(&layer.id) {
                    break;
                }
                next = &layer.parent;
            }
        }
        let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
        for layer in table.rows().filter(|layer| chain.contains(layer.parent.as_str())) {
            children.entry(&layer.parent).or_default().push(&layer.id);
        }
        let others: HashSet<&str> = self
            .images()
            .filter(|other| other.id != image)
            .flat_map(|other| other.top_layers())
            .collect();
        let mut doomed: Vec<String> = Vec::new();
        // The record of one image may stand in two stores, on different layers.
        for row in self.images().filter(|row| row.id == image) {
            // A layer that this store does not have (it lies in an additional store) is not deleted.
            let copies = row.mapped_layers.iter().filter(|id| table.get(id).is_some());
            let new: Vec<String> = copies.filter(|id| !doomed.contains(id)).cloned().collect();
            doomed.extend(new);
            let mut next = row.layer.as_str();
            while let Some(layer) = table.get(next) {
                let needed_elsewhere = others.contains(next)
                    || self.containers.by_layer(next).is_some()
                    || children
                        .get(next)
                        .is_some_and(|ids| ids.iter().any(|id| !doomed.iter().any(|gone| gone == id)));
                if needed_elsewhere || doomed.iter().any(|gone| layer.id == *gone) {
                    break;
                }
                doomed.push(layer.id.to_string());
                next = &layer.parent;
            }
        }
        doomed
    }
}
