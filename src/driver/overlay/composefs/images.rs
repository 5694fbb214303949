//! The images that a mount stands on, attached while it is made.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::image::Image;
use crate::driver::overlay::lower_mounts::sweep;
use crate::error::{IoContext as _, Result};
use crate::sys::make_private_subdir;
use crate::sys::mount::{attach, map_owners};

/// Images at numbered directories of one directory; unmounted when dropped.
#[derive(Debug)]
pub(in crate::driver::overlay) struct Images {
    dir: PathBuf,
    count: usize,
    is_made: bool,
    /// Whether the kernel verifies all of them.
    pub(in crate::driver::overlay) are_verified: bool,
}

impl Images {
    /// For a mount whose images are attached in `dir`.
    pub(in crate::driver::overlay) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            count: 0,
            is_made: false,
            are_verified: true,
        }
    }

    /// Attaches the image of the layer in `layer`, with owners mapped as in the user namespace `owners`. Returns where.
    pub(in crate::driver::overlay) fn add(
        &mut self,
        layer: &Path,
        owners: Option<&OwnedFd>,
    ) -> Result<PathBuf> {
        let image = Image::open(layer)?;
        self.are_verified &= image.is_verified();
        let mount = image.mount()?;
        if let Some(owners) = owners {
            map_owners(mount.as_fd(), owners.as_fd()).at("mapping owners of the image in", layer)?;
        }
        let target = self.dir.join(self.count.to_string());
        if !self.is_made {
            // Of a killed process.
            sweep(&self.dir);
        }
        self.is_made = true;
        make_private_subdir(&self.dir)?;
        make_private_subdir(&target)?;
        attach(mount.as_fd(), &target).at("attaching an image at", &target)?;
        self.count += 1;
        Ok(target)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if self.is_made {
            sweep(&self.dir);
        }
    }
}
