//! The store: every verb of containers/storage, async, over one graph root.
//!
//! On disk (`D` is the driver's name; formats as in the Go library):
//!
//! ```text
//! <graph root>/D/                    driver home: layer content
//! <graph root>/D-layers/             layers.json, layers.lock, ID.tar-split.gz, ID/ (big data), tmp/
//! <graph root>/D-images/             images.json, images.lock, ID/
//! <graph root>/D-containers/         containers.json, containers.lock, ID/ (big data, userdata/)
//! <graph root>/storage.lock          driver start and shutdown against mounts
//! <run root>/D-layers/               mountpoints.json, mountpoints.lock
//! <run root>/D-containers/ID/, D-images/ID/, D-locks/
//! ```
//!
//! Who holds which lock, in what order, and for how long is in the `access` module. Everything that changes the disk runs in one
//! blocking step that owns its locks, so a caller that is dropped leaves either no trace or a finished step.

// The documentation shows the methods of `Store` in the order of these declarations. Opening:
pub(crate) mod registry;

// Layers.
pub(crate) mod put_layer;

mod apply_diff;
pub(crate) mod staged_layers;

pub(crate) mod layers;

pub(crate) mod additional_layer;

pub(crate) mod diff;

// Images.
mod images;

mod image_content;

pub(crate) mod commit;

// Containers.
mod containers;
pub(crate) mod converting_differ;

// All three: finding, names, data.
mod lookup;

mod names;

mod metadata;

pub(crate) mod big_data;

mod directories;

pub(crate) mod multi_list;

pub(crate) mod sizes;

// Mounts.
mod mount;

pub(crate) mod mount_guard;

// Deleting and maintenance.
mod delete;

mod wipe;

mod garbage;

pub(crate) mod digest_lock;

pub(crate) mod graph_driver;

pub(crate) mod check;

pub(crate) mod dedup;

pub(crate) mod heal;

pub(crate) mod copy_to;

// What they are made of.
pub(crate) mod access;
mod additional_blob;
mod all_stores;
pub(crate) mod chunked_differ;
pub(crate) mod deleted;
pub(crate) mod diff_stream;
pub(crate) mod dirs;
mod evidence;
pub(crate) mod ids;
pub(crate) mod image_builder;
pub(crate) mod image_config;
pub(crate) mod image_manifest;
mod image_name;
pub(crate) mod image_record;
pub(crate) mod image_types;
pub(crate) mod inner;
pub(crate) mod layer_identity;
mod layer_steps;
pub(crate) mod layer_store;
pub(crate) mod local_content;
mod local_layers;
mod open;
mod roots;
pub(crate) mod stage;
pub(crate) mod temporary_directory;
mod top_layer;
#[cfg(feature = "pull")]
pub(crate) mod transfer_dirs;
mod tree_search;
mod typed_json;
pub(crate) mod userns;
pub(crate) mod views;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::idmap::IdMap;
use crate::store::access::writers::Writers;
use crate::store::inner::Inner;

