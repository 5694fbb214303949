//! Making new files durable before something refers to them.
//!
//! A few files are synced one by one: cheap, and it does not wait for what other programs have written to the file
//! system. Many files are left to one `syncfs`: a sync of each would force a commit of ext4's journal each, thousands
//! of them, where one flush of everything does. A file system that does not keep the order of its changes is always
//! synced as a whole: modes, owners and attributes of directories, links and devices could be lost else.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::error::{IoContext as _, Result};
use crate::sys::{name_sync, writeback};

/// How many files are still synced one by one.
const FEW: usize = 16;

const DOING: &str = "syncing new files";

/// Files to sync. Empty if nothing is to be synced.
#[derive(Debug, Default)]
pub(crate) struct SyncTracker {
    wanted: bool,
    /// The list is given up once there are too many.
    many: bool,
    files: Vec<OwnedFd>,
}

impl SyncTracker {
    /// Nothing to sync yet; nothing is ever noted unless `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            many: false,
            files: Vec::new(),
        }
    }

    /// A file was written; it is closed unless it will be synced.
    pub(crate) fn file(&mut self, file: OwnedFd) {
        if !self.wanted || self.many {
            return;
        }
        self.files.push(file);
        if self.files.len() > FEW {
            self.many = true;
            self.files = Vec::new();
        }
    }

    /// Takes over the files of another one.
    pub(crate) fn add(&mut self, other: Self) {
        self.many |= other.many;
        for file in other.files {
            self.file(file);
        }
        if self.many {
            self.files = Vec::new();
        }
    }

    /// Makes durable everything that was made on the file system of `root`: directories and links at the latest when
    /// something that comes later is. `root` must have been opened before the first write, so that write errors reach it.
    pub(crate) fn commit(self, root: BorrowedFd<'_>) -> Result<()> {
        if !self.wanted {
            return Ok(());
        }
        if self.many || !name_sync::keeps_order(root).during(DOING)? {
            return rustix::fs::syncfs(root).during(DOING);
        }
        // All of them first: the sync of one then finds the others allocated, and one journal commit does for all.
        for file in &self.files {
            writeback::start(file.as_fd());
        }
        for file in &self.files {
            rustix::fs::fsync(file).during(DOING)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::at;

    #[test]
    fn a_few_files_are_kept_and_many_are_not() {
        let tmp = tempfile::tempdir().unwrap();
        let root = at::open_dir(tmp.path()).unwrap();
        for count in [0, 3, FEW, FEW + 1, 100] {
            let mut tracker = SyncTracker::new(true);
            for index in 0..count {
                let path = tmp.path().join(index.to_string());
                tracker.file(std::fs::File::create(path).unwrap().into());
            }
            assert_eq!(tracker.many, count > FEW);
            assert_eq!(tracker.files.len(), if count > FEW { 0 } else { count });
            tracker.commit(root.as_fd()).unwrap();
        }
        let mut off = SyncTracker::new(false);
        off.file(std::fs::File::create(tmp.path().join("x")).unwrap().into());
        assert!(off.files.is_empty());
    }
}
