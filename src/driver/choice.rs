//! Which driver a store uses: the one asked for, else the one that is on disk, else the first that works.

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Driver;
use crate::driver::overlay::Overlay;
use crate::driver::vfs::Vfs;
use crate::error::{ErrorKind, Result};

/// What a driver is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct DriverConfig {
    /// The driver asked for.
    pub(crate) name: Option<String>,
    /// The graph root; the driver's home is a directory in it.
    pub(crate) root: PathBuf,
    /// The run root.
    pub(crate) run_root: PathBuf,
    /// Root of a separate image store.
    pub(crate) image_store: Option<PathBuf>,
    /// Drivers to try, in this order; empty for the built-in order.
    pub(crate) priority: Vec<String>,
    /// Option strings.
    pub(crate) options: Vec<String>,
}

/// Directories in a graph root that tell which drivers have used it.
const KNOWN: &[&str] = &["overlay", "overlay2", "btrfs", "zfs", "vfs"];

/// Drivers to try where nothing tells; vfs copies whole trees and comes last.
const PRIORITY: &[&str] = &["overlay", "vfs"];

/// Starts the driver for a graph root.
pub(crate) fn open_driver(config: &DriverConfig) -> Result<Arc<dyn Driver>> {
    if let Some(name) = config.name.as_deref().filter(|name| !name.is_empty()) {
        return start(name, config);
    }
    let used: Vec<&str> = KNOWN.iter().copied().filter(|name| config.root.join(name).is_dir()).collect();
    match used[..] {
        [] => {}
        [only] => return start(only, config),
        _ => {
            let what = format!("{} holds layers of several drivers ({}): name one", config.root.display(), used.join(", "));
            return Err(ErrorKind::InvalidInput.err(what));
        }
    }
    let asked: Vec<&str> = config.priority.iter().map(String::as_str).collect();
    let mut refused = Vec::new();
    for name in if asked.is_empty() { PRIORITY } else { &asked[..] } {
        match start(name, config) {
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                tracing::debug!(driver = name, reason = %error.chain(), "driver does not work here");
                refused.push(error.chain());
            }
            result => return result,
        }
    }
    Err(ErrorKind::NotSupported.err(format!("no storage driver works here: {}", refused.join("; "))))
}

fn start(name: &str, config: &DriverConfig) -> Result<Arc<dyn Driver>> {
    match name {
        "overlay" | "overlay2" => Ok(Arc::new(Overlay::open(config)?)),
        "vfs" => Ok(Arc::new(Vfs::open(config)?)),
        _ => Err(ErrorKind::NotSupported.err(format!("storage driver {name:?}"))),
    }
}

/// Additional image stores from an option: a comma-separated list of absolute directories.
pub(crate) fn additional_stores(value: &str) -> Result<Vec<PathBuf>> {
    let mut stores = Vec::new();
    for path in value.split(',').filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let bad = |why: &str| ErrorKind::InvalidInput.err(format!("additional image store {} {why}", path.display()));
        if !path.is_absolute() {
            return Err(bad("is not absolute"));
        }
        if !path.is_dir() {
            return Err(bad("is not a directory"));
        }
        stores.push(path);
    }
    Ok(stores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &std::path::Path) -> DriverConfig {
        DriverConfig { root: root.join("graph"), run_root: root.join("run"), ..DriverConfig::default() }
    }

    #[test]
    fn what_is_on_disk_decides_unless_a_driver_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        std::fs::create_dir_all(config.root.join("vfs")).unwrap();
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        std::fs::create_dir_all(config.root.join("btrfs")).unwrap();
        let error = open_driver(&config).unwrap_err();
        assert!(error.chain().contains("btrfs, vfs"), "{error:?}");
        config.name = Some("vfs".into());
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        config.name = Some("nonsense".into());
        assert_eq!(open_driver(&config).unwrap_err().kind(), ErrorKind::NotSupported);
    }

    #[test]
    fn the_priority_list_is_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        config.priority = vec!["zfs".into(), "vfs".into()];
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        let other = tempfile::tempdir().unwrap();
        config.root = other.path().join("graph");
        config.priority = vec!["zfs".into()];
        assert_eq!(open_driver(&config).unwrap_err().kind(), ErrorKind::NotSupported);
    }
}
