//! Copies a tree into an existing directory: content by reflink or in the kernel where possible, hard links, owners,
//! modes, times and the extended attributes that layers carry.
//!
//! Goes by open directories inside both roots and follows no link.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sys::{at, xattr};

/// Attributes that belong to a file's content; others (SELinux labels, overlay's own) belong to where it lies.
fn is_copied(name: &str) -> bool {
    name == "security.capability" || name.starts_with("user.") || name.starts_with("system.posix_acl_")
}

struct Copier<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// First copy of each inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Cleared once the file system has said no.
    reflink: bool,
    /// Owners and devices need root.
    privileged: bool,
}

/// Copies the tree below `from` into `to`, the root's own mode, owner, times and attributes included.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let privileged = rustix::process::geteuid().is_root();
    let mut copier = Copier { from, to, links: HashMap::new(), reflink: true, privileged };
    // Times of directories are set last, deepest first: filling them changes them.
    let mut done: Vec<(Vec<u8>, Stat)> = Vec::new();
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let stat = copier.directory(&path, &mut todo).map_err(|error| failed(&path, error))?;
        done.push((path, stat));
    }
    for (path, stat) in done.iter().rev() {
        copier.finish_directory(path, stat).map_err(|error| failed(path, error))?;
    }
    Ok(())
}

fn failed(path: &[u8], error: impl Into<io::Error>) -> Error {
    Error::io(format!("copying {:?}", String::from_utf8_lossy(path)), error)
}

fn open_in(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    at::open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl Copier<'_> {
    fn directory(&mut self, path: &[u8], todo: &mut Vec<Vec<u8>>) -> io::Result<Stat> {
        let (source, target) = (open_in(self.from, path)?, open_in(self.to, path)?);
        let stat = rustix::fs::fstat(&source)?;
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Some(stat) = at::lstat_at(source.as_fd(), name)? else { continue };
            let below = join(path, name);
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                rustix::fs::mkdirat(&target, name, Mode::RWXU)?;
                todo.push(below);
            } else {
                self.entry(source.as_fd(), target.as_fd(), name, &below, &stat)
                    .map_err(|error| io::Error::other(format!("{:?}: {error}", String::from_utf8_lossy(name))))?;
            }
        }
        Ok(stat)
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                return Ok(rustix::fs::linkat(self.to, first.as_slice(), target, name, AtFlags::empty())?);
            }
            self.links.insert(key, path.to_vec());
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => self.file(source, target, name, stat)?,
            FileType::Symlink => {
                let link = at::read_link_at(source, name)?;
                rustix::fs::symlinkat(link.as_slice(), target, name)?;
            }
            FileType::BlockDevice | FileType::CharacterDevice if !self.privileged => return Ok(()),
            _ => rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        self.owner(target, name, stat)?;
        self.attributes(source, target, name)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(target, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = File::from(rustix::fs::openat(source, name, flags | OFlags::RDONLY, Mode::empty())?);
        let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut to = File::from(rustix::fs::openat(target, name, create, Mode::RUSR | Mode::WUSR)?);
        if stat.st_size == 0 {
            return Ok(());
        }
        if self.reflink {
            match rustix::fs::ioctl_ficlone(&to, &from) {
                Ok(()) => return Ok(()),
                Err(_unsupported) => self.reflink = false,
            }
        }
        // std's copy uses copy_file_range where the kernel has it.
        io::copy(&mut &from, &mut to).map(drop)
    }

    fn owner(&self, target: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<()> {
        if !self.privileged {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        Ok(rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn attributes(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        for attribute in xattr::list_at(source, name)?.into_iter().filter(|name| is_copied(name)) {
            let Some(value) = xattr::get_at(source, name, &attribute)? else { continue };
            match xattr::set_at(target, name, attribute.as_bytes(), &value) {
                Err(Errno::PERM | Errno::OPNOTSUPP) if !self.privileged => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn finish_directory(&self, path: &[u8], stat: &Stat) -> io::Result<()> {
        let (source, target) = (open_in(self.from, path)?, open_in(self.to, path)?);
        self.owner(target.as_fd(), b".", stat)?;
        self.attributes(source.as_fd(), target.as_fd(), b".")?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
        Ok(rustix::fs::futimens(&target, &times(stat))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn a_copy_has_everything_that_the_tree_has() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        std::fs::create_dir_all(from.join("d/e")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/file"), vec![5; 100_000]).unwrap();
        std::fs::hard_link(from.join("d/file"), from.join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("symlink")).unwrap();
        std::fs::set_permissions(from.join("d/file"), std::fs::Permissions::from_mode(0o4751)).unwrap();
        let dir = at::open_dir(&from).unwrap();
        let old = Timestamps {
            last_access: Timespec { tv_sec: 5, tv_nsec: 6 },
            last_modification: Timespec { tv_sec: 7, tv_nsec: 8 },
        };
        rustix::fs::utimensat(&dir, c"d/e", &old, AtFlags::empty()).unwrap();
        rustix::fs::utimensat(&dir, c"d", &old, AtFlags::empty()).unwrap();
        let has_user_attributes = xattr::set_at(dir.as_fd(), b"link", b"user.test", b"value").is_ok();
        copy_tree(dir.as_fd(), at::open_dir(&to).unwrap().as_fd()).unwrap();
        let meta = |path: &str| to.join(path).symlink_metadata().unwrap();
        assert_eq!(meta("d/file").ino(), meta("link").ino());
        assert_eq!(meta("d/file").mode() & 0o7777, 0o4751);
        assert_eq!(std::fs::read(to.join("link")).unwrap(), vec![5; 100_000]);
        assert_eq!(std::fs::read_link(to.join("symlink")).unwrap(), std::path::Path::new("/nowhere"));
        for dir in ["d", "d/e"] {
            assert_eq!((meta(dir).mtime(), meta(dir).mtime_nsec()), (7, 8), "{dir}");
        }
        if has_user_attributes {
            let copy = at::open_dir(&to).unwrap();
            assert_eq!(xattr::get_at(copy.as_fd(), b"d/file", "user.test").unwrap().as_deref(), Some(&b"value"[..]));
        }
    }
}
