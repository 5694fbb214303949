//! Undoing what a step has changed, and saving what several steps have changed together.

use crate::error::{Error, Result};
use crate::record::Savepoint;
use crate::store::access::held::Held;
use crate::store::layer_store::locked::Waste;

/// The state of everything at one moment.
pub(super) struct Before {
    layers: Option<Savepoint>,
    images: Vec<Savepoint>,
    containers: Option<Savepoint>,
    counts: u64,
}

/// The files of records, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kinds {
    layers: bool,
    images: bool,
    containers: bool,
    counts: bool,
}

impl Kinds {
    pub(super) fn add(&mut self, other: Self) {
        self.layers |= other.layers;
        self.images |= other.images;
        self.containers |= other.containers;
        self.counts |= other.counts;
    }
}

/// What a common save has come to.
#[derive(Default)]
pub(super) struct Saved {
    layers: Option<Error>,
    images: Option<Error>,
    containers: Option<Error>,
    counts: Option<Error>,
    /// What was saved may not survive a power cut.
    unsettled: Option<Error>,
}

impl Saved {
    /// What it means for a step that has changed these.
    pub(super) fn of(&self, changed: Kinds) -> Result<()> {
        let failures = [
            self.layers.as_ref().filter(|_| changed.layers),
            self.images.as_ref().filter(|_| changed.images),
            self.containers.as_ref().filter(|_| changed.containers),
            self.counts.as_ref().filter(|_| changed.counts),
            self.unsettled.as_ref(),
        ];
        match failures.into_iter().flatten().next() {
            None => Ok(()),
            Some(error) => Err(error.again()),
        }
    }
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

    /// What was changed since and not saved.
    pub(super) fn unsaved_since(&mut self, before: &Before) -> Kinds {
        let parts = self.changeable();
        let counts = parts.layers.as_ref().map_or(0, |layers| layers.counts_changed());
        let mut images = parts.images.iter().zip(&before.images);
        Kinds {
            layers: match (parts.layers, &before.layers) {
                (Some(layers), Some(before)) => layers.table().is_unsaved_since(before),
                _ => false,
            },
            images: images.any(|(store, before)| store.records.is_unsaved_since(before)),
            containers: match (parts.containers, &before.containers) {
                (Some(containers), Some(before)) => containers.is_unsaved_since(before),
                _ => false,
            },
            counts: counts != before.counts,
        }
    }

    /// Saves what was changed, and waits until it survives a power cut where that is promised.
    pub(super) fn save(&mut self) -> Saved {
        let parts = self.changeable();
        let mut saved = Saved::default();
        let mut settled = Ok(());
        if let Some(layers) = parts.layers {
            saved.counts = layers.save_counts().err();
            saved.layers = layers.save_changes().err();
            settled = settled.and(layers.settle());
        }
        for store in parts.images {
            let result = store.records.save();
            saved.images = saved.images.or(result.err());
            settled = settled.and(store.records.settle());
        }
        if let Some(containers) = parts.containers {
            saved.containers = containers.save().err();
            settled = settled.and(containers.settle());
        }
        saved.unsettled = settled.err();
        saved
    }

    /// What was deleted since the last call, to be removed from disk.
    pub(super) fn take_waste(&mut self) -> Waste {
        match self.changeable().layers {
            Some(layers) => layers.take_waste(),
            None => Waste::default(),
        }
    }
}
