//! Copies a tree into an existing directory: content by reflink or in the kernel where possible, holes, hard links,
//! owners, modes, times and the extended attributes that belong to content.
//!
//! The walk uses open directories and single names, follows no symbolic link, and holds a bounded number of files open
//! however deep the tree is.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::driver::copy_data::DataCopier;
use crate::error::{Error, IoContext as _, Result};
use crate::idmap::Owner;
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::tree::{self, DIR_FLAGS, DirStack};
use crate::sys::{at, privilege, xattr};

/// Attributes that belong to a file's content. Others (SELinux labels, marks of overlayfs) belong to its place.
fn is_copied(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// How files come into a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    /// As files of their own, in another place.
    Copied,
    /// As hard links, in the same place with everything that belongs to it.
    Linked,
}

/// Makes the empty directory `to` a second tree of what is below `from`, on the same file system: directories are copied
/// with all attributes, everything else is linked, or copied where that is not possible. With `durable` as [`copy_tree`].
pub(crate) fn link_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, durable: bool) -> Result<()> {
    run(from, to, Files::Linked, false, durable)
}

/// Gives the empty directory `to` everything that belongs to the directory `from` itself.
pub(crate) fn link_root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    const DOING: &str = "copying the root of a layer";
    let stat = rustix::fs::fstat(from).during(DOING)?;
    let copier = Copier::new(to, Files::Linked, false, false);
    copier
        .finish(from, to, &stat)
        .map_err(|error| Error::io(DOING, error))
}

/// Copies the tree below `from` into `to`, the root's own mode, owner, times and attributes included. In a user namespace
/// devices are left out. With `ignore_owners` files whose owner cannot be set belong to the caller. With `durable` the
/// copy is on disk, or will be with what is written later (see [`SyncTracker::commit`]).
pub(crate) fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    ignore_owners: bool,
    durable: bool,
) -> Result<()> {
    run(from, to, Files::Copied, ignore_owners, durable)
}

fn run(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    files: Files,
    ignore_owners: bool,
    durable: bool,
) -> Result<()> {
    let mut copier = Copier::new(to, files, ignore_owners, durable);
    copier.run(from).map_err(|error| {
        let path = String::from_utf8_lossy(&copier.path).into_owned();
        Error::io(format!("copying \"/{path}\""), error)
    })?;
    copier.sync_tracker.commit(to)
}

struct Copier<'a> {
    root: BorrowedFd<'a>,
    files: Files,
    /// The current path, from the root, for hard links and errors.
    path: Vec<u8>,
    /// First copy of each inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Copies the content of files.
    data: DataCopier,
    sync_tracker: SyncTracker,
    /// The caller is root: a failure to set an attribute is an error.
    root_user: bool,
    /// A failure to set an owner is no error.
    ignore_owners: bool,
    /// Devices can be made.
    devices: bool,
    me: Owner,
}

impl<'a> Copier<'a> {
    fn new(root: BorrowedFd<'a>, files: Files, ignore_owners: bool, durable: bool) -> Self {
        Self {
            root,
            files,
            path: Vec::new(),
            links: HashMap::new(),
            data: DataCopier::default(),
            sync_tracker: SyncTracker::new(durable),
            root_user: privilege::is_root(),
            ignore_owners,
            // A whiteout can be made everywhere.
            devices: files == Files::Linked || !privilege::is_rootless(),
            me: privilege::effective_owner(),
        }
    }

