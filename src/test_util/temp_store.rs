//! A store in a temporary directory that is unmounted and removed when it is dropped.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::options::{Durability, StoreOptions};
use crate::store::Store;
use crate::store::ids::random_id;
use crate::sys;

/// A store in fresh directories, for tests. It is a [`Store`] by dereference.
///
/// It uses the overlay driver for root where that works, and otherwise vfs, for ordinary users with files that all
/// belong to them (`vfs.ignore_chown_errors`). Nothing is synced to disk ([`Durability::None`]).
///
/// When it is dropped, everything mounted below [`TempStore::path`] is unmounted and the directory is removed: after a
/// panic too, inside and outside a runtime, as root and as any other user. That blocks the thread; [`TempStore::close`] does
/// the same without blocking and says what went wrong. Clones of the store that live longer find their directories
/// gone. What is in a `static` is never dropped: tests that share one that way leave its directory and mounts behind.
#[derive(Debug)]
pub struct TempStore {
    store: Store,
    directory: TempDirectory,
}

/// Removes its directory, and what is mounted below, on drop.
#[derive(Debug)]
pub(super) struct TempDirectory {
    pub(super) path: PathBuf,
    removed: bool,
}

impl TempStore {
    /// A store below the directory for temporary files (`$TMPDIR`).
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::NotSupported`] if no driver works there.
    ///
    /// # Cancellation
    /// The directory is removed.
    pub async fn new() -> Result<Self> {
        Self::with(|options| options).await
    }

    /// A store whose options were changed first: with another driver, an image store, a lock time-out. The roots are
    /// set already; if the driver is not, it is chosen as by [`TempStore::new`].
    ///
    /// # Errors
    /// As [`Store::open`].
    ///
    /// # Cancellation
    /// The directory is removed.
    ///
    /// ```
    /// # async fn demo() -> graphroot::Result<()> {
    /// let store = graphroot::test_util::TempStore::with(|options| options.driver("vfs")).await?;
    /// assert_eq!(store.graph_driver_name(), "vfs");
    /// # store.close().await
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
    /// ```
    pub async fn with(change: impl FnOnce(StoreOptions) -> StoreOptions) -> Result<Self> {
        let directory = bridge::run(TempDirectory::create).await?;
        let options = StoreOptions::new(directory.path.join("graph"), directory.path.join("run"))
            .durability(Durability::None);
        let options = change(options);
        let drivers: &[&str] = match (&options.driver, sys::privilege::is_root()) {
            (Some(driver), _) => &[&**driver],
            (None, true) => &["overlay", "vfs"],
            (None, false) => &["vfs"],
        };
        let mut result = Err(ErrorKind::NotSupported.err("a driver for a temporary store"));
        for driver in drivers {
            let mut options = options.clone().driver(*driver);
            if *driver == "vfs" && !sys::privilege::is_root() {
                options = options.driver_option("vfs.ignore_chown_errors=true");
            }
            result = Store::open(options).await;
            match &result {
                Ok(_store) => break,
                Err(error) => {
                    tracing::debug!(driver, error = %error.chain(), "a driver that does not work here");
                }
            }
        }
        Ok(Self {
            store: result?,
            directory,
        })
    }

    /// The directory of everything: graph root, run root, and whatever the test puts beside them.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Unmounts and removes everything, as dropping does.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming what cannot be unmounted or removed.
    ///
    /// # Cancellation
    /// It goes on in the background.
    pub async fn close(mut self) -> Result<()> {
        bridge::run(move || {
            self.store.free();
            self.directory.remove()
        })
        .await
    }
}

impl Deref for TempStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Drop for TempStore {
    fn drop(&mut self) {
        self.store.free();
    }
}

impl TempDirectory {
    fn create() -> Result<Self> {
        Self::create_in(&std::env::temp_dir())
    }

    pub(super) fn create_in(parent: &Path) -> Result<Self> {
        let id = random_id(|_| false)?;
        // The mount table has the path without links.
        let parent = parent.canonicalize().at("resolving", parent)?;
        let path = parent.join(format!("graphroot-{}", id.get(..12).unwrap_or(&id)));
        sys::make_private_dir(&path)?;
        Ok(Self { path, removed: false })
    }

    pub(super) fn remove(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        let mounts = sys::mount::mounts_below(&self.path).at("listing mounts below", &self.path)?;
        for mount in mounts {
            sys::mount::unmount_lazily(&mount).at("unmounting", &mount)?;
        }
        sys::tree::remove_tree(&self.path).map_err(|error| Error::io_at("removing", &self.path, error))
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = %error.chain(), "cannot remove a temporary store");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ContainerOptions, MountOptions};
    use crate::test_util::{TarBuilder, TarEntry};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    /// A store with a mounted container that has a directory without write permission.
    async fn used() -> TempStore {
        let store = TempStore::new().await.unwrap();
        let tar = TarBuilder::new()
            .entry(TarEntry::dir("closed").mode(0o555))
            .file("closed/file", "1")
            .build();
        let layer = store
            .put_image_layer(None, std::io::Cursor::new(tar))
            .await
            .unwrap();
        let image = crate::ImageBuilder::new().top_layer(layer.id());
        let image = image.build(&store).await.unwrap();
        let container = store
            .create_container(Some(image.id()), ContainerOptions::default())
            .await
            .unwrap();
        store
            .mount(container.id(), MountOptions::default())
            .await
            .unwrap();
        store
    }

    #[test]
    fn it_is_gone_when_it_is_dropped_inside_or_outside_a_runtime_or_by_a_panic() {
        let path = runtime().block_on(async { used().await.path().to_owned() });
        assert!(!path.exists());
        let store = runtime().block_on(used());
        let (path, clone) = (store.path().to_owned(), store.clone());
        assert!(path.join("graph").exists());
        drop(store);
        assert!(!path.exists());
        drop(clone);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let store = runtime().block_on(used());
            sender.send(store.path().to_owned()).unwrap();
            panic!("as a test that fails");
        });
        let path = receiver.recv().unwrap();
        assert!(thread.join().is_err());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn closing_removes_it_and_options_are_heeded() {
        let store = used().await;
        let path = store.path().to_owned();
        store.close().await.unwrap();
        assert!(!path.exists());
        let store = TempStore::with(|options| options.driver("vfs").transient(true))
            .await
            .unwrap();
        assert!(store.transient_store());
        assert_eq!(store.graph_driver_name(), "vfs");
        let wrong = TempStore::with(|options| options.driver("nonsense")).await;
        assert_eq!(wrong.unwrap_err().kind(), ErrorKind::NotSupported);
    }
}
