//! Mounting and unmounting, and the counts of mounts.
//!
//! The count of each layer is in `mountpoints.json`, shared by all processes. Mounting takes the graph lock (another
//! process's shutdown unmounts the driver's home), then the layer lock, then the lock of the counts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge;
use crate::driver::{self, MountState};
use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::{IdMappingOptions, MountOptions};
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::{Batch, Held, Needs, hit};
use crate::store::layer_steps::{Unmount, mount_layer, unmount_layer};
use crate::store::layer_store::counts::Counts;
use crate::store::layer_store::locked::LayerStore;
use crate::store::top_layer::{TopLayer, mapped_top_layer};
use crate::store::views::Container;

/// The ID of a mounted layer, and where it is counted.
type Counted = (String, Counts);

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
            Self::Any(key) => table.find_complete(key),
            Self::Id(id) => table.get_complete(id),
        }
    }

    fn unknown(&self) -> Error {
        LayerRow::unknown(self.text())
    }
}

/// The layer that a key names, of the primary store or of an additional one, with its ID.
fn find(held: &mut Held, key: &LayerKey) -> Result<(String, (Arc<LayerRow>, Counts))> {
    let (layers, additional) = held.layers_and_additional()?;
    let primary = key.find(layers.table()).map(|row| (row, Counts::Primary));
    let found = primary.or_else(|| {
        let row = additional.iter().find_map(|table| key.find(table))?;
        Some((row, Counts::Additional))
    });
    let (row, counts) = found.ok_or_else(|| key.unknown())?;
    Ok((row.id.to_string(), (Arc::clone(row), counts)))
}

/// What mounting an image has come to.
enum ImageMount<T, M> {
    Mounted(T),
    /// The images must be held exclusively. What was to be made of the mount is given back.
    NeedsImages(M),
}

#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
async fn mount_image<T, M: FnOnce(String, PathBuf) -> T>(
    batch: &Batch,
    key: &str,
    label: Option<String>,
    options: Vec<String>,
    make: M,
) -> Result<ImageMount<T, M>> {
    let host = IdMappingOptions {
        host_uid_mapping: true,
        host_gid_mapping: true,
        ..IdMappingOptions::default()
    };
    let claimed = batch.claim(|held| {
        let (image, primary) = held.find_image(key)?;
        let top = match mapped_top_layer(held, &image, primary, &host)? {
            TopLayer::Found(Some(top)) if top.uid_map.is_empty() && top.gid_map.is_empty() => top,
            TopLayer::Found(Some(_)) => {
                let what = format!("image {key:?} with mapped owners lies in a read-only store");
                return Err(ErrorKind::NotSupported.err(what));
            }
            TopLayer::Found(None) => {
                return Err(ErrorKind::LayerUnknown.err(format!("image {key:?} has no layer")));
            }
            TopLayer::NeedsImages => return Ok((String::new(), None)),
        };
        Ok((top.id.to_string(), Some(top)))
    });
    let (_claim, Some(top)) = claimed.await? else {
        return Ok(ImageMount::NeedsImages(make));
    };
    let options = driver::MountOptions {
        mount_label: label.unwrap_or_default(),
        options,
        ..driver::MountOptions::default()
    };
    let plan = batch.with(|held| {
        let layers = held.layers()?;
        match layers.table().get(&top.id).is_some() {
            true => layers.plan_mount(&top.id, options),
            false => layers.plan_additional(&top, options),
        }
    });
    let mounted = mount_layer(batch, plan?).await?;
    Ok(ImageMount::Mounted(make(top.id.to_string(), mounted.path)))
}

