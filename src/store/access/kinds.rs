//! Several kinds of items at once: layers, images and containers.

use crate::error::Result;
use crate::options::MultiListOptions;
use crate::record::ReadGuard;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::needs::Needs;
use crate::store::access::visit::{hit, read_homes};
use crate::store::all_stores::AllStores;
use crate::store::inner::StoreOrigin;

impl Store {
    /// Runs `change` in a step that holds layers, images (also those of the graph root beside a separate image store) and
    /// containers exclusively, and saves what it has changed.
    pub(crate) async fn write_to_all_stores<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut AllStores<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step(Needs::ALL, |held| change(&mut held.all()?)).await
    }

    /// As [`Store::write_to_all_stores`], for what takes long: nothing else runs in the same batch.
    pub(crate) async fn write_to_all_stores_alone<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut AllStores<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step_alone(Needs::ALL, |held| change(&mut held.all()?)).await
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
