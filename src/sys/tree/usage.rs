//! Measuring a directory tree.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, RawDir};
use rustix::io::Errno;

use crate::sys::tree::dir::{
    DIR_FLAGS, Result, identity, is_directory, is_dot, last_name, listing_buffer, pop_name,
};
use crate::sys::tree::dir_stack::DirStack;

/// What a tree takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Sum of the apparent sizes of everything but directories, each inode once.
    pub(crate) size: u64,
    /// Distinct inodes, directories and the root included.
    pub(crate) inodes: u64,
}

/// Measures the tree in `dir`, which may be open as `O_PATH`. What vanishes meanwhile is not counted.
pub(crate) fn usage(dir: BorrowedFd<'_>) -> io::Result<Usage> {
    let mut walk = UsageWalk::new(dir)?;
    while walk.step(u64::MAX)? {}
    Ok(walk.usage)
}

/// The measuring of a tree step by step, see [`usage`].
pub(crate) struct UsageWalk {
    stack: DirStack,
    /// Names of the directories still to be measured: in the current directory, and in those above it.
    names: Vec<u8>,
    pending: Vec<Vec<u8>>,
    /// What was found up to now.
    pub(crate) usage: Usage,
    /// Only what has several names can be met twice.
    seen: HashSet<(u64, u64)>,
}

impl UsageWalk {
    /// Begins with the tree in `dir`, which may be open as `O_PATH`.
    pub(crate) fn new(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let top = rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())?;
        let mut walk = Self {
            stack: DirStack::new(top),
            names: Vec::new(),
            pending: Vec::new(),
            usage: Usage { size: 0, inodes: 1 },
            seen: HashSet::new(),
        };
        walk.names = walk.measure(&mut listing_buffer())?;
        Ok(walk)
    }

    /// Goes on until about `count` more entries are measured, whole directories at a time; `false` once all are.
    pub(crate) fn step(&mut self, count: u64) -> io::Result<bool> {
        let end = self.usage.inodes.saturating_add(count);
        let mut buffer = listing_buffer();
        while self.usage.inodes < end {
            let Some(name) = last_name(&self.names) else {
                let Some(above) = self.pending.pop() else {
                    return Ok(false);
                };
                self.stack.leave()?;
                self.names = above;
                continue;
            };
            let opened = rustix::fs::openat(self.stack.current()?, name, DIR_FLAGS, Mode::empty());
            pop_name(&mut self.names);
            match opened {
                Ok(next) => {
                    self.usage.inodes += 1;
                    self.stack.enter(next)?;
                    let inner = self.measure(&mut buffer)?;
                    self.pending.push(std::mem::replace(&mut self.names, inner));
                }
                // It vanished, or something else took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn measure(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<u8>> {
        measure(self.stack.current()?, buffer, &mut self.usage, &mut self.seen)
    }
}

/// Counts the entries of one directory that are no directories, and returns the names of those that are.
fn measure(
    dir: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    usage: &mut Usage,
    seen: &mut HashSet<(u64, u64)>,
) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // Removed while it was open.
            Err(Errno::NOENT) => break,
            Err(error) => return Err(error),
        };
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            names.extend_from_slice(name.to_bytes_with_nul());
            continue;
        }
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        if is_directory(&stat) {
            names.extend_from_slice(name.to_bytes_with_nul());
        } else if stat.st_nlink < 2 || seen.insert(identity(&stat)) {
            usage.inodes += 1;
            usage.size = usage
                .size
                .saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
    }
    Ok(names)
}
