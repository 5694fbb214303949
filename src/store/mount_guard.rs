//! A mount that lasts as long as a value.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::options::MountOptions;
use crate::store::Store;
use crate::store::access::{Batch, Needs};
use crate::store::layer_steps::{Unmount, unmount_layer};
use crate::store::layer_store::locked::LayerStore;

/// How long dropping a [`Mount`] waits for the unmount where no runtime can run it in the background.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// A mounted layer, made by [`Store::mount_guard`] and [`Store::mount_image_guard`]: the directory, and the duty to
/// unmount it. It counts as one mount.
///
/// [`Mount::unmount`] ends it and tells what went wrong. When it is dropped, a task of the runtime unmounts it in the
/// background, and a failure is logged. Where no runtime is left to do that, because it is shutting down or gone, a
/// thread unmounts it, and dropping waits for that thread for at most five seconds; if another process holds the layer
/// lock for longer the thread goes on, and if the process ends before it has finished, the mount stays counted until
/// [`Store::unmount_all`] is called or the machine is started again.
///
/// ```no_run
/// # async fn demo(store: graphroot::Store) -> Result<(), Box<dyn std::error::Error>> {
/// use graphroot::MountOptions;
/// let root = store.mount_guard("my-container", MountOptions::default()).await?;
/// println!("{}", std::fs::read_to_string(root.join("etc/os-release"))?);
/// root.unmount().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "it is unmounted when this is dropped"]
pub struct Mount {
    path: PathBuf,
    /// `None` once it was taken over.
    owed: Option<OwedUnmount>,
    /// For a drop outside any runtime.
    runtime: Handle,
}

impl Mount {
    fn new(store: Store, layer: String, path: PathBuf, runtime: Handle) -> Self {
        Self {
            path,
            owed: Some(OwedUnmount::new(store, layer)),
            runtime,
        }
    }

    /// The directory where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it: the directory may stay mounted for others.
    ///
    /// Takes the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if the layer was deleted meanwhile, [`ErrorKind::LockTimeout`], [`ErrorKind::Io`].
    /// After a failure the mount stays counted and can be undone with [`Store::unmount`].
    ///
    /// # Cancellation
    /// It is unmounted in the background.
    pub async fn unmount(mut self) -> Result<()> {
        let Some(owed) = self.owed.take() else {
            return Ok(());
        };
        match tokio::spawn(owed.settle()).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_shutdown) => Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
        }
    }

    /// Leaves it mounted; [`Store::unmount`] undoes it.
    pub fn keep(mut self) -> PathBuf {
        if let Some(owed) = self.owed.take() {
            drop(take(&owed.layer));
        }
        std::mem::take(&mut self.path)
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mount").field(&self.path).finish()
    }
}

impl AsRef<Path> for Mount {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Deref for Mount {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(owed) = self.owed.take() else { return };
        let runtime = Handle::try_current().unwrap_or_else(|_none| self.runtime.clone());
        let path = std::mem::take(&mut self.path);
        // A runtime that is shutting down drops the task at once, and `owed` with it.
        drop(runtime.spawn(async move { report(path.display(), owed.settle().await) }));
    }
}

fn report(mount: impl fmt::Display, result: Result<()>) {
    match result {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::LayerUnknown => {
            tracing::debug!(%mount, "the layer of a dropped mount has been deleted");
        }
        Err(error) => {
            tracing::warn!(%mount, error = %error.chain(), "cannot unmount a dropped mount");
        }
    }
}

/// A mount of a layer (its ID) that is to be undone once. Dropped before that, a thread does it.
struct OwedUnmount {
    store: Store,
    /// `None` once the unmount has begun.
    layer: Arc<Mutex<Option<String>>>,
}

fn take(layer: &Mutex<Option<String>>) -> Option<String> {
    layer.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl OwedUnmount {
    fn new(store: Store, layer: String) -> Self {
        Self {
            store,
            layer: Arc::new(Mutex::new(Some(layer))),
        }
    }

    /// Undoes the mount. After a failure it is not tried again.
    async fn settle(self) -> Result<()> {
        let layer = Arc::clone(&self.layer);
        let unmounted = self.store.in_batch(Needs::LAYERS, async move |batch: Batch| {
            let Some(layer) = take(&layer) else { return Ok(()) };
            let (_claim, counts) = batch
                .claim(|held| Ok((layer.clone(), held.layers()?.counts_of(&layer)?)))
                .await?;
            let left = unmount_layer(&batch, &layer, counts, Unmount::One).await;
            left.map(drop)
        });
        let unmounted = unmounted.await;
        drop(take(&self.layer));
        unmounted
    }
}

impl Drop for OwedUnmount {
    fn drop(&mut self) {
        let Some(layer) = take(&self.layer) else { return };
        let store = self.store.clone();
        let (done, finished) = mpsc::channel::<()>();
        let unmount = move || {
            let layers = store.inner.layers.write_blocking();
            let result = layers.and_then(|layers| {
                let layers = LayerStore::enter(Arc::clone(&store.inner), layers)?;
                layers.leave(|layers| {
                    let counts = layers.counts_of(&layer)?;
                    layers.unmount(&layer, counts).map(drop)
                })
            });
            report(layer, result);
            drop(done);
        };
        let thread = std::thread::Builder::new().name("graphroot-unmount".into());
        match thread.spawn(unmount) {
            // An end of the channel, or too long a wait: either way there is nothing more to do here.
            Ok(_thread) => drop(finished.recv_timeout(DROP_WAIT)),
            Err(error) => {
                tracing::warn!(error = %error, "cannot start a thread that unmounts a dropped mount");
            }
        }
    }
}

/// # Mounts that end by themselves
impl Store {
    /// Mounts a layer, or the layer of a container, (an ID, name or ID prefix) as [`Store::mount`] does, until the
    /// returned value is dropped.
    ///
    /// Takes the graph lock and the layer lock exclusively for one step.
    ///
    /// # Errors
    /// As [`Store::mount`].
    ///
    /// # Cancellation
    /// Nothing stays mounted.
    pub async fn mount_guard(&self, id: &str, options: MountOptions) -> Result<Mount> {
        let (store, runtime) = (self.clone(), bridge::runtime()?);
        self.mount_with(id, options, move |layer, path| {
            Mount::new(store, layer, path, runtime)
        })
        .await
    }

    /// Mounts an image (an ID, name or ID prefix) read-only as [`Store::mount_image`] does, until the returned value
    /// is dropped.
    ///
    /// Locks as [`Store::mount_image`].
    ///
    /// # Errors
    /// As [`Store::mount_image`].
    ///
    /// # Cancellation
    /// Nothing stays mounted.
    pub async fn mount_image_guard(&self, id: &str, options: MountOptions) -> Result<Mount> {
        let (store, runtime) = (self.clone(), bridge::runtime()?);
        self.mount_image_with(id, options, move |layer, path| {
            Mount::new(store, layer, path, runtime)
        })
        .await
    }
}
