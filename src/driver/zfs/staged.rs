//! Trees in datasets of their own that are mounted in temporary directories: the content of layers that do not exist yet, and
//! what takes the place of a layer's tree.

use std::sync::Arc;

use crate::driver::contract::{CreateOptions, Staged};
use crate::driver::layer_copy::LayerCopy;
use crate::driver::mount_flags;
use crate::driver::staged_tree::{StagedTree, TreeHost, WholeTree};
use crate::driver::zfs::mounting::make_target;
use crate::driver::zfs::names::Temporary;
use crate::driver::zfs::state::Zfs;
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;
use crate::sys::mount::make_private;

impl Zfs {
    /// A dataset that belongs to `temp`, with these properties beside those of a mount: a clone of that of `parent`, or empty.
    pub(super) fn temporary_tree(
        &self,
        mut temp: TempDir,
        parent: Option<&str>,
        properties: &[String],
    ) -> Result<WholeTree> {
        let above = temp.addition();
        let path = above.join("mounted");
        let properties = [&self.mounter.properties(&path)?, properties].concat();
        let name = self.datasets.root.temporary(temp.number(), Temporary::New);
        {
            let (datasets, mounter) = (self.datasets.clone(), self.mounter);
            let (name, path) = (name.clone(), path.clone());
            temp.set_companion(move || {
                mounter.unmount(&path)?;
                datasets.destroy(&name)
            });
        }
        make_target(&path)?;
        make_private(&above).at("making a private mount of", &above)?;
        self.make_dataset(&name, parent, &properties, &mut temp)?;
        let plain = mount_flags::Sorted::default();
        self.mounter.mount(&self.datasets, &name, &path, &plain, "")?;
        let dir = at::open_dir(&path).at("opening", &path)?;
        Ok(WholeTree { dir, path, temp })
    }

    /// Starts the content of a layer on `parent`.
    pub(super) fn begin_layer(
        self: Arc<Self>,
        parent: Option<&str>,
        options: &CreateOptions,
    ) -> Result<Box<dyn Staged>> {
        if let Some(owners) = parent.and(options.new_owners()) {
            owners.check_root()?;
        }
        let limits = self.limits(options)?;
        let tree = self.temporary_tree(self.temp_dir()?, parent, &limits)?;
        self.fill(&tree.dir, parent, options)?;
        Ok(Box::new(StagedTree::new(self, tree, parent.is_some())?))
    }
}

impl TreeHost for Zfs {
    fn copy_of_staged(&self, tree: WholeTree, id: &str) -> Result<LayerCopy> {
        self.as_copy_of(tree, id)
    }

    fn commit_staged(
        &self,
        tree: WholeTree,
        id: &str,
        parent: Option<&str>,
        _options: &CreateOptions,
    ) -> Result<()> {
        let WholeTree { dir, path, mut temp } = tree;
        // A dataset with open files can be neither renamed nor destroyed everywhere.
        drop(dir);
        let datasets = &self.datasets;
        let layer = datasets.root.layer(id)?;
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| self.find(parent)).transpose()?;
        if !self.mounter.unmount(&path)? {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(Error::io_at("unmounting a new layer at", path, busy));
        }
        let new = datasets.root.temporary(temp.number(), Temporary::New);
        self.move_target(&new, id)?;
        let mut renamed = datasets.rename(&new, &layer)?;
        if renamed.as_ref().is_err_and(|refusal| refusal.is_there()) {
            // The dataset in the way goes with a directory of its own.
            let mut cleared = self.temp_dir()?;
            self.clear(&layer, &mut cleared)?;
            renamed = datasets.rename(&new, &layer)?;
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
