//! Changes the owner of every file in a tree from one ID mapping to another.
//!
//! The walk uses open directories and single names, follows no symbolic link, and holds a bounded number of files open
//! however deep the tree is.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use crate::driver::copy::{link_again, parent_length};
use crate::error::{Error, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::sys::tree::{self, DIR_FLAGS, DirStack};
use crate::sys::xattr;

/// The kernel's overflow IDs, which stand for IDs without a mapping.
fn overflow() -> Owner {
    static OVERFLOW: OnceLock<Owner> = OnceLock::new();
    *OVERFLOW.get_or_init(|| {
        let read = |file| {
            std::fs::read_to_string(file)
                .ok()
                .and_then(|id| id.trim().parse().ok())
                .unwrap_or(65534)
        };
        Owner {
            uid: read("/proc/sys/kernel/overflowuid"),
            gid: read("/proc/sys/kernel/overflowgid"),
        }
    })
}

/// Changes the owner of everything below `root` (not of the root itself): `from` maps the host's ID to the container's,
/// and `to` maps that to the host's again. The host's root counts as container root if `from` does not map it; container
/// IDs that `to` does not map become the overflow ID.
///
/// An inode with several names is changed once. If the change gave one of its names an inode of its own (overlay copies
/// up one name at a time), the other names are linked to the new inode. With `always_link` they are linked without a
/// comparison of owners: a mount program shows one inode for all of them.
pub(crate) fn change_owners(
    root: BorrowedFd<'_>,
    from: &IdMappings,
    to: &IdMappings,
    always_link: bool,
) -> Result<()> {
    let mut walk = ChownWalk {
        root,
        path: Vec::new(),
        changed: HashMap::new(),
        always_link,
        from,
        to,
    };
    walk.run().map_err(|error| {
        let path = String::from_utf8_lossy(&walk.path).into_owned();
        error.context(format!("changing the owner of \"/{path}\""))
    })
}

struct ChownWalk<'a> {
    root: BorrowedFd<'a>,
    /// The current path, from the root.
    path: Vec<u8>,
    /// Inodes with several names that got another owner: the new owner, and the first name.
    changed: HashMap<(u64, u64), (Owner, Vec<u8>)>,
    always_link: bool,
    from: &'a IdMappings,
    to: &'a IdMappings,
}

fn failed(error: impl Into<std::io::Error>) -> Error {
    Error::io("walking a layer's tree", error)
}

