//! Creating and finding containers.

use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::options::{ContainerOptions, Flag, IdMappingOptions};
use crate::record::big_data::{self, Items as _};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::inline_id::InlineId;
use crate::record::intent::Companion;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::record::{WriteGuard, lost, unknown_item};
use crate::store::access::LayersAndImages;
use crate::store::all_stores::remove_dirs;
use crate::store::dirs::{container_location, item_dir, layer_location};
use crate::store::evidence::containers_of_other_mode;
use crate::store::ids::random_id;
use crate::store::layer_store::new_layer::{NewLayer, Start, flags_json};
use crate::store::views::Container;
use crate::store::{Store, images};
use crate::time::Time;

/// # Containers
impl Store {
    /// Creates a container from an image (an ID, name or ID prefix), or from nothing, with a layer of its own.
    ///
    /// Takes the layer, image and container locks exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::DuplicateId`], [`ErrorKind::DuplicateName`],
    /// [`ErrorKind::InvalidMappings`], [`ErrorKind::InvalidInput`] if only one of the two labels is given.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn create_container(
        &self,
        image: Option<&str>,
        options: ContainerOptions,
    ) -> Result<Container> {
        if options.process_label.as_deref().unwrap_or("").is_empty()
            != options.mount_label.as_deref().unwrap_or("").is_empty()
        {
            return Err(
                ErrorKind::InvalidInput.err("process label and mount label must both be given or neither")
            );
        }
        for id in [&options.id, &options.layer_id].into_iter().flatten() {
            crate::driver::check_id(id)?;
        }
        let asked = IdMappings {
            uids: options.id_mappings.uid_map.clone(),
            gids: options.id_mappings.gid_map.clone(),
        };
        asked.validate()?;
        let _userns = match asked.is_identity() {
            true => None,
            false => Some(
                self.inner
                    .userns_lock
                    .exclusive(self.inner.options.lock_timeout)
                    .await?,
            ),
        };
        let image = image.map(str::to_owned);
        let store = self.clone();
        // The container store comes last in the lock order and is taken by the same step that made the layer.
        let row = self
            .write_to_layers_and_images(move |held| {
                store.create_container_step(held, image.as_deref(), options)
            })
            .await?;
        Ok(Container::new(&row))
    }

    fn create_container_step(
        &self,
        held: &mut LayersAndImages,
        image: Option<&str>,
        options: ContainerOptions,
    ) -> Result<Arc<ContainerRow>> {
        let found = image.map(|key| held.find_image(key)).transpose()?;
        let top = match &found {
            Some((image, primary)) => mapped_top_layer(held, image, *primary, &options.id_mappings)?,
            None => None,
        };
        let mappings = self.wanted_mappings(&options.id_mappings, top.as_deref())?;
        let mapped_by_mount =
            options.id_mappings.host_uid_mapping || held.layers.driver.supports_shifting(&mappings);
        let mut containers = self.inner.containers.write_blocking()?;
        if let Some(id) = options.id.as_ref().filter(|id| containers.get(id).is_some()) {
            return Err(ErrorKind::DuplicateId.err(format!("creating container with ID {id:?}")));
        }
        for name in &options.names {
            if let Some(owner) = containers.by_name(name) {
                let what = format!(
                    "the container name {name:?} is already in use by {}. You have to remove that container to be able to reuse that name",
                    owner.id
                );
                return Err(ErrorKind::DuplicateName.err(what));
            }
        }
        let id = match &options.id {
            None => random_id(|id| containers.get(id).is_some())?,
            Some(id) => id.clone(),
        };
        for item in &options.big_data {
            drop(big_data::file_name(&item.key)?);
        }
        let dirs = [
            item_dir(self.inner.dirs.containers(), &id)?,
            item_dir(self.inner.dirs.run_containers(), &id)?,
        ];
        let volatile = options.volatile || self.inner.options.transient;
        let location = if volatile {
            container_location::VOLATILE
        } else {
            container_location::STABLE
        };
        self.check_containers_not_lost(held, &containers, &id)?;
        containers.ensure_written(location)?;
        if self.inner.options.transient {
            // Who opens the store in the other mode looks for these files beside the layer and directory made here. Writers
            // of containers have another lock there.
            held.layers.ensure_written(layer_location::STABLE)?;
            containers.ensure_there(container_location::STABLE)?;
        }
        // What a killed process has left under this ID does not belong to the new container.
        remove_dirs(&dirs)?;
        let new = NewLayer {
            id: options.layer_id.clone().unwrap_or_default(),
            names: Vec::new(),
            parent: top,
            start: Start::Empty,
            mount_label: options.mount_label.clone().unwrap_or_default(),
            writeable: true,
            mappings,
            mapped_by_mount,
            metadata: String::new(),
            flags: std::collections::BTreeMap::new(),
            big_data: Vec::new(),
            storage_opt: options.storage_opt.clone(),
            volatile,
            companion: Some(Companion::Container(id.clone())),
        };
        let image = found.map(|(image, _)| image.id.clone()).unwrap_or_default();
        let layer = held
            .layers
            .create(new)
            .context(|| format!("creating container {id:?}"))?;
        let row = new_row(&options, &id, image, &layer.id, volatile);
        let layer = [layer.id.to_string()];
        let items = options.big_data.iter().map(|item| (&*item.key, &*item.data));
        let recorded = images::write_items(&dirs[0], items)
            .and_then(|()| containers.table_mut().insert(row, location).map(drop))
            .and_then(|()| {
                containers.rely_on(dirs[0].clone());
                containers.rely_on(self.inner.dirs.containers());
                containers.save()
            });
        if recorded.is_err() {
            // A failed save may have come far enough to be seen: the layer goes only when the record has gone.
            drop(containers.table_mut().remove(&id));
            let undone = containers
                .save()
                .and_then(|()| held.layers.delete_all(&layer))
                .and_then(|()| remove_dirs(&dirs));
            if let Err(error) = undone {
                tracing::warn!(container = id, error = %error.chain(), "cannot clean up after a failed creation");
            }
        }
        recorded
            .and_then(|()| containers.settle())
            .context(|| format!("creating container {id:?}"))?;
        if let Err(error) = held.layers.mark(&layer, None) {
            // The container is there; the next user of the store takes the mark off.
            tracing::warn!(container = id, error = %error.chain(), "cannot take the mark off the layer of a container yet");
        }
        containers
            .get(&id)
            .map(Arc::clone)
            .ok_or_else(|| ContainerRow::unknown(&id))
    }

    /// Refuses a new container `id` where the records of others have been lost: with the new record in the file it would look
    /// as if there had been none.
    fn check_containers_not_lost(
        &self,
        held: &LayersAndImages,
        containers: &WriteGuard<ContainerRow>,
        id: &str,
    ) -> Result<()> {
        // In transient mode a reboot takes the records and leaves the directories.
        let Some(file) = containers
            .unwritten(container_location::STABLE)
            .filter(|_| !self.inner.options.transient)
        else {
            return Ok(());
        };
        let dirs = &self.inner.dirs;
        // Killed programs leave directories of volatile containers, whose records are in a file of their own.
        let unknown = match containers.unwritten(container_location::VOLATILE) {
            Some(_none_written) => {
                let elsewhere = containers_of_other_mode(dirs, false)?;
                let known = |id: &str| containers.get(id).is_some() || elsewhere.contains(id);
                unknown_item(&dirs.containers(), known)?
            }
            None => Some(id.to_owned()).filter(|id| dirs.containers().join(id).exists()),
        };
        let Some(name) = unknown else {
            return Ok(());
        };
        match held
            .layers
            .layer_without_container(held.images.rows(), containers)?
        {
            Some(layer) => Err(lost(file, &format!("{name:?} beside it and layer {layer:?}"))),
            None => Ok(()),
        }
    }

    /// The container with this ID, name or ID prefix, or whose layer has this ID.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container(&self, id: &str) -> Result<Container> {
        self.read_container_store(|table| table.require(id).map(Container::new))
            .await
    }

    /// All containers.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        self.read_container_store(|table| Ok(table.rows().map(Container::new).collect()))
            .await
    }

    /// The container whose own layer is this one (an ID, name or ID prefix).
    ///
    /// Takes the layer lock and the container lock shared for a moment each.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_by_layer(&self, id: &str) -> Result<Container> {
        let layer = self.layer(id).await?;
        self.read_container_store(|table| {
            table
                .by_layer(layer.id())
                .map(Container::new)
                .ok_or_else(|| ContainerRow::unknown(id))
        })
        .await
    }
}

