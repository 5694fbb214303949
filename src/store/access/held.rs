//! Locks that a step holds, with what they protect: taken in the lock order, released in the reverse order.

use std::sync::{Arc, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::lock::record_lock::{ExclusiveLock, Patience};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::access::in_flight::InFlight;
use crate::store::access::mend::{MAX_CLEANUPS, mend};
use crate::store::access::needs::{Level, Needs};
use crate::store::all_stores::{AllStores, LockedImages};
use crate::store::inner::{Additional, Inner};
use crate::store::layer_store::locked::LayerStore;

/// The layers, held in some way.
enum Layers {
    None,
    Shared(ReadGuard<LayerRow>),
    Exclusive(Box<LayerStore>),
}

/// The images, held in some way.
enum Images {
    None,
    Shared(ReadGuard<ImageRow>),
    /// The primary image store, then that of the graph root if images lie apart and it was asked for.
    Exclusive(Vec<LockedImages>),
}

/// What a step holds; in the order in which it is released.
pub(crate) struct Held {
    needs: Needs,
    containers: Option<WriteGuard<ContainerRow>>,
    additional_images: Vec<ReadGuard<ImageRow>>,
    images: Images,
    additional_layers: Vec<ReadGuard<LayerRow>>,
    layers: Layers,
    graph: Option<ExclusiveLock>,
    /// Of containers, what steps are in the middle of.
    pub(crate) in_flight: InFlight,
}

/// The parts of a step's locks whose records can be changed.
pub(super) struct Changeable<'a> {
    pub(super) layers: Option<&'a mut LayerStore>,
    pub(super) images: &'a mut [LockedImages],
    pub(super) containers: Option<&'a mut WriteGuard<ContainerRow>>,
}

/// What taking the locks comes to.
enum Taken {
    Held(Box<Held>),
    /// Something that a killed process has left takes more locks to put right.
    More(Needs),
    Busy,
}

fn not_held(what: &str) -> Error {
    ErrorKind::InvalidInput.err(format!("a step that has not asked for the lock of {what}"))
}

fn read_all<R: Record>(stores: &[Additional<R>], patience: Patience) -> Result<Option<Vec<ReadGuard<R>>>> {
    let mut held = Vec::with_capacity(stores.len());
    for store in stores {
        match store.records.read_with(patience)? {
            Some(guard) => held.push(guard),
            None => return Ok(None),
        }
    }
    Ok(Some(held))
}

/// The value of an option, or `Busy`.
macro_rules! taken {
    ($option:expr) => {
        match $option {
            Some(held) => held,
            None => return Ok(Taken::Busy),
        }
    };
}

impl Held {
    /// Takes the locks, waiting as long as `patience` says, and puts right what killed processes have left; `None` if
    /// they are not free by then.
    pub(super) fn take(inner: &Arc<Inner>, needs: Needs, patience: Patience) -> Result<Option<Box<Self>>> {
        let mut needs = needs;
        for _ in 0..=MAX_CLEANUPS {
            match Self::try_take(inner, needs, patience)? {
                Taken::Held(held) => return Ok(Some(held)),
                Taken::Busy => return Ok(None),
                Taken::More(more) => needs = needs.union(more),
            }
        }
        let what = format!("finishing what was interrupted ({MAX_CLEANUPS} attempts)");
        Err(ErrorKind::LoadError.err(what))
    }

