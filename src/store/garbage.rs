//! Garbage collection: removes files and layers without a record, which killed processes leave behind, and which a
//! reboot leaves behind in transient mode.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::lock::temp_dir::TempDir;
use crate::record::big_data::{self, Items as _};
use crate::record::{TAR_SPLIT, lost};
use crate::store::Store;
use crate::store::all_stores::AllStores;
use crate::store::check::strays::ids_in;
use crate::store::dirs::{Dirs, container_location, item_dir, layer_location};
use crate::store::evidence::{containers_of_other_mode, layers_of_other_mode, was_lost};
use crate::store::layer_store::locked::LayerStore;
use crate::sys::presence::is_there;

/// Has the directories of items `ids` in `dir` be removed, when the locks are released. One that cannot be moved away does not
/// keep the others; the first failure is returned.
fn sweep(layers: &mut LayerStore, dir: &Path, ids: &[String]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    // Without room for a directory there is nowhere to move them.
    let mut temp = match TempDir::create(&layers.inner.dirs.layers_tmp()) {
        Ok(temp) => Some(temp),
        Err(error) if error.is_full() => None,
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    for id in ids {
        let path = dir.join(id);
        tracing::info!(path = %path.display(), "removing a directory without a record");
        let moved = match &mut temp {
            Some(temp) => temp.stage_deletion(&path).map(drop),
            None => remove(&path),
        };
        let moved = match moved {
            // Another file system, as where images lie apart.
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::CrossesDevices) || error.is_full() => {
                remove(&path)
            }
            moved => moved,
        };
        match moved {
            Ok(()) => {}
            Err(error) if result.is_ok() => result = Err(error),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "cannot remove a directory without a record");
            }
        }
    }
    layers.throw_away(temp);
    result
}

fn remove(path: &Path) -> Result<()> {
    crate::sys::tree::remove_tree(path).map_err(|error| Error::io_at("removing", path, error))
}

/// The error for a record that is missing although something refers to its item, which is there.
fn missing_record(kind: &str, id: &str, by: &str) -> Error {
    ErrorKind::CorruptMetadata.err(format!(
        "{kind} {id:?} has no record, but {by} refers to it: the records are not complete. Collecting nothing of that kind"
    ))
}

