//! The tree that an archive is unpacked to: directories found and made, what is in the way removed.
//!
//! Each change keeps account of what the tar-split recorder relies on, of directories whose modes and times are set at
//! the end, and of what has to be synced.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::archive::apply::deferred_modes::DeferredModes;
use crate::archive::apply::extract_state::{ExtractState, Removing};
use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::metadata::{Rules, kind};
use crate::archive::apply::parents::{Found, Parent, Parents};
use crate::archive::apply::prune;
use crate::archive::path::{clean, push, show, split};
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, IoContext as _, Result};
use crate::idmap::Owner;
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::{at, tree};

/// Symbolic links that are followed to directories that have to be made, for one name.
const MAX_LINKS: usize = 40;

/// See the module's head.
pub(crate) struct Tree {
    pub(crate) parents: Parents,
    pub(crate) state: ExtractState,
    pub(crate) marks: LayerMarks,
    pub(crate) rules: Rules,
    pub(crate) deferred_modes: DeferredModes,
    pub(crate) sync_tracker: SyncTracker,
    /// A directory was removed: a name may mean another one by now.
    pub(crate) dirs_gone: bool,
    /// Scratch: a path without links.
    pub(crate) real: Vec<u8>,
}

impl Tree {
    /// The tree below `root`, which must be open for reading.
    pub(crate) fn new(root: OwnedFd, rules: Rules, sync: bool) -> Result<Self> {
        let mut deferred_modes = DeferredModes::new();
        deferred_modes.open_up(root.as_fd(), b"")?;
        Ok(Self {
            parents: Parents::new(root),
            state: ExtractState::default(),
            marks: LayerMarks::default(),
            rules,
            deferred_modes,
            sync_tracker: SyncTracker::new(sync),
            dirs_gone: false,
            real: Vec::new(),
        })
    }

    /// Makes something, removing what is in its place.
    pub(crate) fn make<T>(
        &mut self,
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, MakeError> {
        match make() {
            Err(Errno::EXIST) => {}
            result => return result.map_err(MakeError::Make),
        }
        self.displace(parent, base, recorder)
            .map_err(MakeError::Displace)?;
        make().map_err(MakeError::Make)
    }

    /// Removes what is at `base`, whatever it is; nothing is fine.
    pub(crate) fn displace(
        &mut self,
        parent: &Parent,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let Some(stat) = at::lstat_at(parent.fd(), base).during("reading the status")? else {
            return Ok(());
        };
        let kind = kind(&stat);
        let mut real = Vec::new();
        parent.child(base, &mut real);
        let root = Rc::clone(self.parents.root());
        let mut removing = Removing {
            state: &mut self.state,
            recorder,
            root: root.fd(),
        };
        prune::remove(parent.fd(), base, &real, kind, &mut removing)?;
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.directories_went();
        }
        Ok(())
    }

    /// The directory that an entry goes into, made where it is missing.
    pub(crate) fn ensure(&mut self, path: &[u8]) -> Result<Rc<Parent>> {
        match self.parents.find(path)? {
            Found::Directory(parent) => Ok(parent),
            Found::Missing | Found::Blocked => self.make_all(path, MAX_LINKS),
        }
    }

    fn make_all(&mut self, path: &[u8], links: usize) -> Result<Rc<Parent>> {
        // The deepest directory that exists, then down again.
        let mut ends: Vec<usize> = vec![path.len()];
        ends.extend(
            path.iter()
                .enumerate()
                .rev()
                .filter(|(_, byte)| **byte == b'/')
                .map(|(index, _)| index),
        );
        let prefix = |end: usize| path.get(..end).unwrap_or_default();
        let mut missing = 0;
        let mut parent = loop {
            missing += 1;
            let above = ends.get(missing).map_or(&[][..], |end| prefix(*end));
            if let Found::Directory(parent) = self.parents.find(above)? {
                break parent;
            }
        };
        for end in ends.iter().take(missing).rev() {
            parent = self.make_implied(prefix(*end), &parent, links)?;
        }
        Ok(parent)
    }

