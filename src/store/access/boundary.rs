//! Undoing what a step has changed, and saving what several steps have changed together.

use crate::error::{Error, Result};
use crate::record::record_trait::Record;
use crate::record::{Savepoint, WriteGuard};
use crate::store::access::held::Held;
use crate::store::layer_store::locked::Waste;

/// The state of everything at one moment.
pub(super) struct Before {
    layers: Option<Savepoint>,
    images: Vec<Savepoint>,
    containers: Option<Savepoint>,
    counts: u64,
}

/// What a step has changed: of each table the count of its changes then, 0 where it has changed nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changed {
    layers: u64,
    images: [u64; 2],
    containers: u64,
    counts: bool,
}

impl Changed {
    fn is_empty(self) -> bool {
        self.layers == 0 && self.images == [0; 2] && self.containers == 0 && !self.counts
    }

    pub(super) fn add(&mut self, other: Self) {
        self.layers = self.layers.max(other.layers);
        self.containers = self.containers.max(other.containers);
        self.counts |= other.counts;
        for (all, more) in self.images.iter_mut().zip(other.images) {
            *all = more.max(*all);
        }
    }
}

/// What a common save has come to: why something was not saved, or may not survive a power cut.
pub(super) struct Saved(Option<Error>);

impl Saved {
    /// What it means for a step that has changed these. One that has changed something may rely on what another has changed
    /// in another table: if any was not saved, it gets the error, whatever has become of its own changes.
    pub(super) fn of(&self, changed: Changed) -> Result<()> {
        let lost = self.0.as_ref().filter(|_| !changed.is_empty());
        lost.map_or(Ok(()), |error| Err(error.again()))
    }
}

/// Saves one table for all steps.
fn save_records<R: Record>(records: &mut WriteGuard<R>) -> Option<Error> {
    records.take_failure().or_else(|| records.save().err())
}

impl Held {
    /// The state of everything at this moment.
    pub(super) fn before(&mut self) -> Before {
        let parts = self.changeable();
        Before {
            layers: parts.layers.as_ref().map(|layers| layers.savepoint()),
            counts: parts.layers.map_or(0, |layers| layers.counts_changed()),
            images: parts
                .images
                .iter()
                .map(|store| store.records.savepoint())
                .collect(),
            containers: parts.containers.map(|containers| containers.savepoint()),
        }
    }

    /// Undoes what was changed since and not saved.
    pub(super) fn roll_back(&mut self, to: Before) {
        let parts = self.changeable();
        if let (Some(layers), Some(to)) = (parts.layers, to.layers) {
            layers.roll_back(to);
        }
        for (store, to) in parts.images.iter_mut().zip(to.images) {
            store.records.roll_back(to);
        }
        if let (Some(containers), Some(to)) = (parts.containers, to.containers) {
            containers.roll_back(to);
        }
    }

    /// What was changed since.
    pub(super) fn changed_since(&mut self, before: &Before) -> Changed {
        let parts = self.changeable();
        let mut changed = Changed::default();
        if let (Some(layers), Some(to)) = (&parts.layers, &before.layers) {
            changed.layers = layers.table().changed_since(to);
            changed.counts = layers.counts_changed() != before.counts;
        }
        for (index, (store, to)) in parts.images.iter().zip(&before.images).enumerate() {
            if let Some(images) = changed.images.get_mut(index) {
                *images = store.records.changed_since(to);
            }
        }
        if let (Some(containers), Some(to)) = (&parts.containers, &before.containers) {
            changed.containers = containers.changed_since(to);
        }
        changed
    }

    /// Whether some of these changes of records were not saved.
    pub(super) fn has_unsaved(&mut self, changed: &Changed) -> bool {
        let parts = self.changeable();
        let layers = parts.layers.map_or(0, |layers| layers.table().changes_at_save());
        let containers = parts
            .containers
            .map_or(0, |containers| containers.changes_at_save());
        let mut images = parts.images.iter().zip(changed.images);
        changed.layers > layers
            || changed.containers > containers
            || images.any(|(store, changed)| changed > store.records.changes_at_save())
    }

    /// Saves what was changed, and waits until it survives a power cut where that is promised.
    pub(super) fn save(&mut self) -> Saved {
        let parts = self.changeable();
        let (mut table, mut counts, mut settled) = (None, None, Ok(()));
        if let Some(layers) = parts.layers {
            counts = layers.save_counts_for_all();
            table = layers.save_for_all();
            settled = settled.and(layers.settle());
        }
        for store in parts.images.iter_mut() {
            let failed = save_records(&mut store.records);
            table = table.or(failed);
            settled = settled.and(store.records.settle());
        }
        if let Some(containers) = parts.containers {
            let failed = save_records(containers);
            table = table.or(failed);
            settled = settled.and(containers.settle());
        }
        Saved(table.or(counts).or(settled.err()))
    }

    /// What was deleted since the last call, to be removed from disk.
    pub(super) fn take_waste(&mut self) -> Waste {
        match self.changeable().layers {
            Some(layers) => layers.take_waste(),
            None => Waste::default(),
        }
    }
}