/// The record of a new container.
fn new_row(
    options: &ContainerOptions,
    id: &str,
    image: InlineId,
    layer: &str,
    volatile: bool,
) -> ContainerRow {
    let mut row = ContainerRow {
        id: id.into(),
        names: options.names.clone(),
        image,
        layer: layer.into(),
        metadata: options.metadata.clone(),
        created: Time::now(),
        uid_map: options.id_mappings.uid_map.clone(),
        gid_map: options.id_mappings.gid_map.clone(),
        flags: flags_json(container_flags(options, volatile)),
        ..ContainerRow::default()
    };
    for item in &options.big_data {
        row.record(&item.key, item.data.len(), Digest::sha256(&item.data));
    }
    row
}

fn container_flags(options: &ContainerOptions, volatile: bool) -> std::collections::BTreeMap<String, Flag> {
    let mut flags = options.flags.clone();
    let text = |label: &Option<String>| Flag::Text(label.clone().unwrap_or_default());
    flags.insert("ProcessLabel".into(), text(&options.process_label));
    flags.insert("MountLabel".into(), text(&options.mount_label));
    if !options.mount_opts.is_empty() {
        flags.insert("MountOpts".into(), Flag::List(options.mount_opts.clone()));
    }
    if volatile {
        flags.insert("Volatile".into(), Flag::Bool(true));
    }
    flags
}

