//! A copy of a layer's own tree that takes the layer's place as a whole, by an exchange of two directories or as its driver
//! does that.
//!
//! What changes many files of a layer changes them in such a copy, so that a process that is killed meanwhile leaves the
//! layer as it was. Files are hard links to those of the layer: a copy takes as much space as its directories do, and
//! whoever changes a file in it replaces it.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use crate::driver::copy;
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::project_quota::same_project;
use crate::sys::{at, btrfs};

/// Old trees of one layer that can stay at the same time.
const MAX_OLD_TREES: u32 = 64;

/// What a copy has of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// The whole tree. If `durable`, it is on disk, or will be with what is written later.
    Tree { durable: bool },
    /// An empty directory with what belongs to the root of the tree.
    Root,
}

/// How a copy that is no directory beside the layer's tree takes its place.
pub(super) trait Exchange: Send + Sync + fmt::Debug {
    /// The [number](crate::driver::Driver::tree_number) of the copy.
    fn number(&self) -> u64;

    /// Makes the copy the layer's tree. Nothing in it is open any more. The old one belongs to `temp` then. On failure the
    /// layer has its old tree.
    fn take_place(self: Box<Self>, temp: &mut TempDir) -> Result<()>;
}

/// How a copy takes its place.
#[derive(Debug)]
enum Place {
    /// Two directories are exchanged.
    Directories {
        /// The copy, inside the temporary directory.
        path: PathBuf,
        /// The layer's own tree.
        original: PathBuf,
        /// Where the old tree can [stay](LayerCopy::keep_old), if it has to.
        beside: Option<PathBuf>,
    },
    Other(Box<dyn Exchange>),
}

/// See the module's head. Dropped, it is removed, which may block for long.
#[derive(Debug)]
pub(crate) struct LayerCopy {
    dir: OwnedFd,
    place: Place,
    /// Owns the temporary directory and its lock.
    temp: TempDir,
}

/// As [`Driver::tree_number`](crate::driver::Driver::tree_number), of the tree with this root directory.
pub(super) fn number_of(dir: BorrowedFd<'_>) -> Result<u64> {
    btrfs::subvolume_or_inode(dir).during("looking at a layer's directory")
}

/// How the names of old trees begin that stay because a mount shows them.
pub(super) const OLD_TREE: &str = "replaced";

/// Makes an empty directory in a temporary one, if directories there can be exchanged.
pub(super) fn exchangeable(temp: &mut TempDir) -> Result<Option<PathBuf>> {
    let (path, other) = (temp.addition(), temp.addition());
    for dir in [&path, &other] {
        rustix::fs::mkdir(dir, Mode::RWXU).at("creating directory", dir)?;
    }
    match rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(None),
        exchanged => exchanged
            .at("exchanging directories in", other)
            .map(|()| Some(path)),
    }
}

impl LayerCopy {
    /// Copies what is `copied` of the tree at `original` into a new temporary directory below `temp_dirs`, on the same file system. `None` if
    /// the file system cannot exchange directories.
    pub(super) fn make(
        original: PathBuf,
        beside: Option<PathBuf>,
        temp_dirs: &Path,
        copied: Copied,
    ) -> Result<Option<Self>> {
        let mut temp = TempDir::create(temp_dirs)?;
        let Some(path) = exchangeable(&mut temp)? else {
            return Ok(None);
        };
        let from = at::open_dir(&original).at("opening", &original)?;
        let dir = at::open_dir(&path).at("opening", &path)?;
        same_project(from.as_fd(), dir.as_fd()).at("setting the project of", &path)?;
        match copied {
            Copied::Tree { durable } => copy::link_tree(from.as_fd(), dir.as_fd(), durable)?,
            Copied::Root => copy::link_root(from.as_fd(), dir.as_fd())?,
        }
        Ok(Some(Self::of_staged(dir, path, original, beside, temp)))
    }

    /// The directory `dir` with the path `path` inside `temp`, in place of the tree at `original`.
    pub(super) fn of_staged(
        dir: OwnedFd,
        path: PathBuf,
        original: PathBuf,
        beside: Option<PathBuf>,
        temp: TempDir,
    ) -> Self {
        let place = Place::Directories {
            path,
            original,
            beside,
        };
        Self { dir, place, temp }
    }

    /// The directory `dir`, in a tree that belongs to `temp` and takes the layer's place in another way.
    pub(super) fn with_exchange(dir: OwnedFd, exchange: Box<dyn Exchange>, temp: TempDir) -> Self {
        let place = Place::Other(exchange);
        Self { dir, place, temp }
    }

    /// The [number](crate::driver::Driver::tree_number) that the layer's tree has when this has taken its place.
    pub(crate) fn number(&self) -> Result<u64> {
        match &self.place {
            Place::Directories { .. } => number_of(self.dir.as_fd()),
            Place::Other(exchange) => Ok(exchange.number()),
        }
    }

    /// Where changes go; can be listed.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Takes a name out of the directory `dir` of the copy. What it stands for is removed with the old tree.
    pub(crate) fn take_out(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let place = self.temp.addition();
        match rustix::fs::renameat(dir, name, CWD, &place) {
            Err(Errno::NOENT) => Ok(()),
            moved => moved.at("moving a file to", place),
        }
    }

    /// Has the old tree stay when the copy takes its place: a mount shows it, and would lose its files. It is there under a name
    /// of its own until [`Driver::remove_old_trees`](crate::driver::Driver::remove_old_trees).
    ///
    /// # Errors
    /// [`Error::is_busy`] says so if the driver has no place for it.
    pub(crate) fn keep_old(&mut self) -> Result<()> {
        let Place::Directories {
            path,
            beside: Some(beside),
            ..
        } = &mut self.place
        else {
            return Err(Error::io("a mount shows the layer", Errno::BUSY));
        };
        for number in 0..MAX_OLD_TREES {
            let place = beside.join(format!("{OLD_TREE}{number}"));
            match rustix::fs::renameat_with(CWD, &*path, CWD, &place, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                moved => {
                    moved.at("moving a tree to", &place)?;
                    // The exchange leaves the old one there.
                    *path = place;
                    return Ok(());
                }
            }
        }
        Err(Error::io(
            "too many old trees of the layer, which mounts may show",
            Errno::BUSY,
        ))
    }

    /// Makes the copy the layer's tree. Returns the old tree, which is removed when dropped: drop it after the locks are
    /// released. Nothing in either tree may be open here: not every driver can do it otherwise.
    pub(crate) fn take_place(self) -> Result<TempDir> {
        let Self { dir, place, mut temp } = self;
        drop(dir);
        match place {
            Place::Directories { path, original, .. } => {
                at::exchange(&path, &original).at("exchanging directories for", &original)?;
            }
            Place::Other(exchange) => exchange.take_place(&mut temp)?,
        }
        Ok(temp)
    }
}
