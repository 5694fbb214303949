//! Mounting and unmounting, and who counts.
//!
//! The count of each layer is in `mountpoints.json`, shared by all processes. Mounting takes the graph lock (another
//! process's shutdown would pull the driver's home away), then the layer lock, then the lock of the counts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge;
use crate::driver::MountOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::IdMappingOptions;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::containers::mapped_top_layer;
use crate::store::layer_store::locked::LayerStore;
use crate::store::views::Container;

/// What a layer is looked for by.
enum LayerKey {
    /// An ID, name or ID prefix.
    Any(String),
    /// The ID that a record says: another layer that has it for a name is not meant.
    Id(String),
}

impl LayerKey {
    fn text(&self) -> &str {
        let (Self::Any(text) | Self::Id(text)) = self;
        text
    }

    fn find<'t>(&self, table: &'t Table<LayerRow>) -> Option<&'t Arc<LayerRow>> {
        match self {
            Self::Any(key) => table.find(key),
            Self::Id(id) => table.get(id),
        }
    }

    fn unknown(&self) -> Error {
        ErrorKind::LayerUnknown.err(format!("locating layer with ID {:?}", self.text()))
    }
}

impl Store {
    /// Mounts a layer, or the layer of a container, (an ID, name or ID prefix) and returns the directory. Mounts are
    /// counted: each needs its [`Store::unmount`]. An empty `mount_label` means the layer's own.
    ///
    /// Takes the graph lock and the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::StoreIsReadOnly`] for a layer of an additional store,
    /// [`ErrorKind::Io`] for what the kernel refuses.
    ///
    /// # Cancellation
    /// Nothing has happened, or the layer gets mounted in the background (and [`Store::mounted`] says so).
    pub async fn mount(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        let container = self
            .read_container_store(|table| Ok(table.find(id).map(Container::new)))
            .await?;
        let (key, mut options) = match &container {
            Some(container) => (
                LayerKey::Id(container.layer_id().to_owned()),
                self.container_mount_options(container),
            ),
            None => (
                LayerKey::Any(id.to_owned()),
                MountOptions {
                    disable_shifting: true,
                    ..MountOptions::default()
                },
            ),
        };
        options.mount_label = mount_label.to_owned();
        let graph = self.lock_graph().await?;
        self.read_or_write_all_layer_stores(move |layers, additional| {
            let _graph = graph;
            match key.find(layers.table()).map(|row| row.id.clone()) {
                Some(id) => layers.mount(&id, options),
                None if additional.iter().any(|table| key.find(table).is_some()) => {
                    let what = format!(
                        "mounting layer {:?} of a read-only store is not allowed",
                        key.text()
                    );
                    Err(ErrorKind::StoreIsReadOnly.err(what))
                }
                None => Err(key.unknown()),
            }
        })
        .await
    }

    fn container_mount_options(&self, container: &Container) -> MountOptions {
        let mappings = IdMappings {
            uids: container.uid_map().to_vec(),
            gids: container.gid_map().to_vec(),
        };
        let shifting = !mappings.is_identity() && self.inner.driver().supports_shifting(&mappings);
        MountOptions {
            mount_label: String::new(),
            mappings,
            options: container.mount_opts(),
            volatile: container.volatile() && !self.inner.options.disable_volatile,
            disable_shifting: !shifting,
        }
    }