    fn try_take(inner: &Arc<Inner>, needs: Needs, patience: Patience) -> Result<Taken> {
        let mut held = Self {
            needs,
            containers: None,
            additional_images: Vec::new(),
            images: Images::None,
            additional_layers: Vec::new(),
            layers: Layers::None,
            graph: None,
            in_flight: InFlight::default(),
        };
        if needs.graph {
            held.graph = Some(taken!(inner.graph_lock.exclusive_with(patience)?));
            held.start_driver(inner)?;
        }
        let mut layers = None;
        match needs.layers {
            Level::None => {}
            Level::Shared => held.layers = Layers::Shared(taken!(inner.layers.read_with(patience)?)),
            Level::Exclusive => layers = Some(taken!(inner.layers.write_with(patience)?)),
        }
        if needs.additional && needs.layers > Level::None {
            held.additional_layers = taken!(read_all(&inner.additional_layers, patience)?);
        }
        match needs.images {
            Level::None => {}
            Level::Shared => held.images = Images::Shared(taken!(inner.images.read_with(patience)?)),
            Level::Exclusive => {
                let mut images = vec![LockedImages {
                    dir: inner.dirs.images(),
                    records: taken!(inner.images.write_with(patience)?),
                }];
                if let Some(records) = inner.graph_images.as_ref().filter(|_| needs.graph_images) {
                    images.push(LockedImages {
                        dir: inner.dirs.graph_images(),
                        records: taken!(records.write_with(patience)?),
                    });
                }
                held.images = Images::Exclusive(images);
            }
        }
        if needs.additional && needs.images > Level::None {
            // The first one is held exclusively already if it is that of the graph root.
            let own = usize::from(needs.graph_images && inner.graph_images.is_some());
            let others = inner.additional_images.get(own..).unwrap_or_default();
            held.additional_images = taken!(read_all(others, patience)?);
        }
        if needs.containers {
            held.containers = Some(taken!(inner.containers.write_with(patience)?));
        }
        held.repair(inner, layers)
    }

    /// Starts the driver anew if another process has shut the store down.
    fn start_driver(&self, inner: &Inner) -> Result<()> {
        let Some(graph) = &self.graph else { return Ok(()) };
        let current = graph.token()?;
        let known = inner.driver.read().unwrap_or_else(PoisonError::into_inner).token;
        match current == known {
            true => Ok(()),
            false => inner.restart_driver(current),
        }
    }

    /// Puts right what killed processes have left.
    fn repair(mut self, inner: &Arc<Inner>, layers: Option<WriteGuard<LayerRow>>) -> Result<Taken> {
        match &mut self.images {
            Images::None => {}
            Images::Shared(images) if images.needs_repair() => return Ok(Taken::More(Needs::IMAGES)),
            Images::Shared(_) => {}
            Images::Exclusive(images) => images
                .iter_mut()
                .try_for_each(|store| mend(&mut store.records, &store.dir))?,
        }
        if let Some(containers) = &mut self.containers {
            mend(containers, &inner.dirs.containers())?;
        }
        let everything = Needs::ALL.is_covered_by(self.needs);
        match (&self.layers, layers) {
            (Layers::Shared(layers), _) => {
                if layers.reloaded() {
                    // Another process has written the records since; it may have been killed.
                    inner.try_recover();
                }
                if layers.needs_repair() {
                    return Ok(Taken::More(Needs::LAYERS));
                }
            }
            (_, Some(layers)) => {
                let incomplete = layers.incomplete();
                let mut rows = incomplete.iter().filter_map(|id| layers.get(id));
                if !everything && rows.any(|row| row.companion().is_some()) {
                    // To be decided on with all locks.
                    return Ok(Taken::More(Needs::ALL));
                }
                let store = LayerStore::enter(Arc::clone(inner), layers)?;
                self.layers = Layers::Exclusive(Box::new(store));
            }
            _ => {}
        }
        if everything {
            self.all()?.finish_interrupted(&inner.dirs)?;
        }
        Ok(Taken::Held(Box::new(self)))
    }

    /// The locks that are held.
    pub(super) fn needs(&self) -> Needs {
        self.needs
    }

    /// The layers, to be changed.
    pub(crate) fn layers(&mut self) -> Result<&mut LayerStore> {
        match &mut self.layers {
            Layers::Exclusive(layers) => Ok(layers),
            _ => Err(not_held("the layers")),
        }
    }

    /// The primary image store, to be changed.
    pub(crate) fn images(&mut self) -> Result<&mut WriteGuard<ImageRow>> {
        let Images::Exclusive(images) = &mut self.images else {
            return Err(not_held("the images"));
        };
        let primary = images.first_mut().map(|store| &mut store.records);
        primary.ok_or_else(|| not_held("the images"))
    }

    /// The containers, to be changed.
    pub(crate) fn containers(&mut self) -> Result<&mut WriteGuard<ContainerRow>> {
        self.containers.as_mut().ok_or_else(|| not_held("the containers"))
    }

