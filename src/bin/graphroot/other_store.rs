//! A store beside the one that a command works on, for as long as the command runs.

use graphroot::{ErrorKind, Store, StoreOptions, TemporaryDirectory};

use crate::outcome::CommandError;

/// See the module's head.
pub(crate) struct OtherStore {
    pub(crate) store: Store,
    /// Its run root, and all of it that nobody else has.
    dir: TemporaryDirectory,
}

impl OtherStore {
    /// Opens it; what it has for itself is in `dir`.
    pub(crate) async fn open(options: StoreOptions, dir: TemporaryDirectory) -> Result<Self, CommandError> {
        Ok(Self {
            store: Store::open(options).await?,
            dir,
        })
    }

    /// Unmounts and removes what it has for itself.
    pub(crate) async fn close(self) {
        let closed = self.store.shutdown().await;
        self.store.free();
        if let Err(error) = closed
            // What others have mounted in it stays.
            && error.kind() != ErrorKind::LayerUsedByContainer
        {
            tracing::warn!(error = %error.chain(), "cannot close the other store");
        }
        if let Err(error) = self.dir.remove().await {
            tracing::warn!(error = %error.chain(), "cannot remove a temporary directory yet");
        }
    }
}
