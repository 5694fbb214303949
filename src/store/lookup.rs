//! Finding layers, images and containers by exactly their ID or exactly their name.
//!
//! The other lookups also take the beginning of an ID for the ID, as people type it. A text that comes from elsewhere,
//! such as a request to a server, is looked up here: it finds what it names or nothing.

use std::sync::Arc;

use crate::error::Result;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::layers::view;
use crate::store::views::{Container, Image, Layer};

/// # Exact lookups
impl Store {
    /// The layer with exactly this ID, of the primary store or an additional one.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_by_id(&self, id: &str) -> Result<Option<Layer>> {
        self.exact_layer(|table| table.get(id)).await
    }

    /// The layer with exactly this name, of the primary store or an additional one.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::layer_by_id`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_by_name(&self, name: &str) -> Result<Option<Layer>> {
        self.exact_layer(|table| table.by_name(name)).await
    }

    async fn exact_layer(
        &self,
        find: impl Fn(&Table<LayerRow>) -> Option<&Arc<LayerRow>> + Send + Sync,
    ) -> Result<Option<Layer>> {
        let found = self
            .read_all_layer_stores(|origin, table| Ok(hit(find(table).map(|row| (Arc::clone(row), origin)))))
            .await?;
        let Some((row, origin)) = found else {
            return Ok(None);
        };
        Ok(Some(view(&row, &self.mounts().await?, origin)))
    }

    /// The image with exactly this ID, of the primary store or an additional one.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// ```
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// // A server takes what the client says as it is; `Store::image` would find an ID that begins with it.
    /// let Some(image) = store.image_by_id("f2ca1bb6c7e9").await? else {
    ///     return Ok(()); // 404
    /// };
    /// # drop(image);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_by_id(&self, id: &str) -> Result<Option<Image>> {
        self.exact_image(|table| table.get(id)).await
    }

    /// The image with exactly this name, of the primary store or an additional one. Names of images are as they were
    /// given; a tag or a registry is never added.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::image_by_id`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_by_name(&self, name: &str) -> Result<Option<Image>> {
        self.exact_image(|table| table.by_name(name)).await
    }

    async fn exact_image(
        &self,
        find: impl Fn(&Table<ImageRow>) -> Option<&Arc<ImageRow>> + Send + Sync,
    ) -> Result<Option<Image>> {
        let found = self
            .read_all_image_stores(|origin, table| {
                let image = find(table).map(|row| Image::new(row, origin.read_only()));
                Ok(hit(image.map(|image| (image, origin))))
            })
            .await?;
        let Some((image, origin)) = found else {
            return Ok(None);
        };
        // A name that was taken from the pulled-up copy of an image is not found in the original again.
        if !origin.is_primary() && self.read_images().await?.get(image.id()).is_some() {
            return Ok(None);
        }
        Ok(Some(image))
    }

    /// The container with exactly this ID.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_by_id(&self, id: &str) -> Result<Option<Container>> {
        self.read_container_store(|table| Ok(table.get(id).map(Container::new)))
            .await
    }

    /// The container with exactly this name.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::container_by_id`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_by_name(&self, name: &str) -> Result<Option<Container>> {
        self.read_container_store(|table| Ok(table.by_name(name).map(Container::new)))
            .await
    }
}
