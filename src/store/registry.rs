//! The process-wide list of open stores, and how one is opened.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::bridge;
use crate::driver::Driver;
use crate::driver::choice::{DriverConfig, open_driver};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::record_lock::{LockFile, LockMode};
use crate::options::StoreOptions;
use crate::store::{Inner, Store};
use crate::sys::make_private_dir;

/// Open stores. Weak, so that a store ends with its last clone.
static STORES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

fn find(options: &StoreOptions) -> Option<Store> {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|store| store.strong_count() > 0);
    stores
        .iter()
        .filter_map(Weak::upgrade)
        .find(|store| same(store, options))
        .map(|inner| Store { inner })
}

fn same(store: &Inner, wanted: &StoreOptions) -> bool {
    store.options.graph_root == wanted.graph_root
        && store.options.run_root == wanted.run_root
        && wanted
            .driver
            .as_deref()
            .is_none_or(|name| canonical_driver(name) == store.dirs.driver_name)
}

fn canonical_driver(name: &str) -> &str {
    if name == "overlay2" { "overlay" } else { name }
}

/// Takes a store off the list.
pub(crate) fn forget(inner: &Arc<Inner>) {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|store| store.strong_count() > 0 && !std::ptr::eq(store.as_ptr(), Arc::as_ptr(inner)));
}

fn absolute(path: PathBuf, what: &str) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(ErrorKind::IncompleteOptions.err(format!("no storage {what} specified")));
    }
    std::path::absolute(&path).at("making absolute", &path)
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
        search_path: None,
    }
}

pub(crate) async fn open(mut options: StoreOptions) -> Result<Store> {
    options.graph_root = absolute(options.graph_root, "graph root")?;
    options.run_root = absolute(options.run_root, "run root")?;
    options.image_store = options
        .image_store
        .map(|path| absolute(path, "image store"))
        .transpose()?;
    options.id_mappings.validate()?;
    if let Some(store) = find(&options) {
        return Ok(store);
    }
    let lock_options = options.clone();
    let graph_lock = bridge::run(move || {
        make_private_dir(&lock_options.run_root)?;
        make_private_dir(&lock_options.graph_root)?;
        if let Some(image_store) = &lock_options.image_store {
            make_private_dir(image_store)?;
        }
        LockFile::open(&lock_options.graph_root.join("storage.lock"), LockMode::ReadWrite)
    })
    .await?;
    let held = graph_lock.exclusive(options.lock_timeout).await?;
    let inner = bridge::run(move || {
        let token = held.token()?;
        let driver: Arc<dyn Driver> = open_driver(&driver_config(&options))?;
        let inner = Inner::assemble(options, graph_lock, driver, token)?;
        drop(held);
        Ok(Arc::new(inner))
    })
    .await?;
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    // Another task may have opened the same store meanwhile: the first one on the list counts.
    if let Some(first) = stores
        .iter()
        .filter_map(Weak::upgrade)
        .find(|store| same(store, &inner.options))
    {
        return Ok(Store { inner: first });
    }
    stores.push(Arc::downgrade(&inner));
    Ok(Store { inner })
}
