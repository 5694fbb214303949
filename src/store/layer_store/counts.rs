//! The counts of mounts while they are being changed.
//!
//! Layers of additional stores have counts in a file of their own: whoever writes the counts of the primary store's layers
//! drops all others. The locks of both files are leaves below the layer lock.

use crate::error::{Error, ErrorKind, Result};
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountGuard;
use crate::record::table::Table;
use crate::store::inner::Inner;

/// Whose mounts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// The primary store's layers.
    Primary,
    /// Layers of additional stores.
    Additional,
}

/// The counts that are locked, from the first use to the next save.
#[derive(Debug, Default)]
pub(crate) struct HeldCounts {
    primary: Option<MountGuard>,
    additional: Option<MountGuard>,
    /// How often a count was changed.
    changed: u64,
    /// Why a save has failed.
    failed: Option<Error>,
}

impl HeldCounts {
    /// The counts; locks them unless they are locked already.
    pub(super) fn lock(&mut self, inner: &Inner, counts: Counts) -> Result<&mut MountGuard> {
        let (held, mounts) = match (counts, &inner.additional_mounts) {
            (Counts::Additional, Some(mounts)) => (&mut self.additional, mounts),
            _ => (&mut self.primary, &inner.mounts),
        };
        if held.is_none() {
            *held = Some(mounts.lock_blocking()?);
        }
        held.as_mut().ok_or_else(|| ErrorKind::Io.err("counting mounts"))
    }

    /// Sets a count, see [`MountGuard::set`].
    pub(super) fn set(
        &mut self,
        inner: &Inner,
        counts: Counts,
        id: &str,
        path: &str,
        count: i64,
    ) -> Result<()> {
        self.lock(inner, counts)?.set(id, path, count);
        self.changed += 1;
        Ok(())
    }

    /// How often a count was changed.
    pub(super) fn changed(&self) -> u64 {
        self.changed
    }

    /// Saves what was changed, and releases the locks. What could not be saved is as it was.
    pub(super) fn save(&mut self, layers: &Table<LayerRow>) -> Result<()> {
        let primary = match self.primary.take() {
            Some(mut mounts) if mounts.is_changed() => mounts.save(layers),
            _ => Ok(()),
        };
        let additional = match self.additional.take() {
            Some(mut mounts) if mounts.is_changed() => mounts.save_all(),
            _ => Ok(()),
        };
        let saved = primary.and(additional);
        if let Err(error) = &saved {
            self.failed.get_or_insert_with(|| error.again());
        }
        saved
    }

    /// As [`HeldCounts::save`], for all who have changed counts: a save for one of them that has failed has lost the changes of
    /// all.
    pub(super) fn save_for_all(&mut self, layers: &Table<LayerRow>) -> Option<Error> {
        let saved = self.save(layers);
        self.failed.take().or(saved.err())
    }
}
