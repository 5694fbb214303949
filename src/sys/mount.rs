//! Mounting: wrappers of the mount system calls that drivers share, and the mount table.

#![expect(unsafe_code, reason = "mount_setattr and unshare have no safe wrapper")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_change,
    mount_remount, move_mount, open_tree,
};

use crate::sys::tree::{DIR_FLAGS, mount_id};

/// How often, and how far apart, a busy mount is tried again.
const MAX_BUSY: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Whether the directory at `path` (links followed) is a mount point.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE);
    match stat {
        Ok(stat) if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory => {
            Err(Errno::NOTDIR.into())
        }
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // Older than Linux 5.8, or a seccomp filter.
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => is_mount_point_by_crossing(path),
        Err(error) => Err(error.into()),
    }
}

/// [`is_mount_point`] without `statx`.
fn is_mount_point_by_crossing(path: &Path) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    // The way up crosses from the mount to the one below exactly at a mount point.
    match rustix::fs::openat2(&dir, c"..", flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        Ok(_parent) => Ok(false),
        Err(Errno::XDEV) => Ok(true),
        Err(Errno::NOSYS | Errno::PERM) => {
            let parent = rustix::fs::openat(&dir, c"..", flags, Mode::empty())?;
            Ok(mount_id(dir.as_fd())? != mount_id(parent.as_fd())?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether something is mounted at `path` and works. `NotConnected` if the program that serves it has died.
pub(crate) fn is_live_mount(path: &Path) -> io::Result<bool> {
    let mounted = is_mount_point(path)?;
    if mounted {
        // Answered by the file system that is mounted there.
        rustix::fs::statfs(path)?;
    }
    Ok(mounted)
}

/// Bind-mounts `path` onto itself unless it is a mount point, and makes it private: mounts below it do not propagate to
/// other mount namespaces.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    if !is_mount_point(path)? {
        mount_bind(path, path)?;
    }
    Ok(mount_change(path, MountPropagationFlags::PRIVATE)?)
}

/// Whether this process may mount at all: root of a user namespace may only in a mount namespace that belongs to it.
/// Checked without mounting anything.
pub(crate) fn may_mount(path: &Path) -> bool {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    !matches!(open_tree(CWD, path, flags), Err(Errno::PERM))
}

/// Detaches the topmost mount at `path`. No error if nothing is mounted there or the path does not exist.
pub(crate) fn unmount_lazily(path: &Path) -> io::Result<()> {
    let mut busy = 0;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) if busy < MAX_BUSY => {
                busy += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            result => return Ok(result?),
        }
    }
}

/// Everything mounted at `path` or below it in this mount namespace, the deepest first and, where several are on top
/// of each other, once for each. `path` must be absolute and free of links.
pub(crate) fn mounts_below(path: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    Ok(parse_mount_table(&std::fs::read("/proc/self/mountinfo")?, path))
}

/// The mount points of a table in the form of `mountinfo` that are at or below a path, in the order of [`mounts_below`].
pub(crate) fn parse_mount_table(table: &[u8], below: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<std::path::PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(below))
        .collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    found
}

/// Where a file is, whatever mounts lead there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlaceOnDisk {
    /// The file system, as the mount table names it.
    pub(crate) device: String,
    /// From the file system's root.
    pub(crate) path: std::path::PathBuf,
}

/// The place of a directory, whose path without links is `real`; `None` if this mount namespace has no such mount.
pub(crate) fn place_on_disk(dir: BorrowedFd<'_>, real: &Path) -> io::Result<Option<PlaceOnDisk>> {
    let id = mount_id(dir)?;
    Ok(parse_place(&std::fs::read("/proc/self/mountinfo")?, id, real))
}

fn parse_place(table: &[u8], id: u64, real: &Path) -> Option<PlaceOnDisk> {
    let mut fields = line_of(table, id)?.split(|byte| *byte == b' ').skip(2);
    let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    Some(PlaceOnDisk {
        device,
        path: root.join(real.strip_prefix(point).ok()?),
    })
}

/// Whether a mount table has a mount that shows a directory, or a part of it.
pub(crate) fn has_mount_of(table: &[u8], place: &PlaceOnDisk) -> bool {
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        fields
            .next()
            .is_some_and(|device| device == place.device.as_bytes())
            && fields
                .next()
                .is_some_and(|root| unescape(root).starts_with(&place.path))
    })
}

/// The line of a mount table that is about a mount.
fn line_of(table: &[u8], id: u64) -> Option<&[u8]> {
    let id = id.to_string();
    table
        .split(|byte| *byte == b'\n')
        .find(|line| line.split(|byte| *byte == b' ').next() == Some(id.as_bytes()))
}

/// The type and the source of the file system that a directory is on, as the mount table has them; `None` if this mount namespace
/// has no such mount.
pub(crate) fn type_and_source(dir: BorrowedFd<'_>) -> io::Result<Option<(String, String)>> {
    let id = mount_id(dir)?;
    Ok(parse_type_and_source(&std::fs::read("/proc/self/mountinfo")?, id))
}

fn parse_type_and_source(table: &[u8], id: u64) -> Option<(String, String)> {
    // A variable number of fields ends with a hyphen.
    let mut fields = line_of(table, id)?
        .split(|byte| *byte == b' ')
        .skip_while(|field| *field != b"-")
        .skip(1);
    let mut next = || unescape(fields.next()?).into_os_string().into_string().ok();
    Some((next()?, next()?))
}

/// Sets the flags of the mount at `path`. Other mounts of the same file system keep theirs.
pub(crate) fn set_flags(path: &Path, flags: MountFlags) -> Result<()> {
    mount_remount(path, flags | MountFlags::BIND, c"")
}

