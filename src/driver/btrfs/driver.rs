//! The driver's methods.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::btrfs::home::{copy_of, empty_subvolume, stage_deletion, subvolume};
use crate::driver::btrfs::state::{Btrfs, NAME};
use crate::driver::contract::{
    CreateOptions, DiskUsage, Driver, DriverCapabilities, Entry, FoundLayer, LayerTree, Leftover,
    MountOptions, MountState, Staged,
};
use crate::driver::copy;
use crate::driver::layer_copy::{Copied, LayerCopy};
use crate::driver::staged_tree::{StagedTree, WholeTree};
use crate::driver::tree_home;
use crate::driver::unpack_dir;
use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::{self, TempDir};
use crate::sys::btrfs::SnapshotChanges;
use crate::sys::presence::lstat_if_there;
use crate::sys::tree;

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.home.path
    }

    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            quota: true,
            ..DriverCapabilities::default()
        }
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let limit = self.limits.wanted(&options.storage_opt, options.read_write)?;
        let place = self.home.place(id)?;
        let created = self.create_at(&place, id, parent, options, limit);
        if created.is_err()
            && let Err(error) = self.remove_in_place(id)
        {
            tracing::warn!(layer = id, error = %error.chain(), "cannot remove what a failed creation has left");
        }
        created
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }

    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>> {
        self.limits.wanted(&options.storage_opt, options.read_write)?;
        let mut temp = TempDir::create(&self.home.temp_dirs())?;
        let path = temp.addition();
        let dir = subvolume(&self.home, &path, parent, options)?;
        let tree = WholeTree { dir, path, temp };
        Ok(Box::new(StagedTree::new(self, tree, parent.is_some())?))
    }

    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>> {
        Ok(vec![self.home.find(id)?, self.home.layers()])
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        // That of another store stays.
        let place = self.home.place(id)?;
        if lstat_if_there(&place)?.is_none() {
            return Ok(None);
        }
        let mut temp = TempDir::create(&self.home.temp_dirs())?;
        stage_deletion(&mut temp, &place)?;
        self.limits.forget(id)?;
        Ok(Some(temp))
    }

    fn remove_in_place(&self, id: &str) -> Result<()> {
        let place = self.home.place(id)?;
        tree::remove_tree(&place).map_err(|error| Error::io_at("removing", place, error))?;
        self.limits.forget(id)
    }

    fn exists(&self, id: &str) -> Result<bool> {
        tree_home::is_found(self.home.find(id))
    }

    fn found_layers(&self) -> Result<Vec<FoundLayer>> {
        self.home.found_layers()
    }

    fn list(&self) -> Result<Vec<Entry>> {
        self.home.list()
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        self.home.leftovers()
    }

    fn remove_strays(&self) -> Result<()> {
        self.limits.remove_strays(|id| self.exists(id))
    }

    fn prune(&self) -> Result<()> {
        temp_dir::recover(&self.home.temp_dirs())
    }

    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        let path = self.home.find(id)?;
        if let Some(option) = options.options.iter().find(|option| *option != "ro") {
            let what = format!("btrfs driver does not support mount options: {option:?}");
            return Err(ErrorKind::NotSupported.err(what));
        }
        let dir = self.home.open_layer(id)?;
        self.limits.renew(id, dir.as_fd())?;
        Ok(path)
    }

    fn unmount(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    fn mount_state(&self, target: &Path) -> Result<MountState> {
        tree_home::mount_state(target)
    }

    fn mount_private(&self, id: &str) -> Result<OwnedFd> {
        self.home.open_layer(id)
    }

    fn layer_tree(&self, id: &str) -> Result<LayerTree> {
        Ok(unpack_dir::whole_tree(self.home.open_layer(id)?))
    }

    fn remove_half_moved(&self, id: &str) -> Result<()> {
        match self.home.open_layer(id) {
            Err(error) if error.kind() == ErrorKind::LayerUnknown => Ok(()),
            root => unpack_dir::remove_left(&root?),
        }
    }

    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>> {
        let original = self.home.find_own(id)?;
        let from = self.home.open_layer(id)?;
        let mut temp = TempDir::create(&self.home.temp_dirs())?;
        let path = temp.addition();
        let dir = match copied {
            // A snapshot is on disk when it is made.
            Copied::Tree { durable: _ } => copy_of(&from, &path)?,
            Copied::Root => {
                let dir = empty_subvolume(&path)?;
                copy::link_root(from.as_fd(), dir.as_fd())
                    .context(|| format!("copying the root of layer {id:?}"))?;
                dir
            }
        };
        // Every directory beside it is a layer.
        let beside = None;
        Ok(Some(LayerCopy::of_staged(dir, path, original, beside, temp)))
    }

    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        Ok(vec![self.home.open_layer(id)?])
    }

    fn snapshot_changes(&self, new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Option<SnapshotChanges> {
        SnapshotChanges::begin(new, old).unwrap_or_else(|error| {
            tracing::debug!(%error, "what a snapshot changes cannot be searched for");
            None
        })
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        DiskUsage::of_tree(self.home.open_layer(id)?.as_fd(), id)
    }

    fn additional_image_stores(&self) -> &[PathBuf] {
        &self.image_stores
    }

    fn sync_filesystem(&self) -> bool {
        false
    }
}