impl AllStores<'_> {
    /// Removes directories of containers that have no record, unless records are missing.
    fn collect_containers(&mut self, dirs: &Dirs, transient: bool) -> Result<()> {
        let containers = &mut self.containers;
        containers.remove_stale()?;
        for row in containers.rows() {
            row.remove_stale_items(&item_dir(dirs.containers(), &row.id)?)?;
        }
        let mut unknown = ids_in(&dirs.containers(), "")?;
        let elsewhere = containers_of_other_mode(dirs, transient)?;
        unknown.retain(|id| containers.get(id).is_none() && !elsewhere.contains(id));
        let Some(example) = unknown.first() else {
            return Ok(());
        };
        let evidence = format!("a directory of container {example:?}");
        // In transient mode a reboot takes the records and leaves the directories.
        if let Some(file) = containers
            .unwritten(container_location::STABLE)
            .filter(|_| !transient)
        {
            let images = self.images.iter().flat_map(|store| store.records.rows());
            if let Some(layer) = self.layers.layer_without_container(images, containers)? {
                return Err(lost(file, &format!("{evidence} and layer {layer:?}")));
            }
        }
        let orphaned = || {
            let mut volatile = self.layers.table().rows_in(layer_location::VOLATILE);
            volatile.any(|layer| layer.may_be_of_container() && containers.by_layer(&layer.id).is_none())
        };
        if let Some(file) = containers.unwritten(container_location::VOLATILE)
            && (was_lost(file)? || !is_there(file)? && orphaned())
        {
            return Err(lost(file, &evidence));
        }
        sweep(self.layers, &dirs.containers(), &unknown)
    }

    /// Removes directories of images that have no record and that no container refers to.
    fn collect_images(&mut self, dirs: &Dirs) -> Result<()> {
        for store in self.images.iter() {
            store.records.remove_stale()?;
            for row in store.records.rows() {
                row.remove_stale_items(&item_dir(store.dir.clone(), &row.id)?)?;
            }
        }
        let mut unknown = ids_in(&dirs.images(), "")?;
        unknown.retain(|id| self.images().all(|row| row.id != *id));
        for id in &unknown {
            if let Some(user) = self.containers.rows().find(|row| row.image == *id) {
                return Err(missing_record("image", id, &format!("container {:?}", user.id)));
            }
        }
        sweep(self.layers, &dirs.images(), &unknown)
    }

    /// Removes what is left of layers that have no record, unless something refers to one of them.
    fn collect_layers(&mut self, dirs: &Dirs, transient: bool) -> Result<()> {
        let layers = &mut self.layers;
        layers.remove_stale()?;
        layers.remove_stale_counts()?;
        // What stays is no reason to leave the rest.
        let recovered = layers.inner.recover();
        layers.driver.remove_strays()?;
        layers.remove_all_old_trees()?;
        for row in layers.table().rows() {
            big_data::remove_stale(&dirs.layer_data(&row.id)?, std::iter::empty())?;
        }
        let mut result = Ok(());
        for id in self.layers_without_record(dirs, transient)? {
            tracing::info!(layer = id, "removing a layer without a record");
            match self.layers.move_away(&id) {
                Ok(()) => {}
                Err(error) if result.is_ok() => result = Err(error),
                Err(error) => {
                    tracing::warn!(layer = id, error = %error.chain(), "cannot remove a layer without a record");
                }
            }
        }
        recovered.and(result)
    }

    /// Removes what is left of a layer, if it has no record and nothing refers to it; whether there was something.
    pub(crate) fn remove_without_record(&mut self, dirs: &Dirs, transient: bool, id: &str) -> Result<bool> {
        let is_unknown = self.layers_without_record(dirs, transient)?.contains(id);
        match is_unknown {
            true => self.layers.move_away(id).map(|()| true),
            false => Ok(false),
        }
    }

    /// The layers that are there without a record.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`] if the records are not complete.
    fn layers_without_record(&self, dirs: &Dirs, transient: bool) -> Result<BTreeSet<String>> {
        let layers = &self.layers;
        let mut unknown: BTreeSet<String> = layers.driver.list_layers()?.into_iter().collect();
        unknown.extend(ids_in(&dirs.layers(), "")?);
        unknown.extend(ids_in(&dirs.layers(), TAR_SPLIT)?);
        let elsewhere = layers_of_other_mode(dirs, transient)?;
        unknown.retain(|id| layers.table().get(id).is_none() && !elsewhere.contains(id));
        let Some(example) = unknown.first() else {
            return Ok(unknown);
        };
        // Without the stable records the lock is not given.
        let volatile = layers.unwritten(layer_location::VOLATILE);
        if let Some(file) = volatile
            && was_lost(file)?
        {
            return Err(lost(file, &format!("layer {example:?}")));
        }
        let cut_off = volatile.map(is_there).transpose()? == Some(true);
        // Whatever shows that one record is missing: the layers below that one cannot be told from stale ones.
        for row in self.layers.table().rows() {
            if unknown.contains(row.parent.as_str()) {
                let by = format!("layer {:?}", row.id);
                return Err(missing_record("layer", &row.parent, &by));
            }
        }
        for row in self.images() {
            if let Some(layer) = row.top_layers().find(|layer| unknown.contains(*layer)) {
                return Err(missing_record("layer", layer, &format!("image {:?}", row.id)));
            }
        }
        // With the records of volatile layers those of their containers are of no use.
        let volatile = self.containers.rows_in(container_location::VOLATILE);
        let useless: HashSet<&str> = volatile.filter(|_| cut_off).map(|row| row.id.as_str()).collect();
        for row in self.containers.rows() {
            if unknown.contains(row.layer.as_str()) && !useless.contains(row.id.as_str()) {
                let by = format!("container {:?}", row.id);
                return Err(missing_record("layer", &row.layer, &by));
            }
        }
        Ok(unknown)
    }
}

/// # Garbage
impl Store {
    /// Removes directories and layers of the driver that have no record, and stale temporary files of killed
    /// processes.
    ///
    /// Nothing is removed because records are missing: an item that an image, container or layer refers to is kept with
    /// everything of its kind, and so is everything of a kind whose file of records has been lost. The files of volatile items
    /// are not synced, and what a power cut has destroyed of them does not count. Volatile containers
    /// of the other mode ([`StoreOptions::transient`](crate::StoreOptions::transient), or not), whose records lie elsewhere,
    /// are kept too.
    ///
    /// Takes the layer, image and container locks exclusively, once for each of the three kinds. Directories are moved away
    /// under them, and removed when they are released.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`] if records are missing; [`ErrorKind::Io`], [`ErrorKind::LockTimeout`] and others. A
    /// failure with one item does not keep others from being collected; the first error is returned. Nothing is collected if
    /// the records of one kind cannot be read.
    ///
    /// # Cancellation
    /// Kinds of items that were not reached are not collected. A running step completes in the background.
    pub async fn garbage_collect(&self) -> Result<()> {
        let transient = self.inner.options.transient;
        let dirs = self.inner.dirs.clone();
        let containers = self
            .write_to_all_stores_alone(move |all| all.collect_containers(&dirs, transient))
            .await;
        let dirs = self.inner.dirs.clone();
        let images = self
            .write_to_all_stores_alone(move |all| all.collect_images(&dirs))
            .await;
        let dirs = self.inner.dirs.clone();
        let layers = self
            .write_to_all_stores_alone(move |all| all.collect_layers(&dirs, transient))
            .await;
        containers.and(images).and(layers)
    }
}
