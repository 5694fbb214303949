//! Layers, images and containers locked together: deleting what has parts in several of them, and completing the
//! intents of killed processes.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::record::WriteGuard;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::intent::Companion;
use crate::store::access::in_flight::{Flight, InFlight, Note};
use crate::store::dirs::{Dirs, check_layer_id, container_location, item_dir, layer_location};
use crate::store::evidence::was_lost;
use crate::store::layer_store::locked::LayerStore;
use crate::sys::presence::is_there;

/// All stores that can be written, locked exclusively.
pub(crate) struct AllStores<'a> {
    pub(crate) containers: &'a mut WriteGuard<ContainerRow>,
    /// The primary image store, then that of the graph root if images lie apart.
    pub(crate) images: &'a mut [LockedImages],
    pub(crate) layers: &'a mut LayerStore,
    pub(crate) in_flight: &'a InFlight,
}

/// A container that is being deleted.
pub(crate) struct DoomedContainer {
    pub(crate) id: String,
    pub(crate) companion: Companion,
    pub(crate) layers: Vec<String>,
    _note: Note,
}

/// What is thought to be gone already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Without {
    pub(crate) images: HashSet<String>,
    pub(crate) layers: HashSet<String>,
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

impl AllStores<'_> {
    /// Completes the intents of killed processes: of the layers that went with an image or container, those are kept to
    /// which something refers. Incomplete layers have been deleted before.
    ///
    /// An intent that cannot be completed is dropped and the layer left as it is, so that the store stays usable.
    pub(crate) fn finish_interrupted(&mut self, dirs: &Dirs) -> Result<()> {
        let mut marked = self.layers.marked();
        if marked.is_empty() {
            return Ok(());
        }
        // Perhaps the container is there and only its record is not: everything stays.
        let mut unclear = Vec::new();
        for (id, companion) in &marked {
            if matches!(companion, Companion::Container(_)) && self.has_lost_containers(id)? {
                unclear.push(id.clone());
            }
        }
        marked.retain(|(id, _)| !unclear.contains(id));
        let referred: HashSet<&str> = self
            .images()
            .flat_map(|row| row.top_layers())
            .chain(self.containers.rows().map(|row| row.layer.as_str()))
            .collect();
        let mut doomed: HashSet<String> = marked
            .iter()
            .map(|(id, _)| id.clone())
            .filter(|id| !referred.contains(id.as_str()))
            .collect();
        // A layer below one that stays, stays too.
        loop {
            let rows = self.layers.table().rows();
            let kept: Vec<String> = rows
                .filter(|row| doomed.contains(row.parent.as_str()) && !doomed.contains(row.id.as_str()))
                .map(|row| row.parent.to_string())
                .collect();
            if kept.is_empty() {
                break;
            }
            doomed.retain(|id| !kept.contains(id));
        }
        for (id, companion) in &marked {
            let deleted = doomed.contains(id);
            tracing::warn!(
                layer = id,
                ?companion,
                deleted,
                "completing the intent of a killed process"
            );
        }
        // Later layers have earlier ones as parents.
        let gone: Vec<String> = marked
            .iter()
            .rev()
            .map(|(id, _)| id.clone())
            .filter(|id| doomed.contains(id))
            .collect();
        if let Err(error) = self.layers.delete_all(&gone) {
            tracing::warn!(error = %error.chain(), "cannot finish deleting layers");
        }
        for (_, companion) in &marked {
            if let Err(error) = self.remove_data_of(dirs, companion) {
                tracing::warn!(?companion, error = %error.chain(), "cannot finish deleting data");
            }
        }
        marked.retain(|(id, _)| {
            self.layers
                .table()
                .get(id)
                .is_some_and(|row| !row.is_incomplete())
        });
        let left: Vec<String> = marked.into_iter().map(|(id, _)| id).chain(unclear).collect();
        self.layers.mark(&left, None)?;
        self.layers.save()
    }

    /// Whether the records of the containers that have layers like this one have been lost: they were written before it was
    /// marked.
    fn has_lost_containers(&self, layer: &str) -> Result<bool> {
        let mut volatile = self.layers.table().rows_in(layer_location::VOLATILE);
        let location = match volatile.any(|row| row.id == *layer) {
            true => container_location::VOLATILE,
            false => container_location::STABLE,
        };
        let unwritten = self.containers.unwritten(location);
        Ok(match (location, unwritten) {
            (container_location::VOLATILE, Some(file)) => !is_there(file)? || was_lost(file)?,
            (_, unwritten) => unwritten.is_some(),
        })
    }

    /// Removes the directories of an image or container that has no record.
    pub(crate) fn remove_data_of(&self, dirs: &Dirs, companion: &Companion) -> Result<()> {
        match companion {
            Companion::Image(id) if self.images_with_id(id).next().is_none() => {
                for store in self.images.iter() {
                    remove_dirs(&[item_dir(store.dir.clone(), id)?])?;
                }
                remove_dirs(&[
                    item_dir(dirs.graph_images(), id)?,
                    item_dir(dirs.run_images(), id)?,
                ])
            }
            Companion::Container(id) if self.containers.get(id).is_none() => remove_dirs(&[
                item_dir(dirs.containers(), id)?,
                item_dir(dirs.run_containers(), id)?,
            ]),
            _ => Ok(()),
        }
    }

    /// Marks layers that are about to be deleted with `companion`.
    fn doom(&mut self, layers: &[String], companion: &Companion) -> Result<()> {
        for id in layers {
            // Before anything is saved: a layer that cannot be deleted would keep the mark for ever.
            check_layer_id(&*self.layers.driver, id)?;
        }
        self.layers.mark(layers, Some(companion))
    }

    /// Begins to delete a container: marks its layer. When that is saved, the record goes, then the layer, then the rest.
    pub(crate) fn doom_container(&mut self, key: &str) -> Result<DoomedContainer> {
        let found = self.containers.find(key).map(Arc::clone);
        let Some(row) = found.filter(|row| !self.in_flight.deletes(&row.id)) else {
            return Err(ErrorKind::NotAContainer.err(format!("deleting container {key:?}")));
        };
        let companion = Companion::Container(row.id.to_string());
        let layer = self.layers.table().get(&row.layer);
        let layers: Vec<String> = layer.iter().map(|layer| layer.id.to_string()).collect();
        self.doom(&layers, &companion)?;
        let id = row.id.to_string();
        Ok(DoomedContainer {
            _note: self.in_flight.note(Flight::Deletion { id: id.clone() }),
            id,
            companion,
            layers,
        })
    }

    /// Deletes an image and the layers that go with it, and returns these. From the moment at which its record is gone a failure
    /// does not undo anything: the next user of the store goes on.
    pub(crate) fn delete_image(&mut self, dirs: &Dirs, id: &str) -> Result<Vec<String>> {
        let layers = self.layers_to_delete(id, &Without::default());
        let companion = Companion::Image(id.to_owned());
        self.doom(&layers, &companion)
            .and_then(|()| self.layers.save())
            .and_then(|()| self.remove_image_records(id))
            .and_then(|()| {
                let deleted = self.layers.delete_all(&layers);
                deleted.and(self.remove_data_of(dirs, &companion))
            })
            .context(|| format!("deleting image {id:?}"))?;
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

    /// Those with exactly this ID.
    fn images_with_id(&self, id: &str) -> impl Iterator<Item = &Arc<ImageRow>> {
        self.images
            .iter()
            .flat_map(move |store| store.records.all_with_id(id))
    }

    /// Those whose top layer, or a copy of it with other owners, is this one.
    pub(crate) fn images_on(&self, layer: &str) -> impl Iterator<Item = &Arc<ImageRow>> {
        self.images
            .iter()
            .flat_map(move |store| store.records.users_of(layer))
    }

    /// Deletes an image's records, then its data. Its layers stay.
    pub(crate) fn delete_image_record(&mut self, dirs: &Dirs, id: &str) -> Result<()> {
        self.remove_image_records(id)
            .and_then(|()| self.remove_data_of(dirs, &Companion::Image(id.to_owned())))
            .context(|| format!("deleting image {id:?}"))
    }

    /// The last record to go is that of the first store: as long as anything is left, the image can be found and deleted
    /// again.
    fn remove_image_records(&mut self, id: &str) -> Result<()> {
        for store in self.images.iter_mut().rev() {
            if store.records.table_mut().remove(id).is_some() {
                store.records.save()?;
            }
        }
        Ok(())
    }

    /// The layers that go with an image: from the top layer (and its copies with other owners) downwards, as long as
    /// nothing else needs them, of what there is `without` the rest.
    pub(crate) fn layers_to_delete(&self, image: &str, without: &Without) -> Vec<String> {
        let table = self.layers.table();
        let mut doomed: Vec<String> = Vec::new();
        // The record of one image may stand in two stores, on different layers.
        for row in self.images_with_id(image) {
            // A layer that this store does not have (it lies in an additional store) is not deleted.
            let copies = row.mapped_layers.iter().filter(|id| table.get(id).is_some());
            let new: Vec<String> = copies.filter(|id| !doomed.contains(id)).cloned().collect();
            doomed.extend(new);
            let mut next = row.layer.as_str();
            while let Some(layer) = table.get(next) {
                let is_of_image =
                    |other: &Arc<ImageRow>| other.id != image && !without.images.contains(&*other.id);
                let stays = |child: &str| {
                    !without.layers.contains(child) && !doomed.iter().any(|gone| child == *gone)
                };
                let needed_elsewhere = self.images_on(next).any(is_of_image)
                    || self.containers.by_layer(next).is_some()
                    || table.users_of(next).any(|child| stays(&child.id));
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
