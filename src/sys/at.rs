//! Access below an open directory that cannot leave it.
//!
//! [`open_in_root`] resolves a path as if the directory were `/` (`openat2` with `RESOLVE_IN_ROOT`): symbolic links
//! and `..` stay inside, magic links of `/proc` are refused. Where the kernel or a seccomp filter has no `openat2`,
//! a walk by components with the same meaning replaces it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::{Errno, Result};

/// Symbolic links followed in one resolution, as the kernel's own limit.
const MAX_LINKS: usize = 40;

/// How often a resolution that raced with a rename is tried again.
const MAX_RACES: usize = 64;

/// Set once the kernel has refused `openat2` as such.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens a directory by path, for use as the root of everything below; `O_PATH` is not set, so it can be listed.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens directory `name` in `dir` without following a link; `name` must be one component.
pub(crate) fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Status of `name` in `dir`, not followed; `None` if it does not exist.
pub(crate) fn lstat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens `path` inside `root`, which acts as `/`: neither links nor `..` lead outside.
/// An empty path is the root itself.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        for _ in 0..MAX_RACES {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(root, path, flags, mode, resolve) {
                // A concurrent rename or mount: the kernel cannot verify `..` and asks for another attempt.
                Err(Errno::AGAIN) => {}
                // A seccomp filter may return EPERM in place of ENOSYS; the walk below works in either case.
                Err(Errno::NOSYS | Errno::PERM) => break,
                result => return result,
            }
        }
    }
    let walked = walk_in_root(root, path, flags, mode);
    if walked.is_ok() {
        NO_OPENAT2.store(probe_says_no_openat2(root), Ordering::Relaxed);
    }
    walked
}

fn probe_says_no_openat2(root: BorrowedFd<'_>) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let probe = rustix::fs::openat2(root, ".", flags, Mode::empty(), ResolveFlags::IN_ROOT);
    matches!(probe, Err(Errno::NOSYS | Errno::PERM))
}

/// Opens the directory at `path` inside `root` as a starting point for `*at` calls.
pub(crate) fn open_dir_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
}

/// As [`open_dir_in_root`] if the path has no symbolic link. `None` if it has one, or if the kernel cannot tell; then
/// [`open_dir_in_root`] has to be used.
pub(crate) fn open_dir_without_links(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    if NO_OPENAT2.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::LOOP | Errno::XDEV | Errno::AGAIN | Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the open directory `dir` lies below `root`, without a slash in front; empty for the root itself. `None` if
/// it is not below, or `/proc` is not there.
pub(crate) fn path_below(root: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let path = |fd: BorrowedFd<'_>| {
        use std::os::fd::AsRawFd as _;
        rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
            .map(std::ffi::CString::into_bytes)
    };
    let (root, dir) = (path(root)?, path(dir)?);
    let Some(rest) = dir.strip_prefix(root.as_slice()) else {
        return Ok(None);
    };
    Ok(match rest.strip_prefix(b"/") {
        Some(rest) => Some(rest.to_vec()),
        None if rest.is_empty() => Some(Vec::new()),
        // The process's root directory is the only one whose path ends in a slash.
        None if root == b"/" => Some(rest.to_vec()),
        None => None,
    })
}

/// The replacement for `openat2`: opens every component without following links, and expands links itself.
fn walk_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let here = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let split = |path: &[u8]| -> VecDeque<Vec<u8>> {
        path.split(|b| *b == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(<[u8]>::to_vec)
            .collect()
    };
    let mut stack: Vec<OwnedFd> = vec![rustix::fs::openat(root, ".", here, Mode::empty())?];
    let mut todo = split(path);
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        let Some(current) = stack.last() else {
            return Err(Errno::NOENT);
        };
        if part == b".." {
            // `..` of the root is the root.
            if stack.len() > 1 {
                drop(stack.pop());
            }
            continue;
        }
        let last = todo.is_empty();
        let link = match rustix::fs::readlinkat(current, OsStr::from_bytes(&part), Vec::new()) {
            Ok(target) => Some(target.into_bytes()),
            Err(Errno::INVAL | Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match link {
            Some(target) if !(last && flags.contains(OFlags::NOFOLLOW)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                let mut parts = split(&target);
                parts.append(&mut todo);
                todo = parts;
            }
            _ if last => {
                return rustix::fs::openat(current, OsStr::from_bytes(&part), flags | OFlags::NOFOLLOW, mode);
            }
            _ => {
                let next = rustix::fs::openat(current, OsStr::from_bytes(&part), here, Mode::empty())?;
                stack.push(next);
            }
        }
    }
    let Some(current) = stack.last() else {
        return Err(Errno::NOENT);
    };
    rustix::fs::openat(current.as_fd(), ".", flags - OFlags::NOFOLLOW, mode)
}

/// The target of symbolic link `name` in `dir`.
pub(crate) fn read_link_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into_vec())
}

/// Sets the mode of an open file, which may be open as `O_PATH`.
pub(crate) fn chmod_open(file: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Renames a file or a directory. Moving a directory to another parent writes to it, since its `..` changes: if its mode
/// forbids that to its owner, the mode is changed for the time of the rename.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::rename(from, to) {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(from, flags, Mode::empty()) else {
        return Err(Errno::ACCESS);
    };
    with_write_permission(dir.as_fd(), || rustix::fs::rename(from, to))
}

