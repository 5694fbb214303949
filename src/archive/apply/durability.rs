//! Making an unpacked layer durable before it is committed.
//!
//! A few files are synced one by one, and the directories they are in: cheap, and it does not wait for what other
//! programs have written to the file system. Many files are left to one `syncfs`: a sync of each would force a commit
//! of ext4's journal each, thousands of them, where one flush of everything does.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{IoContext as _, Result};
use crate::sys::{at, writeback};

/// How many entries are still synced one by one.
const FEW: usize = 16;

const DOING: &str = "syncing the unpacked layer";

/// Files and directories to sync. Empty if nothing is to be synced.
#[derive(Default)]
pub(crate) struct SyncTracker {
    wanted: bool,
    /// Both lists are given up once there are too many entries.
    many: bool,
    files: Vec<OwnedFd>,
    dirs: Vec<Vec<u8>>,
    entries: usize,
}

impl SyncTracker {
    /// Nothing to sync yet; nothing is ever noted unless `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            many: false,
            files: Vec::new(),
            dirs: Vec::new(),
            entries: 0,
        }
    }

    /// A file was written; it is closed unless it will be synced.
    pub(crate) fn file(&mut self, file: OwnedFd) {
        if self.wanted && !self.many {
            self.files.push(file);
        }
    }

    /// An entry changed the directory at `path` (a real one).
    pub(crate) fn dir(&mut self, path: &[u8]) {
        if !self.wanted || self.many {
            return;
        }
        self.entries += 1;
        if self.entries > FEW {
            self.many = true;
            self.files = Vec::new();
            self.dirs = Vec::new();
        } else if !self.dirs.iter().any(|dir| dir == path) {
            self.dirs.push(path.to_vec());
        }
    }

    /// Syncs everything; `root` must have been opened before the first write, so that write errors reach it.
    pub(crate) fn commit(self, root: BorrowedFd<'_>) -> Result<()> {
        if !self.wanted {
            return Ok(());
        }
        if self.many {
            return rustix::fs::syncfs(root).during(DOING);
        }
        // All of them first: the sync of one then finds the others allocated, and one journal commit does for all.
        for file in &self.files {
            writeback::start(file.as_fd());
        }
        for file in &self.files {
            rustix::fs::fsync(file).during(DOING)?;
        }
        for dir in &self.dirs {
            // One that a whiteout took away again needs no sync.
            if let Some(dir) = open(root, dir)? {
                rustix::fs::fsync(dir.as_fd()).during(DOING)?;
            }
        }
        Ok(())
    }
}

fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    match at::open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(crate::error::Error::io(DOING, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_entries_are_kept_and_many_are_not() {
        let tmp = tempfile::tempdir().unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        std::fs::create_dir(tmp.path().join("d")).unwrap();
        for count in [0, 3, FEW, FEW + 1, 100] {
            let mut tracker = SyncTracker::new(true);
            for index in 0..count {
                let path = tmp.path().join(index.to_string());
                tracker.file(std::fs::File::create(path).unwrap().into());
                tracker.dir(if index % 2 == 0 { b"" } else { b"d" });
            }
            assert_eq!(tracker.many, count > FEW);
            assert_eq!(tracker.files.len(), if count > FEW { 0 } else { count });
            assert!(tracker.dirs.len() <= 2);
            tracker.dirs.push(b"gone".to_vec());
            tracker.commit(root.as_fd()).unwrap();
        }
        let mut off = SyncTracker::new(false);
        off.file(std::fs::File::create(tmp.path().join("x")).unwrap().into());
        assert!(off.files.is_empty());
    }
}
