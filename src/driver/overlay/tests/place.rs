//! A place for an overlay store, and layers in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::config::DriverConfig;
use crate::driver::conformance::{MountGuard, need_overlay, path_of};
use crate::driver::contract::{CreateOptions, Driver as _, MountOptions};
use crate::driver::overlay::Overlay;
use crate::error::Result;

pub(super) struct Place {
    pub(super) config: DriverConfig,
    // In this order: the directory can only be removed when nothing is mounted in it.
    _guard: MountGuard,
    _tmp: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(options: &[&str]) -> Option<Self> {
        if !need_overlay() {
            return None;
        }
        let tmp = tempfile::tempdir().unwrap();
        let config = DriverConfig {
            root: tmp.path().join("graph"),
            run_root: tmp.path().join("run"),
            options: options.iter().map(ToString::to_string).collect(),
            ..DriverConfig::default()
        };
        Some(Self {
            config,
            _guard: MountGuard::new(tmp.path()),
            _tmp: tmp,
        })
    }

    pub(super) fn open(&self) -> Result<Arc<Overlay>> {
        Overlay::open(&self.config).map(Arc::new)
    }

    pub(super) fn home(&self) -> PathBuf {
        self.config.root.join("overlay")
    }
}

/// Three layers on top of each other, each with a file of its name.
pub(super) fn chain(driver: &Arc<Overlay>) {
    let mut parent = None;
    for id in ["one", "two", "three"] {
        let staged = Arc::clone(driver)
            .stage(parent, &CreateOptions::default())
            .unwrap();
        fs::write(path_of(&*staged).join(id), "").unwrap();
        staged.commit(id, parent, &CreateOptions::default()).unwrap();
        parent = Some(id);
    }
}

pub(super) fn count_seen(driver: &Overlay, id: &str) -> Result<usize> {
    let merged = driver.mount(id, &MountOptions::default())?;
    let count = fs::read_dir(merged).unwrap().count();
    driver.unmount(id).unwrap();
    Ok(count)
}

pub(super) fn link_of(home: &Path, id: &str) -> String {
    fs::read_to_string(home.join(id).join("link")).unwrap()
}

/// Makes the layers what programs make that do not know `lower-layers`.
pub(super) fn forget_lower_layers(home: &Path) {
    for entry in fs::read_dir(home).unwrap() {
        drop(fs::remove_file(entry.unwrap().path().join("lower-layers")));
    }
}

pub(super) fn lower_layers(home: &Path, id: &str) -> String {
    fs::read_to_string(home.join(id).join("lower-layers")).unwrap()
}