/// As [`rename`], for `name` from one open directory to another.
pub(crate) fn rename_at(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::renameat(from, name, to, name) {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(from, name, flags, Mode::empty()) else {
        return Err(Errno::ACCESS);
    };
    with_write_permission(dir.as_fd(), || rustix::fs::renameat(from, name, to, name))
}

/// Runs `rename` while the owner of `dir`, which it moves, may write to it.
fn with_write_permission(dir: BorrowedFd<'_>, rename: impl FnOnce() -> Result<()>) -> Result<()> {
    let mode = rustix::fs::fstat(dir)?.st_mode & 0o7777;
    if mode & 0o200 != 0 || chmod_open(dir, mode | 0o200).is_err() {
        return Err(Errno::ACCESS);
    }
    let renamed = rename();
    let restored = chmod_open(dir, mode);
    renamed.and(restored)
}

/// Exchanges two directories of one file system; as [`rename`] also where their modes forbid it to their owner.
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<()> {
    let exchange = || rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    match exchange() {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let mut changed = Vec::new();
    for path in [one, other] {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) else {
            continue;
        };
        let mode = rustix::fs::fstat(&dir)?.st_mode & 0o7777;
        if mode & 0o200 == 0 && chmod_open(dir.as_fd(), mode | 0o200).is_ok() {
            changed.push((dir, mode));
        }
    }
    let exchanged = exchange();
    let restored = changed.iter().map(|(dir, mode)| chmod_open(dir.as_fd(), *mode));
    exchanged.and(restored.collect())
}

/// Opens a file for reading that should be a regular one; links are not followed. If it has become a FIFO or a terminal by
/// now that has no effect.
pub(crate) fn open_file_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a regular file for reading, links followed. Anything else is an error; a FIFO does not block. Whoever has a
/// [lease](crate::sys::lease) of the file is waited for.
pub(crate) fn open_regular(path: &Path) -> std::io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(CWD, path, flags | OFlags::NONBLOCK, Mode::empty()) {
        Err(Errno::AGAIN) if path.is_file() => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        opened => opened,
    };
    let file = std::fs::File::from(opened?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

/// Reads a regular file, links followed, of at most `limit` bytes. Anything else is an error; a FIFO does not block.
pub(crate) fn read_regular(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut limited = open_regular(path)?.take(limit.saturating_add(1));
    limited.read_to_end(&mut content)?;
    match limited.limit() {
        0 => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("more than {limit} bytes"),
        )),
        _ => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(root: &OwnedFd, path: &str, walk: bool) -> std::result::Result<String, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = if walk {
            walk_in_root(root.as_fd(), path.as_bytes(), flags, Mode::empty())?
        } else {
            open_in_root(root.as_fd(), path.as_bytes(), flags, Mode::empty())?
        };
        let mut text = String::new();
        std::fs::File::from(fd)
            .read_to_string(&mut text)
            .map_err(|e| Errno::from_io_error(&e).unwrap())?;
        Ok(text)
    }

    #[test]
    fn who_has_a_lease_is_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        // Not every file system has them.
        let Some(lease) = crate::sys::lease::Lease::of(&file) else {
            return;
        };
        let opening = std::thread::spawn(move || open_regular(&path).map(drop));
        while !opening.is_finished()
            && !std::fs::read_to_string("/proc/locks")
                .unwrap()
                .contains("BREAKING")
        {
            std::thread::yield_now();
        }
        drop(lease);
        opening.join().unwrap().unwrap();
    }

    #[test]
    fn nothing_leads_outside_with_or_without_openat2() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(tmp.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        std::fs::write(root.join("a/b/file"), "file").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        link("/a/b", "absolute");
        link("../../../../secret", "up");
        link("/a/b/../../../../secret", "mixed");
        link("loop", "loop");
        let fd = open_dir(&root).unwrap();
        for walk in [false, true] {
            assert_eq!(read(&fd, "absolute/file", walk).unwrap(), "file");
            assert_eq!(read(&fd, "/a/b/file", walk).unwrap(), "file");
            assert_eq!(read(&fd, "a/../../secret", walk).unwrap(), "inside");
            assert_eq!(read(&fd, "up", walk).unwrap(), "inside");
            assert_eq!(read(&fd, "mixed", walk).unwrap(), "inside");
            assert_eq!(read(&fd, "loop", walk).unwrap_err(), Errno::LOOP);
            assert_eq!(read(&fd, "missing/x", walk).unwrap_err(), Errno::NOENT);
        }
        let dir = open_dir_in_root(fd.as_fd(), b"absolute").unwrap();
        assert_eq!(path_below(fd.as_fd(), dir.as_fd()).unwrap().unwrap(), b"a/b");
        assert_eq!(path_below(fd.as_fd(), fd.as_fd()).unwrap().unwrap(), b"");
        assert_eq!(path_below(dir.as_fd(), fd.as_fd()).unwrap(), None);
        assert!(open_dir_without_links(fd.as_fd(), b"absolute").unwrap().is_none());
        assert!(open_dir_without_links(fd.as_fd(), b"a/b").unwrap().is_some());
        assert_eq!(
            open_dir_without_links(fd.as_fd(), b"a/c").unwrap_err(),
            Errno::NOENT
        );
        assert_eq!(
            open_dir_without_links(fd.as_fd(), b"secret").unwrap_err(),
            Errno::NOTDIR
        );
    }
}