impl ChownWalk<'_> {
    fn run(&mut self) -> Result<()> {
        let top = rustix::fs::openat(self.root, c".", DIR_FLAGS, Mode::empty()).map_err(failed)?;
        let mut stack = DirStack::new(top);
        let mut buffer = tree::listing_buffer();
        // Listed as a whole before anything is changed: a name that is linked again could appear twice in the listing.
        let mut names = tree::list_names(stack.current().map_err(failed)?, &mut buffer).map_err(failed)?;
        let mut above: Vec<Vec<u8>> = Vec::new();
        loop {
            let Some(name) = tree::last_name(&names) else {
                let Some(outer) = above.pop() else { return Ok(()) };
                stack.leave().map_err(failed)?;
                self.path.truncate(parent_length(&self.path));
                names = outer;
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            let dir = stack.current().map_err(failed)?;
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if tree::is_directory(&stat) {
                self.change(dir, name, &stat)?;
                let next = rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty()).map_err(failed)?;
                stack.enter(next).map_err(failed)?;
                tree::pop_name(&mut names);
                let dir = stack.current().map_err(failed)?;
                let inner = tree::list_names(dir, &mut buffer).map_err(failed)?;
                above.push(std::mem::replace(&mut names, inner));
            } else {
                self.file(dir, name, &stat)?;
                self.path.truncate(parent_length(&self.path));
                tree::pop_name(&mut names);
            }
        }
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
        if stat.st_nlink < 2 {
            return self.change(dir, name, stat).map(drop);
        }
        if let Some((new, first)) = self.changed.get(&tree::identity(stat)) {
            // With the old owner it is another inode than the one that was changed.
            if self.always_link || (stat.st_uid, stat.st_gid) != (new.uid, new.gid) {
                rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
                link_again(self.root, first, dir, name).map_err(failed)?;
            }
            return Ok(());
        }
        if let Some(new) = self.change(dir, name, stat)? {
            self.changed
                .insert(tree::identity(stat), (new, self.path.clone()));
        }
        Ok(())
    }

    /// Changes one owner; `None` if there was nothing to change.
    fn change(&self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<Option<Owner>> {
        let old = Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        };
        let inside = match self.from.to_container(old) {
            Err(_unmapped) if old == Owner::default() => old,
            inside => inside.context(|| "finding the owner inside the container".into())?,
        };
        let new = self.to.to_host_or(inside, overflow());
        if new == old {
            return Ok(None);
        }
        self.set(dir, name, stat, new).map_err(failed)?;
        Ok(Some(new))
    }

    fn set(&self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat, new: Owner) -> rustix::io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // The kernel drops capabilities and set-id bits when the owner changes. Only files have capabilities.
        let capability = match kind {
            FileType::RegularFile => match xattr::get_at(dir, name.to_bytes(), "security.capability") {
                Err(Errno::OVERFLOW) => None,
                result => result?,
            },
            _ => None,
        };
        let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_mode & 0o6000 != 0 && kind != FileType::Symlink {
            rustix::fs::chmodat(
                dir,
                name,
                Mode::from_raw_mode(stat.st_mode & 0o7777),
                AtFlags::empty(),
            )?;
        }
        match capability {
            Some(value) => xattr::set_at(dir, name.to_bytes(), b"security.capability", &value),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;
    use crate::skip::skip;
    use crate::sys::at;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn maps(uid: u32, gid: u32, size: u32) -> IdMappings {
        IdMappings {
            uids: vec![IdMap::new(0, uid, size)],
            gids: vec![IdMap::new(0, gid, size)],
        }
    }

    #[test]
    fn every_name_gets_its_owner_also_one_letter_ones() {
        if !crate::sys::privilege::is_root() {
            return skip("changing owners needs root");
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        std::fs::write(tmp.path().join("c"), "").unwrap();
        std::fs::write(tmp.path().join("set"), "").unwrap();
        std::fs::write(tmp.path().join("far"), "").unwrap();
        std::fs::hard_link(tmp.path().join("c"), tmp.path().join("a/d")).unwrap();
        std::os::unix::fs::symlink("c", tmp.path().join("l")).unwrap();
        std::os::unix::fs::chown(tmp.path().join("far"), Some(5000), Some(6)).unwrap();
        std::fs::set_permissions(tmp.path().join("set"), std::fs::Permissions::from_mode(0o6755)).unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        xattr::set_at(root.as_fd(), b"set", b"security.capability", capability).unwrap();
        change_owners(root.as_fd(), &IdMappings::default(), &maps(1000, 2000, 10), false).unwrap();
        let owner = |path: &str| {
            let meta = tmp.path().join(path).symlink_metadata().unwrap();
            (meta.uid(), meta.gid())
        };
        for path in ["a", "a/b", "a/d", "c", "l", "set"] {
            assert_eq!(owner(path), (1000, 2000), "{path}");
        }
        assert_eq!(owner("far"), (overflow().uid, 2006));
        assert_eq!(owner("."), (0, 0), "the root itself stays");
        let meta = |path: &str| tmp.path().join(path).metadata().unwrap();
        assert_eq!((meta("c").nlink(), meta("c").ino()), (2, meta("a/d").ino()));
        assert_eq!(meta("set").mode() & 0o7777, 0o6755);
        let kept = xattr::get_at(root.as_fd(), b"set", "security.capability").unwrap();
        assert_eq!(kept.as_deref(), Some(&capability[..]));
        std::fs::remove_file(tmp.path().join("far")).unwrap();
        change_owners(root.as_fd(), &maps(1000, 2000, 10), &IdMappings::default(), true).unwrap();
        assert_eq!(owner("a/b"), (0, 0));
        assert_eq!((meta("c").nlink(), meta("c").ino()), (2, meta("a/d").ino()));
    }

    #[test]
    fn an_owner_that_the_mapping_cannot_have_is_named() {
        if !crate::sys::privilege::is_root() {
            return skip("changing owners needs root");
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("dir")).unwrap();
        std::fs::write(tmp.path().join("dir/file"), "").unwrap();
        std::os::unix::fs::chown(tmp.path().join("dir/file"), Some(7), Some(7)).unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let error =
            change_owners(root.as_fd(), &maps(1000, 1000, 10), &IdMappings::default(), false).unwrap_err();
        assert!(
            error.chain().contains("/dir/file") && error.chain().contains("user ID 7"),
            "{}",
            error.chain()
        );
    }
}
