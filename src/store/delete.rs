//! Deleting layers, images and containers.

use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::{Batch, Held, Needs};
use crate::store::all_stores::{AllStores, Without};
use crate::store::dirs::Dirs;
use crate::store::layer_steps::delete_layers;

/// The ID of an image that no container uses.
fn deletable_image(all: &AllStores<'_>, key: &str) -> Result<String> {
    let Some(id) = all.find_image(key) else {
        return Err(ErrorKind::NotAnImage.err(format!("deleting image {key:?}")));
    };
    if let Some(user) = all.containers.users_of(&id).next() {
        let what = format!("deleting image {id:?}: image used by {}", user.id);
        return Err(ErrorKind::ImageUsedByContainer.err(what));
    }
    Ok(id)
}

/// The ID of a layer that nothing uses.
fn deletable_layer(all: &AllStores<'_>, key: &str) -> Result<String> {
    let Some(id) = all
        .layers
        .table()
        .find_complete(key)
        .map(|row| row.id.to_string())
    else {
        return Err(ErrorKind::NotALayer.err(format!("deleting layer {key:?}")));
    };
    let used = |kind: ErrorKind, how: String| Err(kind.err(format!("deleting layer {id:?}: {how}")));
    if let Some(child) = all.layers.table().users_of(&id).next() {
        return used(ErrorKind::LayerHasChildren, format!("used by layer {}", child.id));
    }
    if let Some(image) = all.images_on(&id).find(|row| row.layer == id) {
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
    Ok(id)
}

/// Takes a deleted layer out of the images that have it as a copy of their top layer.
fn forget_copy(all: &mut AllStores<'_>, layer: &str) -> Result<()> {
    for images in all.images.iter_mut().map(|store| &mut store.records) {
        let mapped: Vec<String> = images
            .users_of(layer)
            .filter(|row| row.mapped_layers.iter().any(|copy| copy == layer))
            .map(|row| row.id.to_string())
            .collect();
        for image in &mapped {
            images
                .table_mut()
                .update(image, |row| row.mapped_layers.retain(|copy| copy != layer))?;
        }
    }
    Ok(())
}

/// Deletes a container, its layer and its directories. From the moment at which its record is gone a failure does not undo
/// anything: the next user of the store goes on.
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn delete_container(batch: &Batch, dirs: &Dirs, key: &str) -> Result<()> {
    // Whoever makes the container, or mounts its layer, ends that first.
    let claimed = batch.claim(|held| {
        let all = held.all()?;
        let row = all.containers.find(key);
        let row = row.ok_or_else(|| ErrorKind::NotAContainer.err(format!("deleting container {key:?}")))?;
        Ok((row.layer.to_string(), row.id.to_string()))
    });
    let (_claim, id) = claimed.await?;
    let doomed = batch.with(|held| held.all()?.doom_container(&id))?;
    let deleted = async {
        batch.save().await?;
        batch.with(|held| {
            drop(held.containers()?.table_mut().remove(&doomed.id));
            Ok(())
        })?;
        batch.save().await?;
        let deleted = delete_layers(batch, &doomed.layers).await;
        batch.with(|held| {
            let all = held.all()?;
            all.containers.rely_on(dirs.containers());
            deleted.and(all.remove_data_of(dirs, &doomed.companion))
        })
    };
    deleted
        .await
        .context(|| format!("deleting container {:?}", doomed.id))
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
        self.in_batch(Needs::ALL, async move |batch: Batch| {
            let deletable = |held: &mut Held| Ok((deletable_layer(&held.all()?, &key)?, ()));
            let (claim, ()) = batch.claim(deletable).await?;
            let id = claim.layer().to_owned();
            delete_layers(&batch, std::slice::from_ref(&id)).await?;
            batch.with(|held| forget_copy(&mut held.all()?, &id))
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
        self.write_to_all_stores_alone(move |all| {
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
        self.write_to_all_stores_alone(move |all| {
            let id = deletable_image(all, &key)?;
            Ok(all.layers_to_delete(&id, &Without::default()))
        })
        .await
    }

    /// Deletes a container (an ID, name, ID prefix, or the ID of its layer), its layer and its directories. A layer
    /// that is missing already is tolerated; one that is mounted is unmounted first, also if other processes or a
    /// [`Mount`](crate::Mount) count on it, as in the Go library.
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
        self.in_batch(Needs::ALL, async move |batch: Batch| {
            delete_container(&batch, &dirs, &key).await
        })
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
        self.in_batch(Needs::ALL, async move |batch: Batch| {
            match batch.with(|held| Item::find(&held.all()?, &key))? {
                Item::Container(id) => delete_container(&batch, &dirs, &id).await,
                Item::Image(id) => batch.with(|held| held.all()?.delete_image_record(&dirs, &id)),
                Item::Layer(id) => {
                    let layer = |held: &mut Held| {
                        let found = held.layers()?.table().get_complete(&id).is_some();
                        let found = found.then(|| (id.clone(), ()));
                        found.ok_or_else(|| LayerRow::unknown(&id))
                    };
                    let (claim, ()) = batch.claim(layer).await?;
                    delete_layers(&batch, &[claim.layer().to_owned()]).await
                }
            }
        })
        .await
    }
}

/// Something that is to be deleted, by its ID.
enum Item {
    Container(String),
    Image(String),
    Layer(String),
}

impl Item {
    fn find(all: &AllStores<'_>, key: &str) -> Result<Self> {
        if let Some(row) = all.containers.find(key) {
            if all.layers.table().get(&row.layer).is_none() {
                let what = format!(
                    "deleting container {:?}, whose layer {:?} is missing",
                    row.id, row.layer
                );
                return Err(ErrorKind::NotALayer.err(what));
            }
            return Ok(Self::Container(row.id.to_string()));
        }
        if let Some(id) = all.find_image(key) {
            return Ok(Self::Image(id));
        }
        match all.layers.table().find_complete(key) {
            Some(row) => Ok(Self::Layer(row.id.to_string())),
            None => Err(ErrorKind::LayerUnknown.err(format!("deleting {key:?}"))),
        }
    }
}
