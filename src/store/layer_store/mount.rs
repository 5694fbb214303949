//! Mounting and unmounting under the layer lock, with the counts that all processes share. They are saved by the caller.

use std::path::{Path, PathBuf};

use crate::driver::{MountOptions, MountState};
use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::record::inline_id::InlineId;
use crate::record::layer::LayerRow;
use crate::store::layer_store::counts::Counts;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::mappings_of;

/// A layer that was mounted, or counted once more.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    /// The layer, if the kernel's mount is new: to be undone if the count cannot be saved.
    fresh: Option<InlineId>,
}

impl LayerStore {
    /// Mounts a layer or counts one more use of a mount that is there. The count is to be saved, or the mount to be
    /// [undone](LayerStore::undo_mount).
    pub(crate) fn mount(&mut self, id: &str, options: MountOptions) -> Result<Mounted> {
        let row = self.get(id)?;
        self.mount_row(&row, options, Counts::Primary)
    }

    /// As [`LayerStore::mount`], for a layer of an additional store; only read-only.
    pub(crate) fn mount_additional(&mut self, row: &LayerRow, options: MountOptions) -> Result<Mounted> {
        let parts = |option: &String| option.split(',').any(|part| part == "ro");
        if !options.options.iter().any(parts) {
            let what = format!(
                "mounting read/only store images is not allowed: layer {:?} without the option ro",
                row.id
            );
            return Err(ErrorKind::StoreIsReadOnly.err(what));
        }
        self.mount_row(row, options, Counts::Additional)
    }

    /// Whether the layer is there; additional stores were looked into by the caller.
    fn require(&self, id: &str, counts: Counts) -> Result<()> {
        match counts {
            Counts::Primary => self.get(id).map(drop),
            Counts::Additional => Ok(()),
        }
    }

    /// How often a count was changed.
    pub(crate) fn counts_changed(&self) -> u64 {
        self.counts.changed()
    }

    /// Saves the counts that were changed, and releases their lock.
    pub(crate) fn save_counts(&mut self) -> Result<()> {
        self.counts.save(&self.guard)
    }

    /// Removes what killed writers of the counts have left.
    pub(crate) fn remove_stale_counts(&mut self) -> Result<()> {
        self.counts.lock(&self.inner, Counts::Primary)?.remove_stale()
    }

    /// As [`LayerStore::save_counts`], for all steps that have changed counts.
    pub(crate) fn save_counts_for_all(&mut self) -> Option<Error> {
        self.counts.save_for_all(&self.guard)
    }

    fn mount_row(&mut self, row: &LayerRow, mut options: MountOptions, counts: Counts) -> Result<Mounted> {
        let known = self.counts.lock(&self.inner, counts)?.get(&row.id).cloned();
        let state = known
            .as_ref()
            .map(|known| self.driver.mount_state(Path::new(&known.path)));
        if let (Some(known), Some(MountState::Here)) = (&known, state) {
            let count = known.count.saturating_add(1);
            self.counts
                .set(&self.inner, counts, &row.id, &known.path, count)?;
            return Ok(Mounted {
                path: PathBuf::from(&known.path),
                fresh: None,
            });
        }
        // Uses that ended without an unmount, as at a reboot, do not count.
        let others = match (&known, state) {
            (Some(known), Some(MountState::Elsewhere)) => known.count,
            _ => 0,
        };
        if options.mount_label.is_empty() {
            options.mount_label.clone_from(&row.mount_label);
        }
        if !options.mappings.is_identity()
            && !self.driver.supports_shifting(&options.mappings)
            && options.mappings != mappings_of(row)
        {
            return Err(
                ErrorKind::NotSupported.err(format!("cannot mount layer {:?}: shifting not enabled", row.id))
            );
        }
        let mounted = self.driver.mount(&row.id, &options);
        let path = files_of(&row.id, mounted).context(|| format!("mounting layer {:?}", row.id))?;
        let count = others.saturating_add(1);
        let counted = match path.to_str() {
            Some(text) => self.counts.set(&self.inner, counts, &row.id, text, count),
            None => Err(ErrorKind::UnsafePath
                .err("recording a mount point that is not UTF-8")
                .at(&path)),
        };
        let mounted = Mounted {
            path,
            fresh: Some(row.id.clone()),
        };
        match counted {
            Ok(()) => Ok(mounted),
            Err(error) => Err(self.undo_mount(&mounted, error)),
        }
    }

