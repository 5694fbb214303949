//! Walks a tree in order: every name in a directory sorted by its bytes, a directory before what is in it.
//!
//! There is no recursion, and of the directories on the way down only the deepest [`MAX_OPEN`] stay open; the others
//! are opened again through `..` on the way back, and compared with what was closed. So a tree may be as deep as the
//! file system allows. Links are never followed: what turns into something else while it is being walked counts as
//! gone.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use crate::error::{ErrorKind, ErrorPath, IoContext as _, Result};
use crate::sys::at;

use crate::archive::path;

/// Directories of one walk that are open at the same time.
const MAX_OPEN: usize = 32;

/// Bytes of directory entries per `getdents64`.
const LIST_BUFFER: usize = 32 * 1024;

/// How directories are opened: to be listed.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A path inside a layer as messages and change lists show it.
pub(crate) fn absolute(path: &[u8]) -> PathBuf {
    let mut absolute = Vec::with_capacity(path.len() + 1);
    absolute.push(b'/');
    absolute.extend_from_slice(path);
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        absolute,
    ))
}

/// A path inside a layer, for an error that names it as [`absolute`] shows it.
#[derive(Clone, Copy)]
pub(crate) struct InLayer<'a> {
    dir: &'a [u8],
    name: &'a [u8],
}

/// See [`InLayer`].
pub(crate) fn in_layer(path: &[u8]) -> InLayer<'_> {
    InLayer { dir: b"", name: path }
}

/// See [`InLayer`]: `name` in the directory with the path `dir`.
pub(crate) fn name_in_layer<'a>(dir: &'a [u8], name: &'a [u8]) -> InLayer<'a> {
    InLayer { dir, name }
}

impl ErrorPath for InLayer<'_> {
    fn into_path(self) -> PathBuf {
        let mut path = self.dir.to_vec();
        path::push(&mut path, self.name);
        absolute(&path)
    }
}

/// The names in a directory, in one allocation.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    entries: Vec<Name>,
    next: usize,
}

#[derive(Clone, Copy)]
struct Name {
    start: usize,
    end: usize,
    kind: FileType,
    /// Its inode number; at a mount point, that of the directory below the mount.
    inode: u64,
}

impl Names {
    fn read(dir: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> rustix::io::Result<Self> {
        let mut names = Self::default();
        buffer.clear();
        buffer.reserve(LIST_BUFFER);
        let mut list = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = list.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let start = names.bytes.len();
            names.bytes.extend_from_slice(name);
            names.entries.push(Name {
                start,
                end: names.bytes.len(),
                kind: entry.file_type(),
                inode: entry.ino(),
            });
        }
        let bytes = &names.bytes;
        names
            .entries
            .sort_unstable_by(|a, b| bytes.get(a.start..a.end).cmp(&bytes.get(b.start..b.end)));
        Ok(names)
    }

    fn get(&self, index: usize) -> Option<(&[u8], FileType)> {
        let name = self.entries.get(index)?;
        Some((self.bytes.get(name.start..name.end)?, name.kind))
    }
}

/// One directory on the way down.
#[derive(Default)]
struct Frame {
    /// `None` while closed, and for a directory that stands for "nothing here".
    dir: Option<OwnedFd>,
    /// Device and inode of a directory that was closed.
    closed: Option<(u64, u64)>,
    names: Names,
    /// Length of this directory's path.
    path: usize,
}

