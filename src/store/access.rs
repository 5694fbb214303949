//! Lock order and the combinators: the only place that holds more than one store lock.
//!
//! Order, from first to last: graph lock (`storage.lock`) → `userns.lock` → layers → additional layer stores →
//! images → additional image stores → containers. The lock of `mountpoints.json` is a leaf below the layer lock.
//! Code that needs several locks takes them in this order, through the functions of this file.
//!
//! | lock | taken for | how long |
//! |---|---|---|
//! | graph, exclusive | driver start, mounting, shutdown | one blocking step |
//! | layers, shared | looking something up that has changed | the lookup |
//! | layers, exclusive | records and driver directories | one blocking step, never while a stream flows |
//! | images, containers | likewise | one blocking step |
//!
//! Readers visit immutable snapshots with a plain closure. If one store has the whole answer and nothing has changed
//! since it was last read, they take no lock: the answer is that of the moment at which the lock file was read.
//! Writers run in one blocking step that owns the locks. If the caller is dropped while it waits for a lock, nothing
//! has happened; if it is dropped later, the step runs to its end.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::lock::record_lock::ExclusiveLock;
use crate::options::MultiListOptions;
use crate::record::big_data::Items;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::mount_point::{MountPointRow, MountPoints, MountTable};
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::{ReadGuard, Records, WriteGuard};
use crate::store::Store;
use crate::store::all_stores::{AllStores, LockedImages};
use crate::store::dirs::item_dir;
use crate::store::inner::{Additional, StoreOrigin};
use crate::store::layer_store::locked::LayerStore;

/// How often a reader starts a repair of what a crash has left before it reports an error.
const MAX_CLEANUPS: usize = 3;

/// The graph lock, held; the driver is current while it is.
pub(crate) struct GraphGuard {
    _held: ExclusiveLock,
}

/// Where layers are mounted and how often.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) primary: Arc<MountTable>,
    pub(crate) additional: Arc<MountTable>,
}

impl Mounts {
    /// The mounts of the layers of one store.
    pub(crate) fn of(&self, origin: StoreOrigin) -> &MountTable {
        match origin {
            StoreOrigin::Primary => &self.primary,
            StoreOrigin::Additional { .. } => &self.additional,
        }
    }

    /// The entry of the layer that is mounted at `path`.
    pub(crate) fn by_path(&self, path: &str) -> Option<&MountPointRow> {
        self.primary
            .by_path(path)
            .or_else(|| self.additional.by_path(path))
    }
}

impl Store {
    /// A fresh snapshot of the primary layer store, under its shared lock; what a crash left is cleaned up first.
    pub(crate) async fn read_layers(&self) -> Result<ReadGuard<LayerRow>> {
        self.read_layers_after(false).await
    }

    /// As [`Store::read_layers`]; `reloaded` if the caller has just loaded the records and has not looked for
    /// what a killed process may have left.
    async fn read_layers_after(&self, mut reloaded: bool) -> Result<ReadGuard<LayerRow>> {
        for _ in 0..MAX_CLEANUPS {
            let guard = self.inner.layers.read().await?;
            if guard.reloaded() || std::mem::take(&mut reloaded) {
                // Another process has written the records since; it may have been killed.
                let inner = Arc::clone(&self.inner);
                bridge::run(move || {
                    inner.try_recover();
                    Ok(())
                })
                .await?;
            }
            if !guard.needs_repair() {
                return Ok(guard);
            }
            drop(guard);
            self.write_to_layer_store(|_cleaned_on_entry| Ok(())).await?;
        }
        let guard = self.inner.layers.read().await?;
        if guard.needs_repair() {
            return Err(
                ErrorKind::LoadError.err(format!("cleaning up layer records ({MAX_CLEANUPS} attempts)"))
            );
        }
        Ok(guard)
    }

