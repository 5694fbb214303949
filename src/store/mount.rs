//! Mounting and unmounting, and the counts of mounts.
//!
//! The count of each layer is in `mountpoints.json`, shared by all processes. Mounting takes the graph lock (another
//! process's shutdown unmounts the driver's home), then the layer lock, then the lock of the counts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge;
use crate::driver;
use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::{IdMappingOptions, MountOptions};
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
    /// The ID that a record says: a layer that has it as a name does not match.
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
    /// counted over all processes: each needs its [`Store::unmount`]. [`Store::mount_guard`] does that by itself.
    /// A layer that is mounted already stays mounted as it is, whatever `options` say.
    ///
    /// Takes the graph lock and the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::StoreIsReadOnly`] for a layer of an additional store,
    /// [`ErrorKind::Io`] for what the kernel refuses.
    ///
    /// # Cancellation
    /// Nothing has happened, or the layer gets mounted in the background (and [`Store::mounted`] says so).
    pub async fn mount(&self, id: &str, options: MountOptions) -> Result<PathBuf> {
        self.mount_with(id, options, |_layer, path| path).await
    }

    /// As [`Store::mount`]; returns what `make` makes of the layer's ID and the directory, in the step that mounts.
    pub(crate) async fn mount_with<T: Send + 'static>(
        &self,
        id: &str,
        wanted: MountOptions,
        make: impl FnOnce(String, PathBuf) -> T + Send + 'static,
    ) -> Result<T> {
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
                driver::MountOptions {
                    disable_shifting: true,
                    ..driver::MountOptions::default()
                },
            ),
        };
        options.mount_label = wanted.label.unwrap_or_default();
        options.options.extend(wanted.options);
        let graph = self.lock_graph().await?;
        self.read_or_write_all_layer_stores(move |layers, additional| {
            let _graph = graph;
            match key.find(layers.table()).map(|row| row.id.clone()) {
                Some(id) => layers.mount(&id, options).map(|path| make(id.to_string(), path)),
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

    fn container_mount_options(&self, container: &Container) -> driver::MountOptions {
        let mappings = IdMappings {
            uids: container.uid_map().to_vec(),
            gids: container.gid_map().to_vec(),
        };
        let shifting = !mappings.is_identity() && self.inner.driver().supports_shifting(&mappings);
        driver::MountOptions {
            mount_label: String::new(),
            mappings,
            options: container.mount_opts(),
            volatile: container.volatile() && !self.inner.options.disable_volatile,
            disable_shifting: !shifting,
        }
    }

    /// Undoes one [`Store::mount`] of a layer or container (an ID, name, ID prefix or mount path). Returns how often it
    /// is still mounted, over all processes. A layer that is not mounted is no error.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount(&self, id: &str) -> Result<u64> {
        self.unmount_with(id, LayerStore::unmount).await
    }

    /// Undoes every mount of a layer or container (an ID, name, ID prefix or mount path), also those of other
    /// processes, which go on as if it were mounted. A layer that is not mounted is no error.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount_all(&self, id: &str) -> Result<()> {
        self.unmount_with(id, LayerStore::unmount_all).await
    }

    async fn unmount_with<T: Send + 'static>(
        &self,
        id: &str,
        unmount: fn(&mut LayerStore, &str) -> Result<T>,
    ) -> Result<T> {
        let key = self.layer_of(id).await?;
        self.write_to_layer_store(move |layers| {
            let found = key.find(layers.table()).map(|row| row.id.clone());
            unmount(layers, &found.ok_or_else(|| key.unknown())?)
        })
        .await
    }

    /// How often a layer or the layer of a container is mounted, over all processes.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    pub async fn mounted(&self, id: &str) -> Result<u64> {
        let key = self.layer_of(id).await?;
        let found = self
            .read_all_layer_stores(|_, table| Ok(hit(key.find(table).map(|row| row.id.clone()))))
            .await?;
        let id = found.ok_or_else(|| key.unknown())?;
        Ok(self
            .mounts()
            .await?
            .get(&id)
            .map_or(0, |mount| mount.count.unsigned_abs()))
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

    /// Mounts the top layer of an image (an ID, name or ID prefix) read-only and returns the directory. Mounts are
    /// counted, as those of [`Store::mount`]; each needs its [`Store::unmount_image`]. The option `rw` is refused.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::NotSupported`] for the option `rw`, [`ErrorKind::LayerUnknown`] for
    /// an image without a layer here, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::mount`].
    pub async fn mount_image(&self, id: &str, options: MountOptions) -> Result<PathBuf> {
        self.mount_image_with(id, options, |_layer, path| path).await
    }

    /// As [`Store::mount_image`]; returns what `make` makes of the layer's ID and the directory, in the step that
    /// mounts.
    pub(crate) async fn mount_image_with<T: Send + 'static>(
        &self,
        id: &str,
        wanted: MountOptions,
        make: impl FnOnce(String, PathBuf) -> T + Send + 'static,
    ) -> Result<T> {
        let MountOptions { label, mut options } = wanted;
        if options.iter().any(|option| option == "rw") {
            return Err(ErrorKind::NotSupported.err("mount option \"rw\" for an image"));
        }
        if options.iter().all(|option| option != "ro") {
            options.push("ro".into());
        }
        let key = id.to_owned();
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
            let options = driver::MountOptions {
                mount_label: label.unwrap_or_default(),
                options,
                disable_shifting: true,
                ..driver::MountOptions::default()
            };
            let path = held.layers.mount(&top.id, options)?;
            Ok(make(top.id.to_string(), path))
        })
        .await
    }

    /// Undoes one [`Store::mount_image`] (an ID, name or ID prefix). Returns how often the image is still mounted, over
    /// all processes.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount_image(&self, id: &str) -> Result<u64> {
        let layer = self.unmapped_top_layer(id).await?;
        self.write_to_layer_store(move |layers| layers.unmount(&layer))
            .await
    }

    /// Undoes every mount of an image (an ID, name or ID prefix), also those of other processes, which go on as if it
    /// were mounted.
    ///
    /// # Errors
    /// As [`Store::unmount_image`].
    ///
    /// # Cancellation
    /// As [`Store::unmount_image`].
    pub async fn unmount_image_all(&self, id: &str) -> Result<()> {
        let layer = self.unmapped_top_layer(id).await?;
        self.write_to_layer_store(move |layers| layers.unmount_all(&layer))
            .await
    }

    /// The layer that [`Store::mount_image`] mounts: the image's top layer or the copy of it that has no mapping.
    async fn unmapped_top_layer(&self, id: &str) -> Result<String> {
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
        unmapped
            .or_else(|| image.top_layer().map(str::to_owned))
            .ok_or_else(|| ErrorKind::LayerUnknown.err(format!("image {id:?} has no layer")))
    }

    /// Stops the driver so that the directories can be removed or unmounted. Nothing of the store is deleted.
    ///
    /// Every process that uses the store, this one included, starts the driver again when it needs it.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUsedByContainer`] if a layer is mounted, by whichever process; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn shutdown(&self) -> Result<()> {
        self.stop_driver(|_layers, mounted| {
            if mounted.is_empty() {
                return Ok(());
            }
            let what = format!("a layer is mounted: {}", mounted.join(", "));
            Err(ErrorKind::LayerUsedByContainer.err(what))
        })
        .await
        .map(drop)
    }

    /// As [`Store::shutdown`], after unmounting every mounted layer of the store, whoever mounted it: also the root
    /// file systems of containers that other processes, such as Podman, run at this moment. Returns the IDs of the
    /// layers that were mounted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::shutdown`].
    pub async fn shutdown_force(&self) -> Result<Vec<String>> {
        self.stop_driver(|layers, mounted| mounted.iter().try_for_each(|id| layers.unmount_all(id)))
            .await
    }

    /// Stops the driver after `prepare`, which gets the IDs of mounted layers; returns these.
    async fn stop_driver(
        &self,
        prepare: fn(&mut LayerStore, &[String]) -> Result<()>,
    ) -> Result<Vec<String>> {
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
                prepare(layers, &mounted)?;
                Self::mark_shut_down(&graph)?;
                layers.driver.cleanup()?;
                Ok(mounted)
            })
        })
        .await
    }
}
