//! Several kinds of items at once: layers, images and containers.

use std::sync::Arc;

use crate::bridge;
use crate::error::Result;
use crate::options::MultiListOptions;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::Store;
use crate::store::access::repair::mend;
use crate::store::access::visit::{hit, read_additional, read_homes};
use crate::store::all_stores::{AllStores, LockedImages};
use crate::store::inner::StoreOrigin;
use crate::store::layer_store::locked::LayerStore;

impl Store {
    /// Runs `change` in a blocking step that holds layers, images (also those of the graph root beside a separate
    /// image store) and containers exclusively.
    pub(crate) async fn write_to_all_stores<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut AllStores) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.inner.layers.write().await?;
        let mut images = vec![LockedImages {
            dir: self.inner.dirs.images(),
            records: self.inner.images.write().await?,
        }];
        if let Some(graph_images) = &self.inner.graph_images {
            images.push(LockedImages {
                dir: self.inner.dirs.graph_images(),
                records: graph_images.write().await?,
            });
        }
        let mut containers = self.inner.containers.write().await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            let dirs = inner.dirs.clone();
            for store in &mut images {
                mend(&mut store.records, &store.dir)?;
            }
            mend(&mut containers, &dirs.containers())?;
            let layers = LayerStore::enter(inner, layers)?;
            let mut all = AllStores {
                containers,
                images,
                layers,
            };
            let result = all.finish_interrupted(&dirs).and_then(|()| change(&mut all));
            let result = result.and_then(|value| all.settle().map(|()| value));
            let AllStores {
                containers,
                images,
                layers,
            } = all;
            drop(containers);
            drop(images);
            layers.finish(result)
        })
        .await
    }

    /// Runs `change` in a blocking step that holds the layers exclusively, snapshots of the additional layer stores,
    /// and the images exclusively with snapshots of the additional image stores: for what builds on an image.
    pub(crate) async fn write_to_layers_and_images<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayersAndImages) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.write_layers().await?;
        let additional_layers = read_additional(&self.inner.additional_layers).await?;
        let mut images = self.inner.images.write().await?;
        let additional_images = read_additional(&self.inner.additional_images).await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            mend(&mut images, &inner.dirs.images())?;
            let layers = LayerStore::enter(inner, layers)?;
            let mut held = LayersAndImages {
                additional_images,
                images,
                additional_layers,
                layers,
            };
            let result = change(&mut held).and_then(|value| {
                held.layers.settle()?;
                held.images.settle().map(|()| value)
            });
            let LayersAndImages {
                additional_images,
                images,
                additional_layers,
                layers,
            } = held;
            drop(additional_images);
            drop(images);
            drop(additional_layers);
            layers.finish(result)
        })
        .await
    }

    /// What the layer, image or container with this ID, name or ID prefix says, looked for in this order. Each kind is
    /// read under its own locks, one after the other.
    pub(crate) async fn find_any<T: Send>(
        &self,
        key: &str,
        layer: fn(&LayerRow) -> T,
        image: fn(&ImageRow) -> T,
        container: fn(&ContainerRow) -> T,
    ) -> Result<Option<T>> {
        let found = self
            .read_all_layer_stores(|_, table| Ok(hit(table.find(key).map(|row| layer(row)))))
            .await?;
        if found.is_some() {
            return Ok(found);
        }
        let found = self
            .read_all_image_stores(|_, table| Ok(hit(table.find(key).map(|row| image(row)))))
            .await?;
        if found.is_some() {
            return Ok(found);
        }
        self.read_container_store(|table| Ok(table.find(key).map(|row| container(row))))
            .await
    }

    /// Snapshots of the kinds asked for, all locks held together.
    pub(crate) async fn read_everything(&self, kinds: MultiListOptions) -> Result<Everything> {
        let mut attempts = 0;
        loop {
            let mut held = Everything::default();
            // What needs a repair is not repaired here, where locks are held already.
            let mut sound = true;
            if kinds.layers {
                held.layers
                    .push((StoreOrigin::Primary, self.read_layers().await?));
                held.layers
                    .extend(read_homes(&self.inner.additional_layers).await?);
            }
            if kinds.images {
                let images = self.inner.images.read().await?;
                sound = !images.needs_repair();
                held.images.push((StoreOrigin::Primary, images));
                held.images
                    .extend(read_homes(&self.inner.additional_images).await?);
            }
            if kinds.containers {
                let containers = self.inner.containers.read().await?;
                sound = sound && !containers.needs_repair();
                held.containers = Some(containers);
            }
            if sound {
                return Ok(held);
            }
            drop(held);
            self.finish_interrupted(&mut attempts).await?;
        }
    }
}

/// What [`Store::read_everything`] holds; in the order in which it is released.
#[derive(Default)]
pub(crate) struct Everything {
    pub(crate) containers: Option<ReadGuard<ContainerRow>>,
    images: Vec<(StoreOrigin, ReadGuard<ImageRow>)>,
    layers: Vec<(StoreOrigin, ReadGuard<LayerRow>)>,
}

fn tables<R>(held: &[(StoreOrigin, ReadGuard<R>)]) -> impl Iterator<Item = (StoreOrigin, &Table<R>)> {
    held.iter().map(|(home, table)| (*home, &**table))
}

impl Everything {
    /// The layer stores that were asked for.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (StoreOrigin, &Table<LayerRow>)> {
        tables(&self.layers)
    }

    /// The image stores that were asked for.
    pub(crate) fn images(&self) -> impl Iterator<Item = (StoreOrigin, &Table<ImageRow>)> {
        tables(&self.images)
    }
}

/// What [`Store::write_to_layers_and_images`] holds; in the order in which it is released.
pub(crate) struct LayersAndImages {
    pub(crate) additional_images: Vec<ReadGuard<ImageRow>>,
    pub(crate) images: WriteGuard<ImageRow>,
    pub(crate) additional_layers: Vec<ReadGuard<LayerRow>>,
    pub(crate) layers: LayerStore,
}
