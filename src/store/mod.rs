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

pub(crate) mod access;
pub(crate) mod big_data;
mod commit;
mod containers;
mod delete;
mod diff;
pub(crate) mod digest_lock;
mod directories;
mod garbage;
pub(crate) mod graph_driver;
mod images;
pub(crate) mod layer_store;
pub(crate) mod layers;
mod metadata;
mod mount;
pub(crate) mod multi_list;
mod names;
mod put_layer;
pub(crate) mod registry;
#[cfg(feature = "pull")]
pub(crate) mod single_flight;
pub(crate) mod sizes;
#[cfg(feature = "pull")]
pub(crate) mod stage_diff;
pub(crate) mod views;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMap;
use crate::lock::last_write::Token;
use crate::lock::record_lock::{LockFile, LockMode};
use crate::options::{Durability, StoreOptions};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountPoints;
use crate::record::table::Record;
use crate::record::{Location, ReadOnlyRecords, Records, RecordsConfig};
use crate::sys::make_private_dir;

pub use diff::DiffStream;
pub use put_layer::PutLayer;

/// Where a layer's record lies, as an index into the layer records' locations.
pub(crate) mod layer_location {
    /// Survives a reboot, in the graph root.
    pub(crate) const STABLE: usize = 0;
    /// May be lost.
    pub(crate) const VOLATILE: usize = 1;
    /// In the separate image store.
    pub(crate) const IMAGE_STORE: usize = 2;
}

/// Where a container's record lies, as an index into the container records' locations.
pub(crate) mod container_location {
    /// Survives a reboot.
    pub(crate) const STABLE: usize = 0;
    /// May be lost.
    pub(crate) const VOLATILE: usize = 1;
}

/// A store of layers, images and containers, shared with every other process that uses the same directories.
///
/// Cheap to clone; all clones are the same store. It borrows nothing and can be sent anywhere. Calls may run
/// concurrently from any number of tasks.
///
/// ```
/// # async fn demo() -> graphroot::Result<()> {
/// let root = std::env::temp_dir().join(format!("graphroot-doc-{}", std::process::id()));
/// let options = graphroot::StoreOptions::new(root.join("graph"), root.join("run")).driver("vfs");
/// let store = graphroot::Store::open(options).await?;
/// let layer = store.create_layer(None, graphroot::LayerOptions::default().name("base")).await?;
/// assert_eq!(store.lookup("base").await?, layer.id());
/// store.wipe().await?;
/// store.shutdown(false).await?;
/// # std::fs::remove_dir_all(&root).ok();
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
/// ```
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
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

/// The directories of one store.
#[derive(Clone, Debug)]
pub(crate) struct Dirs {
    pub(crate) driver_name: &'static str,
    graph_root: PathBuf,
    run_root: PathBuf,
    image_store: Option<PathBuf>,
}

impl Dirs {
    fn sub(&self, root: &Path, what: &str) -> PathBuf {
        root.join(format!("{}-{what}", self.driver_name))
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.sub(&self.graph_root, "layers")
    }

    pub(crate) fn run_layers(&self) -> PathBuf {
        self.sub(&self.run_root, "layers")
    }

    /// Where image records are written.
    pub(crate) fn images(&self) -> PathBuf {
        self.sub(self.image_store.as_ref().unwrap_or(&self.graph_root), "images")
    }

    /// `userdata` of images lies here also when image records lie elsewhere.
    pub(crate) fn graph_images(&self) -> PathBuf {
        self.sub(&self.graph_root, "images")
    }

    pub(crate) fn run_images(&self) -> PathBuf {
        self.sub(&self.run_root, "images")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.sub(&self.graph_root, "containers")
    }

    pub(crate) fn run_containers(&self) -> PathBuf {
        self.sub(&self.run_root, "containers")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.sub(&self.run_root, "locks")
    }

    /// Locks for what is made once, see `single_flight`.
    #[cfg(feature = "pull")]
    pub(crate) fn flight(&self) -> PathBuf {
        self.sub(&self.run_root, "flight")
    }

    /// Blobs whose download was interrupted, see `oci::partial`.
    #[cfg(feature = "pull")]
    pub(crate) fn partial(&self) -> PathBuf {
        self.sub(&self.graph_root, "partial")
    }

    pub(crate) fn tar_split(&self, id: &str) -> Result<PathBuf> {
        crate::driver::check_id(id)?;
        Ok(self.layers().join(format!("{id}.tar-split.gz")))
    }

    pub(crate) fn layer_data(&self, id: &str) -> Result<PathBuf> {
        item_dir(self.layers(), id)
    }

    pub(crate) fn layers_tmp(&self) -> PathBuf {
        self.layers().join("tmp")
    }
}

/// Layers that one store unpacks at the same time. Each holds a thread of the blocking pool (512 by default) and a
/// few MiB, and may be waiting for a slow network, so the number of processors is no measure for it.
const MAX_UNPACKERS: usize = 64;

