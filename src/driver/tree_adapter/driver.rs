//! The driver's methods.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::contract::{
    CreateOptions, DiskUsage, Driver, DriverCapabilities, Entry, FoundLayer, LayerTree, Leftover,
    MountOptions, MountState, Staged,
};
use crate::driver::copy;
use crate::driver::layer_copy::{self, Copied, LayerCopy};
use crate::driver::staged_tree::{HomeHost as _, StagedTree, WholeTree};
use crate::driver::tree_adapter::state::TreeAdapter;
use crate::driver::{tree_home, unpack_dir};
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::{self, TempDir};
use crate::sys::presence::lstat_if_there;

impl Driver for TreeAdapter {
    fn name(&self) -> &'static str {
        self.calls.name()
    }

    fn home(&self) -> &Path {
        &self.home.path
    }

    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            quota: self.calls.limits_size(),
            ..DriverCapabilities::default()
        }
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        self.home.place(id)?;
        let mut temp = self.temp_dir()?;
        let path = temp.addition();
        drop(self.make(&path, parent, options)?);
        self.place(id, &path, &mut temp)
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }

    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>> {
        let mut temp = self.temp_dir()?;
        let path = temp.addition();
        let dir = self.make(&path, parent, options)?;
        let tree = WholeTree { dir, path, temp };
        Ok(Box::new(StagedTree::new(self, tree, parent.is_some())?))
    }

    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>> {
        let path = self.home.find(id)?;
        self.calls.attach(&path)?;
        Ok(vec![path, self.home.layers()])
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        // That of another store stays.
        let place = self.home.place(id)?;
        if lstat_if_there(&place)?.is_none() {
            return Ok(None);
        }
        let mut temp = self.temp_dir()?;
        self.stage_deletion(&mut temp, &place)?;
        Ok(Some(temp))
    }

    fn remove_in_place(&self, id: &str) -> Result<()> {
        let place = self.home.place(id)?;
        self.calls.delete(&place)
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

    fn prune(&self) -> Result<()> {
        let temp_dirs = self.home.temp_dirs();
        temp_dir::recover_with(&temp_dirs, &mut |number| {
            self.calls.delete_all(&temp_dir::of_number(&temp_dirs, number))
        })
    }

    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        if let Some(option) = options.options.iter().find(|option| *option != "ro") {
            let what = format!("mount option {option:?} with the {} driver", self.calls.name());
            return Err(ErrorKind::NotSupported.err(what));
        }
        drop(self.open_layer(id)?);
        self.home.find(id)
    }

    fn unmount(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    fn mount_state(&self, target: &Path) -> Result<MountState> {
        tree_home::mount_state(target)
    }

    fn mount_private(&self, id: &str) -> Result<OwnedFd> {
        self.open_layer(id)
    }

    fn layer_tree(&self, id: &str) -> Result<LayerTree> {
        Ok(unpack_dir::whole_tree(self.open_layer(id)?))
    }

    fn remove_half_moved(&self, id: &str) -> Result<()> {
        match self.open_layer(id) {
            Err(error) if error.kind() == ErrorKind::LayerUnknown => Ok(()),
            root => unpack_dir::remove_left(&root?),
        }
    }

    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>> {
        let original = self.home.find_own(id)?;
        let from = self.open_layer(id)?;
        let mut temp = self.temp_dir()?;
        if !Self::can_be_exchanged(&original)? || layer_copy::exchangeable(&mut temp)?.is_none() {
            return Ok(None);
        }
        let path = temp.addition();
        let dir = match copied {
            Copied::Tree { durable } => self.copy_all(&original, &path, durable)?,
            Copied::Root => {
                let dir = self.calls.create(&path)?;
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
        Ok(vec![self.open_layer(id)?])
    }

    fn status(&self) -> Vec<(String, String)> {
        self.calls.status()
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        DiskUsage::of_tree(self.open_layer(id)?.as_fd(), id)
    }

    fn cleanup(&self) -> Result<()> {
        let detach = |id: String| self.calls.detach(&self.home.place(&id)?);
        let results: Vec<Result<()>> = self.list_layers()?.into_iter().map(detach).collect();
        results.into_iter().collect()
    }

    fn additional_image_stores(&self) -> &[PathBuf] {
        &self.image_stores
    }

    fn sync_filesystem(&self) -> bool {
        false
    }
}
