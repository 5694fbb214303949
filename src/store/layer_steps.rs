//! Making and deleting layers in steps whose saves others share.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::record::layer::LayerRow;
use crate::store::access::Batch;
use crate::store::layer_store::create::Announced;
use crate::store::layer_store::new_layer::NewLayer;

/// Creates a layer, its record last, see [`LayerStore::create`](crate::store::layer_store::locked::LayerStore::create).
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn create_layer(batch: &Batch, new: NewLayer) -> Result<Arc<LayerRow>> {
    let announced = batch.with(|held| held.layers()?.announce(new))?;
    create_announced(batch, announced).await
}

/// As [`create_layer`], when the layer has an incomplete record that is not saved yet.
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn create_announced(batch: &Batch, announced: Announced) -> Result<Arc<LayerRow>> {
    batch.save().await?;
    let id = announced.id.clone();
    let mut made = batch.with(|held| held.layers()?.make(announced));
    if made.is_ok() {
        made = batch.save().await;
    }
    batch.with(|held| {
        let layers = held.layers()?;
        let failed = |error: Error| {
            layers.discard_failed(&id);
            error.context(format!("creating layer {id:?}"))
        };
        made.map_err(failed)?;
        held.layers()?.get(&id)
    })
}

/// Deletes layers and their records, whether or not they are used, see
/// [`LayerStore::delete_all`](crate::store::layer_store::locked::LayerStore::delete_all).
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn delete_layers(batch: &Batch, ids: &[String]) -> Result<()> {
    let doomed = batch.with(|held| held.layers()?.doom(ids))?;
    batch.save().await?;
    let mut removed = batch.with(|held| {
        let layers = held.layers()?;
        let before = layers.counts_changed();
        layers.unmount_doomed(&doomed)?;
        Ok(layers.counts_changed() != before)
    });
    if matches!(removed, Ok(true)) {
        removed = batch.save().await.map(|()| true);
    }
    let removed = removed.and_then(|_| batch.with(|held| held.layers()?.remove_doomed(&doomed)));
    batch.save().await?;
    removed
}