/// The driver in use and the state of `storage.lock` in which it was started.
#[derive(Debug)]
struct DriverState {
    driver: Arc<dyn Driver>,
    token: Token,
}

/// A store that is searched after the primary one: its records and the directory of their files.
pub(crate) struct Additional<R: Record> {
    pub(crate) records: ReadOnlyRecords<R>,
    pub(crate) dir: PathBuf,
    read_only: bool,
}

impl<R: Record> Additional<R> {
    fn home(&self, index: usize) -> access::Home {
        access::Home::Additional {
            index,
            read_only: self.read_only,
        }
    }
}

pub(crate) struct Inner {
    pub(crate) options: StoreOptions,
    pub(crate) dirs: Dirs,
    graph_lock: Arc<LockFile>,
    userns_lock: Arc<LockFile>,
    /// Changed only under the graph lock, read everywhere for a moment: std's lock is the right one.
    driver: RwLock<DriverState>,
    pub(crate) layers: Records<LayerRow>,
    pub(crate) mounts: MountPoints,
    pub(crate) additional_layers: Vec<Additional<LayerRow>>,
    pub(crate) images: Records<ImageRow>,
    /// The image store of the graph root, if images lie apart. It is read as the first of the additional ones.
    pub(crate) graph_images: Option<Records<ImageRow>>,
    pub(crate) additional_images: Vec<Additional<ImageRow>>,
    pub(crate) containers: Records<ContainerRow>,
    /// Bounds the layers that are unpacked at the same time.
    pub(crate) unpackers: Arc<tokio::sync::Semaphore>,
    /// Unpacked layers that wait for the lock.
    pub(crate) commits: commit::Commits,
}

impl Inner {
    /// The driver. It may be replaced when another process has shut the store down.
    pub(crate) fn driver(&self) -> Arc<dyn Driver> {
        let state = self
            .driver
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(&state.driver)
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
        if let Some(image_store) = &options.image_store {
            files.push(self.dirs.sub(image_store, "layers").join("layers.lock"));
            files.push(self.dirs.graph_images().join("images.lock"));
        }
        files
    }

    /// Whether layer content has to be on disk before its record is.
    pub(crate) fn sync_content(&self) -> bool {
        self.options.durability != Durability::None
    }
}

impl Store {
    /// Opens the store in `options.graph_root` and `options.run_root`, creating what is missing.
    ///
    /// If neither root, nor a driver, nor driver options are given, everything but
    /// [`StoreOptions::durability`] and [`StoreOptions::lock_timeout`] is taken from
    /// [`StoreOptions::default_for_user`], and if one root is missing, that root. Otherwise the machine's
    /// configuration is not looked at.
    ///
    /// A store with the same two roots (and the same driver, if one is named) that this process has open already is
    /// returned as it is, whatever the other options say, as the Go library's `GetStore` does. [`Store::free`] ends
    /// that.
    ///
    /// Takes `storage.lock` while the driver starts; waits for no other lock. Left-overs of killed processes are
    /// cleaned up here and at the first use of the records.
    ///
    /// # Errors
    /// [`ErrorKind::IncompleteOptions`] if no root is given but a driver is, [`ErrorKind::NotSupported`] if no driver works here,
    /// [`ErrorKind::InvalidInput`] for a driver option that is not known, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Directories may have been created; nothing else remains.
    ///
    /// # Panics
    /// Like all methods, outside a tokio runtime, and in one without timers (`enable_time`) when a lock is waited for.
    pub async fn open(options: StoreOptions) -> Result<Self> {
        registry::open(options).await
    }

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
    /// # Errors
    /// [`ErrorKind::Io`].
    pub async fn status(&self) -> Result<Vec<(String, String)>> {
        let driver = self.inner.driver();
        crate::bridge::run(move || Ok(driver.status())).await
    }

    /// Version information as pairs of name and value.
    pub async fn version(&self) -> Vec<(String, String)> {
        vec![("Version".into(), env!("CARGO_PKG_VERSION").into())]
    }

    /// Forgets this store in the process-wide list: the next [`Store::open`] makes a new one. Clones go on working.
    pub fn free(&self) {
        registry::forget(&self.inner);
    }
}

