//! A directory in the tree of a layer that is no part of it: what is in it is moved into the tree. Nothing can be renamed from
//! one subvolume or dataset to another. Drivers whose layers are such trees have this.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::driver::contract::LayerTree;
use crate::driver::copy;
use crate::driver::copy_entry::times;
use crate::error::{IoContext as _, Result};
use crate::sys::{at, privilege, random, tree};
use crate::whiteout::WhiteoutFormat;

const DOING: &str = "unpacking into the tree of a layer";

/// How its name begins. A number follows that nobody can know before: what is unpacked has no such name.
const PREFIX: &str = ".graphroot-unpack-";

/// The directory of a layer that is there as a whole, and into which streams are unpacked as they are.
pub(super) fn whole_tree(dir: OwnedFd) -> LayerTree {
    LayerTree {
        dir,
        whiteouts: WhiteoutFormat::Apply,
        root_entry: true,
        ignore_chown_errors: false,
        force_mask: None,
        in_user_namespace: privilege::is_rootless(),
    }
}

/// See the module's head. The tree's root is as if it was not there.
#[derive(Debug)]
pub(super) struct UnpackDir {
    root: OwnedFd,
    dir: OwnedFd,
    name: String,
}

impl UnpackDir {
    /// Makes one in the tree with this root.
    pub(super) fn make(root: BorrowedFd<'_>) -> Result<Self> {
        let root = root.try_clone_to_owned().during(DOING)?;
        let name = format!("{PREFIX}{:032x}", u128::from_ne_bytes(random::bytes()?));
        unseen(&root, || rustix::fs::mkdirat(&root, &name, Mode::RWXU)).during(DOING)?;
        let dir = at::open_dir_at(root.as_fd(), name.as_bytes()).during(DOING)?;
        Ok(Self { root, dir, name })
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Removes it, with what may still be in it.
    pub(super) fn remove(&self) -> Result<()> {
        remove(&self.root, &self.name)
    }
}

/// Has `move_all` move a copy of the content in `from` into the tree `into`, which is on another file system.
pub(super) fn move_copy(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    move_all: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let unpack_dir = UnpackDir::make(into)?;
    let moved = copy::copy_all(from, unpack_dir.dir.as_fd()).and_then(|()| move_all(unpack_dir.dir.as_fd()));
    let removed = unpack_dir.remove();
    moved.and(removed)
}

/// Removes those that killed processes have left in a tree.
pub(super) fn remove_left(root: &OwnedFd) -> Result<()> {
    let names = tree::list_names(root.as_fd(), &mut tree::listing_buffer()).during(DOING)?;
    for name in names.split(|byte| *byte == 0) {
        let name = std::str::from_utf8(name).unwrap_or_default();
        let number = name.strip_prefix(PREFIX).filter(|number| number.len() == 32);
        if number.is_some_and(|number| u128::from_str_radix(number, 16).is_ok()) {
            remove(root, name)?;
        }
    }
    Ok(())
}

fn remove(root: &OwnedFd, name: &str) -> Result<()> {
    let remove = || match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY) => {
            let path = Path::new("/proc/self/fd")
                .join(root.as_raw_fd().to_string())
                .join(name);
            tree::remove_tree(&path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    };
    unseen(root, remove).during(DOING)
}

/// Runs what changes the names in a directory so that its times stay, also where its mode forbids that to its owner.
fn unseen<T>(dir: &OwnedFd, change: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let stat = rustix::fs::fstat(dir)?;
    let changed = match change() {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o300))?;
            let changed = change();
            rustix::fs::fchmod(dir, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            changed
        }
        changed => changed,
    }?;
    rustix::fs::futimens(dir, &times(&stat))?;
    Ok(changed)
}
