//! The directories of a store that only transfers of images use.

use std::path::PathBuf;

use crate::store::Store;

/// Where a transfer keeps what is not part of the store's records.
#[derive(Clone, Debug)]
pub(crate) struct TransferDirs {
    /// Lock files of layers and images that are being pulled. Lost with a reboot.
    pub(crate) flights: PathBuf,
    /// The beginnings of blobs whose download was interrupted. Survive a reboot.
    pub(crate) partial_blobs: PathBuf,
    /// Temporary directories with a lock file each; whatever a killed process leaves in it is removed by the next open
    /// of the store.
    pub(crate) temporary: PathBuf,
}

impl Store {
    /// The directories of this store.
    pub(crate) fn transfer_dirs(&self) -> TransferDirs {
        let dirs = &self.inner.dirs;
        TransferDirs {
            flights: dirs.sub(&dirs.run_root, "flight"),
            partial_blobs: dirs.sub(&dirs.graph_root, "partial"),
            temporary: dirs.layers_tmp(),
        }
    }
}
