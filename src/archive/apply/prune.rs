//! Removal below an open directory: recursive, by descriptors, never following a link, in two open directories at a
//! time however deep the tree is (depth is bounded by nothing, since links make deeper trees than a path can name).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::archive::path::push;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::at;

const DOING: &str = "removing replaced files of the layer";

/// How often a directory that does not become empty is listed again.
const MAX_PASSES: usize = 16;

/// Is told of what is removed.
pub(crate) trait Removal {
    /// Called before `name` in `dir`, at `path`, is unlinked; it is no directory.
    fn leaving(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], kind: FileType) -> Result<()>;
}

/// A directory on the way down.
struct Level {
    /// Device and inode, to know it again on the way up.
    identity: (u64, u64),
    /// Directories that are still to be gone through, each ended by a NUL.
    todo: Vec<u8>,
    passes: usize,
}

impl Level {
    fn pop(&mut self) -> Option<Vec<u8>> {
        self.todo.pop()?;
        let start = self
            .todo
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |index| index + 1);
        Some(self.todo.split_off(start))
    }
}

/// Removes `name` in `dir`, whose path is `path`, with everything below.
pub(crate) fn remove(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    kind: FileType,
    removal: &mut impl Removal,
) -> Result<()> {
    if kind != FileType::Directory {
        removal.leaving(dir, name, path, kind)?;
        return rustix::fs::unlinkat(dir, name, AtFlags::empty()).during(DOING);
    }
    for pass in 0.. {
        clear(at::open_dir_at(dir, name).during(DOING)?, path, removal)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) if pass < MAX_PASSES => {}
            result => return result.during(DOING),
        }
    }
    Ok(())
}

/// Removes everything in `dir`, whose path is `path`.
pub(crate) fn clear(dir: OwnedFd, path: &[u8], removal: &mut impl Removal) -> Result<()> {
    let mut path = path.to_vec();
    let mut current = dir;
    let mut level = scan(&current, &mut path, removal)?;
    // Levels above, with the name of the directory in each that is being gone through.
    let mut above: Vec<(Level, Vec<u8>)> = Vec::new();
    loop {
        if let Some(name) = level.pop() {
            current = at::open_dir_at(current.as_fd(), &name).during(DOING)?;
            push(&mut path, &name);
            let below = scan(&current, &mut path, removal)?;
            above.push((std::mem::replace(&mut level, below), name));
            continue;
        }
        let Some((mut parent, name)) = above.pop() else {
            return Ok(());
        };
        let up = rustix::fs::openat(
            &current,
            "..",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .during(DOING)?;
        if identity(&up)? != parent.identity {
            return Err(ErrorKind::UnsafePath.err("a directory was moved while it was being removed"));
        }
        current = up;
        match unlink(&current, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) if parent.passes < MAX_PASSES => {
                // Some file systems skip names in a directory that shrinks while it is listed.
                parent.passes += 1;
                parent.todo.extend_from_slice(&name);
                parent.todo.push(0);
            }
            result => result.during(DOING)?,
        }
        path.truncate(path.len().saturating_sub(name.len() + 1));
        level = parent;
    }
}

fn identity(dir: &OwnedFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir).during(DOING)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes a name from a directory that goes too; if only the directory's mode is in the way it is changed.
fn unlink(dir: &OwnedFd, name: &[u8], flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::ACCESS) if rustix::fs::fchmod(dir, Mode::RWXU).is_ok() => {
            rustix::fs::unlinkat(dir, name, flags)
        }
        result => result,
    }
}

/// Removes what is no directory, and lists the directories.
fn scan(dir: &OwnedFd, path: &mut Vec<u8>, removal: &mut impl Removal) -> Result<Level> {
    let mut level = Level {
        identity: identity(dir)?,
        todo: Vec::new(),
        passes: 0,
    };
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut listing = RawDir::new(dir, &mut buffer);
    let length = path.len();
    while let Some(entry) = listing.next() {
        let entry = entry.during(DOING)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            let Some(stat) = at::lstat_at(dir.as_fd(), name).during(DOING)? else {
                continue;
            };
            kind = FileType::from_raw_mode(stat.st_mode);
        }
        if kind == FileType::Directory {
            level.todo.extend_from_slice(name);
            level.todo.push(0);
            continue;
        }
        push(path, name);
        removal.leaving(dir.as_fd(), name, path, kind)?;
        unlink(dir, name, AtFlags::empty()).during(DOING)?;
        path.truncate(length);
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told(Vec<String>);

    impl Removal for Told {
        fn leaving(&mut self, _: BorrowedFd<'_>, _: &[u8], path: &[u8], _: FileType) -> Result<()> {
            self.0.push(String::from_utf8(path.to_vec()).unwrap());
            Ok(())
        }
    }

    #[test]
    fn everything_goes_and_links_are_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        std::fs::create_dir_all(root.join("d/old/deep")).unwrap();
        std::fs::create_dir_all(root.join("d/new")).unwrap();
        std::fs::create_dir_all(tmp.path().join("outside")).unwrap();
        std::fs::write(tmp.path().join("outside/file"), "x").unwrap();
        for file in ["d/a", "d/old/b", "d/old/deep/c", "d/new/mine", "d/new/other"] {
            std::fs::write(root.join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("../../outside", root.join("d/link")).unwrap();
        let fd = at::open_dir(&root).unwrap();
        let mut removal = Told::default();
        clear(at::open_dir_at(fd.as_fd(), b"d").unwrap(), b"d", &mut removal).unwrap();
        removal.0.sort();
        let expected = [
            "d/a",
            "d/link",
            "d/new/mine",
            "d/new/other",
            "d/old/b",
            "d/old/deep/c",
        ];
        assert_eq!(removal.0, expected);
        assert_eq!(std::fs::read_dir(root.join("d")).unwrap().count(), 0);
        assert!(tmp.path().join("outside/file").exists());
        remove(fd.as_fd(), b"d", b"d", FileType::Directory, &mut Told::default()).unwrap();
        assert!(!root.join("d").exists());
    }

    #[test]
    fn depth_takes_no_descriptors() {
        let tmp = tempfile::tempdir().unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        let mut current = root.try_clone().unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = at::open_dir_at(current.as_fd(), b"d").unwrap();
        }
        remove(
            root.as_fd(),
            b"d",
            b"d",
            FileType::Directory,
            &mut Told::default(),
        )
        .unwrap();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