    /// What of the records can be changed.
    pub(super) fn changeable(&mut self) -> Changeable<'_> {
        Changeable {
            layers: match &mut self.layers {
                Layers::Exclusive(layers) => Some(layers),
                _ => None,
            },
            images: match &mut self.images {
                Images::Exclusive(images) => images,
                _ => &mut [],
            },
            containers: self.containers.as_mut(),
        }
    }

    /// Marks the store as shut down for every process, this one included.
    pub(crate) fn mark_shut_down(&self) -> Result<()> {
        let graph = self.graph.as_ref().ok_or_else(|| not_held("the graph"))?;
        graph.write_token().map(drop)
    }

    /// Everything that can be written.
    pub(crate) fn all(&mut self) -> Result<AllStores<'_>> {
        let (Layers::Exclusive(layers), Images::Exclusive(images), Some(containers)) =
            (&mut self.layers, &mut self.images, &mut self.containers)
        else {
            return Err(not_held("everything"));
        };
        Ok(AllStores {
            containers,
            images,
            layers,
            in_flight: &self.in_flight,
        })
    }

    /// The layers and containers, to be changed.
    pub(crate) fn layers_and_containers(
        &mut self,
    ) -> Result<(&mut LayerStore, &mut WriteGuard<ContainerRow>)> {
        match (&mut self.layers, &mut self.containers) {
            (Layers::Exclusive(layers), Some(containers)) => Ok((layers, containers)),
            _ => Err(not_held("the layers and the containers")),
        }
    }

    /// Snapshots of the additional layer stores.
    pub(crate) fn layers_and_additional(&mut self) -> Result<(&mut LayerStore, &[ReadGuard<LayerRow>])> {
        match &mut self.layers {
            Layers::Exclusive(layers) => Ok((layers, &self.additional_layers)),
            _ => Err(not_held("the layers")),
        }
    }

    /// The layers of the primary store, then of the additional ones.
    fn layer_tables(&self) -> impl Iterator<Item = &Table<LayerRow>> {
        let primary = match &self.layers {
            Layers::None => None,
            Layers::Shared(layers) => Some(&**layers),
            Layers::Exclusive(layers) => Some(layers.table()),
        };
        primary
            .into_iter()
            .chain(self.additional_layers.iter().map(|guard| &**guard))
    }

    /// The images of the primary store, then of the additional ones.
    fn image_tables(&self) -> impl Iterator<Item = &Table<ImageRow>> {
        let (shared, exclusive) = match &self.images {
            Images::None => (None, &[][..]),
            Images::Shared(images) => (Some(&**images), &[][..]),
            Images::Exclusive(images) => (None, images.as_slice()),
        };
        shared
            .into_iter()
            .chain(exclusive.iter().map(|store| &*store.records))
            .chain(self.additional_images.iter().map(|guard| &**guard))
    }

    /// What shows that records of containers were lost, see [`LayerStore::layer_without_container`].
    pub(crate) fn layer_without_container(&self) -> Result<Option<String>> {
        let (Layers::Exclusive(layers), Some(containers)) = (&self.layers, &self.containers) else {
            return Err(not_held("the layers and the containers"));
        };
        let images = self.image_tables().take(1).flat_map(Table::rows);
        layers.layer_without_container(images, containers)
    }

    /// Whether the primary image store can be changed.
    pub(crate) fn can_change_images(&self) -> bool {
        self.needs.images == Level::Exclusive
    }

    /// A layer of any store by its ID, name or ID prefix.
    pub(crate) fn find_layer(&self, key: &str) -> Result<Arc<LayerRow>> {
        let found = self.layer_tables().find_map(|table| table.find_complete(key));
        found.map(Arc::clone).ok_or_else(|| LayerRow::unknown(key))
    }

    /// A layer of any store by its ID, and whether it is in the primary one.
    pub(crate) fn layer(&self, id: &str) -> Option<(Arc<LayerRow>, bool)> {
        let mut tables = self.layer_tables().enumerate();
        tables.find_map(|(index, table)| Some((Arc::clone(table.get_complete(id)?), index == 0)))
    }

    /// The image with this ID, name or ID prefix, and whether it is in the primary image store.
    pub(crate) fn find_image(&self, key: &str) -> Result<(Arc<ImageRow>, bool)> {
        let mut tables = self.image_tables().enumerate();
        let found = tables.find_map(|(index, table)| Some((Arc::clone(table.find(key)?), index == 0)));
        found.ok_or_else(|| ImageRow::unknown(key))
    }
}
