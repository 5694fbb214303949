//! Fits the tree of a layer to the layers below it: what its archive says of them ([`LayerMarks`]) is written into the
//! tree in the form that its driver reads.
//!
//! A whiteout is written only for a name that the layers below show, so that no name is listed that is not there; a
//! directory in its place, or an opaque one, gets the mark that hides what they have in it. A directory that the archive
//! only implies gets owner, mode, times and attributes from the one below. Neither overlayfs nor fuse-overlayfs looks
//! at marks of a layer's root directory, so an opaque root is written as whiteouts of everything in it.
//!
//! All of this happens in a staging directory, before the layer takes its place.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::metadata::{kind, mark_opaque};
use crate::archive::apply::visited::Visited;
use crate::archive::diff::lowers::{Lowers, is_hidden, is_opaque};
use crate::archive::path::{push, split};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::Owner;
use crate::sys::at;
use crate::sys::sync_tracker::SyncTracker;
use crate::whiteout::{self, WhiteoutFormat};

const DOING: &str = "looking at the layer's files";

/// Writes `marks` into the tree `root`; `lowers` are the trees below, topmost first, in the same format. With
/// `durable` it is on disk afterwards.
///
/// # Errors
/// [`ErrorKind::Io`]; the tree is then to be given up.
pub(crate) fn settle(
    root: BorrowedFd<'_>,
    form: WhiteoutFormat,
    marks: &LayerMarks,
    lowers: &[OwnedFd],
    durable: bool,
) -> Result<()> {
    if lowers.is_empty() || marks.is_empty() {
        return Ok(());
    }
    let mut settlement = Settlement {
        root,
        form,
        lowers: Lowers::new(lowers, form),
        visited: Visited::new(root),
        way: Vec::new(),
        upper: None,
    };
    for path in marks.implied().filter(|path| !marks.hides(path)) {
        settlement.describe(path)?;
    }
    if marks.empties_root() {
        settlement.lowers.leave_to(1);
        for name in settlement.lowers.names(b"")? {
            settlement.delete(&name, None)?;
        }
    }
    for path in marks
        .opaque()
        .filter(|path| !path.is_empty() && !marks.hides(path))
    {
        settlement.empty(path)?;
    }
    for (path, owner) in marks.deleted().filter(|(path, _)| !marks.covers(path)) {
        settlement.delete(path, owner)?;
    }
    settlement.visited.restore(SyncTracker::new(durable))
}

struct Settlement<'a> {
    root: BorrowedFd<'a>,
    form: WhiteoutFormat,
    lowers: Lowers<&'a [OwnedFd]>,
    visited: Visited<'a>,
    /// The directory that `lowers` is in.
    way: Vec<u8>,
    /// The same directory in the layer's own tree, for `*at` calls.
    upper: Option<OwnedFd>,
}

/// The directory at `path`, for `*at` calls; `None` unless it and everything above it are directories.
pub(crate) fn literal_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(root, ".", flags, Mode::empty()).during(DOING)?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        dir = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(Error::io(DOING, error)),
        };
    }
    Ok(Some(dir))
}

/// Whether `dir` is `path` or above it.
fn leads_to(dir: &[u8], path: &[u8]) -> bool {
    dir.is_empty() || (path.starts_with(dir) && matches!(path.get(dir.len()), None | Some(b'/')))
}

