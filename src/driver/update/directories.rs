//! Into a directory of the two trees and out of it.

use std::ffi::CStr;
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, Mode, Stat};
use rustix::io::Errno;

use crate::driver::copy_entry::{Failure, Result, parent_length};
use crate::driver::update::frame::{Aim, Base, Frame, Marks, open_up, reopen, subdirectory};
use crate::driver::update::walk::Walk;
use crate::sys::tree::{self, DIR_FLAGS, DirStack};
use crate::whiteout::WhiteoutFormat;

impl Walk<'_> {
    /// Goes into a directory; `false` if it is gone.
    pub(super) fn enter(
        &mut self,
        name: &CStr,
        stat: &Stat,
        base: Option<&Base<'_>>,
        is_own: bool,
    ) -> Result<bool> {
        let Some(&Frame {
            has_base,
            has_own,
            has_theirs,
            mut changes_only,
            ..
        }) = self.frames.last()
        else {
            return Ok(true);
        };
        let from = self.from.current()?;
        if self.shown.one_mount && matches!(tree::open_on_same_mount(from, name), Err(Errno::XDEV)) {
            return Ok(true);
        }
        let Some(below) = subdirectory(from, name)? else {
            return Ok(false);
        };
        let open = |has: bool, dirs: &DirStack| match has {
            true => subdirectory(dirs.current()?, name),
            false => Ok(None),
        };
        let own = open(has_own, &self.own)?;
        let theirs = open(has_theirs, &self.theirs)?;
        let own_marks = Marks::of(own.as_ref(), self.shown.own.as_ref())?;
        let their_marks = match self.aim {
            Aim::Compare(other, _) => Marks::of(theirs.as_ref(), other.own.as_ref())?,
            Aim::Update(_) => Marks::default(),
        };
        if changes_only && (own_marks.redirected || their_marks.redirected) {
            self.falls_short = true;
            return Ok(true);
        }
        let mut base_dir = match base.is_some_and(|base| tree::is_directory(&base.stat)) {
            true => open(has_base, &self.base)?,
            false => None,
        };
        let is_same = match (&base_dir, base) {
            (Some(_), Some(base)) => match self.is_same_entry(name, stat, base, is_own) {
                Err(_) if self.has_changed(name, Some(stat))? => false,
                is_same => is_same?,
            },
            _ => false,
        };
        if !is_same {
            self.differs();
        }
        let (mut is_opaque, mut is_touched) = (false, false);
        if self.is_update() {
            let is_whole = self.form() == WhiteoutFormat::Apply;
            if is_whole {
                if base_dir.is_none() {
                    self.clear(name)?;
                    rustix::fs::mkdirat(self.to.current()?, name, Mode::RWXU)?;
                }
            } else {
                is_opaque = base.is_some() && (base_dir.is_none() || (changes_only && own_marks.opaque));
                if is_opaque {
                    base_dir = None;
                }
                self.make_dir(name)?;
            }
            if is_whole && own_marks.opaque && base_dir.is_some() {
                changes_only = false;
            }
            let dir = rustix::fs::openat(self.to.current()?, name, DIR_FLAGS, Mode::empty())?;
            is_touched = open_up(dir.as_fd())?;
            self.to.enter(dir)?;
        } else if own_marks.opaque || their_marks.opaque {
            changes_only = false;
        }
        let mut frame = Frame {
            names: Vec::new(),
            stat: *stat,
            is_own,
            has_base: base_dir.is_some(),
            has_own: own.is_some(),
            has_theirs: theirs.is_some(),
            changes_only,
            is_same: is_same && base_dir.is_some(),
            is_opaque,
            is_touched,
        };
        self.from.enter(below)?;
        for (dirs, dir) in [
            (&mut self.base, base_dir),
            (&mut self.own, own),
            (&mut self.theirs, theirs),
        ] {
            if let Some(dir) = dir {
                dirs.enter(dir)?;
            }
        }
        frame.names = self.list(&frame)?;
        self.frames.push(frame);
        Ok(true)
    }

    /// Leaves the current directory, which is complete.
    pub(super) fn leave(&mut self) -> Result<()> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let is_root = self.frames.is_empty();
        let from = match is_root {
            true => Some(reopen(self.from.current()?)?),
            false => self.from.leave_open()?,
        };
        if frame.has_base && !is_root {
            self.base.leave()?;
        }
        if frame.has_own && !is_root {
            self.own.leave()?;
        }
        if frame.has_theirs && !is_root {
            self.theirs.leave()?;
        }
        if !self.is_update() {
            return Ok(());
        }
        let to = match is_root {
            true => Some(reopen(self.to.current()?)?),
            false => self.to.leave_open()?,
        };
        let (Some(from), Some(to)) = (from, to) else {
            return Err(Failure::from(Errno::BADF));
        };
        if frame.is_same && !is_root {
            match self.form() {
                WhiteoutFormat::Apply if !frame.is_touched => return Ok(()),
                WhiteoutFormat::Apply => {}
                // It was made to hold what differs in it.
                _ => {
                    let base = self.path.get(parent_length(&self.path)..).unwrap_or_default();
                    let name = base.strip_prefix(b"/").unwrap_or(base);
                    match rustix::fs::unlinkat(self.to.current()?, name, AtFlags::REMOVEDIR) {
                        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                        removed => return Ok(removed?),
                    }
                }
            }
        }
        self.finish_dir(&frame, from.as_fd(), to.as_fd())
    }
}
