//! Making, mounting and deleting layers in steps whose saves others share, and beside whose work others do theirs.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::record::layer::LayerRow;
use crate::store::access::Batch;
use crate::store::layer_store::counts::Counts;
use crate::store::layer_store::create::Announced;
use crate::store::layer_store::mount::{MountPlan, Mounted, UnmountPlan};
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
    let making = batch.with(|held| Ok(held.layers()?.making(announced)))?;
    let files = batch.work(|| making.make()).await;
    let mut made = batch.with(|held| held.layers()?.complete(files));
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

/// Makes the mount of a plan, if there is one to be made, and saves its count; if that fails, the layer is unmounted again. The
/// layer is claimed.
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn mount_layer(batch: &Batch, plan: MountPlan) -> Result<Mounted> {
    let mounted = match plan {
        MountPlan::Counted(mounted) => mounted,
        MountPlan::New(new) => {
            let (made, new) = batch.work(move || (new.make(), new)).await;
            let path = made?;
            batch.with(|held| held.layers()?.count_mount(&new, path))?
        }
    };
    match batch.save().await {
        Ok(()) => Ok(mounted),
        Err(error) => batch.with(|held| Err(held.layers()?.undo_mount(&mounted, error))),
    }
}

/// How many of the mounts of a layer are undone.
#[derive(Clone, Copy)]
pub(crate) enum Unmount {
    One,
    All,
}

/// Undoes mounts of a layer, and returns how many are left; the count is to be saved. The layer is claimed.
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn unmount_layer(batch: &Batch, id: &str, counts: Counts, how: Unmount) -> Result<u64> {
    let plan = batch.with(|held| {
        let layers = held.layers()?;
        match how {
            Unmount::One => layers.plan_unmount(id, counts),
            Unmount::All => layers.plan_unmount_all(id, counts),
        }
    });
    match plan? {
        UnmountPlan::Counted(left) => Ok(left),
        UnmountPlan::Last(last) => {
            let (unmounted, last) = batch.work(move || (last.make(), last)).await;
            unmounted?;
            batch.with(|held| held.layers()?.count_unmounted(&last))?;
            Ok(0)
        }
    }
}

/// Deletes layers and their records, whether or not they are used, see
/// [`LayerStore::delete_all`](crate::store::layer_store::locked::LayerStore::delete_all). The layers are claimed.
#[expect(clippy::future_not_send, reason = "steps stay on one thread")]
pub(crate) async fn delete_layers(batch: &Batch, ids: &[String]) -> Result<()> {
    let doomed = batch.with(|held| held.layers()?.doom(ids))?;
    batch.save().await?;
    let deleted = async {
        let unmounts = batch.with(|held| held.layers()?.plan_unmounts(&doomed))?;
        if !unmounts.is_empty() {
            let unmounted = batch.work(|| unmounts.make()).await;
            batch.with(|held| held.layers()?.count_unmounts(&doomed, unmounted))?;
            batch.save().await?;
        }
        let removal = batch.with(|held| Ok(held.layers()?.removal(ids)))?;
        let removed = batch.work(|| removal.make()).await;
        batch.with(|held| held.layers()?.count_removed(removed))
    };
    let deleted = deleted.await;
    batch.save().await?;
    deleted
}
