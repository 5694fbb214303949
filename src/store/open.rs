//! Opening the records of a store: which files there are, and what they are locked with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use crate::driver::Driver;
use crate::error::Result;
use crate::lock::last_write::Token;
use crate::lock::record_lock::{LockFile, LockMode};
use crate::options::StoreOptions;
use crate::record::mount_point::MountPoints;
use crate::record::{Location, ReadOnlyRecords, Records, RecordsConfig, unknown_item};
use crate::store::dirs::{Dirs, VOLATILE_CONTAINERS, VOLATILE_LAYERS};
use crate::store::inner::{Additional, DriverState, Inner};
use crate::store::local_layers::LocalLayers;
use crate::store::roots::DistinctDirs;
use crate::sys::name_sync::{self, NameSync};
use crate::sys::presence::is_there;
use crate::sys::{atomic, make_private_dir};

/// Names of directories in errors.
const LAYERS_DIR: &str = "layer records";
const IMAGES_DIR: &str = "image records";
const ADDITIONAL_STORE: &str = "additional image store";

/// In the graph root, or in transient mode in the run root.
const CONTAINERS_LOCK: &str = "containers.lock";

impl Inner {
    /// Opens everything; `storage.lock` is held exclusively by `graph_lock`'s holder while the driver starts.
    pub(crate) fn assemble(
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
        let mut roots = DistinctDirs::roots(&options)?;
        let mut records = DistinctDirs::default();
        records.add(LAYERS_DIR, &dirs.layers())?;
        records.add(IMAGES_DIR, &dirs.graph_images())?;
        let location = |path: PathBuf, sync: bool| Location {
            path,
            sync,
            items: None,
        };
        // Where everything of layers or images lies in one place with one file of records, that file is there.
        let with_items = |path: PathBuf, items: PathBuf, alone: bool| Location {
            path,
            sync: true,
            items: alone.then_some(items),
        };
        let layers_dir = dirs.layers();
        let volatile_layers = if options.transient {
            dirs.run_layers()
        } else {
            layers_dir.clone()
        };
        let mut layer_locks = vec![layers_dir.join("layers.lock")];
        let mut layer_locations = vec![
            with_items(
                layers_dir.join("layers.json"),
                layers_dir.clone(),
                !options.transient && options.image_store.is_none(),
            ),
            location(volatile_layers.join(VOLATILE_LAYERS), false),
        ];
        if let Some(image_store) = &options.image_store {
            let dir = dirs.sub(image_store, "layers");
            make_private_dir(&dir)?;
            records.add(LAYERS_DIR, &dir)?;
            records.add(IMAGES_DIR, &dirs.images())?;
            layer_locks.push(dir.join("layers.lock"));
            let (path, items) = (dir.join("layers.json"), layers_dir.clone());
            layer_locations.push(with_items(path, items, !options.transient));
        }
        let containers_dir = dirs.containers();
        let volatile_containers = if options.transient {
            dirs.run_containers()
        } else {
            containers_dir.clone()
        };
        if !options.transient && options.image_store.is_some() {
            note_other_mode(&containers_dir)?;
        }
        let (lock_timeout, names) = (options.lock_timeout, Self::name_sync(&options));
        let layers = Records::open(RecordsConfig {
            lock_files: layer_locks,
            locations: layer_locations,
            check_mtimes: true,
            lock_timeout,
            names,
        })?;
        let images = Records::open(RecordsConfig {
            lock_files: vec![dirs.images().join("images.lock")],
            locations: vec![with_items(dirs.images().join("images.json"), dirs.images(), true)],
            check_mtimes: false,
            lock_timeout,
            names,
        })?;
        let containers = Records::open(RecordsConfig {
            lock_files: vec![
                volatile_or(&containers_dir, &volatile_containers, options.transient).join(CONTAINERS_LOCK),
            ],
            locations: vec![
                location(containers_dir.join("containers.json"), true),
                location(volatile_containers.join(VOLATILE_CONTAINERS), false),
            ],
            check_mtimes: false,
            lock_timeout,
            names,
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
                names,
            })?;
            additional_images.push(Additional {
                records: images.reader(),
                dir,
                read_only: false,
            });
            graph_images = Some(images);
        }
        for root in driver.additional_image_stores() {
            if !roots.add_another(ADDITIONAL_STORE, root)? {
                tracing::warn!(root = %root.display(), "an additional image store that is named twice is used once");
                continue;
            }
            let dir = dirs.sub(root, "layers");
            records.add(LAYERS_DIR, &dir)?;
            records.add(IMAGES_DIR, &dirs.sub(root, "images"))?;
            let records = ReadOnlyRecords::open(RecordsConfig {
                lock_files: vec![dir.join("layers.lock")],
                locations: vec![
                    location(dir.join("layers.json"), true),
                    location(dir.join(VOLATILE_LAYERS), false),
                ],
                check_mtimes: true,
                lock_timeout,
                names,
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
                names,
            })?;
            additional_images.push(Additional {
                records,
                dir,
                read_only: true,
            });
        }
        if names != NameSync::Off {
            // What this, or one that was interrupted, has made in them; later only the directories below are synced.
            let stores = std::iter::once(&options.graph_root).chain(&options.image_store);
            let homes = stores.clone().map(|root| root.join(driver.name()));
            let tops: Vec<PathBuf> = stores.cloned().chain(homes).collect();
            name_sync::sync_before(&tops, std::iter::empty())?;
        }
        let additional_mounts = match additional_layers.is_empty() {
            true => None,
            false => {
                let dir = dirs.run_additional_layers();
                make_private_dir(&dir)?;
                Some(MountPoints::open(&dir, lock_timeout)?)
            }
        };
        let userns_lock = LockFile::open(&options.graph_root.join("userns.lock"), LockMode::ReadWrite)?;
        let inner = Self {
            dirs,
            graph_lock,
            userns_lock,
            driver: RwLock::new(DriverState { driver, token }),
            layers,
            mounts,
            additional_mounts,
            additional_layers,
            images,
            graph_images,
            additional_images,
            containers,
            unpack_permits: Self::new_unpack_permits(options.max_unpacks),
            local_layers: LocalLayers::default(),
            options,
        };
        inner.try_recover();
        inner.images.prefetch(&inner.layers);
        inner.layers.prefetch(&inner.images);
        Ok(inner)
    }
}

/// Writes down that a store whose containers were all made in transient mode has no others. Without a lock file nobody has
/// used it in another mode, so that nothing has been lost; and where image layers lie apart, there may be no other sign.
fn note_other_mode(containers: &Path) -> Result<()> {
    if is_there(&containers.join(CONTAINERS_LOCK))? || unknown_item(containers, |_| false)?.is_none() {
        return Ok(());
    }
    let records = containers.join("containers.json");
    atomic::write_new_file(&records, b"[]", 0o600, true).map(drop)
}

fn volatile_or<'a>(stable: &'a Path, volatile: &'a Path, transient: bool) -> &'a Path {
    if transient { volatile } else { stable }
}
