//! Mounting and unmounting under the layer lock, with the counts that all processes share.

use std::path::{Path, PathBuf};

use crate::driver::MountOptions;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::record::mount_point::MountGuard;
use crate::store::layer_store::locked::LayerStore;
use crate::store::layer_store::new_layer::mappings_of;

impl LayerStore {
    /// Mounts a layer or counts one more use of a mount that is there.
    pub(crate) fn mount(&mut self, id: &str, mut options: MountOptions) -> Result<PathBuf> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        let known = mounts.get(&row.id).cloned();
        if let Some(known) = &known
            && crate::sys::mount::is_live_mount(Path::new(&known.path)).unwrap_or(false)
        {
            mounts.set(&row.id, &known.path, known.count.saturating_add(1));
            mounts.save(self.table())?;
            return Ok(PathBuf::from(&known.path));
        }
        if options.mount_label.is_empty() {
            options.mount_label.clone_from(&row.mount_label);
        }
        if !options.mappings.is_identity()
            && !self.driver.supports_shifting(&options.mappings)
            && options.mappings != mappings_of(&row)
        {
            return Err(
                ErrorKind::NotSupported.err(format!("cannot mount layer {:?}: shifting not enabled", row.id))
            );
        }
        let path = self
            .driver
            .mount(&row.id, &options)
            .context(|| format!("mounting layer {:?}", row.id))?;
        let count = known.map_or(0, |known| known.count).saturating_add(1);
        let saved = match path.to_str() {
            Some(text) => {
                mounts.set(&row.id, text, count);
                mounts.save(self.table())
            }
            None => Err(ErrorKind::UnsafePath
                .err("recording a mount point that is not UTF-8")
                .at(&path)),
        };
        if let Err(error) = saved {
            self.driver.unmount(&row.id)?;
            return Err(error);
        }
        Ok(path)
    }

    /// Undoes one mount and returns how many are left. The driver is asked even for a layer that is not counted as
    /// mounted, which is no error.
    pub(crate) fn unmount(&mut self, id: &str) -> Result<u64> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        let counted = mounts.get(&row.id).filter(|mount| mount.count > 1).cloned();
        if let Some(mount) = counted {
            let left = mount.count - 1;
            mounts.set(&row.id, &mount.path, left);
            mounts.save(self.table())?;
            return Ok(left.unsigned_abs());
        }
        self.unmount_last(&row.id, &mut mounts)?;
        Ok(0)
    }

    /// Undoes all mounts of a layer, as [`LayerStore::unmount`] undoes the last one.
    pub(crate) fn unmount_all(&mut self, id: &str) -> Result<()> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        self.unmount_last(&row.id, &mut mounts)
    }

    /// As [`LayerStore::unmount_all`]; does nothing for a layer that is not counted as mounted.
    pub(crate) fn unmount_counted(&mut self, id: &str) -> Result<()> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        match mounts.get(&row.id) {
            Some(_) => self.unmount_last(&row.id, &mut mounts),
            None => Ok(()),
        }
    }

    fn unmount_last(&self, id: &str, mounts: &mut MountGuard) -> Result<()> {
        self.driver
            .unmount(id)
            .context(|| format!("unmounting layer {id:?}"))?;
        if mounts.get(id).is_some() {
            mounts.set(id, "", 0);
            mounts.save(self.table())?;
        }
        Ok(())
    }
}
