//! Removing and measuring whole directory trees.
//!
//! Trees come from layers, so nothing about them can be trusted: they may be tens of thousands of levels deep, hold
//! millions of entries, or be changed by somebody else meanwhile. Everything goes through open directories and single
//! names, links are never followed, and neither the thread's stack nor the number of open files grows with the depth
//! ([`DirStack`]).
//!
//! Large trees are first removed by several threads as far as nothing stands in the way ([`parallel_remove`]); one thread then
//! does what is left.
//!
//! Removal does what it takes: missing permission bits are added, immutable and append-only flags cleared, mounts
//! inside detached (never entered: what is mounted is not ours to delete). A crash leaves part of the tree.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;

mod parallel_remove;

/// Directories kept open on the way down; the ones above are found again through `..`.
const MAX_OPEN: usize = 32;

/// Bytes per `getdents` call.
const LISTING: usize = 32 * 1024;

/// Names of subdirectories remembered per level before they are dealt with.
const MAX_PENDING: usize = 256 * 1024;

/// How often a directory that fills up again is emptied again.
const MAX_REFILLS: u32 = 100;

/// How often, and how far apart, something busy is tried again.
const MAX_BUSY: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Longer paths are cut in error messages.
const MAX_SHOWN: usize = 4096;

/// Mounts on top of each other that are detached from one place.
const MAX_STACKED_MOUNTS: u32 = 100;

/// How a directory of a tree is opened: never through a link.
pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

type Result<T> = rustix::io::Result<T>;

/// Set once the kernel has refused `openat2` as such.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// What a tree takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Sum of the apparent sizes of everything but directories, each inode once.
    pub(crate) size: u64,
    /// Distinct inodes, directories and the root included.
    pub(crate) inodes: u64,
}

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

