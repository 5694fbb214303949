//! The tree that an archive is unpacked to: directories found and made, what is in the way removed.
//!
//! Each change keeps account of what the tar-split recorder relies on, of directories whose modes and times are set at
//! the end, and of what has to be synced.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use crate::archive::apply::deferred_modes::DeferredModes;
use crate::archive::apply::extract_state::{ExtractState, Removing};
use crate::archive::apply::metadata::{Rules, kind, mark_opaque};
use crate::archive::apply::parents::{Found, Parent, Parents};
use crate::archive::apply::prune;
use crate::archive::path::{show, split};
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, IoContext as _, Result};
use crate::sys::at;
use crate::sys::sync_tracker::SyncTracker;
use crate::whiteout::{Namespace, WhiteoutFormat};

/// See the module's head.
pub(crate) struct Tree {
    pub(crate) parents: Parents,
    pub(crate) state: ExtractState,
    pub(crate) form: WhiteoutFormat,
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
    pub(crate) fn new(root: OwnedFd, form: WhiteoutFormat, rules: Rules, sync: bool) -> Result<Self> {
        let mut deferred_modes = DeferredModes::new();
        deferred_modes.open_up(root.as_fd(), b"")?;
        Ok(Self {
            parents: Parents::new(root),
            state: ExtractState::default(),
            form,
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
        self.deferred_modes.open_up(parent.fd(), parent.real())?;
        let mut removing = Removing {
            state: &mut self.state,
            recorder,
            root: root.fd(),
            spare_new: false,
        };
        prune::remove(parent.fd(), base, &real, kind, &mut removing)?;
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.directories_went();
        }
        Ok(())
    }

    /// The directory that an entry goes into, made where it is missing.
    pub(crate) fn ensure(&mut self, path: &[u8], recorder: &mut TarSplitRecorder) -> Result<Rc<Parent>> {
        let parent = match self.parents.find(path)? {
            Found::Directory(parent) => parent,
            Found::Missing | Found::Blocked => self.make_all(path, recorder)?,
        };
        self.touch(&parent)?;
        Ok(parent)
    }

    /// Notes that a directory belongs to this archive, which writes to it.
    pub(crate) fn touch(&mut self, dir: &Parent) -> Result<()> {
        if !dir.touched.replace(true) {
            self.state.seen.touch_all(dir.real());
            self.deferred_modes.open_up(dir.fd(), dir.real())?;
        }
        Ok(())
    }

    fn make_all(&mut self, path: &[u8], recorder: &mut TarSplitRecorder) -> Result<Rc<Parent>> {
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
            parent = self.make_implied(prefix(*end), &parent, recorder)?;
        }
        Ok(parent)
    }

    fn make_implied(
        &mut self,
        path: &[u8],
        parent: &Rc<Parent>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<Rc<Parent>> {
        let (_, base) = split(path);
        let doing = || format!("making the directory {}", show(path));
        let mut opaque = None;
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(parent.fd(), base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // A whiteout hides what the layers below have here; the new directory must hide it too.
                let there = at::lstat_at(parent.fd(), base).during(doing())?;
                opaque = there.and_then(|stat| self.whiteout_of(&stat));
                if opaque.is_none() {
                    let link = there.is_some_and(|stat| kind(&stat) == FileType::Symlink);
                    return Err(Error::io(
                        doing(),
                        if link { Errno::NOENT } else { Errno::NOTDIR },
                    ));
                }
                self.displace(parent, base, recorder)?;
                rustix::fs::mkdirat(parent.fd(), base, mode).during(doing())?;
            }
            Err(error) => return Err(Error::io(doing(), error)),
        }
        let dir = at::open_dir_at(parent.fd(), base).during(doing())?;
        let stat = rustix::fs::fstat(&dir).during(doing())?;
        let owner = self.rules.mappings.root()?;
        self.rules.permissions(dir.as_fd(), &stat, owner, 0o755)?;
        self.rules.keep_real(dir.as_fd(), owner, 0o755, "dir")?;
        let mut real = std::mem::take(&mut self.real);
        parent.child(base, &mut real);
        self.deferred_modes.set(&real, 0o755);
        self.real = real;
        if let Some(namespace) = opaque {
            mark_opaque(dir.as_fd(), namespace)?;
        }
        Ok(self.keep_open(path, parent, base, dir))
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

    /// If this is a whiteout of overlayfs: where its attributes are.
    pub(crate) fn whiteout_of(&self, stat: &Stat) -> Option<Namespace> {
        match self.form {
            WhiteoutFormat::Overlay(namespace)
                if kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0 =>
            {
                Some(namespace)
            }
            _ => None,
        }
    }

    /// Removes from a directory what this archive did not bring.
    pub(crate) fn clear_old(
        &mut self,
        dir: OwnedFd,
        path: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let root = Rc::clone(self.parents.root());
        let mut removing = Removing {
            state: &mut self.state,
            recorder,
            root: root.fd(),
            spare_new: true,
        };
        prune::clear(dir, path, &mut removing)?;
        self.directories_went();
        Ok(())
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
