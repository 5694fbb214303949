//! The parent directories of entries: resolved inside the root, and a few of them kept open.
//!
//! Entries come grouped by directory, so most need no resolution at all. A directory without symbolic links on the
//! way costs one `openat2`; only where there are links is it resolved as the kernel would below a root, and its real
//! path is asked for, since that is what tells whether two names mean one file.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::at;

/// How many directories are kept open.
const SLOTS: usize = 24;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Parent {
    /// The clean path by which it was found.
    path: Vec<u8>,
    /// The path without links, where it is another one.
    real: Option<Vec<u8>>,
    fd: OwnedFd,
}

impl Parent {
    /// For `*at` calls; may be `O_PATH`.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path in which no component is a symbolic link.
    pub(crate) fn real(&self) -> &[u8] {
        self.real.as_deref().unwrap_or(&self.path)
    }

    /// Whether the name leads through a symbolic link.
    pub(crate) fn via_link(&self) -> bool {
        self.real.is_some()
    }

    /// The real path of `name` in here.
    pub(crate) fn child(&self, name: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.real());
        crate::archive::path::push(out, name);
    }
}

/// What looking for a directory came to.
#[derive(Debug)]
pub(crate) enum Found {
    Directory(Rc<Parent>),
    /// It, or something above, does not exist.
    Missing,
    /// It, or something above, is no directory: perhaps a link that leads to itself.
    Blocked,
}

/// The open directories below one root.
#[derive(Debug)]
pub(crate) struct Parents {
    root: Rc<Parent>,
    /// Most recently used first.
    slots: Vec<Rc<Parent>>,
}

impl Parents {
    /// Starts with the root alone.
    pub(crate) fn new(root: OwnedFd) -> Self {
        let root = Parent {
            path: Vec::new(),
            real: None,
            fd: root,
        };
        Self {
            root: Rc::new(root),
            slots: Vec::new(),
        }
    }

    /// The root directory; its descriptor is the one that was given.
    pub(crate) fn root(&self) -> &Rc<Parent> {
        &self.root
    }

    /// Finds the directory at a clean path.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Found> {
        if path.is_empty() {
            return Ok(Found::Directory(Rc::clone(&self.root)));
        }
        if let Some(index) = self.slots.iter().position(|slot| slot.path == path) {
            if let Some(front) = self.slots.get_mut(..=index) {
                front.rotate_right(1);
            }
            if let Some(slot) = self.slots.first() {
                return Ok(Found::Directory(Rc::clone(slot)));
            }
        }
        match self.open(path) {
            Ok((fd, real)) => Ok(Found::Directory(self.insert(path.to_vec(), real, fd))),
            Err(error) => match error.io_kind() {
                Some(std::io::ErrorKind::NotFound) => Ok(Found::Missing),
                Some(std::io::ErrorKind::NotADirectory) => Ok(Found::Blocked),
                _ if error.has_errno(Errno::LOOP) => Ok(Found::Blocked),
                _ => Err(error),
            },
        }
    }

    fn open(&self, path: &[u8]) -> Result<(OwnedFd, Option<Vec<u8>>)> {
        let doing = "opening a directory of the layer";
        if path.len() > crate::archive::path::MAX_PATH {
            return Err(Error::io(doing, Errno::NAMETOOLONG));
        }
        let root = self.root.fd();
        if let Some(fd) = at::open_dir_without_links(root, path).during(doing)? {
            return Ok((fd, None));
        }
        let fd = at::open_dir_in_root(root, path).during(doing)?;
        let real = at::path_below(root, fd.as_fd()).during("reading /proc/self/fd")?;
        let real =
            real.ok_or_else(|| ErrorKind::UnsafePath.err("a directory of the layer is not below its root"))?;
        Ok((fd, (real != path).then_some(real)))
    }

    /// Keeps a directory that was just made.
    pub(crate) fn insert(&mut self, path: Vec<u8>, real: Option<Vec<u8>>, fd: OwnedFd) -> Rc<Parent> {
        self.slots.truncate(SLOTS - 1);
        let slot = Rc::new(Parent { path, real, fd });
        self.slots.insert(0, Rc::clone(&slot));
        slot
    }

    /// Forgets everything: a directory or a link has gone.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }
}
