//! Mounting and unmounting under the layer lock, with the counts that all processes share.
//!
//! Layers of additional stores have counts in a file of their own: whoever writes the counts of the primary store's layers
//! drops all others.

use std::path::{Path, PathBuf};

use crate::driver::{MountOptions, MountState};
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountGuard;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::mappings_of;

/// Whose mounts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// The primary store's layers.
    Primary,
    /// Layers of additional stores.
    Additional,
}

impl LayerStore {
    /// Mounts a layer or counts one more use of a mount that is there.
    pub(crate) fn mount(&mut self, id: &str, options: MountOptions) -> Result<PathBuf> {
        let row = self.get(id)?;
        self.mount_row(&row, options, Counts::Primary)
    }

    /// As [`LayerStore::mount`], for a layer of an additional store; only read-only.
    pub(crate) fn mount_additional(&mut self, row: &LayerRow, options: MountOptions) -> Result<PathBuf> {
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

    fn lock_counts(&self, counts: Counts) -> Result<MountGuard> {
        match (counts, &self.inner.additional_mounts) {
            (Counts::Additional, Some(mounts)) => mounts.lock_blocking(),
            _ => self.inner.mounts.lock_blocking(),
        }
    }

    fn save_counts(&self, counts: Counts, mounts: &mut MountGuard) -> Result<()> {
        match counts {
            Counts::Primary => mounts.save(self.table()),
            Counts::Additional => mounts.save_all(),
        }
    }

    fn mount_row(&mut self, row: &LayerRow, mut options: MountOptions, counts: Counts) -> Result<PathBuf> {
        let mut mounts = self.lock_counts(counts)?;
        let known = mounts.get(&row.id).cloned();
        let state = known
            .as_ref()
            .map(|known| self.driver.mount_state(Path::new(&known.path)));
        if let (Some(known), Some(MountState::Here)) = (&known, state) {
            mounts.set(&row.id, &known.path, known.count.saturating_add(1));
            self.save_counts(counts, &mut mounts)?;
            return Ok(PathBuf::from(&known.path));
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
        let saved = match path.to_str() {
            Some(text) => {
                mounts.set(&row.id, text, count);
                self.save_counts(counts, &mut mounts)
            }
            None => Err(ErrorKind::UnsafePath
                .err("recording a mount point that is not UTF-8")
                .at(&path)),
        };
        if let Err(error) = saved {
            if let Err(undo) = self.driver.unmount(&row.id) {
                tracing::warn!(layer = %row.id, error = %undo.chain(), "cannot undo a mount that was not counted");
            }
            return Err(error.context(format!("mounting layer {:?}", row.id)));
        }
        Ok(path)
    }

    /// Undoes one mount and returns how many are left. The driver is asked even for a layer that is not counted as
    /// mounted, which is no error.
    pub(crate) fn unmount(&mut self, id: &str, counts: Counts) -> Result<u64> {
        self.require(id, counts)?;
        let mut mounts = self.lock_counts(counts)?;
        let counted = mounts.get(id).filter(|mount| mount.count > 1).cloned();
        if let Some(mount) = counted
            && self.driver.mount_state(Path::new(&mount.path)) != MountState::Nowhere
        {
            let left = mount.count - 1;
            mounts.set(id, &mount.path, left);
            self.save_counts(counts, &mut mounts)?;
            return Ok(left.unsigned_abs());
        }
        self.unmount_last(id, counts, &mut mounts)?;
        Ok(0)
    }

    /// As [`LayerStore::unmount`], of a layer of whichever store.
    pub(crate) fn unmount_any(&mut self, id: &str) -> Result<u64> {
        let additional = match (self.table().get(id), &self.inner.additional_mounts) {
            (None, Some(mounts)) => mounts.read_blocking()?.get(id).is_some(),
            _ => false,
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
        let mut mounts = self.lock_counts(counts)?;
        self.unmount_last(id, counts, &mut mounts)
    }

    /// As [`LayerStore::unmount_all`]; does nothing for a layer that is not counted as mounted.
    pub(crate) fn unmount_counted(&mut self, id: &str) -> Result<()> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        match mounts.get(&row.id) {
            Some(_) => self.unmount_last(&row.id, Counts::Primary, &mut mounts),
            None => Ok(()),
        }
    }

    fn unmount_last(&self, id: &str, counts: Counts, mounts: &mut MountGuard) -> Result<()> {
        // Nobody is counted any more: what a killed process has mounted without counting it ends too.
        self.driver
            .unmount_all(id)
            .context(|| format!("unmounting layer {id:?}"))?;
        if mounts.get(id).is_some() {
            mounts.set(id, "", 0);
            self.save_counts(counts, mounts)?;
        }
        Ok(())
    }
}
