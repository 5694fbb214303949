//! The content of a layer that does not exist yet, in a tree of its own that belongs to a temporary directory. Nothing can be
//! renamed or linked from one tree to another.

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

/// A tree with nothing that is no part of it. Where it is dropped as a whole, it is closed before it is removed.
#[derive(Debug)]
pub(super) struct WholeTree {
    /// Its root directory.
    pub(super) dir: OwnedFd,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Owns it.
    pub(super) temp: TempDir,
}

/// A driver with such trees.
pub(super) trait TreeHost: Send + Sync + fmt::Debug {
    /// As [`Staged::into_copy`].
    fn copy_of_staged(&self, tree: WholeTree, id: &str) -> Result<LayerCopy>;

    /// As [`Staged::commit`].
    fn commit_staged(
        &self,
        tree: WholeTree,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
    ) -> Result<()>;
}

/// A driver with such trees in temporary directories of its [`TreeHome`].
pub(super) trait HomeHost: Send + Sync + fmt::Debug {
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

impl<H: HomeHost> TreeHost for H {
    fn copy_of_staged(&self, tree: WholeTree, id: &str) -> Result<LayerCopy> {
        let original = self.home().find_own(id)?;
        self.check_exchange(&original)?;
        // Every directory beside it is a layer.
        let beside = None;
        let WholeTree { dir, path, temp } = tree;
        Ok(LayerCopy::of_staged(dir, path, original, beside, temp))
    }

    fn commit_staged(
        &self,
        tree: WholeTree,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
    ) -> Result<()> {
        let place = self.home().place(id)?;
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| self.home().find(parent)).transpose()?;
        let WholeTree { dir, path, mut temp } = tree;
        self.before_place(id, &path, dir, options)?;
        let placed = move_to_place(&path, &place, || self.stage_deletion(&mut temp, &place));
        if placed.is_err()
            && let Err(error) = self.not_placed(id)
        {
            tracing::warn!(layer = id, error = %error.chain(), "cannot undo what a failed layer needed");
        }
        placed
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct StagedTree<H> {
    host: Arc<H>,
    tree: LayerTree,
    /// Where content is unpacked before it is merged into the copy of the parent.
    unpack_dir: Option<UnpackDir>,
    /// Where the tree is.
    path: PathBuf,
    /// Owns the tree, with the temporary directory and its lock.
    temp: TempDir,
}

impl<H: TreeHost> StagedTree<H> {
    /// A tree that has what its parent has, or nothing.
    pub(super) fn new(host: Arc<H>, tree: WholeTree, has_parent: bool) -> Result<Self> {
        let unpack_dir = has_parent
            .then(|| UnpackDir::make(tree.dir.as_fd()))
            .transpose()?;
        let WholeTree { dir, path, temp } = tree;
        Ok(Self {
            host,
            tree: unpack_dir::whole_tree(dir),
            unpack_dir,
            path,
            temp,
        })
    }

    /// Leaves nothing in the tree that is no part of it, nor open.
    fn complete(self) -> Result<(Arc<H>, WholeTree)> {
        let Self {
            host,
            tree,
            unpack_dir,
            path,
            temp,
        } = self;
        let whole = WholeTree {
            dir: tree.dir,
            path,
            temp,
        };
        unpack_dir.map_or(Ok(()), |dir| dir.remove())?;
        Ok((host, whole))
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

    fn into_copy(self: Box<Self>, id: &str) -> Result<LayerCopy> {
        let (host, tree) = self.complete()?;
        host.copy_of_staged(tree, id)
    }

    fn commit(self: Box<Self>, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let (host, tree) = self.complete()?;
        host.commit_staged(tree, id, parent, options)
    }
}
