//! The storage driver as callers see it: where a layer's content lies.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::driver::{CreateOptions, Driver};
use crate::error::Result;
use crate::idmap::IdMappings;
use crate::options::LayerOptions;
use crate::store::Store;
use crate::store::ids::random_id;

pub use crate::driver::DiskUsage;

/// A handle to the storage driver, made by [`Store::graph_driver`]. Cheap to clone.
///
/// It knows layers by ID only and takes no lock: what it says may be out of date when it arrives.
#[derive(Clone)]
pub struct GraphDriver {
    driver: Arc<dyn Driver>,
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

    /// The driver's directory, below the graph root.
    pub fn home(&self) -> &Path {
        self.driver.home()
    }

    /// Roots of additional read-only stores.
    pub fn additional_image_stores(&self) -> &[PathBuf] {
        self.driver.additional_image_stores()
    }

    /// Whether the driver has a layer with this ID, also in an additional store.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) while the runtime shuts down.
    pub async fn exists(&self, id: &str) -> Result<bool> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || Ok(driver.exists(&id))).await
    }

    /// IDs of everything in the driver's home that it takes for a layer.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn list_layers(&self) -> Result<Vec<String>> {
        let driver = Arc::clone(&self.driver);
        bridge::run(move || driver.list_layers()).await
    }

    /// Creates an empty layer in the driver alone, without a record, and returns its ID. Nothing protects it:
    /// [`Store::garbage_collect`] by anybody removes it again. For tests and repairs; everybody else wants
    /// [`Store::create_layer`].
    ///
    /// `parent` is the ID of a layer of the driver. Of the options the ID, the mount label, the ID mappings,
    /// [`LayerOptions::writeable`] and the driver's own count.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown) for the parent,
    /// [`ErrorKind::UnsafePath`](crate::ErrorKind::UnsafePath), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// Nothing has happened, or the layer is created in the background.
    pub async fn create_layer(&self, parent: Option<&str>, options: LayerOptions) -> Result<String> {
        let (driver, parent) = (Arc::clone(&self.driver), parent.map(str::to_owned));
        bridge::run(move || {
            let id = match options.id {
                id if id.is_empty() => random_id(|id| driver.exists(id))?,
                id => id,
            };
            let create = CreateOptions {
                read_write: options.writeable,
                mappings: IdMappings {
                    uids: options.id_mappings.uid_map,
                    gids: options.id_mappings.gid_map,
                },
                mount_label: options.mount_label,
                storage_opt: options.storage_opt,
                durable: false,
            };
            create.mappings.validate()?;
            driver.create(&id, parent.as_deref(), &create)?;
            Ok(id)
        })
        .await
    }

    /// Paths of a layer by their well-known names: `UpperDir`, `LowerDir`, `WorkDir`, `MergedDir` with overlay,
    /// nothing with vfs.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || driver.metadata(&id)).await
    }

    /// Space that a layer's own files take.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub async fn read_write_disk_usage(&self, id: &str) -> Result<DiskUsage> {
        let (driver, id) = (Arc::clone(&self.driver), id.to_owned());
        bridge::run(move || driver.disk_usage(&id)).await
    }
}

impl Store {
    /// A handle to the storage driver. If another process shuts the store down, ask for a new one.
    pub fn graph_driver(&self) -> GraphDriver {
        GraphDriver {
            driver: self.inner.driver(),
        }
    }
}
