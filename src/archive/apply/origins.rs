//! Files that have the content of payloads: where the file system can share it, a new file is a clone of one of them, which
//! takes neither space nor writing. The payload is in the stream all the same, and is what digests are computed of.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{IoContext as _, Result};

/// Files that are kept open for payloads to come.
const MAX_WAITING: usize = 64;

/// Smaller files are written: most of what they cost is the making of them.
const MIN_SIZE: u64 = 16 * 1024;

/// The files for the payloads of one stream. See the module's head.
pub(crate) struct Origins {
    waiting: Mutex<VecDeque<Origin>>,
    /// Files can be cloned, as far as is known.
    works: AtomicBool,
}

struct Origin {
    /// Where in the stream the payload begins.
    offset: u64,
    file: File,
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").finish_non_exhaustive()
    }
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            works: AtomicBool::new(true),
        }
    }
}

impl Origins {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Origin>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a file, all of which is the payload of `size` bytes that begins at `offset`. Offsets ascend.
    pub(crate) fn offer(&self, offset: u64, size: u64, file: &File) -> Result<()> {
        if size < MIN_SIZE || !self.works.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut waiting = self.waiting();
        if waiting.len() < MAX_WAITING {
            let file = file.try_clone().during("duplicating a file handle")?;
            waiting.push_back(Origin { offset, file });
        }
        Ok(())
    }

    /// Makes the empty file `to` a clone of what was offered for the payload of `size` bytes at `offset`. `false` if there is
    /// nothing, or it cannot be cloned; the file is empty then.
    pub(super) fn clone_to(&self, to: &File, offset: u64, size: u64) -> Result<bool> {
        let Some(from) = self.take(offset) else {
            return Ok(false);
        };
        if rustix::fs::ioctl_ficlone(to, &from).is_err() {
            self.works.store(false, Ordering::Relaxed);
            self.waiting().clear();
            return Ok(false);
        }
        let found = to.metadata().during("looking at a clone")?.len();
        if found != size {
            // It was changed meanwhile.
            to.set_len(0).during("emptying a clone")?;
        }
        Ok(found == size)
    }

    fn take(&self, offset: u64) -> Option<File> {
        let mut waiting = self.waiting();
        while waiting.front()?.offset < offset {
            waiting.pop_front();
        }
        let is_it = waiting.front()?.offset == offset;
        let origin = if is_it { waiting.pop_front() } else { None };
        origin.map(|origin| origin.file)
    }
}