    fn run(&mut self, from: BorrowedFd<'_>) -> io::Result<()> {
        let open = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty());
        let mut source = DirStack::new(open(from)?);
        let mut target = DirStack::new(open(self.root)?);
        let mut buffer = tree::listing_buffer();
        let mut stat = rustix::fs::fstat(source.current()?)?;
        let mut names = tree::list_names(source.current()?, &mut buffer)?;
        let mut above: Vec<(Vec<u8>, Stat)> = Vec::new();
        loop {
            let Some(name) = tree::last_name(&names) else {
                // The directory is complete: nothing changes its times any more.
                let Some(outer) = above.pop() else {
                    return self.finish(source.current()?, target.current()?, &stat);
                };
                let (Some(left), Some(copy)) = (source.leave_open()?, target.leave_open()?) else {
                    return Err(Errno::BADF.into());
                };
                self.finish(left.as_fd(), copy.as_fd(), &stat)?;
                self.path.truncate(parent_length(&self.path));
                (names, stat) = outer;
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            let found = rustix::fs::statat(source.current()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if tree::is_directory(&found) {
                rustix::fs::mkdirat(target.current()?, name, Mode::RWXU)?;
                let below = rustix::fs::openat(source.current()?, name, DIR_FLAGS, Mode::empty())?;
                let copy = rustix::fs::openat(target.current()?, name, DIR_FLAGS, Mode::empty())?;
                source.enter(below)?;
                target.enter(copy)?;
                tree::pop_name(&mut names);
                let inner = tree::list_names(source.current()?, &mut buffer)?;
                above.push((
                    std::mem::replace(&mut names, inner),
                    std::mem::replace(&mut stat, found),
                ));
            } else {
                self.entry(source.current()?, target.current()?, name, &found)?;
                self.path.truncate(parent_length(&self.path));
                tree::pop_name(&mut names);
            }
        }
    }

    /// Copies anything but a directory.
    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        if self.files == Files::Linked {
            match rustix::fs::linkat(source, name, target, name, AtFlags::empty()) {
                // Too many links; a file of another user, or in another project.
                Err(Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::XDEV) => {}
                linked => return Ok(linked?),
            }
        }
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&tree::identity(stat))
        {
            return link_again(self.root, first, target, name);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => self.file(source, target, name, stat)?,
            FileType::Symlink => {
                let link = at::read_link_at(source, name.to_bytes())?;
                rustix::fs::symlinkat(OsStr::from_bytes(&link), target, name)?;
                self.special(source, target, name, stat)?;
            }
            FileType::BlockDevice | FileType::CharacterDevice if !self.devices => return Ok(()),
            _ => {
                rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                self.special(source, target, name, stat)?;
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert(tree::identity(stat), self.path.clone());
        }
        Ok(())
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(
            source,
            name,
            flags | OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = rustix::fs::openat(target, name, create, Mode::RUSR | Mode::WUSR)?;
        let written = stat.st_size > 0 && self.data.copy(&from, &to, stat)?;
        self.finish(from.as_fd(), to.as_fd(), stat)?;
        if written {
            self.sync_tracker.file(to);
        }
        Ok(())
    }

    /// Owner, attributes, mode and times of an open file or directory, in an order in which no step undoes another.
    fn finish(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner(stat) {
            self.owned(rustix::fs::fchown(to, Some(uid), Some(gid)))?;
        }
        let names = xattr::flist_raw(from)?;
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty() && self.is_copied(name))
        {
            let Ok(text) = std::str::from_utf8(name) else {
                continue;
            };
            if let Some(value) = xattr::fget(from, text)? {
                match xattr::fset(to, name, &value) {
                    // The label that a new directory gets here is the one that others get.
                    Err(Errno::PERM | Errno::ACCESS) if name == b"security.selinux" => {}
                    set => self.allow(set)?,
                }
            }
        }
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        Ok(rustix::fs::futimens(to, &times(stat))?)
    }