    /// A snapshot of the primary layer store of some moment during this call, without its lock if possible.
    pub(crate) async fn unlocked_layers(&self) -> Result<ReadGuard<LayerRow>> {
        let guard = self.inner.layers.unlocked_snapshot().await?;
        if guard.reloaded() || guard.needs_repair() {
            drop(guard);
            return self.read_layers_after(true).await;
        }
        Ok(guard)
    }

    /// Visits the primary layer store and then the additional ones, until `visit` breaks. The answer is of one moment:
    /// where there are several stores, each is visited under its shared lock, and those visited stay locked to the end.
    pub(crate) async fn read_all_layer_stores<T: Send>(
        &self,
        visit: impl FnMut(StoreOrigin, &Table<LayerRow>) -> Result<ControlFlow<T>> + Send,
    ) -> Result<Option<T>> {
        let primary = match self.inner.additional_layers.as_slice() {
            [] => self.unlocked_layers().await?,
            _ => self.read_layers().await?,
        };
        visit_all(primary, &self.inner.additional_layers, visit).await
    }

    /// Runs `change` in a blocking step that holds the primary layer store exclusively.
    pub(crate) async fn write_to_layer_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayerStore) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.write_layers().await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || LayerStore::enter(inner, guard)?.leave(change)).await
    }

    /// The layer records, held exclusively, without layers that a killed process has left to be decided on: that takes all
    /// locks.
    async fn write_layers(&self) -> Result<WriteGuard<LayerRow>> {
        let mut attempts = 0;
        loop {
            let guard = self.inner.layers.write().await?;
            let incomplete = guard.incomplete();
            let mut rows = incomplete.iter().filter_map(|id| guard.get(id));
            if rows.all(|row| row.companion().is_none()) {
                return Ok(guard);
            }
            drop(guard);
            self.finish_interrupted(&mut attempts).await?;
        }
    }

    /// As [`Store::write_to_layer_store`], with snapshots of the additional layer stores under their shared locks.
    pub(crate) async fn read_or_write_all_layer_stores<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayerStore, &[ReadGuard<LayerRow>]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.write_layers().await?;
        let additional = read_additional(&self.inner.additional_layers).await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || LayerStore::enter(inner, guard)?.leave(|layers| change(layers, &additional)))
            .await
    }

    /// A fresh snapshot of the primary image store. Names that stand in two records are resolved first.
    pub(crate) async fn read_images(&self) -> Result<ReadGuard<ImageRow>> {
        self.read_repaired(&self.inner.images).await
    }

    /// A fresh snapshot of images or containers; what needs a repair is repaired first.
    async fn read_repaired<R: Record>(&self, records: &Records<R>) -> Result<ReadGuard<R>> {
        let mut attempts = 0;
        loop {
            let guard = records.read().await?;
            if !guard.needs_repair() {
                return Ok(guard);
            }
            drop(guard);
            self.finish_interrupted(&mut attempts).await?;
        }
    }

    /// As [`Store::unlocked_layers`], at images or containers.
    async fn glance_at<R: Record>(&self, records: &Records<R>) -> Result<ReadGuard<R>> {
        let guard = records.unlocked_snapshot().await?;
        if guard.needs_repair() {
            drop(guard);
            return self.read_repaired(records).await;
        }
        Ok(guard)
    }

    /// Runs `change` in a blocking step that holds images or containers exclusively.
    async fn write_sound<R: Items, T: Send + 'static>(
        records: &Records<R>,
        dir: PathBuf,
        change: impl FnOnce(&mut WriteGuard<R>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut guard = records.write().await?;
        bridge::run(move || {
            mend(&mut guard, &dir)?;
            let value = change(&mut guard)?;
            guard.settle().map(|()| value)
        })
        .await
    }

    /// Completes the intents of killed processes and saves what loading had to resolve, under all locks: the caller
    /// must hold none. `attempts` counts how often that did not help.
    async fn finish_interrupted(&self, attempts: &mut usize) -> Result<()> {
        *attempts += 1;
        if *attempts > MAX_CLEANUPS {
            let what = format!("finishing what was interrupted ({MAX_CLEANUPS} attempts)");
            return Err(ErrorKind::LoadError.err(what));
        }
        self.write_to_all_stores(|_finished_on_entry| Ok(())).await
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
                return Err(ErrorKind::LayerUnknown.err(format!("locating layer with ID {key:?}")));
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

    /// Looks something up in the container store, as it is at one moment.
    pub(crate) async fn read_container_store<T: Send>(
        &self,
        visit: impl FnOnce(&Table<ContainerRow>) -> Result<T> + Send,
    ) -> Result<T> {
        let guard = self.glance_at(&self.inner.containers).await?;
        visit(&guard)
    }

    /// A container (an ID, name, ID prefix or the ID of its layer), and what keeps it from being deleted; `None` if there is
    /// none.
    pub(crate) async fn hold_container(
        &self,
        id: &str,
    ) -> Result<Option<(Arc<ContainerRow>, ReadGuard<ContainerRow>)>> {
        let held = self.read_repaired(&self.inner.containers).await?;
        let found = held.find(id).map(Arc::clone);
        Ok(found.map(|row| (row, held)))
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

    /// Runs `change` in a blocking step that holds the container store exclusively.
    pub(crate) async fn write_to_container_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteGuard<ContainerRow>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        Self::write_sound(&self.inner.containers, self.inner.dirs.containers(), change).await
    }

    /// Runs `change` in a blocking step that holds layers, images (also those of the graph root beside a separate
    /// image store) and containers exclusively.
    pub(crate) async fn write_to_all_stores<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut AllStores) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.inner.layers.write().await?;
        let mut images = vec![LockedImages {
            dir: self.inner.dirs.images(),
            records: self.inner.images.write().await?,
        }];
        if let Some(graph_images) = &self.inner.graph_images {
            images.push(LockedImages {
                dir: self.inner.dirs.graph_images(),
                records: graph_images.write().await?,
            });
        }
        let mut containers = self.inner.containers.write().await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            let dirs = inner.dirs.clone();
            for store in &mut images {
                mend(&mut store.records, &store.dir)?;
            }
            mend(&mut containers, &dirs.containers())?;
            let layers = LayerStore::enter(inner, layers)?;
            let mut all = AllStores {
                containers,
                images,
                layers,
            };
            let result = all.finish_interrupted(&dirs).and_then(|()| change(&mut all));
            let result = result.and_then(|value| all.settle().map(|()| value));
            let AllStores {
                containers,
                images,
                layers,
            } = all;
            drop(containers);
            drop(images);
            layers.finish(result)
        })
        .await
    }

    /// Runs `change` in a blocking step that holds the layers exclusively, snapshots of the additional layer stores,
    /// and the images exclusively with snapshots of the additional image stores: for what builds on an image.
    pub(crate) async fn write_to_layers_and_images<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayersAndImages) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.write_layers().await?;
        let additional_layers = read_additional(&self.inner.additional_layers).await?;
        let mut images = self.inner.images.write().await?;
        let additional_images = read_additional(&self.inner.additional_images).await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            mend(&mut images, &inner.dirs.images())?;
            let layers = LayerStore::enter(inner, layers)?;
            let mut held = LayersAndImages {
                additional_images,
                images,
                additional_layers,
                layers,
            };
            let result = change(&mut held).and_then(|value| {
                held.layers.settle()?;
                held.images.settle().map(|()| value)
            });
            let LayersAndImages {
                additional_images,
                images,
                additional_layers,
                layers,
            } = held;
            drop(additional_images);
            drop(images);
            drop(additional_layers);
            layers.finish(result)
        })
        .await
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

    /// Where layers are mounted and how often, at this moment.
    pub(crate) async fn mounts(&self) -> Result<Mounts> {
        let read = async |mounts: &MountPoints| match mounts.try_read()? {
            Some(known) => Ok(known),
            None => {
                let mounts = mounts.clone();
                bridge::run(move || mounts.read_blocking()).await
            }
        };
        Ok(Mounts {
            primary: read(&self.inner.mounts).await?,
            additional: match &self.inner.additional_mounts {
                Some(mounts) => read(mounts).await?,
                None => Arc::default(),
            },
        })
    }

    /// Takes the graph lock and makes sure that the driver is running: another process may have shut it down.
    pub(crate) async fn lock_graph(&self) -> Result<GraphGuard> {
        let held = self
            .inner
            .graph_lock
            .exclusive(self.inner.options.lock_timeout)
            .await?;
        let current = held.token()?;
        let known = self
            .inner
            .driver
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .token;
        if current == known {
            return Ok(GraphGuard { _held: held });
        }
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            inner.restart_driver(current)?;
            Ok(GraphGuard { _held: held })
        })
        .await
    }

    /// Marks the store as shut down for every process, this one included. Call with the graph lock held.
    pub(crate) fn mark_shut_down(graph: &GraphGuard) -> Result<()> {
        graph._held.write_token().map(drop)
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

/// What [`Store::write_to_layers_and_images`] holds; in the order in which it is released.
pub(crate) struct LayersAndImages {
    pub(crate) additional_images: Vec<ReadGuard<ImageRow>>,
    pub(crate) images: WriteGuard<ImageRow>,
    pub(crate) additional_layers: Vec<ReadGuard<LayerRow>>,
    pub(crate) layers: LayerStore,
}

/// Snapshots of additional stores, under their shared locks.
async fn read_additional<R: Record>(additional: &[Additional<R>]) -> Result<Vec<ReadGuard<R>>> {
    let mut held = Vec::with_capacity(additional.len());
    for store in additional {
        held.push(store.records.read().await?);
    }
    Ok(held)
}

/// As [`read_additional`], each with what it is.
async fn read_homes<R: Record>(additional: &[Additional<R>]) -> Result<Vec<(StoreOrigin, ReadGuard<R>)>> {
    let held = read_additional(additional).await?;
    let homes = additional
        .iter()
        .enumerate()
        .map(|(index, store)| store.home(index));
    Ok(homes.zip(held).collect())
}

/// Visits a primary store and then the additional ones, each under its shared lock, until `visit` breaks.
async fn visit_all<R: Record, T: Send>(
    primary: ReadGuard<R>,
    additional: &[Additional<R>],
    mut visit: impl FnMut(StoreOrigin, &Table<R>) -> Result<ControlFlow<T>> + Send,
) -> Result<Option<T>> {
    if let ControlFlow::Break(found) = visit(StoreOrigin::Primary, &primary)? {
        return Ok(Some(found));
    }
    let mut held = Vec::with_capacity(additional.len());
    for (index, store) in additional.iter().enumerate() {
        let guard = store.records.read().await?;
        if let ControlFlow::Break(found) = visit(store.home(index), &guard)? {
            return Ok(Some(found));
        }
        held.push(guard);
    }
    // Held to here, so that the answer is of one moment.
    drop((held, primary));
    Ok(None)
}

/// Puts right what a killed process has left in the records of images or containers, whose data is in `dir`: one name in
/// two records, and new content of items that has not reached its place.
fn mend<R: Items>(guard: &mut WriteGuard<R>, dir: &Path) -> Result<()> {
    if !guard.needs_repair() {
        return Ok(());
    }
    for id in guard.incomplete() {
        let Some(row) = guard.get(&id).map(Arc::clone) else {
            continue;
        };
        let settled = item_dir(dir.to_owned(), &id).and_then(|dir| row.remove_stale_items(&dir));
        if let Err(error) = settled {
            // It is found where it is.
            tracing::warn!(id, error = %error.chain(), "cannot move a big data item to its place");
        }
        guard.table_mut().update(&id, |row| row.set_intent(""))?;
    }
    guard.save()
}

/// Breaks a visit with what was found, if something was.
pub(crate) fn hit<T>(found: Option<T>) -> ControlFlow<T> {
    found.map_or(ControlFlow::Continue(()), ControlFlow::Break)
}
