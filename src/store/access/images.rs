//! The image stores, one or all of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::Result;
use crate::record::image::ImageRow;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::Store;
use crate::store::access::needs::Needs;
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

    /// Runs `change` in a step that holds the primary image store exclusively, and saves what it has changed.
    pub(crate) async fn write_to_image_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteGuard<ImageRow>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step(Needs::IMAGES, |held| change(held.images()?)).await
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
