//! Mounting and unmounting under the layer lock, with the counts that all processes share.

use std::path::{Path, PathBuf};

use crate::driver::MountOptions;
use crate::error::{ErrorKind, Result, ResultExt as _};
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

    /// Undoes one mount. `force` counts all mounts as one; `conditional` makes "not mounted" an error. Returns
    /// whether it is still mounted.
    pub(crate) fn unmount(&mut self, id: &str, force: bool, conditional: bool) -> Result<bool> {
        let row = self.get(id)?;
        let mut mounts = self.inner.mounts.lock_blocking()?;
        let known = mounts.get(&row.id).cloned().unwrap_or_default();
        let mut count = known.count;
        if conditional && count <= 0 {
            return Err(ErrorKind::LayerNotMounted.err(format!("unmounting layer {:?}", row.id)));
        }
        if force {
            count = count.min(1);
        }
        if count > 1 {
            mounts.set(&row.id, &known.path, count - 1);
            mounts.save(self.table())?;
            return Ok(true);
        }
        self.driver
            .unmount(&row.id)
            .context(|| format!("unmounting layer {:?}", row.id))?;
        if count > 0 {
            mounts.set(&row.id, "", 0);
            mounts.save(self.table())?;
        }
        Ok(false)
    }

    /// Unmounts a layer as often as it is mounted.
    pub(crate) fn unmount_all(&mut self, id: &str) -> Result<()> {
        loop {
            match self.unmount(id, false, true) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::LayerNotMounted => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