impl Settlement<'_> {
    /// Goes to the directory at `dir`; `false` if nothing of the layers below shows in it.
    fn enter(&mut self, dir: &[u8]) -> Result<bool> {
        let mut depth = self
            .way
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .count();
        while !leads_to(&self.way, dir) {
            let above = split(&self.way).0.len();
            self.way.truncate(above);
            depth -= 1;
        }
        self.lowers.leave_to(depth + 1);
        self.upper = literal_dir(self.root, &self.way)?;
        let rest = dir.get(self.way.len()..).unwrap_or_default();
        for name in rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let mut opaque = false;
            if let Some(upper) = &self.upper {
                let upper = upper.as_fd();
                match at::lstat_at(upper, name).during(DOING)? {
                    None if is_hidden(upper, name, self.form).during(DOING)? => return Ok(false),
                    None => {}
                    Some(stat) if kind(&stat) != FileType::Directory => return Ok(false),
                    Some(_) => opaque = is_opaque(upper, name, self.form).during(DOING)?,
                }
            }
            self.lowers.enter(&self.way, name, opaque)?;
            push(&mut self.way, name);
            if !self.lowers.shows() {
                return Ok(false);
            }
            self.upper = match &self.upper {
                Some(upper) => literal_dir(upper.as_fd(), name)?,
                None => None,
            };
        }
        Ok(self.lowers.shows())
    }

    /// What the layer itself has as `name` in the directory that was entered.
    fn own(&self, name: &[u8]) -> Result<Option<Stat>> {
        match &self.upper {
            Some(upper) => at::lstat_at(upper.as_fd(), name).during(DOING),
            None => Ok(None),
        }
    }

    /// Makes an implied directory look like the one below.
    fn describe(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        if !self.enter(parent)? {
            return Ok(());
        }
        let is_dir = self
            .own(name)?
            .is_some_and(|stat| kind(&stat) == FileType::Directory);
        let opaque = match &self.upper {
            Some(upper) if is_dir => is_opaque(upper.as_fd(), name, self.form).during(DOING)?,
            _ => return Ok(()),
        };
        if let Some(below) = self.lowers.open(parent, name)?
            && !opaque
        {
            let own = self.visited.open(path)?;
            let stat = rustix::fs::fstat(&below).during(DOING)?;
            self.visited.describe(path, own.as_fd(), below.as_fd(), &stat)?;
        }
        Ok(())
    }

    /// Hides everything that the layers below have in a directory.
    fn empty(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        if !self.enter(parent)? {
            return Ok(());
        }
        let below = self.lowers.find(parent, name)?;
        if below.is_none_or(|stat| kind(&stat) != FileType::Directory) {
            return Ok(());
        }
        match self.own(name)? {
            Some(stat) if kind(&stat) != FileType::Directory => Ok(()),
            Some(_) => self.mark(path),
            None => {
                self.make(path)?;
                self.mark(path)
            }
        }
    }

    /// Hides a name of the layers below.
    fn delete(&mut self, path: &[u8], owner: Option<Owner>) -> Result<()> {
        let (parent, name) = split(path);
        if !self.enter(parent)? {
            return Ok(());
        }
        let Some(below) = self.lowers.find(parent, name)? else {
            return Ok(());
        };
        if let Some(own) = self.own(name)? {
            let both = [&own, &below]
                .iter()
                .all(|stat| kind(stat) == FileType::Directory);
            return if both { self.mark(path) } else { Ok(()) };
        }
        if let Some(upper) = &self.upper
            && is_hidden(upper.as_fd(), name, self.form).during(DOING)?
        {
            return Ok(());
        }
        self.make(parent)?;
        let dir = self.visited.open(parent)?;
        self.whiteout(dir.as_fd(), name, owner)
    }

    /// Makes the directories at `path` that the layer itself has not, each as the one below.
    fn make(&mut self, path: &[u8]) -> Result<()> {
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(index, _)| index);
        for end in ends.chain([path.len()]) {
            let (parent, name) = split(path.get(..end).unwrap_or_default());
            if name.is_empty() {
                continue;
            }
            self.enter(parent)?;
            if self.own(name)?.is_some() {
                continue;
            }
            let gone =
                || ErrorKind::LayerUnknown.err("the layer below vanished while a layer was fitted to it");
            let below = self.lowers.open(parent, name)?.ok_or_else(gone)?;
            let stat = rustix::fs::fstat(&below).during(DOING)?;
            let dir = self.visited.open(parent)?;
            rustix::fs::mkdirat(&dir, name, Mode::RWXU).during("making a directory")?;
            let own = at::open_dir_at(dir.as_fd(), name).during("opening a directory")?;
            let path = path.get(..end).unwrap_or_default();
            self.visited.describe(path, own.as_fd(), below.as_fd(), &stat)?;
        }
        Ok(())
    }

    /// Marks a directory of the layer opaque.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let dir = self.visited.open(path)?;
        mark(dir.as_fd(), self.form)
    }

    fn whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], owner: Option<Owner>) -> Result<()> {
        let doing = "making a whiteout";
        let file = [whiteout::PREFIX, name].concat();
        let name = match self.form {
            WhiteoutFormat::Apply => return Ok(()),
            WhiteoutFormat::Overlay(_) => {
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0).during(doing)?;
                name
            }
            WhiteoutFormat::Verbatim => {
                make_empty(dir, &file).during(doing)?;
                file.as_slice()
            }
        };
        if let Some(owner) = owner.filter(|owner| (owner.uid, owner.gid) != (0, 0)) {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let result = rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            // Nothing depends on it.
            if let Err(error) = result {
                tracing::debug!(%error, "owner of a whiteout not set");
            }
        }
        Ok(())
    }
}

fn make_empty(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// Marks an open directory opaque.
pub(super) fn mark(dir: BorrowedFd<'_>, form: WhiteoutFormat) -> Result<()> {
    match form {
        WhiteoutFormat::Apply => Ok(()),
        WhiteoutFormat::Overlay(namespace) => mark_opaque(dir, namespace),
        WhiteoutFormat::Verbatim => make_empty(dir, whiteout::OPAQUE).during("marking a directory opaque"),
    }
}
