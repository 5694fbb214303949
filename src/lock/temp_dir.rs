//! Stub: signatures only.
use std::path::{Path, PathBuf};

use crate::error::Result;

/// A locked temporary directory `temp-dir-N` with its `lock-N` beside it, in Go's layout. Dropped: both are removed.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Makes a new one below `root` (which is created, 0700, where missing). Blocking.
    pub(crate) fn create(_root: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A fresh path `<counter>-addition` inside; the caller creates something there and renames it out.
    pub(crate) fn addition(&mut self) -> PathBuf {
        unimplemented!()
    }

    /// Renames `path` into this directory as `<counter>-<basename>`; `false` if there was nothing.
    pub(crate) fn stage_deletion(&mut self, _path: &Path) -> Result<bool> {
        unimplemented!()
    }

    /// Removes the directory and the lock file now and reports failures (drop only logs them).
    pub(crate) fn remove(self) -> Result<()> {
        unimplemented!()
    }
}

/// Removes what killed processes left below `root`. Blocking; a missing root is fine.
pub(crate) fn recover(_root: &Path) -> Result<()> {
    unimplemented!()
}
