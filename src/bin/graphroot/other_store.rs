//! A store beside the one that a command works on, for as long as the command runs.

use std::path::PathBuf;

use graphroot::{Store, StoreOptions};

use crate::outcome::CommandError;

/// See the module's head.
pub(crate) struct OtherStore {
    pub(crate) store: Store,
    /// Its run root, and all of it that nobody else has: a directory that goes at the end.
    dir: PathBuf,
}

impl OtherStore {
    /// Opens it; what it has for itself is in `dir`.
    pub(crate) async fn open(options: StoreOptions, dir: PathBuf) -> Result<Self, CommandError> {
        Ok(Self {
            store: Store::open(options).await?,
            dir,
        })
    }

    /// Unmounts and removes what it has for itself.
    pub(crate) async fn close(self) {
        let closed = self.store.shutdown().await;
        self.store.free();
        if let Err(error) = closed {
            tracing::warn!(error = %error.chain(), "cannot close the other store");
        } else if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a temporary directory");
        }
    }
}