    /// Ends a new mount that was not counted because of `error`.
    pub(crate) fn undo_mount(&self, mounted: &Mounted, error: Error) -> Error {
        let Some(id) = &mounted.fresh else { return error };
        if let Err(undo) = self.driver.unmount(id) {
            tracing::warn!(layer = %id, error = %undo.chain(), "cannot undo a mount that was not counted");
        }
        error.context(format!("mounting layer {id:?}"))
    }

    /// Undoes one mount and returns how many are left. The driver is asked even for a layer that is not counted as
    /// mounted, which is no error.
    pub(crate) fn unmount(&mut self, id: &str, counts: Counts) -> Result<u64> {
        self.require(id, counts)?;
        let mounts = self.counts.lock(&self.inner, counts)?;
        let counted = mounts.get(id).filter(|mount| mount.count > 1).cloned();
        if let Some(mount) = counted
            && self.driver.mount_state(Path::new(&mount.path)) != MountState::Nowhere
        {
            let left = mount.count - 1;
            self.counts.set(&self.inner, counts, id, &mount.path, left)?;
            return Ok(left.unsigned_abs());
        }
        self.unmount_last(id, counts)?;
        Ok(0)
    }

    /// As [`LayerStore::unmount`], of a layer of whichever store.
    pub(crate) fn unmount_any(&mut self, id: &str) -> Result<u64> {
        let additional = match self.table().get(id) {
            None => self
                .counts
                .lock(&self.inner, Counts::Additional)?
                .get(id)
                .is_some(),
            Some(_) => false,
        };
        let counts = if additional {
            Counts::Additional
        } else {
            Counts::Primary
        };
        self.unmount(id, counts)
    }

    /// Undoes all mounts of a layer, as [`LayerStore::unmount`] undoes the last one.
    pub(crate) fn unmount_all(&mut self, id: &str, counts: Counts) -> Result<()> {
        self.require(id, counts)?;
        self.unmount_last(id, counts)
    }

    /// As [`LayerStore::unmount_all`]; does nothing for a layer that is not counted as mounted.
    pub(crate) fn unmount_counted(&mut self, id: &str) -> Result<()> {
        let row = self.get(id)?;
        match self.counts.lock(&self.inner, Counts::Primary)?.get(&row.id) {
            Some(_) => self.unmount_last(&row.id, Counts::Primary),
            None => Ok(()),
        }
    }

    fn unmount_last(&mut self, id: &str, counts: Counts) -> Result<()> {
        // Nobody is counted any more: what a killed process has mounted without counting it ends too.
        self.driver
            .unmount_all(id)
            .context(|| format!("unmounting layer {id:?}"))?;
        if self.counts.lock(&self.inner, counts)?.get(id).is_some() {
            self.counts.set(&self.inner, counts, id, "", 0)?;
        }
        Ok(())
    }

    /// The layers that are mounted, and where they are counted.
    pub(crate) fn mounted(&mut self) -> Result<Vec<(String, Counts)>> {
        let mut mounted = Vec::new();
        for counts in [Counts::Primary, Counts::Additional] {
            if counts == Counts::Additional && self.inner.additional_mounts.is_none() {
                continue;
            }
            let mounts = self.counts.lock(&self.inner, counts)?;
            let known = mounts.rows().filter(|mount| {
                (counts == Counts::Additional || self.guard.get(&mount.id).is_some())
                    && self.driver.mount_state(Path::new(&mount.path)) != MountState::Nowhere
            });
            mounted.extend(known.map(|mount| (mount.id.clone(), counts)));
        }
        Ok(mounted)
    }
}