impl LayersAndImages {
    /// The image with this ID, name or ID prefix, and whether it is in the primary image store.
    pub(crate) fn find_image(&self, key: &str) -> Result<(Arc<ImageRow>, bool)> {
        if let Some(row) = self.images.find(key) {
            return Ok((Arc::clone(row), true));
        }
        let found = self.additional_images.iter().find_map(|table| table.find(key));
        found
            .map(|row| (Arc::clone(row), false))
            .ok_or_else(|| ImageRow::unknown(key))
    }

    /// A layer of any store by its ID, and whether it is in the primary one.
    fn layer(&self, id: &str) -> Option<(Arc<LayerRow>, bool)> {
        if let Some(row) = self.layers.table().get(id) {
            return Some((Arc::clone(row), true));
        }
        self.additional_layers
            .iter()
            .find_map(|table| table.get(id))
            .map(|row| (Arc::clone(row), false))
    }
}

/// The layer to use as the image's top layer with these owners; `None` for an image without a
/// layer. If no candidate has them and the driver cannot map at mount time, a copy of the top layer with the wanted
/// owners is made and recorded in the image.
pub(crate) fn mapped_top_layer(
    held: &mut LayersAndImages,
    image: &ImageRow,
    image_is_primary: bool,
    wanted: &IdMappingOptions,
) -> Result<Option<Arc<LayerRow>>> {
    if image.layer.is_empty() {
        return Ok(None);
    }
    let wanted_maps = IdMappings {
        uids: wanted.uid_map.clone(),
        gids: wanted.gid_map.clone(),
    };
    let shifting = held.layers.driver.supports_shifting(&wanted_maps);
    let fits = |row: &LayerRow| {
        let unmapped = row.uid_map.is_empty() && row.gid_map.is_empty();
        if shifting && unmapped {
            return true;
        }
        if (wanted.host_uid_mapping && !row.uid_map.is_empty())
            || (wanted.host_gid_mapping && !row.gid_map.is_empty())
        {
            return false;
        }
        row.uid_map == wanted.uid_map && row.gid_map == wanted.gid_map
    };
    // A store-independent candidate whose parent is in no store cannot be mounted.
    let candidates: Vec<(Arc<LayerRow>, bool)> = image
        .top_layers()
        .filter_map(|id| held.layer(id))
        .filter(|(row, _)| row.parent.is_empty() || held.layer(&row.parent).is_some())
        .collect();
    if let Some((row, _)) = candidates.iter().find(|(row, _)| fits(row)) {
        return Ok(Some(Arc::clone(row)));
    }
    let Some((base, base_is_primary)) = candidates.into_iter().next() else {
        return Err(ErrorKind::LayerUnknown.err(format!("locating the top layer of image {:?}", image.id)));
    };
    if !image_is_primary || !base_is_primary {
        return Ok(Some(base));
    }
    let parent = held.layer(&base.parent).map(|(row, _)| row);
    let mappings = if shifting {
        IdMappings::default()
    } else {
        wanted_maps
    };
    let copy = held
        .layers
        .create(NewLayer {
            id: String::new(),
            names: Vec::new(),
            parent,
            start: Start::Template(Arc::clone(&base)),
            mount_label: base.mount_label.clone(),
            writeable: false,
            mappings,
            mapped_by_mount: false,
            metadata: String::new(),
            flags: std::collections::BTreeMap::new(),
            big_data: Vec::new(),
            storage_opt: std::collections::BTreeMap::new(),
            volatile: false,
            companion: Some(Companion::Image(image.id.to_string())),
        })
        .context(|| format!("creating an ID-mapped copy of layer {:?}", base.id))?;
    let noted = held
        .images
        .table_mut()
        .update(&image.id, |row| row.mapped_layers.push(copy.id.to_string()))
        .and_then(|_| held.images.save());
    if let Err(error) = noted {
        // The failed save may have come far enough to be seen: the next user of the store decides on the copy.
        return Err(error.context(format!("registering ID-mapped layer with image {:?}", image.id)));
    }
    held.layers.mark(&[copy.id.to_string()], None)?;
    Ok(Some(copy))
}
