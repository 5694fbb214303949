//! What all clones of an open store share.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::driver::select::open_driver;
use crate::driver::{Driver, DriverConfig};
use crate::error::{ErrorKind, Result};
use crate::lock::last_write::Token;
use crate::lock::record_lock::LockFile;
use crate::options::{Durability, StoreOptions};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountPoints;
use crate::record::record_trait::Record;
use crate::record::{ReadOnlyRecords, Records};
use crate::store::dirs::Dirs;
use crate::store::local_layers::LocalLayers;
use crate::sys::name_sync::NameSync;

/// Layers that one store unpacks at the same time unless its options say otherwise. Each has a thread and a few MiB,
/// and may be waiting for a slow network, so the number of processors is no measure for it.
const MAX_UNPACKS: usize = 64;

/// Which of several stores of one kind is being visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreOrigin {
    /// The one that new items go to.
    Primary,
    /// One that is searched after it.
    Additional {
        /// Its place in the list of those.
        index: usize,
        /// Whether it can only be read. Images in the graph root beside a separate image store can also be deleted.
        read_only: bool,
    },
}

impl StoreOrigin {
    /// Whether it can only be read.
    pub(crate) fn read_only(self) -> bool {
        matches!(self, Self::Additional { read_only: true, .. })
    }

    /// Whether new items go here.
    pub(crate) fn is_primary(self) -> bool {
        self == Self::Primary
    }
}

/// The driver in use and the state of `storage.lock` in which it was started.
#[derive(Debug)]
pub(crate) struct DriverState {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) token: Token,
}

/// A store that is searched after the primary one: its records and the directory of their files.
pub(crate) struct Additional<R: Record> {
    pub(crate) records: ReadOnlyRecords<R>,
    pub(crate) dir: PathBuf,
    pub(crate) read_only: bool,
}

impl<R: Record> Additional<R> {
    pub(crate) fn home(&self, index: usize) -> StoreOrigin {
        StoreOrigin::Additional {
            index,
            read_only: self.read_only,
        }
    }
}

pub(crate) struct Inner {
    pub(crate) options: StoreOptions,
    pub(crate) dirs: Dirs,
    pub(crate) graph_lock: Arc<LockFile>,
    pub(crate) userns_lock: Arc<LockFile>,
    /// Changed only under the graph lock; readers hold the lock just to clone, so that std's lock is enough.
    pub(crate) driver: RwLock<DriverState>,
    pub(crate) layers: Records<LayerRow>,
    pub(crate) mounts: MountPoints,
    /// Mounts of layers of additional stores, if there are such stores.
    pub(crate) additional_mounts: Option<MountPoints>,
    pub(crate) additional_layers: Vec<Additional<LayerRow>>,
    pub(crate) images: Records<ImageRow>,
    /// The image store of the graph root, if images lie apart. It is read as the first of the additional ones.
    pub(crate) graph_images: Option<Records<ImageRow>>,
    pub(crate) additional_images: Vec<Additional<ImageRow>>,
    pub(crate) containers: Records<ContainerRow>,
    /// Bounds the layers that are unpacked at the same time.
    pub(crate) unpack_permits: Arc<Semaphore>,
    /// Which contents layers have.
    pub(crate) local_layers: LocalLayers,
}

impl Inner {
    /// The permits for `max` layers at the same time, see [`StoreOptions::max_unpacks`].
    pub(crate) fn new_unpack_permits(max: usize) -> Arc<Semaphore> {
        let max = if max == 0 { MAX_UNPACKS } else { max };
        Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))
    }

    /// Waits until one more layer may be unpacked.
    pub(crate) async fn unpack_permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.unpack_permits).acquire_owned().await;
        permit.map_err(|closed| {
            ErrorKind::Cancelled
                .err("waiting for a permit to unpack a layer")
                .with_source(closed)
        })
    }

    /// The driver. It may be replaced when another process has shut the store down.
    pub(crate) fn driver(&self) -> Arc<dyn Driver> {
        let state = self.driver.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.driver)
    }

    /// Makes what deletion on a full disk needs and for which there was no space; to be called when files were removed.
    pub(crate) fn renew_reserves(&self) {
        self.layers.renew_reserves();
        self.images.renew_reserves();
        if let Some(images) = &self.graph_images {
            images.renew_reserves();
        }
        self.containers.renew_reserves();
        self.mounts.renew_reserves();
    }

    /// Every lock file that the store's records are protected by.
    pub(crate) fn lock_files(&self) -> Vec<PathBuf> {
        let options = &self.options;
        let containers = if options.transient {
            self.dirs.run_containers()
        } else {
            self.dirs.containers()
        };
        let mut files = vec![
            options.graph_root.join("storage.lock"),
            options.graph_root.join("userns.lock"),
            self.dirs.layers().join("layers.lock"),
            self.dirs.run_layers().join("mountpoints.lock"),
            self.dirs.images().join("images.lock"),
            containers.join("containers.lock"),
        ];
        if self.additional_mounts.is_some() {
            files.push(self.dirs.run_additional_layers().join("mountpoints.lock"));
        }
        if let Some(image_store) = &options.image_store {
            files.push(self.dirs.sub(image_store, "layers").join("layers.lock"));
            files.push(self.dirs.graph_images().join("images.lock"));
        }
        files
    }

    /// When the names that records rely on are forced to disk.
    pub(crate) fn name_sync(options: &StoreOptions) -> NameSync {
        match options.durability {
            Durability::None => NameSync::Off,
            Durability::Default => NameSync::InOrder,
            Durability::Full => NameSync::Always,
        }
    }

    /// Whether layer content has to be on disk before its record is.
    pub(crate) fn sync_content(&self) -> bool {
        self.options.durability != Durability::None
    }

    /// Removes the temporary data of killed processes: that of the store, then that of the driver. The first failure is
    /// returned; everything else is removed all the same.
    pub(crate) fn recover(&self) -> Result<()> {
        let own = crate::lock::temp_dir::recover(&self.dirs.layers_tmp());
        own.and(self.driver().prune())
    }

    /// As [`Inner::recover`]; what cannot be removed does not keep the store from being used.
    pub(crate) fn try_recover(&self) {
        if let Err(error) = self.recover() {
            tracing::warn!(error = %error.chain(), "cannot remove the temporary data of a killed process");
        }
    }

    /// Starts the driver anew after another process has shut it down.
    pub(crate) fn restart_driver(&self, token: Token) -> Result<()> {
        let mut config = driver_config(&self.options);
        config.name = Some(self.dirs.driver_name.to_owned());
        let driver = open_driver(&config)?;
        let mut state = self.driver.write().unwrap_or_else(PoisonError::into_inner);
        *state = DriverState { driver, token };
        Ok(())
    }
}

/// The driver configuration that the options describe.
pub(crate) fn driver_config(options: &StoreOptions) -> DriverConfig {
    DriverConfig {
        name: options.driver.clone(),
        root: options.graph_root.clone(),
        run_root: options.run_root.clone(),
        image_store: options.image_store.clone(),
        priority: options.driver_priority.clone(),
        options: options.driver_options.clone(),
        tree_driver: options.tree_driver.clone().map(|driver| driver.0),
        search_path: None,
    }
}
