//! Driver selection: the driver that the caller names, else the one whose directory has content, else the first that
//! works here.

use std::path::Path;
use std::sync::Arc;

use crate::driver::btrfs::Btrfs;
use crate::driver::config::DriverConfig;
use crate::driver::contract::Driver;
use crate::driver::overlay::Overlay;
use crate::driver::tree_adapter::{Calls, TreeAdapter, marked_homes};
use crate::driver::vfs::Vfs;
use crate::driver::zfs::Zfs;
use crate::error::{ErrorKind, Result};
use crate::options::driver::DRIVER_NAMES;
use crate::sys::{list_dir_if_there, presence};

/// Drivers to try in a new store. vfs copies whole trees and comes last.
const PRIORITY: &[&str] = &["overlay", "btrfs", "zfs", "vfs"];

/// Starts the driver for a graph root.
pub(crate) fn open_driver(config: &DriverConfig) -> Result<Arc<dyn Driver>> {
    let own = Calls::new(config)?;
    if let Some(name) = config.name.as_deref().filter(|name| !name.is_empty()) {
        return start(name, config, own.as_ref());
    }
    let mut used = Vec::new();
    for name in DRIVER_NAMES {
        if is_used(&config.root.join(name))? {
            used.push((*name).to_owned());
        }
    }
    used.extend(marked_homes(&config.root)?);
    match used.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        // An old name of the overlay driver: its records have the new name, only its directory has the old one.
        ["overlay2"] => {
            let what = format!(
                "{} holds layers of the old name of the overlay driver: rename overlay2 to overlay",
                config.root.display()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        [only] => return start(only, config, own.as_ref()),
        _ => {
            let what = format!(
                "{} contains several valid graphdrivers: {}; choose one of them",
                config.root.display(),
                used.join(", ")
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
    }
    // The drivers of the configuration come first, then that of the program, then all others.
    let mut order: Vec<&str> = config.priority.iter().map(String::as_str).collect();
    for name in own.iter().map(Calls::name).chain(PRIORITY.iter().copied()) {
        if !config.priority.iter().any(|asked| asked == name) {
            order.push(name);
        }
    }
    let mut refused = Vec::new();
    for name in order {
        match start(name, config, own.as_ref()) {
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                tracing::debug!(driver = name, reason = %error.chain(), "driver does not work here");
                refused.push(error.chain());
            }
            result => return result,
        }
    }
    Err(ErrorKind::NotSupported.err(format!("no storage driver works here: {}", refused.join("; "))))
}

/// Whether a driver's directory has content. Go makes an empty one for `overlay` beside `overlay2`.
fn is_used(home: &Path) -> Result<bool> {
    let entries = presence::is_dir(home)?.then(|| list_dir_if_there(home));
    let first = entries.transpose()?.and_then(|mut entries| entries.next());
    Ok(first.transpose()?.is_some())
}

/// `own` is the driver of the program.
fn start(name: &str, config: &DriverConfig, own: Option<&Calls>) -> Result<Arc<dyn Driver>> {
    match name {
        "overlay" | "overlay2" => Ok(Arc::new(Overlay::open(config)?)),
        "btrfs" => Ok(Arc::new(Btrfs::open(config)?)),
        "zfs" => Ok(Arc::new(Zfs::open(config)?)),
        "vfs" => Ok(Arc::new(Vfs::open(config)?)),
        _ => {
            if let Some(own) = own.filter(|own| own.name() == name) {
                return Ok(Arc::new(TreeAdapter::open(config, own.clone())?));
            }
            let mut what = format!("storage driver {name:?}");
            if marked_homes(&config.root)?.iter().any(|marked| marked == name) {
                what.push_str(", which the program has to bring (StoreOptions::tree_driver)");
            }
            Err(ErrorKind::NotSupported
                .err(what)
                .with_source("driver not supported"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::conformance::need_overlay;

    fn config(root: &std::path::Path) -> DriverConfig {
        DriverConfig {
            root: root.join("graph"),
            run_root: root.join("run"),
            ..DriverConfig::default()
        }
    }

    #[test]
    fn what_is_on_disk_decides_unless_a_driver_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        std::fs::create_dir_all(config.root.join("vfs/dir")).unwrap();
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        assert!(!config.root.join("overlay").exists(), "nothing is made beside it");
        std::fs::create_dir_all(config.root.join("btrfs")).unwrap();
        assert_eq!(
            open_driver(&config).unwrap().name(),
            "vfs",
            "an empty directory does not count"
        );
        std::fs::create_dir_all(config.root.join("btrfs/subvolumes")).unwrap();
        let error = open_driver(&config).unwrap_err();
        assert!(error.chain().contains("btrfs, vfs"), "{error:?}");
        config.name = Some("vfs".into());
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        config.name = Some("nonsense".into());
        let error = open_driver(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(error.chain().contains("nonsense"));
    }

    #[test]
    fn a_driver_that_is_on_disk_but_does_not_work_is_an_error() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let config = config(tmp.path());
        std::fs::create_dir_all(config.root.join("btrfs/subvolumes")).unwrap();
        assert_eq!(open_driver(&config).unwrap_err().kind(), ErrorKind::NotSupported);
        assert!(!config.root.join("vfs").exists() && !config.root.join("overlay").exists());
        std::fs::rename(config.root.join("btrfs"), config.root.join("overlay2")).unwrap();
        let error = open_driver(&config).unwrap_err();
        assert!(error.chain().contains("overlay2"), "{error:?}");
        assert!(!config.root.join("overlay").exists());
    }

    #[test]
    fn btrfs_comes_before_vfs_where_its_file_system_is() {
        let shared = match crate::driver::conformance::btrfs::shared() {
            Ok(dir) => dir,
            Err(why) => return crate::skip::skip(why),
        };
        let tmp = tempfile::tempdir_in(shared).unwrap();
        let mut config = config(tmp.path());
        // Overlay does not work here, and no program can mount.
        config.search_path = Some(std::ffi::OsString::new());
        std::fs::create_dir_all(config.run_root.join("overlay")).unwrap();
        std::fs::write(config.run_root.join("overlay/overlay-false"), "no overlay here").unwrap();
        assert_eq!(open_driver(&config).unwrap().name(), "btrfs");
        assert!(!config.root.join("overlay").exists() && !config.root.join("vfs").exists());
        // What is on disk decides, not the list.
        config.priority = vec!["vfs".into(), "overlay".into()];
        assert_eq!(open_driver(&config).unwrap().name(), "btrfs");
        assert!(!config.root.join("vfs").exists());
        std::fs::create_dir_all(config.root.join("vfs/dir")).unwrap();
        let error = open_driver(&config).unwrap_err();
        assert!(
            error
                .chain()
                .contains("contains several valid graphdrivers: btrfs, vfs;"),
            "{error:?}"
        );
    }

    #[test]
    fn the_priority_list_is_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        config.priority = vec!["zfs".into(), "vfs".into()];
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        assert!(!config.root.join("overlay").exists());

        // The list is only an order: a driver whose directory has content comes first, drivers that it lacks last.
        config.priority = vec!["overlay".into()];
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        let other = tempfile::tempdir().unwrap();
        let mut config = self::config(other.path());
        config.priority = vec!["zfs".into(), "nonsense".into()];
        config.search_path = Some(std::ffi::OsString::new());
        std::fs::create_dir_all(config.run_root.join("overlay")).unwrap();
        std::fs::write(config.run_root.join("overlay/overlay-false"), "no overlay here").unwrap();
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
    }

    #[test]
    fn layers_of_overlay_are_found_without_a_name() {
        if !need_overlay() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        config.name = Some("overlay".into());
        drop(open_driver(&config).unwrap());
        config.name = None;
        config.priority = vec!["vfs".into()];
        assert_eq!(open_driver(&config).unwrap().name(), "overlay");
        assert!(!config.root.join("vfs").exists());
        std::fs::create_dir_all(config.root.join("vfs/dir")).unwrap();
        let error = open_driver(&config).unwrap_err();
        assert!(error.chain().contains(": overlay, vfs;"), "{error:?}");
    }

    #[test]
    fn overlay_comes_first_and_vfs_where_it_does_not_work() {
        if !need_overlay() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let config = config(tmp.path());
        assert_eq!(open_driver(&config).unwrap().name(), "overlay");
        let named = DriverConfig {
            name: Some("overlay2".into()),
            ..config.clone()
        };
        let driver = open_driver(&named).unwrap();
        assert_eq!(
            (driver.name(), driver.home()),
            ("overlay", &*config.root.join("overlay"))
        );
        assert!(!config.root.join("overlay2").exists());

        // The recorded result of a probe counts: here, that overlay does not work.
        let tmp = tempfile::tempdir().unwrap();
        let config = self::config(tmp.path());
        std::fs::create_dir_all(config.run_root.join("overlay")).unwrap();
        std::fs::write(config.run_root.join("overlay/overlay-false"), "no overlay here").unwrap();
        let config = DriverConfig {
            search_path: Some(std::ffi::OsString::new()),
            ..config
        };
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        assert!(
            !config.root.join("overlay").exists(),
            "it would be taken for the store's driver next time"
        );
        assert_eq!(open_driver(&config).unwrap().name(), "vfs");
        let named = DriverConfig {
            name: Some("overlay".into()),
            ..config
        };
        assert!(
            open_driver(&named)
                .unwrap_err()
                .chain()
                .contains("no overlay here")
        );
    }
}
