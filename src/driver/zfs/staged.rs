//! The content of a layer that does not exist yet, in a dataset of its own that is mounted in a temporary directory.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::contract::{CreateOptions, LayerTree, Staged};
use crate::driver::layer_copy::LayerCopy;
use crate::driver::mount_flags;
use crate::driver::unpack_dir::{self, UnpackDir};
use crate::driver::zfs::mounting::make_target;
use crate::driver::zfs::names::Temporary;
use crate::driver::zfs::state::Zfs;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;
use crate::sys::mount::make_private;

/// See the module's head.
#[derive(Debug)]
pub(super) struct StagedDataset {
    driver: Arc<Zfs>,
    tree: LayerTree,
    /// Where content is unpacked before it is merged into the clone of the parent.
    unpack_dir: Option<UnpackDir>,
    /// The dataset.
    name: String,
    /// Where it is mounted, inside `temp`.
    path: PathBuf,
    /// Owns the temporary directory, its lock, and the dataset.
    temp: TempDir,
}

impl StagedDataset {
    /// Starts the content of a layer on `parent`.
    pub(super) fn begin(driver: Arc<Zfs>, parent: Option<&str>, options: &CreateOptions) -> Result<Self> {
        if let Some(owners) = parent.and(options.new_owners()) {
            owners.check_root()?;
        }
        let mut temp = driver.temp_dir()?;
        let (number, above) = (temp.number().to_owned(), temp.addition());
        let path = above.join("mounted");
        let properties = driver.properties(&path, options)?;
        let name = driver.datasets.root.temporary(&number, Temporary::New);
        {
            let (datasets, mounter) = (driver.datasets.clone(), driver.mounter);
            let (name, path) = (name.clone(), path.clone());
            temp.set_companion(move || {
                mounter.unmount(&path)?;
                datasets.destroy(&name)
            });
        }
        make_target(&path)?;
        make_private(&above).at("making a private mount of", &above)?;
        driver.make_dataset(&name, parent, &properties, &mut temp)?;
        let plain = mount_flags::Sorted::default();
        driver.mounter.mount(&driver.datasets, &name, &path, &plain, "")?;
        let dir = at::open_dir(&path).at("opening", &path)?;
        driver.fill(&dir, parent, options)?;
        let unpack_dir = parent.map(|_| UnpackDir::make(dir.as_fd())).transpose()?;
        Ok(Self {
            tree: unpack_dir::whole_tree(dir),
            unpack_dir,
            name,
            path,
            temp,
            driver,
        })
    }
}

impl Staged for StagedDataset {
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

    fn into_copy(self: Box<Self>, id: &str) -> Result<LayerCopy> {
        // Two renames cannot be made one.
        let what = format!("giving layer {id:?} another content with the zfs driver");
        Err(ErrorKind::NotSupported.err(what))
    }

    fn commit(self: Box<Self>, id: &str, parent: Option<&str>, _options: &CreateOptions) -> Result<()> {
        let layer = self.driver.datasets.root.layer(id)?;
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| self.driver.find(parent)).transpose()?;
        let Self {
            driver,
            tree,
            unpack_dir,
            name,
            path,
            mut temp,
        } = *self;
        let datasets = &driver.datasets;
        let removed = unpack_dir.map_or(Ok(()), |dir| dir.remove());
        // A dataset with open files can be neither renamed nor destroyed everywhere.
        drop(tree);
        removed?;
        if !driver.mounter.unmount(&path)? {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(Error::io_at("unmounting a new layer at", path, busy));
        }
        driver.move_target(&name, id)?;
        let mut renamed = datasets.rename(&name, &layer)?;
        if renamed.as_ref().is_err_and(|refusal| refusal.is_there()) {
            // The dataset in the way goes with a directory of its own.
            let mut cleared = driver.temp_dir()?;
            driver.clear(&layer, &mut cleared)?;
            renamed = datasets.rename(&name, &layer)?;
        }
        renamed.map_err(|refusal| {
            refusal
                .into_error()
                .context(format!("moving the dataset of layer {id:?}"))
        })?;
        temp.forget_companion();
        Ok(())
    }
}
