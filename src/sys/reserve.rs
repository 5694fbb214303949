//! Space for replacing a file when the disk is full: files with blocks of their own beside it.
//!
//! ```text
//! <dir>/.reserve-<name>-<n>    0600  blocks for the next content of <dir>/<name>
//! ```
//!
//! Deleting needs a few files to be written before anything is gone. When there is no room for a temporary file, the
//! content goes into a reserve, which then changes places with the file: no block and no inode is asked of the file system,
//! and the old file is a reserve from then on. There are [`COUNT`] of them, so that the saves before the first removal find
//! one each that has room for more than the old content.
//!
//! Where no reserve has room enough, as after some saves on a full disk, or where the file system asks for space also for
//! writing to blocks that a file has (btrfs), reserves are removed instead, one after the other, until what failed works.
//! They are made anew as soon as the files of what was deleted are unlinked. Btrfs without space for its own structures, a
//! rare state, takes not even a new name: there nothing helps but other files to remove.
//!
//! A [large file](crate::sys::spare) changes places with its reserves at every change, so that they hold earlier versions.
//!
//! A reserve has no meaning as a file: a crash may leave anything in it. All is done with the lock held that every writer
//! of the file holds, but for making a reserve that is missing.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, IoContext as _, Result};
use crate::sys::atomic::{self, Mtime};
use crate::sys::lease::Lease;
use crate::sys::name_sync;

/// Reserves of one file.
pub(super) const COUNT: usize = 2;

/// What the names of reserves begin with.
pub(crate) const PREFIX: &str = ".reserve-";

/// The largest content that reserves are made for: what a file says of its size may be anything, and space is taken for it.
const MAX_RESERVED: u64 = 256 << 20;

/// Bytes that a reserve has beyond the content it is made for.
const SLACK: u64 = 16 * 1024;

pub(crate) fn paths(target: &Path) -> impl Iterator<Item = PathBuf> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    (0..COUNT).map(move |number| target.with_file_name(format!("{PREFIX}{name}-{number}")))
}

/// The bytes on disk that a file has.
fn allocated(file: &File) -> std::io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

/// Makes the reserves of a file that are missing, and enlarges those that are too small for content of `size` bytes.
/// Returns up to which size they need not be looked at again. For very large content, and where the file system cannot make them there are none; where
/// there is no space the next call tries again.
pub(crate) fn keep(target: &Path, size: u64) -> u64 {
    let enough = size.saturating_add(SLACK / 2);
    if size > MAX_RESERVED {
        return enough;
    }
    let mut known = enough;
    for path in paths(target) {
        if let Err(error) = keep_one(&path, size, enough) {
            tracing::debug!(path = %path.display(), %error, "no reserve for a full disk");
            if matches!(error, Errno::NOSPC | Errno::DQUOT) {
                known = 0;
            }
        }
    }
    known
}

fn keep_one(path: &Path, size: u64, enough: u64) -> rustix::io::Result<()> {
    // Mostly this is all there is to do: every opening of a store comes here.
    let stat = rustix::fs::lstat(path);
    let blocks = stat.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0));
    if blocks.saturating_mul(512) >= enough {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    let wanted = size.saturating_add(size / 4).saturating_add(SLACK);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, wanted)
}

/// What was written, and how.
pub(crate) struct Written {
    /// The time of the file.
    pub(crate) mtime: Mtime,
    /// A reserve has become the file, and the old file the reserve: it may be too small.
    pub(crate) spent: bool,
}

/// As [`atomic::write_file_in_new_dir`]; where the disk is full, with a reserve of the target.
pub(crate) fn write_file(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<Written> {
    let write = || atomic::write_file_in_new_dir(target, content, mode, sync);
    let spent = |mtime| Written { mtime, spent: true };
    match write() {
        Err(error) if error.is_full() => match replace(target, content, mode, sync) {
            Ok(Some(mtime)) => Ok(spent(mtime)),
            Err(error) if !error.is_full() => Err(error),
            Ok(None) | Err(_) => release_for(target, error, write).map(spent),
        },
        result => result.map(|mtime| Written { mtime, spent: false }),
    }
}

/// Does what may need space; where the disk is full, at the expense of the reserves of `target`. Returns whether some are
/// gone.
pub(crate) fn or_release<T>(target: &Path, step: impl Fn() -> Result<T>) -> Result<(T, bool)> {
    match step() {
        Err(error) if error.is_full() => release_for(target, error, step).map(|value| (value, true)),
        result => result.map(|value| (value, false)),
    }
}

/// Removes one reserve of `target` after the other until `step`, which has failed, works.
fn release_for<T>(target: &Path, mut failed: Error, step: impl Fn() -> Result<T>) -> Result<T> {
    for path in paths(target) {
        if rustix::fs::unlink(&path).is_err() {
            continue;
        }
        tracing::warn!(path = %path.display(), "the disk is full; removed a reserve");
        match step() {
            Err(error) if error.is_full() => failed = error,
            result => return result,
        }
    }
    Err(failed)
}

/// Opens a reserve for writing; `None` if there is no such file that has this name alone.
pub(super) fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let status = file.metadata().ok()?;
    (status.is_file() && status.nlink() == 1).then_some(file)
}

