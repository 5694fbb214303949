//! The metadata text that callers store with layers, images and containers.

use crate::error::{ErrorKind, Result};
use crate::store::Store;

/// # Metadata
impl Store {
    /// The metadata of the layer, image or container with this ID, name or ID prefix, searched in this order.
    ///
    /// Takes the layer, image and container locks shared, one after the other, until the item is found.
    ///
    /// # Errors
    /// [`ErrorKind::NotAnId`] if there is none.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn metadata(&self, id: &str) -> Result<String> {
        let found = self
            .find_any(
                id,
                |row| row.metadata.clone(),
                |row| row.metadata.clone(),
                |row| row.metadata.clone(),
            )
            .await?;
        found.ok_or_else(|| ErrorKind::NotAnId.err(format!("reading the metadata of {id:?}")))
    }

    /// Replaces the metadata of a layer, image or container (an ID, name or ID prefix) of the primary store.
    ///
    /// Takes all locks of the primary store exclusively.
    ///
    /// # Errors
    /// [`ErrorKind::NotAnId`] if there is nothing with this ID, name or ID prefix.
    ///
    /// # Cancellation
    /// Either nothing has changed, or the change completes in the background.
    pub async fn set_metadata(&self, id: &str, metadata: impl Into<String>) -> Result<()> {
        let (key, metadata) = (id.to_owned(), metadata.into());
        self.write_to_all_stores(move |all| {
            if let Some(id) = all.layers.table().find_complete(&key).map(|row| row.id.clone()) {
                return all
                    .layers
                    .table_mut()
                    .update(&id, |row| row.metadata = metadata)
                    .map(drop);
            }
            for images in all.images.iter_mut().map(|store| &mut store.records) {
                if let Some(id) = images.find(&key).map(|row| row.id.clone()) {
                    let updated = images.table_mut().update(&id, |row| row.metadata = metadata);
                    return updated.map(drop);
                }
            }
            if let Some(id) = all.containers.find(&key).map(|row| row.id.clone()) {
                return all
                    .containers
                    .table_mut()
                    .update(&id, |row| row.metadata = metadata)
                    .map(drop);
            }
            Err(ErrorKind::NotAnId.err(format!("setting the metadata of {key:?}")))
        })
        .await
    }
}
