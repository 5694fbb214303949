//! Mount programs, and the probes that decide on them.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::driver::contract::Driver as _;
use crate::driver::overlay::layout::{MOUNT_PROGRAM_FLAG, TEMP_DIRS};
use crate::driver::overlay::program;
use crate::driver::overlay::tests::place::{Place, chain, count_seen};
use crate::error::ErrorKind;
use crate::sys::mount::is_mount_point;
use crate::sys::{at, xattr};
use crate::whiteout::WhiteoutFormat;

/// A directory with a program of the name of the mount program.
fn program_dir(place: &Place) -> PathBuf {
    let dir = place.config.root.parent().unwrap().join("bin");
    fs::create_dir_all(&dir).unwrap();
    let program = dir.join(program::DEFAULT);
    fs::write(&program, "#!/bin/sh\necho not today >&2; exit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_store_of_a_mount_program_needs_one() {
    let Some(mut place) = Place::new(&[]) else { return };
    place.config.search_path = Some("/does/not/exist".into());
    chain(&place.open().unwrap());
    let flag = place.home().join(MOUNT_PROGRAM_FLAG);
    assert_eq!(fs::read_to_string(&flag).unwrap(), "false");
    assert_eq!(flag.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    fs::write(&flag, "true\n").unwrap();
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.chain().contains("mount program"), "{}", error.chain());
    // Without the flag the directories of the store are read.
    fs::remove_file(&flag).unwrap();
    place.open().unwrap();
    assert_eq!(fs::read_to_string(&flag).unwrap(), "false");
    let diff = place.home().join("two/diff");
    fs::create_dir_all(diff.join("a/b")).unwrap();
    fs::write(diff.join("a/b/.wh.x"), "").unwrap();
    fs::remove_file(&flag).unwrap();
    assert_eq!(place.open().unwrap_err().kind(), ErrorKind::NotSupported);
    fs::remove_file(diff.join("a/b/.wh.x")).unwrap();
    let dir = at::open_dir(&diff).unwrap();
    if xattr::set_at(dir.as_fd(), b"a", b"user.containers.override_stat", b"0:0:0755").is_ok() {
        assert_eq!(place.open().unwrap_err().kind(), ErrorKind::NotSupported);
    }
    assert!(place.home().join("two/diff").exists());
    // If it is installed it is used, and the flag is written.
    place.config.search_path = Some(program_dir(&place).into());
    let driver = place.open().unwrap();
    assert_eq!(fs::read_to_string(&flag).unwrap(), "true");
    assert_eq!(
        driver.layer_tree("one").unwrap().whiteouts,
        WhiteoutFormat::Verbatim
    );
    let error = count_seen(&driver, "one").unwrap_err();
    assert!(error.chain().contains("not today"), "{}", error.chain());
    assert!(!is_mount_point(&place.home().join("one/merged")).unwrap());
}

#[test]
fn a_program_steps_in_where_the_kernel_cannot_mount() {
    let Some(mut place) = Place::new(&[]) else { return };
    let run_home = place.config.run_root.join("overlay");
    fs::create_dir_all(&run_home).unwrap();
    fs::write(run_home.join("overlay-false"), "no overlay here").unwrap();
    place.config.search_path = Some("/does/not/exist".into());
    assert!(place.open().unwrap_err().chain().contains("no overlay here"));
    assert!(
        !place.home().exists(),
        "a home would be a sign that overlay works"
    );
    place.config.search_path = Some(program_dir(&place).into());
    let driver = place.open().unwrap();
    let flag = place.home().join(MOUNT_PROGRAM_FLAG);
    assert_eq!(fs::read_to_string(&flag).unwrap(), "true");
    assert!(
        driver
            .program
            .as_deref()
            .unwrap()
            .starts_with(place.config.root.parent().unwrap())
    );
    let rows = driver.status();
    for (row, value) in [
        ("Native Overlay Diff", "false"),
        ("Supports shifting", "true"),
        ("Supports volatile", "true"),
    ] {
        assert!(rows.contains(&(row.into(), value.into())), "{rows:?}");
    }
}

#[test]
fn probes_run_once() {
    let Some(place) = Place::new(&["overlay.mountopt=nodev"]) else {
        return;
    };
    let first = place.open().unwrap();
    assert!(first.probe().native_diff());
    let files = || {
        fs::read_dir(place.config.run_root.join("overlay"))
            .unwrap()
            .count()
    };
    assert_eq!(files(), 3);
    assert!(
        place
            .config
            .run_root
            .join("overlay/native-diff(nodev)-true")
            .exists()
    );
    // This process keeps the result in memory; another one reads the file.
    let dir = place.config.run_root.join("overlay");
    fs::rename(
        dir.join("native-diff(nodev)-true"),
        dir.join("native-diff(nodev)-false"),
    )
    .unwrap();
    assert!(place.open().unwrap().probe().native_diff());
    drop(first);
    let second = place.open().unwrap();
    assert!(!second.probe().native_diff());
    chain(&second);
    assert!(
        second.overlay_diff("two", Some("one")).unwrap().is_none(),
        "trees have to be compared"
    );
    let rows = second.status();
    assert!(
        rows.contains(&("Native Overlay Diff".into(), "false".into())),
        "{rows:?}"
    );
    assert_eq!(fs::read_dir(place.home().join(TEMP_DIRS)).unwrap().count(), 0);
    assert_eq!(rows[0].0, "Backing Filesystem");
}