/// Sets the time of a file's last change to now. It tells versions apart, for which the file system's own clock is too coarse
/// where a file comes back that others have seen.
pub(super) fn touch(file: &File) -> rustix::io::Result<()> {
    let last_access = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access,
        last_modification: clock_gettime(ClockId::Realtime),
    };
    rustix::fs::futimens(file, &times)
}

/// Replaces `target` by a file with this content and mode without asking for space. `None` if no reserve has enough that
/// nobody else has open.
fn replace(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<Option<Mtime>> {
    let opened = paths(target).filter_map(|path| {
        let file = open(&path)?;
        Some((allocated(&file).ok()?, path, file))
    });
    let mut reserves: Vec<(u64, PathBuf, File)> = opened.collect();
    if let Some(dir) = target.parent().filter(|_| sync && !reserves.is_empty()) {
        // One of them may have been the file, and be it again after a power cut.
        name_sync::sync_dir(dir)?;
    }
    reserves.sort_by_key(|(allocated, ..)| std::cmp::Reverse(*allocated));
    for (_, path, file) in reserves {
        let Some(lease) = Lease::of(&file) else { continue };
        if let Err(error) = file.write_all_at(content, 0) {
            tracing::debug!(path = %path.display(), %error, "a reserve that is too small");
            continue;
        }
        let length = content.len() as u64;
        if file.metadata().at("looking at", &path)?.len() != length {
            file.set_len(length).at("truncating", &path)?;
        }
        touch(&file).at("setting the time of", &path)?;
        if sync {
            rustix::fs::fdatasync(&file).at("syncing", &path)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).at("setting the mode of", &path)?;
        let exchanged = rustix::fs::renameat_with(CWD, &path, CWD, target, RenameFlags::EXCHANGE);
        match exchanged {
            // There is no such file yet, or the file system cannot exchange: one reserve less.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::rename(&path, target).at("replacing", target)?;
            }
            exchanged => exchanged.at("replacing", target)?,
        }
        drop(lease);
        tracing::warn!(path = %target.display(), "the disk is full; saved to a reserve");
        let stat = rustix::fs::fstat(&file).at("reading the status of", target)?;
        return Ok(Some(Mtime::of(&stat)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_by_its_reserves_in_turn() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("layers.json");
        assert_eq!(replace(&target, b"none yet", 0o600, false).unwrap(), None);
        assert!(keep(&target, 100) > 100);
        for content in ["first", "the second", "3", "fourth"] {
            let mtime = replace(&target, content.as_bytes(), 0o644, true).unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), content);
            assert_eq!(Mtime::at(&target).unwrap(), mtime);
            assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o644);
        }
        let large = vec![b'x'; 100_000];
        keep(&target, 100_000);
        for path in paths(&target) {
            // The first save had no file to exchange the reserve with.
            assert!(path.exists() && path.metadata().unwrap().blocks() * 512 >= 100_000);
        }
        replace(&target, &large, 0o600, false).unwrap().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), large);
        replace(&target, b"[]", 0o600, false).unwrap().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"[]");
    }

    #[test]
    fn reserves_are_removed_where_they_do_not_help() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("layers.json");
        let left = || paths(&target).filter(|path| path.exists()).count();
        let full = || Error::io("writing", Errno::NOSPC);
        for wanted in [COUNT, 1, 0] {
            keep(&target, 100);
            let step = || if left() > wanted { Err(full()) } else { Ok(left()) };
            assert_eq!(or_release(&target, step).unwrap(), (wanted, wanted < COUNT));
        }
        keep(&target, 100);
        assert!(
            or_release(&target, || -> Result<()> { Err(full()) })
                .unwrap_err()
                .is_full()
        );
        assert_eq!(left(), 0);
        // Those that are gone, or were used, are made again.
        assert!(keep(&target, 100) > 0);
        assert_eq!(left(), COUNT);
    }

    #[test]
    fn no_two_versions_have_one_time() {
        let tmp = tempfile::tempdir().unwrap();
        let file = File::create(tmp.path().join("file")).unwrap();
        let times: Vec<_> = (0..100)
            .map(|_| {
                touch(&file).unwrap();
                file.metadata().unwrap().modified().unwrap()
            })
            .collect();
        assert!(times.is_sorted_by(|earlier, later| earlier < later));
    }

    /// Whoever has opened the file, which is a reserve now, reads on in the old one.
    #[test]
    fn a_reserve_that_someone_reads_stays_as_it_is() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let target = tmp.path().join("layers.json");
        atomic::write_file(&target, b"first", 0o600, false).unwrap();
        keep(&target, 100);
        let reader = File::open(&target).unwrap();
        for content in ["second", "third", "fourth"] {
            replace(&target, content.as_bytes(), 0o600, true)
                .unwrap()
                .unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), content);
        }
        assert_eq!(std::io::read_to_string(reader).unwrap(), "first");
    }

    #[test]
    fn a_reserve_is_no_link() {
        let tmp = tempfile::tempdir().unwrap();
        let (target, victim) = (tmp.path().join("layers.json"), tmp.path().join("victim"));
        std::fs::write(&victim, "kept").unwrap();
        for path in paths(&target) {
            std::os::unix::fs::symlink(&victim, path).unwrap();
        }
        keep(&target, 10);
        assert_eq!(replace(&target, b"[]", 0o600, false).unwrap(), None);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
    }
}