    /// Undoes one [`Store::mount`] of a layer or container (an ID, name, ID prefix or mount path); `force` undoes all. Returns
    /// whether it is still mounted. A layer that is not mounted is no error.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount(&self, id: &str, force: bool) -> Result<bool> {
        let key = self.layer_of(id).await?;
        self.write_to_layer_store(move |layers| {
            let found = key.find(layers.table()).map(|row| row.id.clone());
            layers.unmount(&found.ok_or_else(|| key.unknown())?, force, false)
        })
        .await
    }

    /// How often a layer or the layer of a container is mounted, over all processes.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    pub async fn mounted(&self, id: &str) -> Result<i64> {
        let key = self.layer_of(id).await?;
        let found = self
            .read_all_layer_stores(|_, table| Ok(hit(key.find(table).map(|row| row.id.clone()))))
            .await?;
        let id = found.ok_or_else(|| key.unknown())?;
        Ok(self.mounts().await?.get(&id).map_or(0, |mount| mount.count))
    }

    /// The layer of a container, the layer that is mounted on this path, or what the key means.
    async fn layer_of(&self, key: &str) -> Result<LayerKey> {
        let container = self
            .read_container_store(|table| Ok(table.find(key).map(|row| row.layer.to_string())))
            .await?;
        if let Some(layer) = container {
            return Ok(LayerKey::Id(layer));
        }
        let mounts = self.mounts().await?;
        Ok(match mounts.by_path(key) {
            Some(mount) => LayerKey::Id(mount.id.clone()),
            None => LayerKey::Any(key.to_owned()),
        })
    }

    /// Mounts the top layer of an image (an ID, name or ID prefix) read-only and returns the directory.
    /// `mount_options` are as in `mount -o`, one each; `rw` is refused.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::NotSupported`] for the option `rw`, [`ErrorKind::LayerUnknown`] for
    /// an image without a layer here, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::mount`].
    pub async fn mount_image(&self, id: &str, mount_options: &[&str], mount_label: &str) -> Result<PathBuf> {
        if mount_options.contains(&"rw") {
            return Err(ErrorKind::NotSupported.err("mount option \"rw\" for an image"));
        }
        let mut options: Vec<String> = mount_options.iter().map(|option| (*option).to_owned()).collect();
        if !mount_options.contains(&"ro") {
            options.push("ro".into());
        }
        let key = id.to_owned();
        let label = mount_label.to_owned();
        let graph = self.lock_graph().await?;
        self.write_to_layers_and_images(move |held| {
            let _graph = graph;
            let host = IdMappingOptions {
                host_uid_mapping: true,
                host_gid_mapping: true,
                ..IdMappingOptions::default()
            };
            let (image, primary) = held.find_image(&key)?;
            let top = mapped_top_layer(held, &image, primary, &host)?;
            let top = match top {
                Some(top) if top.uid_map.is_empty() && top.gid_map.is_empty() => top,
                Some(_) => {
                    let what = format!("image {key:?} with mapped owners lies in a read-only store");
                    return Err(ErrorKind::NotSupported.err(what));
                }
                None => return Err(ErrorKind::LayerUnknown.err(format!("image {key:?} has no layer"))),
            };
            let options = MountOptions {
                mount_label: label,
                options,
                disable_shifting: true,
                ..MountOptions::default()
            };
            held.layers.mount(&top.id, options)
        })
        .await
    }

    /// Undoes one [`Store::mount_image`]; `force` undoes all. Returns whether it is still mounted.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount_image(&self, id: &str, force: bool) -> Result<bool> {
        let image = self.image(id).await?;
        let mut candidates: Vec<String> = image.mapped_top_layers().to_vec();
        candidates.extend(image.top_layer().map(str::to_owned));
        let unmapped = self
            .read_all_layer_stores(|_, table| {
                let mut rows = candidates.iter().filter_map(|id| table.get(id));
                let found = rows.find(|row| row.uid_map.is_empty() && row.gid_map.is_empty());
                Ok(hit(found.map(|row| row.id.to_string())))
            })
            .await?;
        let layer = unmapped.or_else(|| image.top_layer().map(str::to_owned));
        let Some(layer) = layer else {
            return Err(ErrorKind::LayerUnknown.err(format!("image {id:?} has no layer")));
        };
        self.write_to_layer_store(move |layers| layers.unmount(&layer, force, false))
            .await
    }

    /// Stops the driver so that the directories can be removed or unmounted. With `force` mounted layers are
    /// unmounted first. Returns the IDs of layers that were mounted.
    ///
    /// Every process that uses the store, this one included, starts the driver again when it needs it.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUsedByContainer`] if layers are mounted and `force` is false, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn shutdown(&self, force: bool) -> Result<Vec<String>> {
        let graph = self.lock_graph().await?;
        let guard = self.inner.layers.write().await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            LayerStore::enter(inner, guard)?.leave(move |layers| {
                let mounts = layers.inner.mounts.read_blocking()?;
                let mounted: Vec<String> = layers
                    .table()
                    .rows()
                    .filter(|row| mounts.get(&row.id).is_some())
                    .map(|row| row.id.to_string())
                    .collect();
                if !mounted.is_empty() && !force {
                    let what = format!("a layer is mounted: {}", mounted.join(", "));
                    return Err(ErrorKind::LayerUsedByContainer.err(what));
                }
                for id in &mounted {
                    layers.unmount_all(id)?;
                }
                Self::mark_shut_down(&graph)?;
                layers.driver.cleanup()?;
                Ok(mounted)
            })
        })
        .await
    }
}
