//! Forces names to disk: the entries of directories in which something was made, renamed or removed.
//!
//! A file system with one journal for all changes of names writes them to it in the order in which they were made: the
//! sync of a file takes every earlier change along. Elsewhere a file that was synced and renamed may be found after a
//! power cut although directories that were made before it are not; there each directory has to be synced before the
//! file is written that relies on it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::error::{IoContext as _, Result};
use crate::sys::at;

/// When names are forced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NameSync {
    /// Never.
    #[default]
    Off,
    /// Before something is written that relies on them, where it could survive a power cut without them.
    InOrder,
    /// Also at the end, so that they survive a power cut right after it.
    Always,
}

/// Up to this many directories are synced one by one; for more of them the whole file system is.
const FEW: usize = 16;

/// `statfs` types of the file systems that write names in order: ext2, ext3 and ext4 (if there is a journal), xfs; and
/// those in memory, of which nothing survives: tmpfs, ramfs.
const EXT: i128 = 0xef53;
const XFS: i128 = 0x5846_5342;
const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];

/// In which order a file system writes changes of names to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameOrder {
    /// None is known.
    Free,
    /// In which they were made: the sync of a file takes those before along.
    Kept,
    /// Nothing survives a power cut.
    InMemory,
}

/// The order of the file system of an open directory.
pub(crate) fn name_order(dir: BorrowedFd<'_>) -> rustix::io::Result<NameOrder> {
    // The field is signed on some architectures; only its low half is the type.
    let kept = match i128::from(rustix::fs::fstatfs(dir)?.f_type) & 0xffff_ffff {
        XFS => true,
        EXT => has_journal(dir)?,
        other if IN_MEMORY.contains(&other) => return Ok(NameOrder::InMemory),
        _ => false,
    };
    Ok(if kept { NameOrder::Kept } else { NameOrder::Free })
}

/// Whether the file system of an open directory keeps the order of changes to names.
pub(crate) fn keeps_order(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(name_order(dir)? != NameOrder::Free)
}

/// Whether an ext file system has a journal: found out once for each.
fn has_journal(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    static KNOWN: Mutex<BTreeMap<(u64, u64), bool>> = Mutex::new(BTreeMap::new());
    let device = rustix::fs::fstat(dir)?.st_dev;
    // With its own ID: the device may have got another file system since.
    let key = (device, rustix::fs::fstatvfs(dir)?.f_fsid);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(*known.entry(key).or_insert_with(|| journal_mode(device).is_some()))
}

/// How an ext file system treats data in its journal, as the kernel says; `None` if it has none, or nothing is said.
fn journal_mode(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let options = Path::new("/proc/fs/ext4").join(link.file_name()?).join("options");
    let text = std::fs::read_to_string(options).ok()?;
    let mode = text.lines().find_map(|line| line.strip_prefix("data="));
    mode.map(str::to_owned)
}

/// Syncs those of `dirs` whose names could be lost although a file that is written after this call, in one of the
/// directories `files`, is found. A directory that does not exist has no names.
pub(crate) fn sync_before<'a>(
    dirs: impl IntoIterator<Item = &'a PathBuf>,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    let mut devices = Vec::new();
    for dir in files {
        match rustix::fs::stat(dir) {
            Ok(stat) => devices.push(stat.st_dev),
            // It is made together with the file.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).at("looking at", dir),
        }
    }
    let mut wanted = Vec::new();
    for path in dirs {
        let Some(dir) = Dir::open(path)? else { continue };
        let device = rustix::fs::fstat(&dir.fd).at("looking at", path)?.st_dev;
        let same = devices.iter().all(|file| *file == device);
        if !same || !dir.keeps_order()? {
            wanted.push((dir, device));
        }
    }
    if wanted.len() <= FEW {
        return wanted.iter().try_for_each(|(dir, _)| dir.sync());
    }
    let mut synced = Vec::new();
    for (dir, device) in &wanted {
        if !synced.contains(device) {
            dir.sync_file_system()?;
            synced.push(*device);
        }
    }
    Ok(())
}

/// Syncs a directory in which a file has just been renamed to its place, unless its file system keeps the order of such
/// changes by itself.
pub(crate) fn sync_after(path: &Path) -> Result<()> {
    match Dir::open(path)? {
        Some(dir) if !dir.keeps_order()? => dir.sync(),
        _ => Ok(()),
    }
}

/// Waits until the names in a directory are on disk; one that does not exist has none.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    Dir::open(path)?.map_or(Ok(()), |dir| dir.sync())
}

/// An open directory.
struct Dir<'a> {
    path: &'a Path,
    fd: OwnedFd,
    /// It is the one above, because this one cannot be read.
    above: bool,
}

impl<'a> Dir<'a> {
    fn open(path: &'a Path) -> Result<Option<Self>> {
        let opened = match at::open_dir(path) {
            Err(Errno::NOENT) => return Ok(None),
            // A layer's root directory can have any mode.
            Err(Errno::ACCESS) => at::open_dir(path.parent().unwrap_or(path)).map(|fd| (fd, true)),
            opened => opened.map(|fd| (fd, false)),
        };
        let (fd, above) = opened.at("opening", path)?;
        Ok(Some(Self { path, fd, above }))
    }

    fn keeps_order(&self) -> Result<bool> {
        keeps_order(self.fd.as_fd()).at("looking up the file system of", self.path)
    }

    fn sync(&self) -> Result<()> {
        if self.above {
            return self.sync_file_system();
        }
        match rustix::fs::fsync(&self.fd) {
            // Some network file systems have no sync of a directory.
            Err(Errno::INVAL) => self.sync_file_system(),
            synced => synced.at("syncing", self.path),
        }
    }

    fn sync_file_system(&self) -> Result<()> {
        rustix::fs::syncfs(&self.fd).at("syncing the file system of", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_in_memory_keep_their_order_and_unknown_ones_do_not() {
        let order = |path: &str| keeps_order(at::open_dir(Path::new(path)).unwrap().as_fd()).unwrap();
        assert!(order("/dev/shm"));
        assert!(!order("/proc"));
    }

    #[test]
    fn missing_directories_have_no_names() {
        let tmp = tempfile::tempdir().unwrap();
        let missing = tmp.path().join("missing");
        sync_dir(&missing).unwrap();
        sync_after(&missing).unwrap();
        let dirs = [tmp.path().to_owned(), missing.clone()];
        for files in [tmp.path(), Path::new("/proc"), &missing] {
            sync_before(&dirs, [files]).unwrap();
        }
        let many: Vec<PathBuf> = (0..3 * FEW).map(|_| tmp.path().to_owned()).collect();
        sync_before(&many, [Path::new("/proc")]).unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(sync_dir(&file).unwrap_err().path(), Some(&*file));
    }
}