/// # Mounts, counted
impl Store {
    /// Mounts a layer, or the layer of a container, (an ID, name or ID prefix) and returns the directory. Mounts are
    /// counted over all processes: each needs its [`Store::unmount`]. [`Store::mount_guard`] does that by itself.
    /// A layer that is mounted already stays mounted as it is, whatever `options` say. A layer of an additional store can be
    /// mounted with the option `ro` only.
    ///
    /// Takes the graph lock and the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::StoreIsReadOnly`] for a layer of an additional store without `ro`,
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
            None => (LayerKey::Any(id.to_owned()), driver::MountOptions::default()),
        };
        options.mount_label = wanted.label.unwrap_or_default();
        options.options.extend(wanted.options);
        let needs = Needs::LAYERS_OF_ALL_STORES.with_graph();
        self.in_batch(needs, async move |batch: Batch| {
            let (_claim, (row, counts)) = batch.claim(|held| find(held, &key)).await?;
            let plan = batch.with(|held| match counts {
                Counts::Primary => held.layers()?.plan_mount(&row.id, options),
                Counts::Additional => held.layers()?.plan_additional(&row, options),
            });
            let mounted = mount_layer(&batch, plan?).await?;
            Ok(make(row.id.to_string(), mounted.path))
        })
        .await
    }

    fn container_mount_options(&self, container: &Container) -> driver::MountOptions {
        let mappings = IdMappings {
            uids: container.uid_map().to_vec(),
            gids: container.gid_map().to_vec(),
        };
        driver::MountOptions {
            mount_label: String::new(),
            mappings,
            options: container.mount_opts(),
            volatile: container.volatile() && !self.inner.options.disable_volatile,
        }
    }

    /// Undoes one [`Store::mount`] of a layer or container (an ID, name, ID prefix or mount path). Returns how often it
    /// is still mounted, over all processes. A layer that is not mounted is no error.
    ///
    /// Takes the layer and container locks shared for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount(&self, id: &str) -> Result<u64> {
        let key = self.layer_of(id).await?;
        self.unmount_by_key(key, Unmount::One).await
    }

    /// Undoes every mount of a layer or container (an ID, name, ID prefix or mount path), also those of other
    /// processes, which go on as if it were mounted. A layer that is not mounted is no error.
    ///
    /// Locks as [`Store::unmount`].
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount_all(&self, id: &str) -> Result<()> {
        let key = self.layer_of(id).await?;
        self.unmount_by_key(key, Unmount::All).await.map(drop)
    }

    async fn unmount_by_key(&self, key: LayerKey, how: Unmount) -> Result<u64> {
        self.in_batch(Needs::LAYERS_OF_ALL_STORES, async move |batch: Batch| {
            let (_claim, (row, counts)) = batch.claim(|held| find(held, &key)).await?;
            unmount_layer(&batch, &row.id, counts, how).await
        })
        .await
    }

    /// How often a layer or the layer of a container is mounted, over all processes. Counts of mounts that are not there,
    /// as after a reboot that has kept the run root, are zero.
    ///
    /// Takes the layer and container locks, and that of `mountpoints.json`, shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn mounted(&self, id: &str) -> Result<u64> {
        let key = self.layer_of(id).await?;
        let found = self
            .read_all_layer_stores(|home, table| Ok(hit(key.find(table).map(|row| (row.id.clone(), home)))))
            .await?;
        let (id, home) = found.ok_or_else(|| key.unknown())?;
        let mounts = self.mounts().await?;
        let Some(mount) = mounts.of(home).get(&id) else {
            return Ok(0);
        };
        let (path, count) = (PathBuf::from(&mount.path), mount.count.unsigned_abs());
        let driver = self.inner.driver();
        let state = bridge::run(move || driver.mount_state(&path)).await?;
        Ok(if state == MountState::Nowhere { 0 } else { count })
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
    /// Takes the image lock shared for a moment, then the graph lock and the layer lock exclusively for one step.
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
        let needs = Needs::LAYERS.with_graph().with_images();
        let (key, also) = (id.to_owned(), (id.to_owned(), label.clone(), options.clone()));
        let first = self.in_batch(needs, async move |batch: Batch| {
            mount_image(&batch, &key, label, options, make).await
        });
        let make = match first.await? {
            ImageMount::Mounted(made) => return Ok(made),
            // A copy of the top layer has to be recorded in the image.
            ImageMount::NeedsImages(make) => make,
        };
        let (key, label, options) = also;
        let second = self.in_batch(needs.with_images_to_change(), async move |batch: Batch| {
            mount_image(&batch, &key, label, options, make).await
        });
        match second.await? {
            ImageMount::Mounted(made) => Ok(made),
            ImageMount::NeedsImages(_) => {
                let what = format!("mapping the top layer of image {id:?}");
                Err(ErrorKind::InvalidMappings.err(what))
            }
        }
    }

    /// Undoes one [`Store::mount_image`] (an ID, name or ID prefix). Returns how often the image is still mounted, over
    /// all processes.
    ///
    /// Takes the image lock shared for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn unmount_image(&self, id: &str) -> Result<u64> {
        let layer = self.unmapped_top_layer(id).await?;
        self.unmount_by_key(LayerKey::Id(layer), Unmount::One).await
    }

    /// Undoes every mount of an image (an ID, name or ID prefix), also those of other processes, which go on as if it
    /// were mounted.
    ///
    /// Locks as [`Store::unmount_image`].
    ///
    /// # Errors
    /// As [`Store::unmount_image`].
    ///
    /// # Cancellation
    /// As [`Store::unmount_image`].
    pub async fn unmount_image_all(&self, id: &str) -> Result<()> {
        let layer = self.unmapped_top_layer(id).await?;
        let all = self.unmount_by_key(LayerKey::Id(layer), Unmount::All);
        all.await.map(drop)
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
    /// Takes the graph lock and the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUsedByContainer`] if a layer is mounted by any process that uses the same run root, where mounts are
    /// recorded, or with the driver overlay by any process at all; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn shutdown(&self) -> Result<()> {
        self.stop_driver(|layers, mounted| {
            if mounted.is_empty() {
                return match layers.driver.dependent_mount()? {
                    None => Ok(()),
                    Some(point) => Err(ErrorKind::LayerUsedByContainer
                        .err("a layer is mounted, which the run root does not tell of:")
                        .at(point)),
                };
            }
            let ids: Vec<&str> = mounted.iter().map(|(id, _counts)| id.as_str()).collect();
            let what = format!("a layer is mounted: {}", ids.join(", "));
            Err(ErrorKind::LayerUsedByContainer.err(what))
        })
        .await
        .map(drop)
    }

    /// As [`Store::shutdown`], after unmounting every mounted layer of the store, whichever program mounted it: also the root
    /// file systems of containers that other processes, such as Podman, run at this moment. Returns the IDs of the
    /// layers that were mounted.
    ///
    /// Locks as [`Store::shutdown`].
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::shutdown`].
    pub async fn shutdown_force(&self) -> Result<Vec<String>> {
        // A layer that cannot be unmounted does not keep the others mounted.
        let unmount = |layers: &mut LayerStore, mounted: &[Counted]| {
            let undo = |(id, counts): &Counted| layers.unmount_all(id, *counts);
            let results: Vec<Result<()>> = mounted.iter().map(undo).collect();
            results.into_iter().collect()
        };
        self.stop_driver(unmount).await
    }

    /// Stops the driver after `prepare`, which gets the IDs of mounted layers; returns these.
    async fn stop_driver(
        &self,
        prepare: fn(&mut LayerStore, &[Counted]) -> Result<()>,
    ) -> Result<Vec<String>> {
        self.step_alone(Needs::LAYERS.with_graph(), move |held| {
            let layers = held.layers()?;
            let mounted = layers.mounted()?;
            prepare(layers, &mounted)?;
            held.mark_shut_down()?;
            held.layers()?.driver.cleanup()?;
            Ok(mounted.into_iter().map(|(id, _counts)| id).collect())
        })
        .await
    }
}
