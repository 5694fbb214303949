//! Garbage collection: removes files and layers without a record, which killed processes leave behind, and which a
//! reboot leaves behind in transient mode.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::record::big_data::{self, Items as _};
use crate::record::container::ContainerRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::{TAR_SPLIT, lost, rows_in_file};
use crate::store::Store;
use crate::store::all_stores::AllStores;
use crate::store::dirs::{
    Dirs, VOLATILE_CONTAINERS, VOLATILE_LAYERS, container_location, item_dir, layer_location,
};
use crate::store::ids::is_usual_id;

/// The usual IDs among the names in `dir` that end in `suffix`; none if `dir` is missing.
fn ids_in(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("listing", dir)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.at("listing", dir)?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(suffix)) else {
            continue;
        };
        if is_usual_id(id) {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// The IDs of the rows of volatile items that are read in the other mode only: transient, or not. In use at the same time,
/// perhaps.
fn ids_of_other_mode<R: Record>(file: &Path) -> Result<HashSet<String>> {
    let rows = rows_in_file::<R>(file)?;
    Ok(rows.iter().map(|row| row.id().to_owned()).collect())
}

/// Removes the directories of items `ids` in `dir`. One that cannot be removed does not keep the others; the first failure
/// is returned.
fn sweep(dir: &Path, ids: &[String]) -> Result<()> {
    let remove = |id: &String| {
        let path = dir.join(id);
        tracing::info!(path = %path.display(), "removing a directory without a record");
        crate::sys::tree::remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))
    };
    let results: Vec<Result<()>> = ids.iter().map(remove).collect();
    results.into_iter().collect()
}

/// Refuses to go on if a file of records, which is missing or says nothing, has been lost: `evidence` belongs to one of its
/// rows then.
fn check_not_lost(
    unwritten: Option<&Path>,
    is_lost: impl FnOnce(&Path) -> bool,
    evidence: &str,
) -> Result<()> {
    match unwritten {
        Some(file) if is_lost(file) => Err(lost(file, evidence)),
        _ => Ok(()),
    }
}

/// The error for a record that is missing although something refers to its item, which is there.
fn missing_record(kind: &str, id: &str, by: &str) -> Error {
    ErrorKind::CorruptMetadata.err(format!(
        "{kind} {id:?} has no record, but {by} refers to it: the records are not complete. Collecting nothing of that kind"
    ))
}

impl AllStores {
    /// Removes directories of containers that have no record, unless records are missing.
    fn collect_containers(&mut self, dirs: &Dirs, transient: bool) -> Result<()> {
        let containers = &mut self.containers;
        containers.remove_stale()?;
        for row in containers.rows() {
            row.remove_stale_items(&item_dir(dirs.containers(), &row.id)?)?;
        }
        let mut unknown = ids_in(&dirs.containers(), "")?;
        let elsewhere = if transient {
            dirs.containers()
        } else {
            dirs.run_containers()
        };
        let elsewhere = ids_of_other_mode::<ContainerRow>(&elsewhere.join(VOLATILE_CONTAINERS))?;
        unknown.retain(|id| containers.get(id).is_none() && !elsewhere.contains(id));
        let Some(example) = unknown.first() else {
            return Ok(());
        };
        let evidence = format!("a directory of container {example:?}");
        // In transient mode a reboot takes the records and leaves the directories.
        check_not_lost(
            containers.unwritten(container_location::STABLE),
            |_| !transient,
            &evidence,
        )?;
        let orphaned = || {
            let mut volatile = self.layers.table().rows_in(layer_location::VOLATILE);
            volatile.any(|layer| layer.may_be_of_container() && containers.by_layer(&layer.id).is_none())
        };
        check_not_lost(
            containers.unwritten(container_location::VOLATILE),
            |file| file.exists() || orphaned(),
            &evidence,
        )?;
        sweep(&dirs.containers(), &unknown)
    }