    /// As [`Copier::finish`], for files that cannot be opened.
    fn special(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner(stat) {
            self.owned(rustix::fs::chownat(
                target,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ))?;
        }
        // A link has none of the attributes that are copied, and no mode.
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            for attribute in xattr::list_at(source, name.to_bytes())? {
                if !self.is_copied(attribute.as_bytes()) {
                    continue;
                }
                if let Some(value) = xattr::get_at(source, name.to_bytes(), &attribute)? {
                    self.allow(xattr::set_at(
                        target,
                        name.to_bytes(),
                        attribute.as_bytes(),
                        &value,
                    ))?;
                }
            }
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(target, name, mode, AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(
            target,
            name,
            &times(stat),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn is_copied(&self, name: &[u8]) -> bool {
        self.files == Files::Linked || is_copied(name)
    }

    /// The owner to set; `None` if it is the caller, who owns new files anyway.
    fn owner(&self, stat: &Stat) -> Option<(Uid, Gid)> {
        let owner = Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        };
        (owner != self.me).then(|| (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
    }

    fn owned(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Err(Errno::PERM | Errno::INVAL) if self.ignore_owners => Ok(()),
            result => Ok(result?),
        }
    }

    /// Passes an error on only if the caller is root.
    fn allow(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if !self.root_user => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Makes a hard link to the file at `first` below `root`.
pub(super) fn link_again(
    root: BorrowedFd<'_>,
    first: &[u8],
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<()> {
    let length = parent_length(first);
    let (above, base) = first.split_at(length);
    let base = OsStr::from_bytes(base.strip_prefix(b"/").unwrap_or(base));
    let above = tree::open_dir_below(root, above)?;
    Ok(rustix::fs::linkat(&above, base, dir, name, AtFlags::empty())?)
}

/// Length of the parent's path.
pub(super) fn parent_length(path: &[u8]) -> usize {
    path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    fn copy(from: &Path, to: &Path) {
        copy_tree(
            at::open_dir(from).unwrap().as_fd(),
            at::open_dir(to).unwrap().as_fd(),
            true,
            true,
        )
        .unwrap();
    }

    #[test]
    fn a_copy_has_everything_that_the_tree_has() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        fs::create_dir_all(from.join("d/e")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("d/file"), vec![5; 100_000]).unwrap();
        fs::hard_link(from.join("d/file"), from.join("link")).unwrap();
        fs::hard_link(from.join("d/file"), from.join("d/e/link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("symlink")).unwrap();
        fs::set_permissions(from.join("d/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        let dir = at::open_dir(&from).unwrap();
        rustix::fs::mknodat(&dir, c"fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        rustix::fs::mknodat(&dir, c"socket", FileType::Socket, Mode::RUSR, 0).unwrap();
        let user = xattr::set_at(dir.as_fd(), b"link", b"user.test", b"value").is_ok();
        // u::rw-, u:1234:r--, g::r--, m::r--, o::---
        let acl =
            b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
            \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
        let acls = xattr::set_at(dir.as_fd(), b"d", b"system.posix_acl_access", acl).is_ok();
        fs::set_permissions(from.join("d/e"), fs::Permissions::from_mode(0o2500)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o7751)).unwrap();
        let old = Timestamps {
            last_access: Timespec {
                tv_sec: 5,
                tv_nsec: 6,
            },
            last_modification: Timespec {
                tv_sec: 7,
                tv_nsec: 8,
            },
        };
        for path in [c"d/e", c"d", c"symlink", c"fifo", c"link", c"."] {
            rustix::fs::utimensat(&dir, path, &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        copy(&from, &to);
        let meta = |path: &str| to.join(path).symlink_metadata().unwrap();
        assert_eq!(meta("d/file").ino(), meta("link").ino());
        assert_eq!(meta("d/file").ino(), meta("d/e/link").ino());
        assert_eq!(meta("link").nlink(), 3);
        assert_eq!(meta("d/file").mode() & 0o7777, 0o4751);
        assert_eq!(meta("d/e").mode() & 0o7777, 0o2500);
        assert_eq!(meta(".").mode() & 0o7777, 0o7751);
        assert_eq!(fs::read(to.join("link")).unwrap(), vec![5; 100_000]);
        assert_eq!(fs::read_link(to.join("symlink")).unwrap(), Path::new("/nowhere"));
        assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
        for path in ["d", "d/e", "symlink", "fifo", "link", "."] {
            assert_eq!((meta(path).mtime(), meta(path).mtime_nsec()), (7, 8), "{path}");
        }
        let copy = at::open_dir(&to).unwrap();
        let value = |path: &[u8], name| xattr::get_at(copy.as_fd(), path, name).unwrap();
        assert!(!user || value(b"d/file", "user.test").unwrap() == b"value");
        assert!(!acls || value(b"d", "system.posix_acl_access").unwrap() == acl);
    }

    #[test]
    fn depth_has_no_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let mut dir = at::open_dir(&from).unwrap();
        let name = "d".repeat(100);
        for _ in 0..300 {
            rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, &*name, DIR_FLAGS, Mode::empty()).unwrap();
        }
        rustix::fs::openat(&dir, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        rustix::fs::linkat(&dir, c"file", &dir, c"again", AtFlags::empty()).unwrap();
        copy(&from, &to);
        let usage = |path: &Path| tree::usage(at::open_dir(path).unwrap().as_fd()).unwrap();
        assert_eq!(usage(&to), usage(&from));
        assert_eq!(usage(&to).inodes, 302);
        tree::remove_tree(&from).unwrap();
        tree::remove_tree(&to).unwrap();
    }
}
