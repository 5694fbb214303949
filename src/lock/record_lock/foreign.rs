//! Whether other processes wait for locks, according to `/proc/locks`.
//!
//! The kernel gives a lock that is released to whoever asks next, not to who has waited longest: a process that takes it
//! again at once mostly gets it again. So one that takes a lock often has to look whether others wait, and leave it to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::record_lock::lock_file::LockFile;
use crate::sys::ofd::{self, Kind};

/// How often it is looked whether a process still waits.
const PAUSE: Duration = Duration::from_micros(100);

/// The inode in a line of a lock that a process waits for, as in `1: -> OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF`.
fn awaited_inode(line: &str) -> Option<u64> {
    let mut fields = line.split_whitespace().skip(1);
    if fields.next()? != "->" {
        return None;
    }
    let file = fields.find(|field| field.split(':').count() == 3)?;
    file.rsplit(':').next()?.parse().ok()
}

/// The inodes of files for whose locks a process waits.
fn awaited_inodes(locks: &str) -> impl Iterator<Item = u64> {
    locks.lines().filter_map(awaited_inode)
}

/// Whether another process waits for one of the locks, whoever holds it. May take long: the kernel waits for all processors
/// before it tells.
pub(crate) fn are_awaited(files: &[Arc<LockFile>]) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    awaited_inodes(&locks).any(|inode| files.iter().any(|file| file.identity.1 == inode))
}

/// Whether another process waits for one of the locks that nobody holds, and will have it in a moment.
///
/// The device is not compared: not every file system says the same there as in the status of the file.
fn is_awaited(files: &[Arc<LockFile>]) -> bool {
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else {
        return false;
    };
    // The kernel does not tell of locks of this process.
    let is_free = |file: &Arc<LockFile>| {
        file.gate.try_read().is_ok() && matches!(ofd::holder(file.as_fd(), Kind::Exclusive), Ok(None))
    };
    awaited_inodes(&locks).any(|inode| {
        let mut files = files.iter().filter(|file| file.identity.1 == inode);
        files.any(&is_free)
    })
}

/// Waits until the processes that wait for these locks have got them, each that is free; at most for `limit`. The caller holds
/// none of them.
pub(crate) fn give_way(files: &[Arc<LockFile>], limit: Duration) {
    let started = Instant::now();
    while is_awaited(files) && started.elapsed() < limit {
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::peer::Peer;
    use crate::lock::record_lock::LockMode;

    #[test]
    fn lines_of_the_kernel_are_read() {
        for (line, expected) in [
            ("1: -> OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF", Some(1234)),
            ("12: -> POSIX  ADVISORY  READ  77 00:1b:9 0 EOF", Some(9)),
            ("1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF", None),
            ("1: ->", None),
            ("", None),
        ] {
            assert_eq!(awaited_inode(line), expected, "{line}");
        }
    }

    #[test]
    fn a_process_that_waits_is_seen_until_it_has_the_lock() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a.lock");
        let lock = LockFile::open(&path, LockMode::ReadWrite).unwrap();
        let files = [Arc::clone(&lock)];
        assert!(!is_awaited(&files));
        let held = lock.exclusive_blocking(None).unwrap();
        let Some(mut peer) = Peer::start() else { return };
        peer.send(&format!("lock({path:?}, fcntl.LOCK_EX)"));
        while !are_awaited(&files) {
            std::thread::yield_now();
        }
        assert!(!is_awaited(&files), "it is held");
        drop(held);
        give_way(&files, Duration::from_secs(60));
        assert!(!are_awaited(&files));
        assert_eq!(peer.answer(), "locked");
    }
}
