//! The home directory and the options of a store.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;

use crate::driver::contract::{CreateOptions, Driver as _, MountOptions};
use crate::driver::overlay::layout::STAGING;
use crate::driver::overlay::tests::place::{Place, chain, count_seen};
use crate::lock::staging_lock::StagingLock;
use crate::sys::mount::is_mount_point;
use crate::sys::{at, xattr};

#[test]
fn the_mark_of_a_volatile_mount_keeps_no_mount_from_being_made() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    // The kernel leaves it when a volatile mount ends without an unmount.
    let mark = home.join("three/work/work/incompat/volatile");
    fs::create_dir_all(&mark).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert!(!mark.exists());
    // A mount that fails for another reason says why.
    fs::remove_dir_all(home.join("three/work")).unwrap();
    let error = driver.mount("three", &MountOptions::default()).unwrap_err();
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::NotFound),
        "{}",
        error.chain()
    );
}

#[test]
fn a_home_that_was_given_up_is_made_private_again() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    for _ in 0..2 {
        assert_eq!(count_seen(&driver, "three").unwrap(), 3);
        assert!(is_mount_point(&home).unwrap());
        driver.cleanup().unwrap();
        assert!(!is_mount_point(&home).unwrap());
    }
}

#[test]
fn metacopy_is_found_and_kept_at_every_mount() {
    let Some(place) = Place::new(&["overlay.mountopt=nodev,metacopy=on"]) else {
        return;
    };
    let driver = place.open().unwrap();
    let rows = driver.status();
    assert!(rows.contains(&("Using metacopy".into(), driver.metacopy.to_string())));
    if !driver.metacopy {
        return;
    }
    assert!(
        rows.contains(&("Native Overlay Diff".into(), "false".into())),
        "directories may be redirected"
    );
    let options = MountOptions {
        options: vec!["noexec".into()],
        ..MountOptions::default()
    };
    assert_eq!(driver.mount_options(&options), ["noexec", "metacopy=on"]);
    assert_eq!(
        driver.mount_options(&MountOptions::default()),
        ["nodev", "metacopy=on"]
    );
    chain(&driver);
    driver
        .create("top", Some("three"), &CreateOptions::default())
        .unwrap();
    let merged = driver.mount("top", &options).unwrap();
    fs::set_permissions(merged.join("one"), fs::Permissions::from_mode(0o600)).unwrap();
    driver.unmount("top").unwrap();
    let upper = at::open_dir(&place.home().join("top/diff")).unwrap();
    assert!(
        xattr::get_at(upper.as_fd(), b"one", "trusted.overlay.metacopy")
            .unwrap()
            .is_some()
    );
}

#[test]
fn quotas_that_cannot_be_kept_are_refused() {
    let Some(place) = Place::new(&["overlay.size=1g"]) else {
        return;
    };
    let error = place.open().unwrap_err();
    assert!(error.chain().contains("overlay.size"), "{}", error.chain());
    assert!(!place.home().exists());
}

#[test]
fn the_home_can_stay_as_it_is() {
    let Some(place) = Place::new(&["overlay.skip_mount_home=true"]) else {
        return;
    };
    let driver = place.open().unwrap();
    chain(&driver);
    let merged = driver.mount("three", &MountOptions::default()).unwrap();
    assert!(!is_mount_point(&place.home()).unwrap() && is_mount_point(&merged).unwrap());
    driver.unmount("three").unwrap();
}

#[test]
fn abandoned_staging_directories_go_at_shutdown() {
    let Some(place) = Place::new(&[]) else { return };
    let driver = place.open().unwrap();
    chain(&driver);
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    for name in ["1", "2"] {
        fs::create_dir_all(place.home().join(STAGING).join(name).join("dir")).unwrap();
        fs::write(place.home().join(STAGING).join(name).join("staging.lock"), "").unwrap();
    }
    let held = StagingLock::try_acquire(&place.home().join("staging/1/staging.lock"))
        .unwrap()
        .unwrap();
    driver.cleanup().unwrap();
    assert!(place.home().join("staging/1/dir").exists() && !place.home().join("staging/2").exists());
    assert!(is_mount_point(&place.home()).unwrap(), "a process uses it");
    drop(held);
    driver.cleanup().unwrap();
    assert!(!place.home().join("staging/1").exists() && !is_mount_point(&place.home()).unwrap());
}

#[test]
fn a_layer_without_its_image_is_refused_and_can_be_removed() {
    let Some(place) = Place::new(&[]) else { return };
    let driver = place.open().unwrap();
    chain(&driver);
    fs::create_dir(place.home().join("two/composefs-data")).unwrap();
    for id in ["two", "three"] {
        let error = driver.mount_private(id).unwrap_err();
        assert!(error.chain().contains("composefs.blob"), "{}", error.chain());
        assert!(driver.file_trees(id).is_err() && count_seen(&driver, id).is_err());
    }
    assert_eq!(count_seen(&driver, "one").unwrap(), 1);
    assert!(driver.overlay_diff("two", Some("one")).unwrap().is_none());
    assert!(driver.overlay_diff("three", Some("two")).unwrap().is_none());
    drop(driver.defer_remove("two").unwrap().unwrap());
}
