//! The content of a layer that does not exist yet, in a subvolume in a temporary directory.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use crate::driver::btrfs::home::stage_deletion;
use crate::driver::btrfs::state::Btrfs;
use crate::driver::contract::{CreateOptions, LayerTree, Staged};
use crate::driver::layer_copy::LayerCopy;
use crate::driver::unpack_dir::{self, UnpackDir};
use crate::error::{IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;

/// See the module's head.
#[derive(Debug)]
pub(super) struct StagedSubvolume {
    driver: Arc<Btrfs>,
    tree: LayerTree,
    /// Where content is unpacked before it is merged into the snapshot of the parent.
    unpack_dir: Option<UnpackDir>,
    /// The subvolume, inside `temp`.
    path: PathBuf,
    /// Owns the temporary directory and its lock.
    temp: TempDir,
}

impl StagedSubvolume {
    /// Starts the content of a layer on `parent`.
    pub(super) fn begin(driver: Arc<Btrfs>, parent: Option<&str>, options: &CreateOptions) -> Result<Self> {
        driver.limits.wanted(&options.storage_opt, options.read_write)?;
        let mut temp = TempDir::create(&driver.home.temp_dirs())?;
        let path = temp.addition();
        let dir = driver.home.subvolume(&path, parent, options)?;
        let unpack_dir = parent.map(|_| UnpackDir::make(dir.as_fd())).transpose()?;
        Ok(Self {
            tree: unpack_dir::whole_tree(dir),
            unpack_dir,
            path,
            temp,
            driver,
        })
    }

    /// Leaves nothing in the tree that is no part of it.
    fn complete(&mut self) -> Result<()> {
        self.unpack_dir.take().map_or(Ok(()), |dir| dir.remove())
    }
}

impl Staged for StagedSubvolume {
    fn tree(&self) -> &LayerTree {
        &self.tree
    }

    fn unpack_dir(&self) -> Option<&OwnedFd> {
        self.unpack_dir.as_ref().map(UnpackDir::dir)
    }

    fn reopen(&self) -> Result<OwnedFd> {
        at::open_dir(&self.path).at("opening", &self.path)
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn is_apart(&self) -> bool {
        true
    }

    fn move_into(
        &self,
        into: BorrowedFd<'_>,
        move_all: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        unpack_dir::move_copy(self.reopen()?.as_fd(), into, move_all)
    }

    fn into_copy(mut self: Box<Self>, id: &str) -> Result<LayerCopy> {
        let original = self.driver.home.find_own(id)?;
        self.complete()?;
        // Every directory beside it is a layer.
        let beside = None;
        Ok(LayerCopy::of_staged(
            self.tree.dir,
            self.path,
            original,
            beside,
            self.temp,
        ))
    }

    fn commit(mut self: Box<Self>, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let driver = Arc::clone(&self.driver);
        let place = driver.home.place(id)?;
        let limit = driver.limits.wanted(&options.storage_opt, options.read_write)?;
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| driver.home.find(parent)).transpose()?;
        self.complete()?;
        driver.limits.set(id, self.tree.dir.as_fd(), limit)?;
        // An empty directory would be replaced by the rename itself.
        let mut renamed = at::rename(&self.path, &place);
        if let Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) = renamed {
            stage_deletion(&mut self.temp, &place)?;
            renamed = at::rename(&self.path, &place);
        }
        let renamed = renamed.at("moving a layer's subvolume to", place);
        if renamed.is_err()
            && let Err(error) = driver.limits.forget(id)
        {
            tracing::warn!(layer = id, error = %error.chain(), "cannot remove the limit of a failed layer");
        }
        renamed
    }
}