/// Removes everything inside `dir`, which may be open as `O_PATH`, and keeps `dir` itself.
#[cfg(test)]
pub(crate) fn remove_contents(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = listing_buffer();
    for _ in 0..=MAX_REFILLS {
        let top = rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())?;
        let mut remover = Remover::new(DirStack::new(top), &mut buffer);
        let found = remover.list().and_then(|found| remover.run().map(|()| found));
        // A second look tells that it is really empty: a listing may miss entries while others vanish.
        if !found.map_err(|error| remover.explain(error))? {
            return Ok(());
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// Measures the tree in `dir`, which may be open as `O_PATH`. What vanishes meanwhile is not counted.
pub(crate) fn usage(dir: BorrowedFd<'_>) -> io::Result<Usage> {
    let top = rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())?;
    let mut stack = DirStack::new(top);
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let mut usage = Usage { size: 0, inodes: 1 };
    // Only what has several names can be met twice.
    let mut seen: HashSet<(u64, u64)> = HashSet::new();
    let mut buffer = listing_buffer();
    let mut names = measure(stack.current()?, &mut buffer, &mut usage, &mut seen)?;
    loop {
        let Some(name) = last_name(&names) else {
            let Some(above) = pending.pop() else {
                return Ok(usage);
            };
            stack.leave()?;
            names = above;
            continue;
        };
        let opened = rustix::fs::openat(stack.current()?, name, DIR_FLAGS, Mode::empty());
        pop_name(&mut names);
        match opened {
            Ok(next) => {
                usage.inodes += 1;
                stack.enter(next)?;
                let inner = measure(stack.current()?, &mut buffer, &mut usage, &mut seen)?;
                pending.push(std::mem::replace(&mut names, inner));
            }
            // It vanished, or something else took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
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

/// The way from the top of a walk down to the current directory. Only the last [`MAX_OPEN`] directories are open; one
/// further up is opened again as `..` of the one below, and must then be the one that it was.
pub(crate) struct DirStack {
    levels: Vec<Level>,
}

enum Level {
    Open(OwnedFd),
    /// Closed; its device and inode.
    Closed((u64, u64)),
}

impl DirStack {
    /// A walk that starts in `top`.
    pub(crate) fn new(top: OwnedFd) -> Self {
        Self {
            levels: vec![Level::Open(top)],
        }
    }

    /// The directory that the walk is in.
    pub(crate) fn current(&self) -> Result<BorrowedFd<'_>> {
        match self.levels.last() {
            Some(Level::Open(dir)) => Ok(dir.as_fd()),
            // The last level is always open.
            Some(Level::Closed(_)) | None => Err(Errno::BADF),
        }
    }

    /// Goes down into `dir`, a subdirectory of the current one.
    pub(crate) fn enter(&mut self, dir: OwnedFd) -> Result<()> {
        self.levels.push(Level::Open(dir));
        // The top stays open: `..` of the one below it may be unreachable, or not be it.
        if let Some(far) = self.levels.len().checked_sub(MAX_OPEN).filter(|far| *far > 0)
            && let Some(level) = self.levels.get_mut(far)
            && let Level::Open(dir) = level
        {
            *level = Level::Closed(identity(&rustix::fs::fstat(dir)?));
        }
        Ok(())
    }

    /// Goes one level up; at the top nothing happens.
    pub(crate) fn leave(&mut self) -> Result<()> {
        self.leave_open().map(drop)
    }

    /// Goes one level up and hands over the directory that was left; at the top nothing happens.
    pub(crate) fn leave_open(&mut self) -> Result<Option<OwnedFd>> {
        let [.., above, Level::Open(current)] = self.levels.as_mut_slice() else {
            return Ok(None);
        };
        if let Level::Closed(expected) = above {
            let dir = rustix::fs::openat(&*current, c"..", DIR_FLAGS, Mode::empty())?;
            // Somebody moved the directory: what is above now is not part of the walk.
            if identity(&rustix::fs::fstat(&dir)?) != *expected {
                return Err(Errno::STALE);
            }
            *above = Level::Open(dir);
        }
        match self.levels.pop() {
            Some(Level::Open(left)) => Ok(Some(left)),
            Some(Level::Closed(_)) | None => Ok(None),
        }
    }
}

/// Opens the directory at `path` below `root`; `path` may be longer than one call takes, and must have been met on a
/// walk: it has no links in it.
pub(crate) fn open_dir_below(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let mut dir = rustix::fs::openat(root, c".", DIR_FLAGS, Mode::empty())?;
    let mut rest = path;
    while !rest.is_empty() {
        let end = match rest.get(..MAX_SHOWN / 2) {
            None => rest.len(),
            Some(head) => head
                .iter()
                .rposition(|byte| *byte == b'/')
                .ok_or(Errno::NAMETOOLONG)?,
        };
        let (head, tail) = rest.split_at(end);
        dir = crate::sys::at::open_in_root(dir.as_fd(), head, DIR_FLAGS, Mode::empty())?;
        rest = tail.strip_prefix(b"/").unwrap_or(tail);
    }
    Ok(dir)
}

/// A removal under way.
struct Remover<'a> {
    stack: DirStack,
    /// One for each level of `stack`.
    levels: Vec<Pending>,
    buffer: &'a mut [MaybeUninit<u8>],
    /// The entry that could not be removed, if it is not the current subdirectory of the last level.
    failed: Vec<u8>,
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
        Self {
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
                // The directory itself was removed by somebody else.
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
        Error::io_at("removing", path, error).into_io()
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

/// `EXDEV` if a mount is in the way, be it of the same file system.
fn open_on_same_mount(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        match rustix::fs::openat2(dir, name, DIR_FLAGS, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::NOSYS) => NO_OPENAT2.store(true, Ordering::Relaxed),
            // A seccomp filter's way to say ENOSYS, perhaps.
            Err(Errno::PERM) => {}
            result => return result,
        }
    }
    open_and_compare(dir, name)
}

/// [`open_on_same_mount`] without `openat2`.
fn open_and_compare(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let next = rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty())?;
    if mount_id(dir)? == mount_id(next.as_fd())? {
        Ok(next)
    } else {
        Err(Errno::XDEV)
    }
}

/// The mount that an open file is on, as `/proc` tells it.
pub(crate) fn mount_id(file: BorrowedFd<'_>) -> Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::NOTSUP)
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

/// Room for one `getdents` call.
pub(crate) fn listing_buffer() -> Vec<MaybeUninit<u8>> {
    vec![MaybeUninit::uninit(); LISTING]
}

/// The names in `dir`, each with a zero byte at its end, for walks that change what they list.
pub(crate) fn list_names(dir: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            names.extend_from_slice(entry.file_name().to_bytes_with_nul());
        }
    }
    Ok(names)
}

/// Whether `name` is `.` or `..`.
pub(crate) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Whether `stat` tells of a directory.
pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What no two files have in common: device and inode.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Where the last name of a zero-terminated list starts.
fn last_start(names: &[u8]) -> Option<usize> {
    let (_zero, body) = names.split_last()?;
    Some(
        body.iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |zero| zero + 1),
    )
}

/// The last name of a zero-terminated list.
pub(crate) fn last_name(names: &[u8]) -> Option<&CStr> {
    CStr::from_bytes_with_nul(names.get(last_start(names)?..)?).ok()
}

/// Takes the last name off a zero-terminated list.
pub(crate) fn pop_name(names: &mut Vec<u8>) {
    names.truncate(last_start(names).unwrap_or(0));
}

#[cfg(test)]
mod tests;
