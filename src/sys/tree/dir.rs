//! Directories of untrusted trees: opening, listing, identity.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

/// Bytes per `getdents` call.
const LISTING: usize = 32 * 1024;

/// Bytes of a path that one call takes with certainty.
const MAX_PATH: usize = 2048;

/// How a directory of a tree is opened: never through a link.
pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

pub(super) type Result<T> = rustix::io::Result<T>;

/// Set once the kernel has refused `openat2` as such.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens the directory at `path` below `root`; `path` may be longer than one call takes, and must have been met on a
/// walk: it has no links in it.
pub(crate) fn open_dir_below(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let mut dir = rustix::fs::openat(root, c".", DIR_FLAGS, Mode::empty())?;
    let mut rest = path;
    while !rest.is_empty() {
        let end = match rest.get(..MAX_PATH) {
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

/// `EXDEV` if a mount is in the way, be it of the same file system.
pub(crate) fn open_on_same_mount(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
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
pub(super) fn open_and_compare(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
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