impl Inner {
    /// Opens everything; `storage.lock` is held exclusively by `graph_lock`'s holder while the driver starts.
    fn assemble(
        options: StoreOptions,
        graph_lock: Arc<LockFile>,
        driver: Arc<dyn Driver>,
        token: Token,
    ) -> Result<Self> {
        let dirs = Dirs {
            driver_name: driver.name(),
            graph_root: options.graph_root.clone(),
            run_root: options.run_root.clone(),
            image_store: options.image_store.clone(),
        };
        for dir in [
            dirs.layers(),
            dirs.run_layers(),
            dirs.images(),
            dirs.graph_images(),
            dirs.containers(),
        ]
        .iter()
        .chain(&[dirs.run_containers(), dirs.locks()])
        {
            make_private_dir(dir)?;
        }
        let location = |path: PathBuf, sync: bool| Location { path, sync };
        let layers_dir = dirs.layers();
        let volatile_layers = if options.transient {
            dirs.run_layers()
        } else {
            layers_dir.clone()
        };
        let mut layer_locks = vec![layers_dir.join("layers.lock")];
        let mut layer_locations = vec![
            location(layers_dir.join("layers.json"), true),
            location(volatile_layers.join("volatile-layers.json"), false),
        ];
        if let Some(image_store) = &options.image_store {
            let dir = dirs.sub(image_store, "layers");
            make_private_dir(&dir)?;
            layer_locks.push(dir.join("layers.lock"));
            layer_locations.push(location(dir.join("layers.json"), true));
        }
        let containers_dir = dirs.containers();
        let volatile_containers = if options.transient {
            dirs.run_containers()
        } else {
            containers_dir.clone()
        };
        let lock_timeout = options.lock_timeout;
        let layers = Records::open(RecordsConfig {
            lock_files: layer_locks,
            locations: layer_locations,
            check_mtimes: true,
            lock_timeout,
        })?;
        let images = Records::open(RecordsConfig {
            lock_files: vec![dirs.images().join("images.lock")],
            locations: vec![location(dirs.images().join("images.json"), true)],
            check_mtimes: false,
            lock_timeout,
        })?;
        let containers = Records::open(RecordsConfig {
            lock_files: vec![
                volatile_or(&containers_dir, &volatile_containers, options.transient).join("containers.lock"),
            ],
            locations: vec![
                location(containers_dir.join("containers.json"), true),
                location(volatile_containers.join("volatile-containers.json"), false),
            ],
            check_mtimes: false,
            lock_timeout,
        })?;
        let mounts = MountPoints::open(&dirs.run_layers(), lock_timeout)?;
        let (mut additional_layers, mut additional_images) = (Vec::new(), Vec::new());
        let mut graph_images = None;
        if options.image_store.is_some() {
            let dir = dirs.graph_images();
            let images = Records::open(RecordsConfig {
                lock_files: vec![dir.join("images.lock")],
                locations: vec![location(dir.join("images.json"), true)],
                check_mtimes: false,
                lock_timeout,
            })?;
            additional_images.push(Additional {
                records: images.reader(),
                dir,
                read_only: false,
            });
            graph_images = Some(images);
        }
        for root in driver.additional_image_stores() {
            let dir = dirs.sub(root, "layers");
            let records = ReadOnlyRecords::open(RecordsConfig {
                lock_files: vec![dir.join("layers.lock")],
                locations: vec![
                    location(dir.join("layers.json"), true),
                    location(dir.join("volatile-layers.json"), false),
                ],
                check_mtimes: true,
                lock_timeout,
            })?;
            additional_layers.push(Additional {
                records,
                dir,
                read_only: true,
            });
            let dir = dirs.sub(root, "images");
            let records = ReadOnlyRecords::open(RecordsConfig {
                lock_files: vec![dir.join("images.lock")],
                locations: vec![location(dir.join("images.json"), true)],
                check_mtimes: false,
                lock_timeout,
            })?;
            additional_images.push(Additional {
                records,
                dir,
                read_only: true,
            });
        }
        let userns_lock = LockFile::open(&options.graph_root.join("userns.lock"), LockMode::ReadWrite)?;
        let inner = Self {
            dirs,
            graph_lock,
            userns_lock,
            driver: RwLock::new(DriverState { driver, token }),
            layers,
            mounts,
            additional_layers,
            images,
            graph_images,
            additional_images,
            containers,
            unpackers: Arc::new(tokio::sync::Semaphore::new(MAX_UNPACKERS)),
            commits: commit::Commits::default(),
            options,
        };
        inner.recover()?;
        inner.images.load_beside(&inner.layers);
        inner.layers.load_beside(&inner.images);
        Ok(inner)
    }
}

fn volatile_or<'a>(stable: &'a Path, volatile: &'a Path, transient: bool) -> &'a Path {
    if transient { volatile } else { stable }
}

/// The directory of one item of a store. An ID that is no single file name (records may be damaged, or come from
/// elsewhere) would lead out of it.
pub(crate) fn item_dir(dir: PathBuf, id: &str) -> Result<PathBuf> {
    crate::driver::check_id(id)?;
    Ok(dir.join(id))
}

/// An ID for a new layer, image or container: 64 hexadecimal digits of which the first twelve are not all decimal
/// (so that a shortened ID never looks like a number).
pub(crate) fn random_id(taken: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..64 {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::io("drawing a random ID", std::io::Error::from(error)))?;
        let id = crate::digest::hex(&bytes);
        if !id.as_bytes()[..12].iter().all(u8::is_ascii_digit) && !taken(&id) {
            return Ok(id);
        }
    }
    Err(ErrorKind::DuplicateId.err("drawing a random ID"))
}
