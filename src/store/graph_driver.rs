//! The storage driver for callers: paths of layers, disk usage, layers without records.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::driver::{CreateOptions, Driver};
use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::LayerOptions;
use crate::store::Store;
use crate::store::dirs::check_layer_id;
use crate::store::ids::random_id;
use crate::sys::atomic;
use crate::sys::presence::is_there;

pub use crate::driver::{DiskUsage, DriverCapabilities};

/// A handle to the storage driver, from [`Store::graph_driver`]. Cheap to clone.
///
/// It knows layers by ID only and takes no lock, so another task or process may change the answer at once.
#[derive(Clone)]
pub struct GraphDriver {
    driver: Arc<dyn Driver>,
    /// The file of records of layers.
    records: PathBuf,
}

impl fmt::Debug for GraphDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphDriver")
            .field("name", &self.driver.name())
            .finish_non_exhaustive()
    }
}

impl GraphDriver {
    /// The driver's name.
    pub fn name(&self) -> &'static str {
        self.driver.name()
    }

    /// The driver's directory in the graph root.
    pub fn home(&self) -> &Path {
        self.driver.home()
    }

    /// Roots of additional read-only stores.
    pub fn additional_image_stores(&self) -> &[PathBuf] {
        self.driver.additional_image_stores()
    }

    /// What the driver can do beside making and mounting layers.
    pub fn capabilities(&self) -> DriverCapabilities {
        self.driver.capabilities()
    }

    /// Whether the driver has a layer with this ID in its home or in an additional store.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and others, if that cannot be told; [`ErrorKind::Cancelled`] while the runtime shuts down.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn exists(&self, id: &str) -> Result<bool> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || driver.exists(&id)).await
    }

    /// The IDs of all layers in the driver's home, with and without records.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn list_layers(&self) -> Result<Vec<String>> {
        let driver = Arc::clone(&self.driver);
        bridge::run(move || driver.list_layers()).await
    }

    /// Creates an empty layer without a record and returns its ID. The next [`Store::garbage_collect`] of any process
    /// removes it. This is for tests and repairs; otherwise use [`Store::create_layer`].
    ///
    /// `parent` is the ID of a layer of the driver. The ID, the mount label, the ID mappings,
    /// [`LayerOptions::writeable`] and the options of the driver are used; the other options are ignored.
    ///
    /// Takes no lock of the store.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateId`] if the driver has a layer with this ID, with or without a record;
    /// [`ErrorKind::LayerUnknown`] for the parent, [`ErrorKind::UnsafePath`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Either nothing has changed, or the layer is created in the background.
    pub async fn create_layer(&self, parent: Option<&str>, options: LayerOptions) -> Result<String> {
        let (driver, parent) = (Arc::clone(&self.driver), parent.map(str::to_owned));
        let records = self.records.clone();
        bridge::run(move || {
            // In a new store: without a file of records, a layer without a record would look like one that has lost it.
            if !is_there(&records)? && driver.list_layers()?.is_empty() {
                atomic::write_new_file(&records, b"[]", 0o600, false)?;
            }
            let id = match options.id {
                None => random_id(|_id| false)?,
                Some(id) => id,
            };
            let create = CreateOptions {
                read_write: options.writeable,
                mappings: IdMappings {
                    uids: options.id_mappings.uid_map,
                    gids: options.id_mappings.gid_map,
                },
                parent_mappings: None,
                storage_opt: options.storage_opt,
                mount_label: options.mount_label.unwrap_or_default(),
                durable: false,
            };
            create.mappings.validate()?;
            check_layer_id(&*driver, &id)?;
            // The driver itself replaces a layer, which may have a record.
            if driver.exists(&id)? {
                return Err(
                    ErrorKind::DuplicateId.err(format!("creating layer with ID {id:?} in the driver"))
                );
            }
            driver.create(&id, parent.as_deref(), &create)?;
            Ok(id)
        })
        .await
    }

    /// The paths of a layer by the names that the Go library gives them: `UpperDir`, `LowerDir`, `WorkDir` and
    /// `MergedDir` with overlay, `Mountpoint` and `Dataset` with zfs, none with btrfs and vfs.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || driver.metadata(&id)).await
    }

    /// The space that the files of a layer take, without those of its parents.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn read_write_disk_usage(&self, id: &str) -> Result<DiskUsage> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || driver.disk_usage(&id)).await
    }
}

/// # The driver
impl Store {
    /// A handle to the storage driver. After another process has shut the store down, get a new one.
    pub fn graph_driver(&self) -> GraphDriver {
        GraphDriver {
            driver: self.inner.driver(),
            records: self.inner.dirs.layers().join("layers.json"),
        }
    }
}
