//! Modes of directories that their owner must be able to write to while an archive is unpacked.
//!
//! A process without `CAP_DAC_OVERRIDE` cannot create files in a directory without write permission, not even in its
//! own. So its owner's permissions are added when the directory is first used, and its mode is set at the end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::Mode;

use crate::archive::apply::settle::literal_dir;
use crate::archive::path::show;
use crate::error::{IoContext as _, Result, ResultExt as _};
use crate::sys::{at, privilege};

/// Permissions that an owner needs to create and replace files.
const NEEDED: u32 = 0o700;

/// Permissions that are needed to open a directory, for syncing it.
const READABLE: u32 = 0o500;

/// The modes to set at the end, by the real path of the directory.
#[derive(Debug)]
pub(crate) struct DeferredModes {
    /// Whether permissions matter at all.
    on: bool,
    modes: BTreeMap<Vec<u8>, u32>,
}

impl DeferredModes {
    /// No modes yet; none are ever kept where permissions do not matter to this process.
    pub(crate) fn new() -> Self {
        Self {
            on: !privilege::overrides_modes(),
            modes: BTreeMap::new(),
        }
    }

    /// The mode with which a directory is made and kept until the end.
    pub(crate) fn working_mode(&self, mode: u32) -> u32 {
        if self.on { mode | NEEDED } else { mode }
    }

    /// Adds its owner's permissions to a directory that exists.
    pub(crate) fn open_up(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        let mode = rustix::fs::fstat(dir).during("reading the status")?.st_mode & 0o7777;
        // The mode of another user's directory cannot be changed; the next call in it fails and says why.
        if mode & NEEDED != NEEDED && at::chmod_open(dir, mode | NEEDED).is_ok() {
            self.modes.entry(path.to_vec()).or_insert(mode);
        }
        Ok(())
    }

    /// Notes the mode that a directory shall have at the end.
    pub(crate) fn set(&mut self, path: &[u8], mode: u32) {
        if !self.on {
            return;
        }
        if mode & NEEDED == NEEDED {
            self.modes.remove(path);
        } else {
            self.modes.insert(path.to_vec(), mode);
        }
    }

    /// Paths and modes, what is inside a directory before the directory: those that can still be read afterwards, or
    /// the rest.
    fn take(&mut self, readable: bool) -> impl Iterator<Item = (Vec<u8>, u32)> {
        let modes = std::mem::take(&mut self.modes).into_iter();
        let (taken, kept) = modes.partition(|(_path, mode)| (*mode & READABLE == READABLE) == readable);
        self.modes = kept;
        let taken: BTreeMap<_, _> = taken;
        taken.into_iter().rev()
    }

    /// Keeps a directory whose mode was just set to `mode` open to its owner until the end.
    pub(crate) fn close_later(&mut self, dir: BorrowedFd<'_>, path: &[u8], mode: u32) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        self.set(path, mode);
        let working = self.working_mode(mode);
        if working == mode {
            return Ok(());
        }
        rustix::fs::fchmod(dir, Mode::from_raw_mode(working)).during("setting the mode")
    }

    /// Sets the final modes of directories: those that can still be read afterwards,
    /// or the rest.
    pub(crate) fn set_all(&mut self, root: BorrowedFd<'_>, readable: bool) -> Result<()> {
        for (path, mode) in self.take(readable) {
            let doing = || format!("setting the mode of {}", show(&path));
            if path.is_empty() {
                at::chmod_open(root, mode).during(doing())?;
                continue;
            }
            // Nothing, or something else, may be there by now, perhaps a link to another directory.
            if let Some(dir) = literal_dir(root, &path).context(doing)? {
                at::chmod_open(dir.as_fd(), mode).during(doing())?;
            }
        }
        Ok(())
    }
}
