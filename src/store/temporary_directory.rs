//! Temporary directories that others may use.

use std::path::{Path, PathBuf};

use crate::bridge::{self, Detached};
use crate::error::Result;
use crate::lock::temp_dir::TempDir;
use crate::store::Store;
use crate::sys::make_private_subdir;

/// A temporary directory (0700) of a store, from [`Store::temporary_directory`]. It goes when this is dropped; what a killed
/// process leaves is removed by whoever opens the store next, and told by [`Store::check`]. What is mounted in it is unmounted
/// before that.
#[derive(Debug)]
#[must_use = "the directory is removed when this is dropped"]
pub struct TemporaryDirectory {
    path: PathBuf,
    temp: Detached<TempDir>,
}

impl TemporaryDirectory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, and waits until it has gone.
    ///
    /// Takes no lock of the store.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io). What is left is removed by whoever opens the store next.
    ///
    /// # Cancellation
    /// It is removed in the background.
    pub async fn remove(self) -> Result<()> {
        let temp = self.temp;
        bridge::run(move || temp.into_inner().remove()).await
    }
}

impl Store {
    /// Makes a temporary directory in the graph root, for files that belong to a work on this store and to nothing in it.
    ///
    /// Takes no lock of the store.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// Nothing stays.
    pub async fn temporary_directory(&self) -> Result<TemporaryDirectory> {
        let root = self.inner.dirs.layers_tmp();
        bridge::run(move || {
            let mut temp = TempDir::create(&root)?;
            let path = temp.addition();
            make_private_subdir(&path)?;
            Ok(TemporaryDirectory {
                path,
                temp: Detached::new(temp),
            })
        })
        .await
    }
}
