//! Deleting layers, images and containers.

use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::all_stores::AllStores;

/// The ID of an image that no container uses.
fn deletable_image(all: &AllStores, key: &str) -> Result<String> {
    let Some(id) = all.find_image(key) else {
        return Err(ErrorKind::NotAnImage.err(format!("deleting image {key:?}")));
    };
    match all.containers.rows().find(|row| row.image == id) {
        None => Ok(id),
        Some(user) => {
            let what = format!("deleting image {id:?}: image used by {}", user.id);
            Err(ErrorKind::ImageUsedByContainer.err(what))
        }
    }
}

/// # Deleting
impl Store {
    /// Deletes a layer (an ID, name or ID prefix) that nothing uses. It is unmounted first.
    ///
    /// Takes the layer, image and container locks exclusively for one step; files are unlinked after that.
    ///
    /// # Errors
    /// [`ErrorKind::NotALayer`], [`ErrorKind::LayerHasChildren`], [`ErrorKind::LayerUsedByImage`],
    /// [`ErrorKind::LayerUsedByContainer`], naming the user.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background. A crash in the middle is finished by the next
    /// user of the store.
    pub async fn delete_layer(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        self.write_to_all_stores(move |all| {
            let Some(id) = all.layers.table().find(&key).map(|row| row.id.to_string()) else {
                return Err(ErrorKind::NotALayer.err(format!("deleting layer {key:?}")));
            };
            let used = |kind: ErrorKind, how: String| Err(kind.err(format!("deleting layer {id:?}: {how}")));
            if let Some(child) = all.layers.table().rows().find(|row| row.parent == id) {
                return used(ErrorKind::LayerHasChildren, format!("used by layer {}", child.id));
            }
            if let Some(image) = all.images().find(|row| row.layer == id) {
                return used(
                    ErrorKind::LayerUsedByImage,
                    format!("layer {id} used by image {}", image.id),
                );
            }
            if let Some(container) = all.containers.by_layer(&id) {
                return used(
                    ErrorKind::LayerUsedByContainer,
                    format!("layer {id} used by container {}", container.id),
                );
            }
            all.layers.delete_all(std::slice::from_ref(&id))?;
            for images in all.images.iter_mut().map(|store| &mut store.records) {
                let mapped: Vec<String> = images
                    .rows()
                    .filter(|row| row.mapped_layers.contains(&id))
                    .map(|row| row.id.to_string())
                    .collect();
                for image in &mapped {
                    images
                        .table_mut()
                        .update(image, |row| row.mapped_layers.retain(|layer| *layer != id))?;
                }
                if !mapped.is_empty() {
                    images.save()?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Deletes an image (an ID, name or ID prefix) that no container uses, and its layers from the top downwards as
    /// long as nothing else needs them. Returns the IDs of those layers;
    /// [`Store::layers_deleted_with_image`] tells them beforehand.
    ///
    /// Takes the layer, image and container locks exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::NotAnImage`], [`ErrorKind::ImageUsedByContainer`] naming the container.
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete_image(&self, id: &str) -> Result<Vec<String>> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| {
            let id = deletable_image(all, &key)?;
            all.delete_image(&dirs, &id)
        })
        .await
    }

    /// The IDs of the layers that [`Store::delete_image`] would delete with this image (an ID, name or ID prefix) now;
    /// nothing is deleted.
    ///
    /// Takes the layer, image and container locks exclusively for one step: the answer is of one moment.
    ///
    /// # Errors
    /// As [`Store::delete_image`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layers_deleted_with_image(&self, id: &str) -> Result<Vec<String>> {
        let key = id.to_owned();
        self.write_to_all_stores(move |all| {
            let id = deletable_image(all, &key)?;
            Ok(all.layers_to_delete(&id))
        })
        .await
    }

    /// Deletes a container (an ID, name, ID prefix, or the ID of its layer), its layer and its directories. A layer
    /// that is missing already is tolerated.
    ///
    /// Takes the layer, image and container locks exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::NotAContainer`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| all.delete_container(&dirs, &key))
            .await
    }

    /// Deletes the container, image or layer with this ID, name or ID prefix, looked for in this order, whether or not
    /// it is used: layers may be left without a parent, images and containers without a layer.
    ///
    /// Takes the layer, image and container locks exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is none.
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| {
            if let Some(row) = all.containers.find(&key).cloned() {
                if all.layers.table().get(&row.layer).is_none() {
                    let what = format!(
                        "deleting container {:?}, whose layer {:?} is missing",
                        row.id, row.layer
                    );
                    return Err(ErrorKind::NotALayer.err(what));
                }
                return all.delete_container(&dirs, &row.id);
            }
            if let Some(id) = all.find_image(&key) {
                return all.delete_image_record(&dirs, &id);
            }
            match all.layers.table().find(&key).map(|row| row.id.to_string()) {
                Some(id) => all.layers.delete_all(&[id]),
                None => Err(ErrorKind::LayerUnknown.err(format!("deleting {key:?}"))),
            }
        })
        .await
    }
}
