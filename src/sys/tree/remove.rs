//! Removing a directory tree.
//!
//! A large tree is first removed by several threads ([`parallel_remove`]), except for what cannot be unlinked at the
//! first try; one thread then removes the rest. To do so it adds missing permission bits, clears immutable and
//! append-only flags, and detaches mounts inside the tree (it never enters them: their content is not part of the
//! tree). Subvolumes of a btrfs are destroyed as a whole, where that is allowed. A crash leaves part of the tree.

use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;
use crate::sys::tree::dir::{
    Result, is_directory, is_dot, last_name, listing_buffer, open_on_same_mount, pop_name,
};
use crate::sys::tree::dir_stack::DirStack;
use crate::sys::tree::{parallel_remove, subvolumes};

/// Names of subdirectories remembered per level before they are dealt with.
pub(super) const MAX_PENDING: usize = 256 * 1024;

/// How often a directory that fills up again is emptied again.
const MAX_REFILLS: u32 = 100;

/// How often, and how far apart, something busy is tried again.
const MAX_BUSY: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Longer paths are cut in error messages.
const MAX_SHOWN: usize = 4096;

/// Mounts on top of each other that are detached from one place.
const MAX_STACKED_MOUNTS: u32 = 100;

/// Removes `path` and everything below it; a missing `path` is fine. Only the parent's path is resolved by name.
///
/// The error names the entry that could not be removed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path has no last component to remove",
        ));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let Ok(c_name) = CStr::from_bytes_with_nul(&name) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path with a zero byte",
        ));
    };
    let mut buffer = listing_buffer();
    // The parent plays the part of a directory in which only this one name is to be removed.
    let mut remover = Remover::new(DirStack::new(parent), &mut buffer);
    let Some(level) = remover.levels.last_mut() else {
        return Ok(());
    };
    match unlink(remover.stack.current()?, c_name, false) {
        Ok(Unlinked::Gone) => return Ok(()),
        Ok(Unlinked::IsDir) => {
            // What this leaves is dealt with, or reported, below.
            parallel_remove::remove(remover.stack.current()?, c_name);
            level.pending = name;
        }
        Err(error) => return Err(error.into()),
    }
    remover.run().map_err(|error| remover.explain(error))
}

/// A removal under way.
struct Remover<'a> {
    stack: DirStack,
    /// One for each level of `stack`.
    levels: Vec<Pending>,
    buffer: &'a mut [MaybeUninit<u8>],
    /// The entry that could not be removed, if it is not the current subdirectory of the last level.
    failed: Vec<u8>,
    /// There may be subvolumes in the tree.
    may_have_subvolumes: bool,
}

/// What is still to be done in one directory.
#[derive(Default)]
struct Pending {
    /// Names of subdirectories, each with a zero byte at its end; the last one is the one being emptied.
    pending: Vec<u8>,
    /// The listing stopped before the end because there were too many subdirectories.
    cut_short: bool,
    /// How often the subdirectory being emptied has filled up again.
    refills: u32,
}

impl<'a> Remover<'a> {
    fn new(stack: DirStack, buffer: &'a mut [MaybeUninit<u8>]) -> Self {
        let top = stack.current();
        Self {
            may_have_subvolumes: top.is_ok_and(subvolumes::may_have),
            stack,
            levels: vec![Pending::default()],
            buffer,
            failed: Vec::new(),
        }
    }

    /// Whether the current directory is inside the tree, so that its mode and flags may be changed.
    fn ours(&self) -> bool {
        self.levels.len() > 1
    }

    /// Works until nothing is pending on the top level.
    fn run(&mut self) -> Result<()> {
        loop {
            let ours = self.ours();
            let Some(level) = self.levels.last_mut() else {
                return Ok(());
            };
            if let Some(name) = last_name(&level.pending) {
                match open_to_empty(self.stack.current()?, name, ours)? {
                    Some(dir)
                        if self.may_have_subvolumes
                            && subvolumes::destroy(self.stack.current()?, name, &dir) =>
                    {
                        pop_name(&mut level.pending);
                    }
                    Some(dir) => {
                        self.stack.enter(dir)?;
                        self.levels.push(Pending::default());
                        self.list()?;
                    }
                    None => pop_name(&mut level.pending),
                }
                continue;
            }
            if level.cut_short {
                rustix::fs::seek(self.stack.current()?, SeekFrom::Start(0))?;
                self.list()?;
                continue;
            }
            if !ours {
                return Ok(());
            }
            // This directory should be empty now.
            self.stack.leave()?;
            drop(self.levels.pop());
            self.remove_emptied()?;
        }
    }

    /// Removes the subdirectory whose work is done. If it has filled up again it stays pending.
    fn remove_emptied(&mut self) -> Result<()> {
        let ours = self.ours();
        let Some(level) = self.levels.last_mut() else {
            return Ok(());
        };
        let Some(name) = last_name(&level.pending) else {
            return Ok(());
        };
        if rmdir(self.stack.current()?, name, ours)? {
            pop_name(&mut level.pending);
            level.refills = 0;
        } else if level.refills >= MAX_REFILLS {
            return Err(Errno::NOTEMPTY);
        } else {
            level.refills += 1;
        }
        Ok(())
    }

