//! Copies a tree into an existing directory: content by reflink or in the kernel where possible, holes, hard links,
//! owners, modes, times and the extended attributes that belong to content.
//!
//! The walk uses open directories and single names, follows no symbolic link, and holds a bounded number of files open
//! however deep the tree is. Several threads share the work ([`copy_walk`]).

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::driver::copy_entry::{Attributes, Files, Rules, Worker};
use crate::driver::copy_walk;
use crate::driver::new_owners::NewOwners;
use crate::error::{IoContext as _, Result};

/// What a copy with other owners is made of.
pub(crate) struct Shown<'a> {
    /// The tree, as a mount shows it.
    pub(crate) tree: BorrowedFd<'a>,
    /// Directories in which the contents of its files are found, the topmost first: a mount cannot share them by reflink.
    pub(crate) contents: &'a [OwnedFd],
    /// Whether the number of a file's names is right: a mount program counts those that it was asked for.
    pub(crate) counts_names: bool,
}

/// How the copy of a tree is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyOptions<'a> {
    /// Files whose owner cannot be set belong to the caller.
    pub(crate) ignore_owners: bool,
    /// The copy is on disk, or will be with what is written later (see
    /// [`SyncTracker::commit`](crate::sys::sync_tracker::SyncTracker::commit)).
    pub(crate) durable: bool,
    /// The owners of the copy.
    pub(crate) owners: Option<NewOwners<'a>>,
}

/// Makes the empty directory `to` a second tree of what is below `from`, on the same file system: directories are copied
/// with all attributes, everything else is linked, or copied where that is not possible. With `durable` as [`copy_tree`].
pub(crate) fn link_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, durable: bool) -> Result<()> {
    let rules = Rules {
        files: Files::Linked,
        attributes: Attributes::All,
        ..Rules::new()
    };
    copy_walk::run(from, to, &rules, durable)
}

/// Gives the empty directory `to` everything that belongs to the directory `from` itself.
pub(crate) fn link_root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    const DOING: &str = "copying the root of a layer";
    let stat = rustix::fs::fstat(from).during(DOING)?;
    let rules = Rules {
        files: Files::Linked,
        attributes: Attributes::All,
        ..Rules::new()
    };
    let finished = Worker::new(&rules, to, false).finish(from, to, &stat, None);
    finished.map_err(|failure| failure.into_error(DOING.into()))
}

/// Copies the tree below `from` into `to`, the root's own mode, owner, times and attributes included. In a user namespace
/// devices are left out.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), and [`ErrorKind::InvalidMappings`](crate::ErrorKind::InvalidMappings) for a
/// file with an owner that [`NewOwners`] does not know.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, options: CopyOptions<'_>) -> Result<()> {
    let rules = Rules {
        ignore_owners: options.ignore_owners,
        owners: options.owners,
        ..Rules::new()
    };
    copy_walk::run(from, to, &rules, options.durable)
}

/// As [`copy_tree`], without what is mounted in the tree.
pub(crate) fn copy_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>, durable: bool) -> Result<()> {
    let rules = Rules {
        one_mount: true,
        ..Rules::new()
    };
    copy_walk::run(from, to, &rules, durable)
}

/// Copies the tree below `from` into `to`, on the same file system, with everything that belongs to it.
pub(crate) fn copy_all(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let rules = Rules {
        attributes: Attributes::All,
        ..Rules::new()
    };
    copy_walk::run(from, to, &rules, false)
}

/// Gives everything in the tree at `dir` a new owner, the root included. What a file has beside its owner stays.
///
/// # Errors
/// As [`copy_tree`]; the tree is then partly changed.
pub(crate) fn own_tree(dir: BorrowedFd<'_>, owners: NewOwners<'_>, durable: bool) -> Result<()> {
    let rules = Rules {
        files: Files::Present,
        owners: Some(owners),
        ..Rules::new()
    };
    copy_walk::run(dir, dir, &rules, durable)
}

/// Gives everything in the tree at `dir` an SELinux label, the root included.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io); the tree then has it in part.
pub(crate) fn label_tree(dir: BorrowedFd<'_>, label: &str, durable: bool) -> Result<()> {
    let rules = Rules {
        files: Files::Present,
        label: Some(label),
        ..Rules::new()
    };
    copy_walk::run(dir, dir, &rules, durable)
}