    /// Removes directories of images that have no record and that no container refers to.
    fn collect_images(&mut self, dirs: &Dirs) -> Result<()> {
        for store in &self.images {
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
        sweep(&dirs.images(), &unknown)
    }

    /// Removes what is left of layers that have no record, unless something refers to one of them.
    fn collect_layers(&mut self, dirs: &Dirs, transient: bool) -> Result<()> {
        let layers = &mut self.layers;
        layers.remove_stale()?;
        layers.inner.mounts.lock_blocking()?.remove_stale()?;
        // What stays is no reason to leave the rest.
        let recovered = layers.inner.recover();
        layers.driver.remove_strays()?;
        for row in layers.table().rows() {
            big_data::remove_stale(&dirs.layer_data(&row.id)?, std::iter::empty())?;
        }
        let mut unknown: BTreeSet<String> = layers.driver.list_layers()?.into_iter().collect();
        unknown.extend(ids_in(&dirs.layers(), "")?);
        unknown.extend(ids_in(&dirs.layers(), TAR_SPLIT)?);
        let elsewhere = if transient {
            dirs.layers()
        } else {
            dirs.run_layers()
        };
        let elsewhere = ids_of_other_mode::<LayerRow>(&elsewhere.join(VOLATILE_LAYERS))?;
        unknown.retain(|id| layers.table().get(id).is_none() && !elsewhere.contains(id));
        let Some(example) = unknown.first() else {
            return recovered;
        };
        let evidence = format!("layer {example:?}");
        // Without the stable records the lock is not given.
        check_not_lost(
            layers.unwritten(layer_location::VOLATILE),
            Path::exists,
            &evidence,
        )?;
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
        for row in self.containers.rows() {
            if unknown.contains(row.layer.as_str()) {
                let by = format!("container {:?}", row.id);
                return Err(missing_record("layer", &row.layer, &by));
            }
        }
        let mut result = Ok(());
        for id in unknown {
            tracing::info!(layer = id, "removing a layer without a record");
            match self.layers.move_away(&id) {
                Ok(()) => {}
                Err(error) if result.is_ok() && self.layers.driver.exists(&id) => result = Err(error),
                // Compat: files beside the layers do not make it fail, as in the Go library.
                Err(error) => {
                    tracing::warn!(layer = id, error = %error.chain(), "cannot remove a layer without a record");
                }
            }
        }
        recovered.and(result)
    }
}

/// # Garbage
impl Store {
    /// Removes directories and layers of the driver that have no record, and stale temporary files of killed
    /// processes.
    ///
    /// Nothing is removed because records are missing: an item that an image, container or layer refers to is kept with
    /// everything of its kind, and so is everything of a kind whose file of records is missing or empty. Volatile containers
    /// of the other mode ([`StoreOptions::transient`](crate::StoreOptions::transient), or not), whose records lie elsewhere,
    /// are kept too.
    ///
    /// Takes the layer, image and container locks exclusively, once for each of the three kinds.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`] if records are missing; [`ErrorKind::Io`], [`ErrorKind::LockTimeout`] and others. A
    /// failure with one item does not keep others from being collected; the first error is returned, but for temporary files
    /// and for files beside the layers, which are only logged. Nothing is collected if the records of one kind cannot be read.
    ///
    /// # Cancellation
    /// Kinds of items that were not reached are not collected. A running step completes in the background.
    pub async fn garbage_collect(&self) -> Result<()> {
        let transient = self.inner.options.transient;
        let dirs = self.inner.dirs.clone();
        let containers = self
            .write_to_all_stores(move |all| all.collect_containers(&dirs, transient))
            .await;
        let dirs = self.inner.dirs.clone();
        let images = self
            .write_to_all_stores(move |all| all.collect_images(&dirs))
            .await;
        let dirs = self.inner.dirs.clone();
        let layers = self
            .write_to_all_stores(move |all| all.collect_layers(&dirs, transient))
            .await;
        containers.and(images).and(layers)
    }
}
