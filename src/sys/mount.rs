//! Mounting, unmounting, and telling what is mounted where.

use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// How often a busy mount is tried again, and how long each pause is.
const BUSY_TRIES: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Detaches the mount at `path` now; the kernel drops it when its last user goes. Nothing mounted there is fine.
pub(crate) fn unmount_lazily(path: &Path) -> io::Result<()> {
    for _ in 0..BUSY_TRIES {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => std::thread::sleep(BUSY_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Whether something is mounted exactly at `path`.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(true) };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(CWD, parent, flags | OFlags::DIRECTORY, Mode::empty())?;
    match rustix::fs::openat2(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::NO_XDEV) {
        Ok(_) => Ok(false),
        Err(Errno::XDEV) => Ok(true),
        Err(Errno::NOSYS | Errno::PERM) => Ok(mounts_below(path)?.iter().any(|mount| mount == path)),
        Err(error) => Err(error.into()),
    }
}

/// Every mount point at or below `path`, deepest first.
pub(crate) fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(path))
        .collect();
    found.sort_by_key(|mount| std::cmp::Reverse(mount.components().count()));
    Ok(found)
}

/// Undoes the `\ooo` escapes of the kernel's mount table.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_as_it_is_written() {
        assert_eq!(unescape(b"/a\\040b\\134c\\0"), Path::new("/a b\\c\\0"));
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
        assert!(mounts_below(Path::new("/proc")).unwrap().contains(&PathBuf::from("/proc")));
    }
}
