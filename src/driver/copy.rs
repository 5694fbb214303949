//! Copies a tree into an existing directory: content by reflink or in the kernel where possible, holes, hard links,
//! owners, modes, times and the extended attributes that belong to content.
//!
//! Goes by open directories on both sides and single names, follows no link, and holds a bounded number of files open
//! however deep the tree is.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::idmap::Owner;
use crate::sys::tree::{self, DIR_FLAGS, DirStack};
use crate::sys::{at, privilege, xattr};

/// Attributes that belong to a file's content. Others (SELinux labels, overlay's own) belong to where it lies.
fn is_copied(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// Bytes per call where the kernel cannot copy by itself.
const BUFFER: usize = 128 * 1024;

/// Most bytes asked for in one `copy_file_range`, so that the call returns now and then.
const MAX_RANGE: u64 = 1 << 30;

/// Copies the tree below `from` into `to`, the root's own mode, owner, times and attributes included. Without
/// privileges devices are left out; with `ignore_owners` files belong to the caller where they cannot belong to
/// whom they belonged.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ignore_owners: bool) -> Result<()> {
    let mut copier = Copier {
        root: to,
        path: Vec::new(),
        links: HashMap::new(),
        reflink: true,
        in_kernel: true,
        root_user: privilege::is_root(),
        ignore_owners,
        devices: !privilege::is_rootless(),
        me: privilege::effective_owner(),
    };
    copier.run(from).map_err(|error| {
        let path = String::from_utf8_lossy(&copier.path).into_owned();
        Error::io(format!("copying \"/{path}\""), error)
    })
}

struct Copier<'a> {
    root: BorrowedFd<'a>,
    /// Where the copy is, from the root, for hard links and errors.
    path: Vec<u8>,
    /// First copy of each inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Cleared once the file systems have said no.
    reflink: bool,
    /// Cleared once the kernel has said no.
    in_kernel: bool,
    /// A failure to set an attribute is one.
    root_user: bool,
    /// A failure to set an owner is none.
    ignore_owners: bool,
    /// Devices can be made.
    devices: bool,
    me: Owner,
}

impl Copier<'_> {
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
                // Everything inside is there: nothing changes the directory's times any more.
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
        if stat.st_size > 0 {
            self.data(&from, &to, stat)?;
        }
        self.finish(from.as_fd(), to.as_fd(), stat)
    }

    fn data(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
        if self.reflink {
            if rustix::fs::ioctl_ficlone(to, from).is_ok() {
                return Ok(());
            }
            self.reflink = false;
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if allocated >= size {
            return self.range(from, to, 0, size);
        }
        let mut offset = 0;
        while offset < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
                Ok(start) => start,
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => break,
                // Not every file system tells.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start))
                .unwrap_or(size)
                .min(size);
            self.range(from, to, start, end)?;
            offset = end.max(start + 1);
        }
        Ok(rustix::fs::ftruncate(to, size)?)
    }

    /// Copies what lies between two offsets. A source that has become shorter ends the copy.
    fn range(&mut self, from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
        let (mut read, mut written) = (start, start);
        while self.in_kernel && read < end {
            let length = usize::try_from((end - read).min(MAX_RANGE)).unwrap_or(BUFFER);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    self.in_kernel = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if read >= end {
            return Ok(());
        }
        let mut buffer = vec![0; BUFFER];
        while read < end {
            let wanted = usize::try_from(end - read).unwrap_or(BUFFER).min(BUFFER);
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            let count = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut *room, read))?;
            let mut rest: &[u8] = room.get(..count).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            while !rest.is_empty() {
                let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(to, rest, read))?;
                rest = rest.get(count..).unwrap_or_default();
                read += u64::try_from(count).unwrap_or(0);
            }
        }
        Ok(())
    }

    /// Owner, attributes, mode and times of an open file or directory, in the order in which none undoes another.
    fn finish(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner(stat) {
            self.owned(rustix::fs::fchown(to, Some(uid), Some(gid)))?;
        }
        let names = xattr::flist_raw(from)?;
        for name in names.split(|byte| *byte == 0).filter(|name| is_copied(name)) {
            let Ok(text) = std::str::from_utf8(name) else {
                continue;
            };
            if let Some(value) = xattr::fget(from, text)? {
                self.allow(xattr::fset(to, name, &value))?;
            }
        }
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        Ok(rustix::fs::futimens(to, &times(stat))?)
    }

    /// The same for what cannot be opened.
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
                if !is_copied(attribute.as_bytes()) {
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

    /// The owner to set, if it is not the caller, whom new files belong to anyway.
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

    /// Only root is expected to be allowed everything.
    fn allow(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if !self.root_user => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Gives the file that was first met at `first` below `root` another name.
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

/// How much of a path is its parent's.
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
    fn holes_stay_holes_and_every_way_copies_the_same() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        let mut content = vec![0; 3 << 20];
        content[1 << 20] = 1;
        *content.last_mut().unwrap() = 2;
        let file = fs::File::create(&from).unwrap();
        file.set_len(content.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], 1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[2], (3 << 20) - 1).unwrap();
        let dir = at::open_dir(tmp.path()).unwrap();
        for (reflink, in_kernel) in [(true, true), (false, true), (false, false)] {
            let mut copier = Copier {
                root: dir.as_fd(),
                path: Vec::new(),
                links: HashMap::new(),
                reflink,
                in_kernel,
                root_user: false,
                ignore_owners: false,
                devices: false,
                me: privilege::effective_owner(),
            };
            let stat = rustix::fs::stat(&from).unwrap();
            copier
                .entry(dir.as_fd(), dir.as_fd(), c"from", &stat)
                .unwrap_err();
            let below = tmp.path().join("below");
            fs::create_dir(&below).unwrap();
            copier
                .entry(dir.as_fd(), at::open_dir(&below).unwrap().as_fd(), c"from", &stat)
                .unwrap();
            fs::rename(below.join("from"), &to).unwrap();
            fs::remove_dir(&below).unwrap();
            assert!(fs::read(&to).unwrap() == content, "{reflink} {in_kernel}");
            assert!(
                fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20,
                "{reflink} {in_kernel}"
            );
        }
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
