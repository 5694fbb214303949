//! What a walk through two trees meets on its way.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, Stat};
use rustix::io::Errno;

use crate::driver::update::trees::{Loss, NewTree, OwnFiles, Remap, ShownTree};
use crate::driver::update::trial::Trial;
use crate::sys::tree::DIR_FLAGS;
use crate::sys::{privilege, xattr};
use crate::whiteout::{OPAQUE_VALUE, WhiteoutFormat};

/// What is done about differences.
pub(super) enum Aim<'a> {
    /// They are written away.
    Update(&'a NewTree<'a>),
    /// The first one is noted. What the compared tree cannot have is none.
    Compare(&'a ShownTree, Option<&'a Trial>),
}

/// What a walk has come to.
#[derive(Default)]
pub(super) struct End {
    pub(super) losses: Vec<Loss>,
    pub(super) difference: Option<PathBuf>,
}

/// A directory on the way down.
pub(super) struct Frame {
    /// What there is to do in it.
    pub(super) names: Vec<CString>,
    /// That of the source, with its new owner.
    pub(super) stat: Stat,
    pub(super) is_own: bool,
    /// Which of the other walks are in it.
    pub(super) has_base: bool,
    pub(super) has_own: bool,
    pub(super) has_theirs: bool,
    /// Only what the layers have changed is looked at.
    pub(super) changes_only: bool,
    /// The base has it, with the same status and attributes.
    pub(super) is_same: bool,
    /// It hides a directory or a file below.
    pub(super) is_opaque: bool,
    /// Something in it was written.
    pub(super) is_touched: bool,
}

/// What the base has in the place of an entry.
pub(super) struct Base<'a> {
    /// With its new owner.
    pub(super) stat: Stat,
    pub(super) remap: &'a Remap,
}

/// What overlayfs reads from the attributes of a directory.
#[derive(Default)]
pub(super) struct Marks {
    pub(super) opaque: bool,
    /// What it shows of the layers below is in another place there.
    pub(super) redirected: bool,
}

impl Marks {
    pub(super) fn of(dir: Option<&OwnedFd>, files: Option<&OwnFiles>) -> rustix::io::Result<Self> {
        let (Some(dir), Some(files)) = (dir, files) else {
            return Ok(Self::default());
        };
        let WhiteoutFormat::Overlay(namespace) = files.whiteouts else {
            return Ok(Self::default());
        };
        Ok(Self {
            opaque: xattr::fget(dir.as_fd(), namespace.opaque())?.is_some_and(|value| value == OPAQUE_VALUE),
            redirected: xattr::fget(dir.as_fd(), namespace.redirect())?.is_some(),
        })
    }
}

pub(super) fn reopen(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())
}

/// Opens a subdirectory; `None` if there is none.
pub(super) fn subdirectory(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Has the owner of a directory, if it is not root, change what is in it. Returns whether its mode has changed: it gets the right
/// one when it is complete.
pub(super) fn open_up(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    const ALL: u32 = 0o700;
    if privilege::is_root() {
        return Ok(false);
    }
    let mode = rustix::fs::fstat(dir)?.st_mode & 0o7777;
    if mode & ALL == ALL {
        return Ok(false);
    }
    rustix::fs::fchmod(dir, Mode::from_raw_mode(mode | ALL))?;
    Ok(true)
}
