//! Files that have several names, in two trees.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Stat};
use rustix::io::Errno;

use crate::driver::copy_entry::parent_length;
use crate::sys::tree::{self, DIR_FLAGS, DirStack};

/// Device and inode.
pub(super) type Identity = (u64, u64);

/// The paths of each file that has, or may have, several.
type Groups = HashMap<Identity, Vec<Vec<u8>>>;

/// The files of the tree at `new` that do not have the same names together as a file of the tree at `old`. A file with several
/// names that are all new is none of them.
pub(super) fn regrouped(
    new: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
    counts_names: bool,
) -> rustix::io::Result<HashSet<Identity>> {
    let (news, olds) = (groups(new, counts_names)?, groups(old, counts_names)?);
    let mut found = HashSet::new();
    for (file, paths) in news.iter().filter(|(_, paths)| paths.len() > 1) {
        if distinct(old, paths)?.len() > 1 {
            found.insert(*file);
        }
    }
    for paths in olds.values().filter(|paths| paths.len() > 1) {
        let files: HashSet<Identity> = distinct(new, paths)?.into_iter().flatten().collect();
        if files.len() > 1 {
            found.extend(files);
        }
    }
    Ok(found)
}

/// Which files a tree has at these paths.
fn distinct(root: BorrowedFd<'_>, paths: &[Vec<u8>]) -> rustix::io::Result<HashSet<Option<Identity>>> {
    paths.iter().map(|path| look(root, path)).collect()
}

fn look(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<Identity>> {
    let (above, base) = path.split_at(parent_length(path));
    let base = base.strip_prefix(b"/").unwrap_or(base);
    match open(root, above).and_then(|dir| rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)) {
        Ok(stat) => Ok((!tree::is_directory(&stat)).then(|| tree::identity(&stat))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a directory of a tree; no part of the path may be a link.
fn open(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let mut dir = rustix::fs::openat(root, c".", DIR_FLAGS, Mode::empty())?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        dir = rustix::fs::openat(&dir, name, DIR_FLAGS, Mode::empty())?;
    }
    Ok(dir)
}

fn groups(root: BorrowedFd<'_>, counts_names: bool) -> rustix::io::Result<Groups> {
    let mut groups = Groups::new();
    let mut buffer = tree::listing_buffer();
    let mut path = Vec::new();
    let mut dirs = DirStack::new(rustix::fs::openat(root, c".", DIR_FLAGS, Mode::empty())?);
    let mut lists = vec![tree::list_names(dirs.current()?, &mut buffer)?];
    while let Some(names) = lists.last_mut() {
        let Some(name) = tree::last_name(names) else {
            lists.pop();
            dirs.leave()?;
            path.truncate(parent_length(&path));
            continue;
        };
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat: rustix::io::Result<Stat> =
            rustix::fs::statat(dirs.current()?, name, AtFlags::SYMLINK_NOFOLLOW);
        let below = match &stat {
            Ok(stat) if tree::is_directory(stat) => {
                rustix::fs::openat(dirs.current()?, name, DIR_FLAGS, Mode::empty()).map(Some)
            }
            Ok(stat) => {
                if stat.st_nlink > 1 || !counts_names {
                    groups.entry(tree::identity(stat)).or_default().push(path.clone());
                }
                Ok(None)
            }
            Err(error) => Err(*error),
        };
        tree::pop_name(names);
        match below {
            Ok(Some(dir)) => {
                let names = match tree::list_names(dir.as_fd(), &mut buffer) {
                    // Deleted meanwhile.
                    Err(Errno::NOENT) => Vec::new(),
                    names => names?,
                };
                lists.push(names);
                dirs.enter(dir)?;
            }
            Ok(None) => path.truncate(length),
            // Deleted meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR) => path.truncate(length),
            Err(error) => return Err(error),
        }
    }
    Ok(groups)
}