/// Copies what gets another owner into `to`, with the directories above it: what is in `to` then hides what was copied,
/// and shows the same with other owners. `forced_mode`: every file gets this mode, and its owner and mode are in an
/// attribute. The root itself is not changed. Otherwise as [`copy_tree`].
pub(crate) fn copy_owned(
    from: &Shown<'_>,
    to: BorrowedFd<'_>,
    options: CopyOptions<'_>,
    forced_mode: Option<u32>,
) -> Result<()> {
    let rules = Rules {
        ignore_owners: options.ignore_owners,
        owners: options.owners,
        only_changed: true,
        attributes: Attributes::OfShown,
        contents: from.contents,
        counts_names: from.counts_names,
        forced_mode,
        ..Rules::new()
    };
    copy_walk::run(from.tree, to, &rules, options.durable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree::DIR_FLAGS;
    use crate::sys::{at, tree, xattr};
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    fn copy(from: &Path, to: &Path) {
        let options = CopyOptions {
            ignore_owners: true,
            durable: true,
            owners: None,
        };
        let (from, to) = (at::open_dir(from).unwrap(), at::open_dir(to).unwrap());
        copy_tree(from.as_fd(), to.as_fd(), options).unwrap();
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

    /// As in Go's copies. Links cannot have attributes of users.
    #[test]
    fn a_copied_link_has_its_attributes() {
        const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
        let dir = at::open_dir(&from).unwrap();
        if xattr::set_at(dir.as_fd(), b"link", b"security.capability", CAPABILITY).is_err() {
            return crate::skip::skip("attributes of links need root");
        }
        copy(&from, &to);
        let copied = at::open_dir(&to).unwrap();
        let value = xattr::get_at(copied.as_fd(), b"link", "security.capability").unwrap();
        assert_eq!(value.as_deref(), Some(CAPABILITY));
    }

    #[test]
    fn a_tree_gets_other_owners_and_keeps_all_else() {
        if !crate::skip::root_or_skip() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("tree");
        fs::create_dir_all(root.join("d/e")).unwrap();
        fs::write(root.join("d/file"), "content").unwrap();
        for link in ["link", "d/e/link"] {
            fs::hard_link(root.join("d/file"), root.join(link)).unwrap();
        }
        std::os::unix::fs::symlink("d", root.join("a")).unwrap();
        fs::write(root.join("set"), "").unwrap();
        std::os::unix::fs::chown(root.join("set"), Some(3), Some(4)).unwrap();
        fs::set_permissions(root.join("set"), fs::Permissions::from_mode(0o6755)).unwrap();
        const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let dir = at::open_dir(&root).unwrap();
        let capable = xattr::set_at(dir.as_fd(), b"d/file", b"security.capability", CAPABILITY).is_ok();
        let before = root.join("d/file").metadata().unwrap().mtime_nsec();
        let maps = |host| crate::idmap::IdMappings {
            uids: vec![crate::idmap::IdMap::new(0, host, 10)],
            gids: vec![crate::idmap::IdMap::new(0, host + 1, 10)],
        };
        let (from, to) = (maps(0), maps(50));
        // Container group 0 is the host's 1 there: what group 0 owns is taken for container root's.
        let from = crate::idmap::IdMappings {
            gids: from.uids.clone(),
            ..from
        };
        own_tree(dir.as_fd(), NewOwners { from: &from, to: &to }, false).unwrap();
        let owner = |path: &str| {
            let meta = root.join(path).symlink_metadata().unwrap();
            (meta.uid(), meta.gid())
        };
        for path in [".", "d", "d/e", "d/file", "link", "d/e/link", "a"] {
            assert_eq!(owner(path), (50, 51), "{path}");
        }
        assert_eq!(owner("set"), (53, 55));
        assert_eq!(root.join("set").metadata().unwrap().mode() & 0o7777, 0o6755);
        let kept = xattr::get_at(dir.as_fd(), b"link", "security.capability").unwrap();
        assert!(!capable || kept.as_deref() == Some(CAPABILITY));
        assert_eq!(root.join("d/file").metadata().unwrap().mtime_nsec(), before);
        assert_eq!(root.join("link").metadata().unwrap().nlink(), 3);
    }

    #[test]
    fn a_tree_gets_a_label() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("d/e")).unwrap();
        fs::write(tmp.path().join("d/file"), "content").unwrap();
        fs::hard_link(tmp.path().join("d/file"), tmp.path().join("link")).unwrap();
        std::os::unix::fs::symlink("d", tmp.path().join("symlink")).unwrap();
        let dir = at::open_dir(tmp.path()).unwrap();
        rustix::fs::mknodat(&dir, c"fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        const OTHER: &[u8] = b"system_u:object_r:container_file_t:s0";
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        if xattr::set_at(dir.as_fd(), b"d", b"security.selinux", OTHER).is_err() {
            return crate::skip::skip("labels need root");
        }
        let before = tmp.path().join("d").metadata().unwrap().modified().unwrap();
        label_tree(dir.as_fd(), label, true).unwrap();
        for path in [".", "d", "d/e", "d/file", "link", "symlink", "fifo"] {
            let value = xattr::get_at(dir.as_fd(), path.as_bytes(), "security.selinux").unwrap();
            assert_eq!(value.as_deref(), Some(label.as_bytes()), "{path}");
        }
        assert_eq!(
            tmp.path().join("d").metadata().unwrap().modified().unwrap(),
            before
        );
        assert_eq!(tmp.path().join("d/file").metadata().unwrap().nlink(), 2);
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