    /// Unlinks what is no directory in the current directory, and notes the directories. Says whether there was
    /// anything.
    fn list(&mut self) -> Result<bool> {
        let ours = self.ours();
        let Some(level) = self.levels.last_mut() else {
            return Ok(false);
        };
        let dir = self.stack.current()?;
        let mut found = false;
        level.cut_short = false;
        let mut entries = RawDir::new(dir, &mut *self.buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself was removed by another process.
                Err(Errno::NOENT) => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            if is_dot(name) {
                continue;
            }
            found = true;
            let is_dir = entry.file_type() == FileType::Directory
                || match unlink(dir, name, ours) {
                    Ok(unlinked) => unlinked == Unlinked::IsDir,
                    Err(error) => {
                        self.failed = name.to_bytes().to_vec();
                        return Err(error);
                    }
                };
            if is_dir {
                level.pending.extend_from_slice(name.to_bytes_with_nul());
                if level.pending.len() >= MAX_PENDING {
                    level.cut_short = true;
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The error with the path, from the top, of what could not be removed.
    fn explain(&self, error: Errno) -> io::Error {
        let mut path = PathBuf::new();
        let names = self
            .levels
            .iter()
            .filter_map(|level| last_name(&level.pending))
            .map(CStr::to_bytes);
        for name in names
            .chain(std::iter::once(&*self.failed))
            .filter(|name| !name.is_empty())
        {
            if path.as_os_str().len() > MAX_SHOWN {
                path.push("…");
                break;
            }
            path.push(OsStr::from_bytes(name));
        }
        Error::io_at("removing", path, error).into()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unlinked {
    Gone,
    /// A directory: left alone.
    IsDir,
}

/// Unlinks `name` unless it is a directory. `ours`: `dir` may be changed to get there.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, ours: bool) -> Result<Unlinked> {
    match remove_name(dir, name, AtFlags::empty(), ours) {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
        Err(Errno::ISDIR) => Ok(Unlinked::IsDir),
        Err(error) => Err(error),
    }
}

/// Removes directory `name`; `false` if it is not empty.
fn rmdir(dir: BorrowedFd<'_>, name: &CStr, ours: bool) -> Result<bool> {
    match remove_name(dir, name, AtFlags::REMOVEDIR, ours) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // Something else has taken its place.
        Err(Errno::NOTDIR) => Ok(unlink(dir, name, ours)? == Unlinked::Gone),
        Err(error) => Err(error),
    }
}

/// `unlinkat` that clears away what can stand in its way.
fn remove_name(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags, ours: bool) -> Result<()> {
    let (mut busy, mut granted, mut cleared) = (0, false, false);
    loop {
        match rustix::fs::unlinkat(dir, name, flags) {
            Err(Errno::BUSY) if busy < MAX_BUSY => {
                busy += 1;
                // A mount point; or in use by the kernel for a moment.
                if detach(dir, name).is_err() {
                    std::thread::sleep(BUSY_PAUSE);
                }
            }
            Err(Errno::ACCESS) if ours && !granted => {
                granted = true;
                // Where that is not allowed the next try fails as this one did.
                rustix::fs::fchmod(dir, Mode::RWXU).ok();
            }
            Err(Errno::PERM) if !cleared => {
                cleared = true;
                if ours {
                    clear_flags(dir);
                }
                clear_flags_of(dir, name);
            }
            result => return result,
        }
    }
}

/// Opens subdirectory `name` for being emptied, never across a mount; `None` if there is no longer any such
/// directory.
fn open_to_empty(dir: BorrowedFd<'_>, name: &CStr, ours: bool) -> Result<Option<OwnedFd>> {
    let (mut mounts, mut replaced, mut granted) = (0, 0, false);
    loop {
        match open_on_same_mount(dir, name) {
            Ok(next) => return Ok(Some(next)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) if mounts < MAX_STACKED_MOUNTS => {
                mounts += 1;
                detach(dir, name)?;
            }
            Err(Errno::NOTDIR | Errno::LOOP) if replaced < MAX_REFILLS => {
                replaced += 1;
                if unlink(dir, name, ours)? == Unlinked::Gone {
                    return Ok(None);
                }
            }
            Err(Errno::ACCESS) if !granted => {
                granted = true;
                if ours {
                    rustix::fs::fchmod(dir, Mode::RWXU).ok();
                }
                grant(dir, name).ok();
            }
            Err(error) => return Err(error),
        }
    }
}

/// The path of `name` below an open directory, for calls that have no `at` form.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name.to_bytes()));
    path
}

/// Detaches the topmost mount on `name`, with all that is mounted inside it.
fn detach(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::mount::unmount(
        proc_path(dir, name),
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    )
}

/// Gives the owner all permissions on directory `name`.
fn grant(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", target.as_raw_fd()), Mode::RWXU)
}

/// Clears the flags that forbid removal. Where that fails the removal fails again and is reported.
fn clear_flags(file: BorrowedFd<'_>) {
    let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = rustix::fs::ioctl_getflags(file)
        && flags.intersects(forbidding)
        && let Err(error) = rustix::fs::ioctl_setflags(file, flags - forbidding)
    {
        tracing::debug!("clearing the immutable flag: {error}");
    }
}

fn clear_flags_of(dir: BorrowedFd<'_>, name: &CStr) {
    // Opening anything else (a device) may have effects, and it has no such flags.
    let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
        return;
    };
    if is_directory(&stat) || FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
            clear_flags(file.as_fd());
        }
    }
}
