//! The image stores, one or all of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::bridge;
use crate::error::Result;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::Store;
use crate::store::access::repair::mend;
use crate::store::access::visit::{read_additional, visit_all};
use crate::store::inner::StoreOrigin;

impl Store {
    /// A fresh snapshot of the primary image store. Names that stand in two records are resolved first.
    pub(crate) async fn read_images(&self) -> Result<ReadGuard<ImageRow>> {
        self.read_repaired(&self.inner.images).await
    }

    /// Visits the primary image store and then the additional ones, as [`Store::read_all_layer_stores`].
    pub(crate) async fn read_all_image_stores<T: Send>(
        &self,
        visit: impl FnMut(StoreOrigin, &Table<ImageRow>) -> Result<ControlFlow<T>> + Send,
    ) -> Result<Option<T>> {
        let primary = match self.inner.additional_images.as_slice() {
            [] => self.glance_at(&self.inner.images).await?,
            _ => self.read_images().await?,
        };
        visit_all(primary, &self.inner.additional_images, visit).await
    }

    /// Runs `change` in a blocking step that holds the primary image store exclusively.
    pub(crate) async fn write_to_image_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteGuard<ImageRow>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        Self::write_sound(&self.inner.images, self.inner.dirs.images(), change).await
    }

    /// As [`Store::write_to_image_store`]. `change` also gets the ID of a layer (an ID, name or ID prefix) of any layer
    /// store; all of these are held shared until it has ended, so that the layer is there when an image refers to it.
    pub(crate) async fn write_to_image_store_on<T: Send + 'static>(
        &self,
        layer: Option<&str>,
        change: impl FnOnce(&mut WriteGuard<ImageRow>, String) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut held = None;
        let mut top = String::new();
        if let Some(key) = layer {
            let primary = self.read_layers().await?;
            let additional = read_additional(&self.inner.additional_layers).await?;
            let mut tables = std::iter::once(&primary).chain(&additional);
            let Some(row) = tables.find_map(|table| table.find(key)) else {
                return Err(LayerRow::unknown(key));
            };
            top = row.id.to_string();
            held = Some((additional, primary));
        }
        let images = self.inner.images.write().await?;
        let dir = self.inner.dirs.images();
        bridge::run(move || {
            // In the order in which they are released.
            let (mut images, _layers) = (images, held);
            mend(&mut images, &dir)?;
            let value = change(&mut images, top)?;
            images.settle().map(|()| value)
        })
        .await
    }

    /// An image of any store (an ID, name or ID prefix), and what keeps it from being deleted; `None` if there is none.
    pub(crate) async fn hold_image(
        &self,
        id: &str,
    ) -> Result<Option<(Arc<ImageRow>, Vec<ReadGuard<ImageRow>>)>> {
        let primary = self.read_images().await?;
        let mut held = read_additional(&self.inner.additional_images).await?;
        let found = match primary.find(id) {
            Some(row) => Some(Arc::clone(row)),
            // A name that was taken from the pulled-up copy of an image must not be found in the original again.
            None => held
                .iter()
                .find_map(|table| table.find(id))
                .filter(|row| primary.get(&row.id).is_none())
                .map(Arc::clone),
        };
        held.push(primary);
        Ok(found.map(|row| (row, held)))
    }
}
