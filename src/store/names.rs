//! Names of layers, images and containers.

use crate::error::{ErrorKind, Result};
use crate::options::ImageOptions;
use crate::record::names::NameOperation;
use crate::store::Store;
use crate::store::access::hit;

fn owned(names: impl IntoIterator<Item: AsRef<str>>) -> Vec<String> {
    names.into_iter().map(|name| name.as_ref().to_owned()).collect()
}

/// # Names
impl Store {
    /// The names of the layer, image or container with this ID, name or ID prefix, searched in this order.
    ///
    /// Takes the layer, image and container locks shared, one after the other, until the item is found.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is none.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn names(&self, id: &str) -> Result<Vec<String>> {
        let found = self
            .find_any(
                id,
                |row| row.names.clone(),
                |row| row.names.clone(),
                |row| row.names.clone(),
            )
            .await?;
        found.ok_or_else(|| ErrorKind::LayerUnknown.err(format!("reading the names of {id:?}")))
    }

    /// Replaces the names of a layer, image or container (an ID, name or ID prefix). A name that another item of the
    /// same kind has is removed from that item.
    ///
    /// Prefer [`Store::add_names`] and [`Store::remove_names`]: this method discards names that another task or process has added
    /// since the caller read them.
    ///
    /// Takes the layer, image and container locks exclusively, one after the other, until the item is found. An image
    /// of an additional store is first copied into the primary store.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is nothing with this ID, name or ID prefix.
    ///
    /// # Cancellation
    /// Either nothing has changed, or the change completes in the background.
    pub async fn set_names(&self, id: &str, names: impl IntoIterator<Item: AsRef<str>> + Send) -> Result<()> {
        let names = owned(names);
        self.update_names(id, NameOperation::Set, names).await
    }

    /// Adds names to a layer, image or container, before the names that it has. A name that another item of the same
    /// kind has is removed from that item. Locks as [`Store::set_names`].
    ///
    /// # Errors
    /// As [`Store::set_names`].
    ///
    /// # Cancellation
    /// Either nothing has changed, or the change completes in the background.
    pub async fn add_names(&self, id: &str, names: impl IntoIterator<Item: AsRef<str>> + Send) -> Result<()> {
        let names = owned(names);
        self.update_names(id, NameOperation::Add, names).await
    }

    /// Removes names from a layer, image or container. Names that it does not have are ignored. Locks as
    /// [`Store::set_names`].
    ///
    /// # Errors
    /// As [`Store::set_names`].
    ///
    /// # Cancellation
    /// Either nothing has changed, or the change completes in the background.
    pub async fn remove_names(
        &self,
        id: &str,
        names: impl IntoIterator<Item: AsRef<str>> + Send,
    ) -> Result<()> {
        let names = owned(names);
        self.update_names(id, NameOperation::Remove, names).await
    }

    async fn update_names(&self, id: &str, operation: NameOperation, names: Vec<String>) -> Result<()> {
        let key = id.to_owned();
        let wanted = names.clone();
        let done = self
            .write_to_layer_store(move |layers| {
                let Some(id) = layers.table().find_complete(&key).map(|row| row.id.clone()) else {
                    return Ok(false);
                };
                layers.table_mut().apply_names(&id, operation, &wanted)?;
                Ok(true)
            })
            .await?;
        if done {
            return Ok(());
        }
        // An image of an additional store is read-only. It gets a record with its ID in the primary store, which is
        // changed instead.
        let key = id.to_owned();
        let in_primary = self.read_images().await?.find(&key).is_some();
        if !in_primary {
            let original: Option<String> = self
                .read_all_image_stores(|origin, table| {
                    let row = table.find(&key).filter(|_| !origin.is_primary());
                    Ok(hit(row.map(|row| row.id.to_string())))
                })
                .await?;
            if let Some(original) = original {
                let top = self.image(&original).await?.top_layer().map(str::to_owned);
                self.create_image(top.as_deref(), ImageOptions::default().id(original))
                    .await?;
            }
        }
        let wanted = names.clone();
        let done = self
            .write_to_image_store(move |images| {
                let Some(id) = images.find(&key).map(|row| row.id.clone()) else {
                    return Ok(false);
                };
                images.table_mut().apply_names(&id, operation, &wanted)?;
                Ok(true)
            })
            .await?;
        if done {
            return Ok(());
        }
        let key = id.to_owned();
        self.write_to_container_store(move |containers| {
            let Some(id) = containers.find(&key).map(|row| row.id.clone()) else {
                return Err(ErrorKind::LayerUnknown.err(format!("changing the names of {key:?}")));
            };
            containers.table_mut().apply_names(&id, operation, &names)
        })
        .await
    }
}