/// A walk. The *current* entry is the one that [`TreeWalk::next`] or [`TreeWalk::advance`] went to last.
pub(crate) struct TreeWalk {
    /// The root first; never empty.
    frames: Vec<Frame>,
    /// Frames below this index are closed.
    closed: usize,
    /// Path of the current entry.
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl TreeWalk {
    /// A walk of everything below `root`.
    pub(crate) fn new(root: BorrowedFd<'_>) -> Result<Self> {
        let mut walk = Self::empty();
        // An open file description of its own: another one's position in the list may be anywhere.
        let dir = rustix::fs::openat(root, ".", DIRECTORY, Mode::empty()).at("opening directory", "/")?;
        let names = Names::read(dir.as_fd(), &mut walk.buffer).at("reading directory", "/")?;
        walk.frames = vec![Frame {
            dir: Some(dir),
            names,
            ..Frame::default()
        }];
        Ok(walk)
    }

    /// A walk of nothing.
    pub(crate) fn empty() -> Self {
        Self {
            frames: vec![Frame::default()],
            closed: 0,
            path: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// How many directories deep the walk is; 1 in the root.
    pub(crate) fn depth(&self) -> usize {
        self.frames.len()
    }

    /// The name that [`TreeWalk::advance`] would go to.
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        let names = &self.frames.last()?.names;
        names.get(names.next).map(|(name, _)| name)
    }

    /// The inode number that the directory tells for the name that [`TreeWalk::advance`] would go to.
    pub(crate) fn peek_inode(&self) -> Option<u64> {
        let names = &self.frames.last()?.names;
        names.entries.get(names.next).map(|name| name.inode)
    }

    /// Goes to the next name in this directory; `false` if there is none.
    pub(crate) fn advance(&mut self) -> bool {
        let Some(frame) = self.frames.last_mut() else {
            return false;
        };
        let Some((name, _)) = frame.names.get(frame.names.next) else {
            return false;
        };
        self.path.truncate(frame.path);
        path::push(&mut self.path, name);
        frame.names.next += 1;
        true
    }

    /// Goes to the next entry, out of directories that are done; `false` at the end.
    pub(crate) fn next(&mut self) -> Result<bool> {
        loop {
            if self.advance() {
                return Ok(true);
            }
            if self.depth() == 1 {
                return Ok(false);
            }
            self.leave()?;
        }
    }

    /// Path of the current entry from the root, without a slash in front.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Path of the directory that holds the current entry; empty for the root.
    pub(crate) fn dir_path(&self) -> &[u8] {
        let length = self.frames.last().map_or(0, |frame| frame.path);
        self.path.get(..length).unwrap_or_default()
    }

    /// Path of the directory that is `depth` levels down; empty for the root, which is level 1.
    pub(crate) fn path_at(&self, depth: usize) -> &[u8] {
        let length = depth
            .checked_sub(1)
            .and_then(|index| self.frames.get(index))
            .map_or(0, |frame| frame.path);
        self.path.get(..length).unwrap_or_default()
    }

    /// Base name of the current entry.
    pub(crate) fn name(&self) -> &[u8] {
        path::split(&self.path).1
    }

    /// What the directory says the current entry is; may be unknown.
    pub(crate) fn kind(&self) -> FileType {
        let names = self.frames.last().map(|frame| &frame.names);
        let name = names.and_then(|names| names.get(names.next.checked_sub(1)?));
        name.map_or(FileType::Unknown, |(_, kind)| kind)
    }

    /// The open directory that holds the current entry.
    pub(crate) fn dir(&self) -> Result<BorrowedFd<'_>> {
        let dir = self.frames.last().and_then(|frame| frame.dir.as_ref());
        // Only a directory that stands for nothing is closed here, and it has no entries.
        Ok(dir
            .ok_or(Errno::BADF)
            .at("using directory", in_layer(self.dir_path()))?
            .as_fd())
    }

    /// Status of the current entry; `None` if it is gone.
    pub(crate) fn stat(&self) -> Result<Option<Stat>> {
        at::lstat_at(self.dir()?, self.name()).at("looking at", in_layer(&self.path))
    }

    /// Makes the current entry, a directory, the one that is listed next; `false` if it is gone.
    pub(crate) fn enter(&mut self) -> Result<bool> {
        let dir = match rustix::fs::openat(self.dir()?, self.name(), DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(error) => return Err(error).at("opening directory", in_layer(&self.path)),
        };
        let names = match Names::read(dir.as_fd(), &mut self.buffer) {
            Ok(names) => names,
            // Removed between the two calls.
            Err(Errno::NOENT) => Names::default(),
            Err(error) => return Err(error).at("reading directory", in_layer(&self.path)),
        };
        self.frames.push(Frame {
            dir: Some(dir),
            closed: None,
            names,
            path: self.path.len(),
        });
        if self.frames.len() - self.closed > MAX_OPEN {
            self.close_one()?;
        }
        Ok(true)
    }

    /// As [`TreeWalk::enter`], for a current entry that has nothing in it or is not even there.
    pub(crate) fn enter_empty(&mut self) {
        let path = self.path.len();
        self.frames.push(Frame {
            path,
            ..Frame::default()
        });
    }

    /// Goes back to the directory above, whose entry this directory becomes the current one again.
    pub(crate) fn leave(&mut self) -> Result<()> {
        if self.frames.len() < 2 {
            return Ok(());
        }
        let Some(left) = self.frames.pop() else {
            return Ok(());
        };
        self.path.truncate(left.path);
        let Some(above) = self.frames.last_mut() else {
            return Ok(());
        };
        let Some(identity) = above.closed.take() else {
            return Ok(());
        };
        let what = in_layer(self.path.get(..above.path).unwrap_or_default());
        let child = left
            .dir
            .as_ref()
            .ok_or(Errno::BADF)
            .at("returning to directory", what)?;
        let dir =
            rustix::fs::openat(child, "..", DIRECTORY, Mode::empty()).at("returning to directory", what)?;
        let stat = rustix::fs::fstat(&dir).at("looking at", what)?;
        if (stat.st_dev, stat.st_ino) != identity {
            return Err(ErrorKind::Io
                .err("directory was moved while it was being read:")
                .at(what.into_path()));
        }
        above.dir = Some(dir);
        self.closed = self.closed.min(self.frames.len() - 1);
        Ok(())
    }

    /// Closes the topmost directory that is still open.
    fn close_one(&mut self) -> Result<()> {
        let Some(frame) = self.frames.get_mut(self.closed) else {
            return Ok(());
        };
        if let Some(dir) = frame.dir.take() {
            let stat = rustix::fs::fstat(&dir).at("looking at", OsStr::from_bytes(&self.path))?;
            frame.closed = Some((stat.st_dev, stat.st_ino));
        }
        self.closed += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(root: &std::path::Path) -> Vec<String> {
        let root = at::open_dir(root).unwrap();
        let mut walk = TreeWalk::new(root.as_fd()).unwrap();
        let mut seen = Vec::new();
        while walk.next().unwrap() {
            seen.push(String::from_utf8_lossy(walk.path()).into_owned());
            assert!(walk.path().ends_with(walk.name()));
            if FileType::from_raw_mode(walk.stat().unwrap().unwrap().st_mode) == FileType::Directory {
                assert!(walk.enter().unwrap());
            }
        }
        seen
    }

    #[test]
    fn names_come_sorted_and_directories_first() {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["a", "a/x", "empty"] {
            std::fs::create_dir(tmp.path().join(dir)).unwrap();
        }
        for file in ["a-b", "a.b", "a/x/y", "a/z", "\u{e4}"] {
            std::fs::write(tmp.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("a", tmp.path().join("link")).unwrap();
        let expected = [
            "a", "a/x", "a/x/y", "a/z", "a-b", "a.b", "empty", "link", "\u{e4}",
        ];
        assert_eq!(list(tmp.path()), expected);
    }

    #[test]
    fn a_directory_with_many_names_needs_several_reads() {
        let tmp = tempfile::tempdir().unwrap();
        let mut names: Vec<String> = (0..2000).map(|i| format!("{:0>40}", i * 7919 % 2000)).collect();
        for name in &names {
            std::fs::write(tmp.path().join(name), "").unwrap();
        }
        names.sort();
        assert_eq!(list(tmp.path()), names);
    }

    /// Deeper than a path may be long, with entries after every directory, so that each one is returned to.
    #[test]
    fn depth_is_bounded_neither_by_the_stack_nor_by_open_files() {
        const DEPTH: usize = 3000;
        let tmp = tempfile::tempdir().unwrap();
        let mut dir = at::open_dir(tmp.path()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            drop(rustix::fs::openat(&dir, "e", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
            dir = at::open_dir_at(dir.as_fd(), b"d").unwrap();
        }
        let root = at::open_dir(tmp.path()).unwrap();
        let mut walk = TreeWalk::new(root.as_fd()).unwrap();
        let (mut dirs, mut files) = (0, 0);
        while walk.next().unwrap() {
            if walk.name() == b"d" {
                dirs += 1;
                assert!(walk.enter().unwrap());
                let open = walk.frames.iter().filter(|frame| frame.dir.is_some()).count();
                assert!(open <= MAX_OPEN, "{open} directories are open");
            } else {
                assert!(walk.stat().unwrap().is_some());
                files += 1;
            }
        }
        assert_eq!((dirs, files), (DEPTH, DEPTH));
        // The library's own removal of the temporary directory must cope too; help it.
        let status = std::process::Command::new("rm")
            .arg("-rf")
            .arg(tmp.path().join("d"))
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn what_vanishes_is_skipped() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("a")).unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let mut walk = TreeWalk::new(root.as_fd()).unwrap();
        assert!(walk.next().unwrap());
        std::fs::remove_dir(tmp.path().join("a")).unwrap();
        std::os::unix::fs::symlink("/", tmp.path().join("a")).unwrap();
        assert!(!walk.enter().unwrap());
        std::fs::remove_file(tmp.path().join("a")).unwrap();
        assert!(walk.stat().unwrap().is_none());
        assert!(!walk.next().unwrap());
    }
}
