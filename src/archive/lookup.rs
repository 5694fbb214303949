//! Finds files by path inside a tree, with the last parent directory kept open: paths come grouped by directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::sys::at;

use crate::archive::path::MAX_PATH;

/// Opens the directory at the clean path `path` inside `root` for `*at` calls, however long the path is.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let mut rest = path;
    let mut dir: Option<OwnedFd> = None;
    loop {
        let from = dir.as_ref().map_or(root, |dir| dir.as_fd());
        if rest.len() <= MAX_PATH {
            return at::open_dir_in_root(from, rest);
        }
        let cut = rest
            .get(..MAX_PATH)
            .and_then(|head| head.iter().rposition(|byte| *byte == b'/'));
        let (head, tail) = rest.split_at(cut.filter(|cut| *cut > 0).ok_or(Errno::NAMETOOLONG)?);
        dir = Some(at::open_dir_in_root(from, head)?);
        rest = tail.strip_prefix(b"/").unwrap_or(tail);
    }
}

/// One tree and the directory in it that was asked for last.
pub(crate) struct Lookup<R> {
    root: R,
    path: Vec<u8>,
    /// `None` if there is no such directory.
    dir: Option<OwnedFd>,
    /// Whether `path` has been looked for.
    known: bool,
}

impl<R: AsFd> Lookup<R> {
    /// Looks inside `root`.
    pub(crate) fn new(root: R) -> Self {
        Self {
            root,
            path: Vec::new(),
            dir: None,
            known: false,
        }
    }

    /// The directory at the clean path `path`, for `*at` calls; `None` if it is not there or no directory. Links on
    /// the way are followed inside the tree.
    pub(crate) fn dir(&mut self, path: &[u8]) -> Result<Option<BorrowedFd<'_>>> {
        if path.is_empty() {
            return Ok(Some(self.root.as_fd()));
        }
        if !self.known || self.path != path {
            self.known = false;
            self.dir = match open_dir(self.root.as_fd(), path) {
                Ok(dir) => Some(dir),
                Err(Errno::NOENT | Errno::NOTDIR) => None,
                Err(error) => return Err(error),
            };
            self.path.clear();
            self.path.extend_from_slice(path);
            self.known = true;
        }
        Ok(self.dir.as_ref().map(|dir| dir.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;

    #[test]
    fn directories_are_found_inside_and_remembered() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        std::fs::write(tmp.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/a", tmp.path().join("link")).unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let mut lookup = Lookup::new(root.as_fd());
        for _ in 0..2 {
            assert!(lookup.dir(b"").unwrap().is_some());
            assert!(lookup.dir(b"a/b").unwrap().is_some());
            assert!(lookup.dir(b"a/b").unwrap().is_some());
            assert!(
                at::lstat_at(lookup.dir(b"link").unwrap().unwrap(), b"b")
                    .unwrap()
                    .is_some()
            );
            assert!(lookup.dir(b"file").unwrap().is_none());
            assert!(lookup.dir(b"a/c").unwrap().is_none());
            assert!(lookup.dir(b"a/c").unwrap().is_none());
        }
    }

    #[test]
    fn a_path_may_be_longer_than_the_kernel_takes() {
        let tmp = tempfile::tempdir().unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let name = [b'n'; 200];
        let mut dir = at::open_dir(tmp.path()).unwrap();
        let mut path = Vec::new();
        for _ in 0..60 {
            rustix::fs::mkdirat(&dir, &name[..], Mode::RWXU).unwrap();
            dir = at::open_dir_at(dir.as_fd(), &name).unwrap();
            crate::archive::path::push(&mut path, &name);
        }
        let found = open_dir(root.as_fd(), &path).unwrap();
        let inode = |dir: &OwnedFd| rustix::fs::fstat(dir).unwrap().st_ino;
        assert_eq!(inode(&found), inode(&dir));
        // The removal of the temporary directory may not cope with that.
        let top = tmp.path().join("n".repeat(200));
        assert!(
            std::process::Command::new("rm")
                .arg("-rf")
                .arg(top)
                .status()
                .unwrap()
                .success()
        );
    }
}
