//! Gives every file of a tree the owner that it has under another ID mapping.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, xattr};

/// Re-owns everything below `root` (not the root itself): the host's ID becomes the container's by `from`, and that
/// the host's by `to`. Container root that was never mapped stays container root.
///
/// An inode with several names is changed once; where changing it gave one of its names an inode of its own (overlay
/// copies up a name at a time) the other names are linked to it again.
pub(crate) fn change_owners(root: BorrowedFd<'_>, from: &IdMappings, to: &IdMappings) -> Result<()> {
    let mut done: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let describe = || format!("changing owners in {:?}", String::from_utf8_lossy(&path));
        let failed = |error: Errno| Error::io(describe(), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = at::open_in_root(root, &path, flags, Mode::empty()).map_err(failed)?;
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Some(stat) = at::lstat_at(dir.as_fd(), name).map_err(failed)? else { continue };
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name);
            let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
            if !is_dir && stat.st_nlink > 1 {
                if let Some(first) = done.get(&(stat.st_dev, stat.st_ino)) {
                    relink(root, first, dir.as_fd(), name).map_err(failed)?;
                    continue;
                }
                done.insert((stat.st_dev, stat.st_ino), below.clone());
            }
            one(dir.as_fd(), name, &stat, from, to).context(describe)?;
            if is_dir {
                todo.push(below);
            }
        }
    }
    Ok(())
}

fn relink(root: BorrowedFd<'_>, first: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    rustix::fs::linkat(root, first, dir, name, AtFlags::empty())
}

fn one(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat, from: &IdMappings, to: &IdMappings) -> Result<()> {
    let old = Owner { uid: stat.st_uid, gid: stat.st_gid };
    let inside = match from.to_container(old) {
        Err(_unmapped) if old == Owner::default() => old,
        inside => inside?,
    };
    let new = to.to_host(inside)?;
    if new == old {
        return Ok(());
    }
    let failed = |error: Errno| Error::io(format!("changing the owner of {:?}", String::from_utf8_lossy(name)), error);
    // The kernel drops capabilities and set-id bits when the owner changes.
    let capability = xattr::get_at(dir, name, "security.capability").map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if stat.st_mode & 0o6000 != 0 && !FileType::from_raw_mode(stat.st_mode).is_symlink() {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty()).map_err(failed)?;
    }
    match capability {
        Some(value) => xattr::set_at(dir, name, b"security.capability", &value).map_err(failed),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn every_name_gets_its_owner_also_one_letter_ones() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED every_name_gets_its_owner_also_one_letter_ones: needs root");
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        std::fs::write(tmp.path().join("c"), "").unwrap();
        std::fs::hard_link(tmp.path().join("c"), tmp.path().join("a/d")).unwrap();
        let maps = IdMappings { uids: vec![IdMap::new(0, 1000, 10)], gids: vec![IdMap::new(0, 2000, 10)] };
        let root = at::open_dir(tmp.path()).unwrap();
        change_owners(root.as_fd(), &IdMappings::default(), &maps).unwrap();
        for path in ["a", "a/b", "a/d", "c"] {
            let meta = tmp.path().join(path).metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1000, 2000), "{path}");
        }
        assert_eq!(tmp.path().join("c").metadata().unwrap().nlink(), 2);
        change_owners(root.as_fd(), &maps, &IdMappings::default()).unwrap();
        assert_eq!(tmp.path().join("a/b").metadata().unwrap().uid(), 0);
        assert_eq!(tmp.path().metadata().unwrap().uid(), 0);
    }
}
