//! The content of a layer that does not exist yet, in a tree of its own in a temporary directory. Nothing can be renamed or
//! linked from one tree to another.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::contract::{CreateOptions, LayerTree, Staged};
use crate::driver::layer_copy::LayerCopy;
use crate::driver::tree_home::{TreeHome, move_to_place};
use crate::driver::unpack_dir::{self, UnpackDir};
use crate::error::{IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;

/// A driver with such trees.
pub(super) trait TreeHost: Send + Sync + fmt::Debug {
    fn home(&self) -> &TreeHome;

    /// What a new layer needs before the tree at `path`, whose root directory is `dir`, gets its place.
    fn before_place(&self, id: &str, path: &Path, dir: OwnedFd, options: &CreateOptions) -> Result<()>;

    /// Undoes it.
    fn not_placed(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    /// Refuses a tree that cannot be exchanged with another.
    fn check_exchange(&self, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// Moves a tree to a temporary directory; `false` if there is none.
    fn stage_deletion(&self, temp: &mut TempDir, path: &Path) -> Result<bool>;
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct StagedTree<H> {
    host: Arc<H>,
    tree: LayerTree,
    /// Where content is unpacked before it is merged into the copy of the parent.
    unpack_dir: Option<UnpackDir>,
    /// The tree, inside `temp`.
    path: PathBuf,
    /// Owns the temporary directory and its lock.
    temp: TempDir,
}

impl<H: TreeHost> StagedTree<H> {
    /// The tree at `path` in `temp`, with the root directory `dir`.
    pub(super) fn new(
        host: Arc<H>,
        dir: OwnedFd,
        path: PathBuf,
        temp: TempDir,
        has_parent: bool,
    ) -> Result<Self> {
        let unpack_dir = has_parent.then(|| UnpackDir::make(dir.as_fd())).transpose()?;
        Ok(Self {
            host,
            tree: unpack_dir::whole_tree(dir),
            unpack_dir,
            path,
            temp,
        })
    }

    /// Leaves nothing in the tree that is no part of it.
    fn complete(&mut self) -> Result<()> {
        self.unpack_dir.take().map_or(Ok(()), |dir| dir.remove())
    }
}

impl<H: TreeHost> Staged for StagedTree<H> {
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
        let original = self.host.home().find_own(id)?;
        self.host.check_exchange(&original)?;
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
        let place = self.host.home().place(id)?;
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| self.host.home().find(parent)).transpose()?;
        self.complete()?;
        let Self {
            host,
            tree,
            path,
            mut temp,
            ..
        } = *self;
        host.before_place(id, &path, tree.dir, options)?;
        let placed = move_to_place(&path, &place, || host.stage_deletion(&mut temp, &place));
        if placed.is_err()
            && let Err(error) = host.not_placed(id)
        {
            tracing::warn!(layer = id, error = %error.chain(), "cannot undo what a failed layer needed");
        }
        placed
    }
}
