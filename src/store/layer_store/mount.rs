//! Mounting and unmounting under the layer lock, with the counts that all processes share. They are saved by the caller.
//!
//! What the driver has to do is apart ([`NewMount::make`], [`LastUnmount::make`]): it needs no records.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::{Driver, MountOptions, MountState};
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

/// What mounting a layer takes.
pub(crate) enum MountPlan {
    /// Nothing more: it is mounted, and was counted once more.
    Counted(Mounted),
    New(NewMount),
}

/// A mount that the driver is to make.
pub(crate) struct NewMount {
    driver: Arc<dyn Driver>,
    id: InlineId,
    options: MountOptions,
    counts: Counts,
    /// Uses of a mount that is elsewhere.
    others: i64,
}

impl NewMount {
    /// Mounts the layer; which is then to be [counted](LayerStore::count_mount).
    pub(crate) fn make(&self) -> Result<PathBuf> {
        let mounted = self.driver.mount(&self.id, &self.options);
        files_of(&self.id, mounted).context(|| format!("mounting layer {:?}", self.id))
    }
}

/// What unmounting a layer takes.
pub(crate) enum UnmountPlan {
    /// Nothing more: it stays mounted for so many others, and was counted once less.
    Counted(u64),
    Last(LastUnmount),
}

/// A layer whose mounts the driver is to end.
pub(crate) struct LastUnmount {
    driver: Arc<dyn Driver>,
    id: String,
    counts: Counts,
}

impl LastUnmount {
    /// Unmounts the layer; which is then to be [counted](LayerStore::count_unmounted).
    pub(crate) fn make(&self) -> Result<()> {
        // Nobody is counted any more: what a killed process has mounted without counting it ends too.
        let unmounted = self.driver.unmount_all(&self.id);
        unmounted.context(|| format!("unmounting layer {:?}", self.id))
    }
}

impl LayerStore {
    /// Begins to mount a layer, or counts one more use of a mount that is there. The count is to be saved, or the mount to be
    /// [undone](LayerStore::undo_mount).
    pub(crate) fn plan_mount(&mut self, id: &str, options: MountOptions) -> Result<MountPlan> {
        let row = self.get(id)?;
        self.plan_mount_of(&row, options, Counts::Primary)
    }

    /// As [`LayerStore::plan_mount`], for a layer of an additional store; only read-only.
    pub(crate) fn plan_additional(&mut self, row: &LayerRow, options: MountOptions) -> Result<MountPlan> {
        let parts = |option: &String| option.split(',').any(|part| part == "ro");
        if !options.options.iter().any(parts) {
            let what = format!(
                "mounting read/only store images is not allowed: layer {:?} without the option ro",
                row.id
            );
            return Err(ErrorKind::StoreIsReadOnly.err(what));
        }
        self.plan_mount_of(row, options, Counts::Additional)
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

    fn plan_mount_of(
        &mut self,
        row: &LayerRow,
        mut options: MountOptions,
        counts: Counts,
    ) -> Result<MountPlan> {
        let known = self.counts.lock(&self.inner, counts)?.get(&row.id).cloned();
        let state = known
            .as_ref()
            .map(|known| self.driver.mount_state(Path::new(&known.path)))
            .transpose()?;
        if let (Some(known), Some(MountState::Here)) = (&known, state) {
            let count = known.count.saturating_add(1);
            self.counts
                .set(&self.inner, counts, &row.id, &known.path, count)?;
            return Ok(MountPlan::Counted(Mounted {
                path: PathBuf::from(&known.path),
                fresh: None,
            }));
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
        Ok(MountPlan::New(NewMount {
            driver: Arc::clone(&self.driver),
            id: row.id.clone(),
            options,
            counts,
            others,
        }))
    }

    /// Counts a new mount.
    pub(crate) fn count_mount(&mut self, new: &NewMount, path: PathBuf) -> Result<Mounted> {
        let count = new.others.saturating_add(1);
        let counted = match path.to_str() {
            Some(text) => self.counts.set(&self.inner, new.counts, &new.id, text, count),
            None => Err(ErrorKind::UnsafePath
                .err("recording a mount point that is not UTF-8")
                .at(&path)),
        };
        let mounted = Mounted {
            path,
            fresh: Some(new.id.clone()),
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
        match self.plan_unmount(id, counts)? {
            UnmountPlan::Counted(left) => Ok(left),
            UnmountPlan::Last(last) => self.unmount_last(&last).map(|()| 0),
        }
    }

    /// Begins to undo one mount, see [`LayerStore::unmount`].
    pub(crate) fn plan_unmount(&mut self, id: &str, counts: Counts) -> Result<UnmountPlan> {
        self.require(id, counts)?;
        let mounts = self.counts.lock(&self.inner, counts)?;
        let counted = mounts.get(id).filter(|mount| mount.count > 1).cloned();
        if let Some(mount) = counted
            && self.driver.mount_state(Path::new(&mount.path))? != MountState::Nowhere
        {
            let left = mount.count - 1;
            self.counts.set(&self.inner, counts, id, &mount.path, left)?;
            return Ok(UnmountPlan::Counted(left.unsigned_abs()));
        }
        Ok(UnmountPlan::Last(self.last_unmount(id, counts)))
    }

    /// Where the mounts of a layer of whichever store are counted.
    pub(crate) fn counts_of(&mut self, id: &str) -> Result<Counts> {
        let additional = match self.table().get(id) {
            None => self
                .counts
                .lock(&self.inner, Counts::Additional)?
                .get(id)
                .is_some(),
            Some(_) => false,
        };
        Ok(match additional {
            true => Counts::Additional,
            false => Counts::Primary,
        })
    }

    /// Begins to undo all mounts of a layer, as [`LayerStore::unmount`] undoes the last one.
    pub(crate) fn plan_unmount_all(&mut self, id: &str, counts: Counts) -> Result<UnmountPlan> {
        self.require(id, counts)?;
        Ok(UnmountPlan::Last(self.last_unmount(id, counts)))
    }

    /// Undoes all mounts of a layer.
    pub(crate) fn unmount_all(&mut self, id: &str, counts: Counts) -> Result<()> {
        self.require(id, counts)?;
        self.unmount_last(&self.last_unmount(id, counts))
    }

    /// As [`LayerStore::plan_unmount_all`]; `None` for a layer that is not counted as mounted.
    pub(crate) fn plan_unmount_counted(&mut self, id: &str) -> Result<Option<LastUnmount>> {
        let row = self.get(id)?;
        let mounts = self.counts.lock(&self.inner, Counts::Primary)?;
        let counted = mounts.get(&row.id).is_some();
        Ok(counted.then(|| self.last_unmount(&row.id, Counts::Primary)))
    }

    fn last_unmount(&self, id: &str, counts: Counts) -> LastUnmount {
        LastUnmount {
            driver: Arc::clone(&self.driver),
            id: id.to_owned(),
            counts,
        }
    }

    fn unmount_last(&mut self, last: &LastUnmount) -> Result<()> {
        last.make()?;
        self.count_unmounted(last)
    }

    /// Counts that a layer is mounted no more.
    pub(crate) fn count_unmounted(&mut self, last: &LastUnmount) -> Result<()> {
        let (id, counts) = (&last.id, last.counts);
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
            for mount in mounts.rows() {
                if (counts == Counts::Additional || self.guard.get(&mount.id).is_some())
                    && self.driver.mount_state(Path::new(&mount.path))? != MountState::Nowhere
                {
                    mounted.push((mount.id.clone(), counts));
                }
            }
        }
        Ok(mounted)
    }
}