    fn make_implied(&mut self, path: &[u8], parent: &Rc<Parent>, links: usize) -> Result<Rc<Parent>> {
        let (_, base) = split(path);
        let doing = || format!("making the directory {}", show(path));
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(parent.fd(), base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => return self.make_linked(path, parent, links),
            Err(error) => return Err(Error::io(doing(), error)),
        }
        let dir = at::open_dir_at(parent.fd(), base).during(doing())?;
        let stat = rustix::fs::fstat(&dir).during(doing())?;
        let owner = self.rules.mappings.root()?;
        match self.rules.permissions(dir.as_fd(), &stat, owner, 0o755) {
            // No entry asks for this owner, and an ordinary user cannot give anything away.
            Err(error) if error.has_errno(Errno::PERM) => {
                let (uid, gid) = (stat.st_uid, stat.st_gid);
                self.rules
                    .permissions(dir.as_fd(), &stat, Owner { uid, gid }, 0o755)?;
            }
            result => result?,
        }
        self.rules.keep_real(dir.as_fd(), owner, 0o755, "dir")?;
        let mut real = std::mem::take(&mut self.real);
        parent.child(base, &mut real);
        let implied = self.marks.imply(&real);
        self.deferred_modes.set(&real, 0o755);
        self.real = real;
        implied?;
        Ok(self.keep_open(path, parent, base, dir))
    }

    /// The directory that a link of this archive at `path` leads to, made if it is not there: perhaps only the layers
    /// below have it.
    fn make_linked(&mut self, path: &[u8], parent: &Rc<Parent>, links: usize) -> Result<Rc<Parent>> {
        let (_, base) = split(path);
        let doing = || format!("making the directory {}", show(path));
        let Ok(link) = at::read_link_at(parent.fd(), base) else {
            return Err(Error::io(doing(), Errno::NOTDIR));
        };
        let links = links.checked_sub(1).ok_or(Errno::LOOP).during(doing())?;
        let mut target = if link.starts_with(b"/") {
            Vec::new()
        } else {
            parent.real().to_vec()
        };
        push(&mut target, &link);
        let mut cleaned = Vec::new();
        clean(&target, &mut cleaned);
        if cleaned.contains(&0) {
            return Err(Error::io(doing(), Errno::INVAL));
        }
        match self.parents.find(&cleaned)? {
            Found::Directory(_) => {}
            Found::Missing | Found::Blocked => drop(self.make_all(&cleaned, links)?),
        }
        match self.parents.find(path)? {
            Found::Directory(parent) => Ok(parent),
            Found::Missing | Found::Blocked => Err(Error::io(doing(), Errno::NOENT)),
        }
    }

    /// Whether the entry name `name` leads to `file`.
    pub(crate) fn is_reached(&self, name: &[u8], file: &File) -> Result<bool> {
        let doing = "looking at a file through a link";
        let mut path = Vec::new();
        clean(name, &mut path);
        match at::open_in_root(self.parents.root().fd(), &path, OFlags::PATH, Mode::empty()) {
            Ok(found) => {
                let identity = |stat: rustix::io::Result<Stat>| stat.map(|stat| tree::identity(&stat));
                let (found, own) = (
                    identity(rustix::fs::fstat(found)),
                    identity(rustix::fs::fstat(file)),
                );
                Ok(found.during(doing)? == own.during(doing)?)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(Error::io(doing, error)),
        }
    }

    pub(crate) fn keep_open(
        &mut self,
        path: &[u8],
        parent: &Rc<Parent>,
        base: &[u8],
        dir: OwnedFd,
    ) -> Rc<Parent> {
        let real = parent.via_link().then(|| {
            let mut real = Vec::new();
            parent.child(base, &mut real);
            real
        });
        self.parents.insert(path.to_vec(), real, dir)
    }

    /// Directories were removed: their times must not be set on what took their place.
    fn directories_went(&mut self) {
        self.parents.clear();
        self.dirs_gone = true;
    }
}

/// Why something could not be made.
pub(crate) enum MakeError {
    Make(Errno),
    Displace(Error),
}

/// As [`crate::error::IoContext`]: only the failed call needs to be told what was being done.
pub(crate) trait During<T> {
    fn during(self, action: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, MakeError> {
    fn during(self, action: &'static str) -> Result<T> {
        self.map_err(|error| match error {
            MakeError::Make(error) => Error::io(action, error),
            MakeError::Displace(error) => error,
        })
    }
}