/// Reads the table's octal escapes (`\040` is a space). Anything else stays as it is.
fn unescape(field: &[u8]) -> std::path::PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (*first, tail) {
            plain.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(plain).into()
}

/// A copy of the mount that `path` is on, from `path` down and without what is mounted below, with owners
/// mapped as in `namespace`. The copy is not attached to the tree.
pub(crate) fn clone_id_mapped(path: &Path, namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags)?;
    map_owners(tree.as_fd(), namespace)?;
    Ok(tree)
}

/// Maps the owners of a mount that is not attached to the tree, as in `namespace`.
pub(crate) fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).or(Err(Errno::BADF))?;
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd,
    };
    // SAFETY: both descriptors are open during the call, the path is a constant string with a zero byte at its end,
    // and the kernel reads exactly the given size from `attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// A copy of the mount at `path`, without what is mounted below it, not attached to the tree. `EINVAL` if nothing is
/// mounted there.
pub(crate) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    if !is_mount_point(path)? {
        return Err(Errno::INVAL.into());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

/// The directory `dir` in a mount without what is mounted below it, which is not attached to the tree and goes with its last
/// user; `None` if nothing is mounted there.
///
/// # Errors
/// `EPERM` and `EINVAL` if this user may not see what the mounts hide.
pub(crate) fn without_mounts(dir: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let real = std::fs::read_link(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()))?;
    // The directory can be a mount point itself.
    if mounts_below(&real)?.iter().all(|point| *point == real) {
        return Ok(None);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(dir, c"", flags)?;
    Ok(Some(rustix::fs::openat(&mount, c".", DIR_FLAGS, Mode::empty())?))
}

/// Attaches a detached mount.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    move_mount(
        mount,
        OsStr::new(""),
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Runs `work` on a thread of its own whose current directory is `dir`; that of the process does not change.
pub(crate) fn in_directory<T: Send>(dir: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let thread = || -> io::Result<T> {
        // SAFETY: the call takes no pointers. It separates the current directory and umask of this new thread from
        // those of the other threads, whose state does not change.
        if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::process::fchdir(dir)?;
        Ok(work())
    };
    std::thread::scope(|scope| match scope.spawn(thread).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The longest path that a mount parameter may be.
pub(crate) const MAX_PARAMETER: usize = 255;

/// Whether `path` can stand in a comma-separated list of mount data as it is.
pub(crate) fn is_plain(path: &Path) -> bool {
    !path
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| matches!(byte, b',' | b':' | b'\\' | b'"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_by_components_and_unescaped() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 254:0 /x /a/b rw,relatime shared:1 - ext4 /dev/vda rw\n\
            31 30 0:40 / /a/b/c\\040d\\134e rw - overlay overlay rw\n\
            32 22 0:41 / /a/bc rw - tmpfs tmpfs rw\n\
            33 30 0:42 / /a/b rw - tmpfs tmpfs rw\nshort line\n";
        let found = parse_mount_table(table, Path::new("/a/b"));
        assert_eq!(
            found,
            ["/a/b/c d\\e", "/a/b", "/a/b"].map(std::path::PathBuf::from)
        );
        assert_eq!(parse_mount_table(table, Path::new("/")).len(), 5);
        assert_eq!(
            unescape(b"\\04x\\400\\"),
            std::path::PathBuf::from("\\04x\\400\\")
        );
    }

    #[test]
    fn the_mount_table_tells_types_and_sources() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /a rw,relatime shared:1 master:2 - fuse.zfs tank/a\\040b rw\n31 22 0:1 / /b rw\n";
        let found = |id| parse_type_and_source(table, id);
        assert_eq!(found(22), Some(("ext4".into(), "/dev/vda".into())));
        assert_eq!(found(30), Some(("fuse.zfs".into(), "tank/a b".into())));
        assert_eq!((found(31), found(3)), (None, None));
        let proc = crate::sys::at::open_dir(Path::new("/proc")).unwrap();
        let (kind, _source) = type_and_source(proc.as_fd()).unwrap().unwrap();
        assert_eq!(kind, "proc");
    }

    #[test]
    fn the_mount_table_tells_places_on_disk() {
        let table =
            b"22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:40 /sub\\040x /a rw - btrfs /dev/vdb rw\n";
        let found = |id, path: &str| {
            parse_place(table, id, Path::new(path))
                .map(|place| (place.device, place.path.display().to_string()))
        };
        assert_eq!(found(22, "/srv/b"), Some(("254:0".into(), "/srv/b".into())));
        assert_eq!(found(30, "/a/b"), Some(("0:40".into(), "/sub x/b".into())));
        assert_eq!(found(30, "/c"), None);
        assert_eq!(found(3, "/a"), None);
    }

    #[test]
    fn the_directory_of_a_thread_is_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let before = std::env::current_dir().unwrap();
        let dir = crate::sys::at::open_dir(tmp.path()).unwrap();
        let inside = in_directory(dir.as_fd(), || std::env::current_dir().unwrap()).unwrap();
        assert_eq!(inside, tmp.path());
        assert_eq!(std::env::current_dir().unwrap(), before);
    }

    #[test]
    fn mount_points_are_told_from_directories() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(!is_mount_point(tmp.path()).unwrap());
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(is_mount_point(&link).unwrap(), "links are followed");
        assert!(is_mount_point_by_crossing(&link).unwrap());
        assert!(!is_mount_point_by_crossing(tmp.path()).unwrap());
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        for look in [is_mount_point, is_mount_point_by_crossing] {
            assert_eq!(look(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        }
        assert_eq!(
            is_mount_point(&tmp.path().join("missing")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        unmount_lazily(tmp.path()).unwrap();
        unmount_lazily(&tmp.path().join("missing")).unwrap();
    }
}