/// A store of layers, images and containers, shared with every other process that uses the same directories.
///
/// Cheap to clone; all clones are the same store. It borrows nothing and can be sent anywhere. Calls may run
/// concurrently from any number of tasks.
///
/// | | |
/// |---|---|
/// | Opening | [`open`](Store::open), with [`StoreOptions::default_for_user`](crate::StoreOptions::default_for_user) the store that Podman of the same user has; [`free`](Store::free) |
/// | Layers | [`put_image_layer`](Store::put_image_layer), [`put_layer`](Store::put_layer), [`put_layers`](Store::put_layers), [`create_layer`](Store::create_layer); [`layers`](Store::layers), [`layer`](Store::layer); [`diff`](Store::diff), [`changes`](Store::changes) |
/// | Images | [`ImageBuilder`](crate::ImageBuilder), [`commit`](Store::commit), [`create_image`](Store::create_image); [`images`](Store::images), [`image_by_name`](Store::image_by_name); [`image_layers`](Store::image_layers), [`image_manifest`](Store::image_manifest), [`image_config`](Store::image_config), [`image_sizes`](Store::image_sizes) |
/// | Containers | [`create_container`](Store::create_container), [`containers`](Store::containers), [`container_by_name`](Store::container_by_name) |
/// | Names, data | [`add_names`](Store::add_names), [`set_metadata`](Store::set_metadata), [`image_big_data`](Store::image_big_data), [`container_directory`](Store::container_directory) and their like |
/// | Mounts | [`mount_guard`](Store::mount_guard), [`mount`](Store::mount), [`unmount`](Store::unmount), [`mount_image`](Store::mount_image) |
/// | Maintenance | [`delete_container`](Store::delete_container), [`delete_image`](Store::delete_image), [`delete_layer`](Store::delete_layer), [`check`](Store::check), [`repair`](Store::repair), [`heal`](Store::heal), [`copy_to`](Store::copy_to), [`dedup`](Store::dedup), [`garbage_collect`](Store::garbage_collect), [`lock_owners`](Store::lock_owners), [`shutdown`](Store::shutdown), [`wipe`](Store::wipe) |
///
/// ```
/// # async fn demo() -> graphroot::Result<()> {
/// let root = std::env::temp_dir().join(format!("graphroot-doc-{}", std::process::id()));
/// let options = graphroot::StoreOptions::new(root.join("graph"), root.join("run")).driver("vfs");
/// let store = graphroot::Store::open(options).await?;
/// let layer = store.create_layer(None, graphroot::LayerOptions::default().name("base")).await?;
/// assert_eq!(store.lookup("base").await?, layer.id());
/// store.wipe().await?;
/// store.shutdown().await?;
/// # std::fs::remove_dir_all(&root).ok();
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
/// ```
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    writers: Arc<Writers>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("graph_root", &self.inner.options.graph_root)
            .field("run_root", &self.inner.options.run_root)
            .field("driver", &self.inner.dirs.driver_name)
            .finish_non_exhaustive()
    }
}

/// # What the store is
impl Store {
    /// Directory of what does not survive a reboot.
    pub fn run_root(&self) -> &Path {
        &self.inner.options.run_root
    }

    /// Directory of what survives a reboot.
    pub fn graph_root(&self) -> &Path {
        &self.inner.options.graph_root
    }

    /// Directory of images, if they lie apart.
    pub fn image_store(&self) -> Option<&Path> {
        self.inner.options.image_store.as_deref()
    }

    /// Whether container records live in the run root only.
    pub fn transient_store(&self) -> bool {
        self.inner.options.transient
    }

    /// Name of the driver in use.
    pub fn graph_driver_name(&self) -> &'static str {
        self.inner.dirs.driver_name
    }

    /// Options of the driver.
    pub fn graph_options(&self) -> &[String] {
        &self.inner.options.driver_options
    }

    /// Options for pulling images, as given.
    pub fn pull_options(&self) -> &BTreeMap<String, String> {
        &self.inner.options.pull_options
    }

    /// User ID ranges of layers without a parent that ask for none.
    pub fn uid_map(&self) -> &[IdMap] {
        &self.inner.options.id_mappings.uids
    }

    /// Group ID ranges of layers without a parent that ask for none.
    pub fn gid_map(&self) -> &[IdMap] {
        &self.inner.options.id_mappings.gids
    }

    /// The driver's report on itself as pairs of name and value, in a fixed order.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn status(&self) -> Result<Vec<(String, String)>> {
        let driver = self.inner.driver();
        crate::bridge::run(move || Ok(driver.status())).await
    }

    /// Version information as pairs of name and value.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// None.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn version(&self) -> Vec<(String, String)> {
        vec![("Version".into(), env!("CARGO_PKG_VERSION").into())]
    }
}
