//! Cases of the overlay driver alone: opening, probes, repair.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::config::DriverConfig;
use crate::driver::conformance::{MountGuard, need_overlay, path_of};
use crate::driver::contract::{CreateOptions, Driver as _, MountOptions};
use crate::driver::overlay::layout::{MOUNT_PROGRAM_FLAG, STAGING, TEMP_DIRS};
use crate::driver::overlay::{Overlay, program};
use crate::error::{ErrorKind, Result};
use crate::lock::staging_lock::StagingLock;
use crate::sys::mount::is_mount_point;
use crate::sys::{at, xattr};
use crate::whiteout::WhiteoutFormat;

struct Place {
    config: DriverConfig,
    // In this order: the directory can only be removed when nothing is mounted in it.
    _guard: MountGuard,
    _tmp: tempfile::TempDir,
}

impl Place {
    fn new(options: &[&str]) -> Option<Self> {
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

    fn open(&self) -> Result<Arc<Overlay>> {
        Overlay::open(&self.config).map(Arc::new)
    }

    fn home(&self) -> PathBuf {
        self.config.root.join("overlay")
    }
}

/// Three layers on top of each other, each with a file of its name.
fn chain(driver: &Arc<Overlay>) {
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

fn count_seen(driver: &Overlay, id: &str) -> Result<usize> {
    let merged = driver.mount(id, &MountOptions::default())?;
    let count = fs::read_dir(merged).unwrap().count();
    driver.unmount(id).unwrap();
    Ok(count)
}

fn link_of(home: &Path, id: &str) -> String {
    fs::read_to_string(home.join(id).join("link")).unwrap()
}

/// Makes the layers what programs make that do not know `lower-layers`.
fn forget_lower_layers(home: &Path) {
    for entry in fs::read_dir(home).unwrap() {
        drop(fs::remove_file(entry.unwrap().path().join("lower-layers")));
    }
}

fn lower_layers(home: &Path, id: &str) -> String {
    fs::read_to_string(home.join(id).join("lower-layers")).unwrap()
}

#[test]
fn lost_links_are_put_back() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    forget_lower_layers(&home);
    fs::create_dir(home.join("stray")).unwrap();
    let link = home.join("l").join(link_of(&home, "one"));
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../one/diff"));
    // From then on no link is needed any more.
    assert_eq!(lower_layers(&home, "three"), "two:one");
    // The name of a parent.
    fs::remove_file(home.join("three/link")).unwrap();
    driver
        .create("four", Some("three"), &CreateOptions::default())
        .unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    // The whole directory, and entries that are no links to layers.
    forget_lower_layers(&home);
    fs::remove_dir_all(home.join("l")).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    symlink("/etc", home.join("l/ABC")).unwrap();
    forget_lower_layers(&home);
    fs::write(home.join("l/file"), "").unwrap();
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    assert!(!home.join("l/ABC").is_symlink());
    // Two link IDs for one layer: both stay, and the `link` file does not change.
    let name = link_of(&home, "two");
    symlink("../two/diff", home.join("l/SECOND")).unwrap();
    forget_lower_layers(&home);
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    assert_eq!(link_of(&home, "two"), name);
}

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
fn what_cannot_be_put_back_is_named() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    forget_lower_layers(&home);
    let name = link_of(&home, "one");
    drop(driver.defer_remove("one").unwrap().unwrap());
    let error = count_seen(&driver, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata);
    assert!(
        error.chain().contains(&name) && error.chain().contains("three"),
        "{}",
        error.chain()
    );
    let error = driver
        .create("child", Some("three"), &CreateOptions::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
    for lower in ["l/../../x", "nonsense", "", &"l/A:".repeat(600)] {
        fs::write(home.join("three/lower"), lower).unwrap();
        let error = count_seen(&driver, "three").unwrap_err();
        assert!(error.chain().contains("three"), "{}", error.chain());
    }
    fs::write(home.join("three/lower"), vec![b'x'; 300 * 1024]).unwrap();
    assert_eq!(
        count_seen(&driver, "three").unwrap_err().kind(),
        ErrorKind::CorruptMetadata
    );
    fs::write(home.join("three/lower"), b"l/\xff").unwrap();
    assert_eq!(
        count_seen(&driver, "three").unwrap_err().kind(),
        ErrorKind::CorruptMetadata
    );
    drop(driver.defer_remove("three").unwrap().unwrap());
}

#[test]
fn every_way_of_making_a_layer_lists_the_layers_below() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    assert!(!home.join("one/lower-layers").exists());
    assert_eq!(lower_layers(&home, "two"), "one");
    assert_eq!(lower_layers(&home, "three"), "two:one");
    let options = CreateOptions::default();
    driver.create("created", Some("three"), &options).unwrap();
    assert_eq!(lower_layers(&home, "created"), "three:two:one");
    // Staged before its parent exists, and on one that another layer of the same ID has replaced since.
    let apart = Arc::clone(&driver).stage(None, &options).unwrap();
    apart.commit("apart", Some("two"), &options).unwrap();
    assert_eq!(lower_layers(&home, "apart"), "two:one");
    let replaced = Arc::clone(&driver).stage(Some("created"), &options).unwrap();
    drop(driver.defer_remove("created").unwrap());
    driver.create("created", Some("one"), &options).unwrap();
    replaced.commit("replaced", Some("created"), &options).unwrap();
    assert_eq!(lower_layers(&home, "replaced"), "created:one");
    // On a layer of a program that does not know the file, and on one whose older list is lost.
    forget_lower_layers(&home);
    driver.create("next", Some("three"), &options).unwrap();
    assert_eq!(lower_layers(&home, "next"), "three:two:one");
    fs::remove_file(home.join("next/lower")).unwrap();
    driver.create("last", Some("next"), &options).unwrap();
    let links = ["next", "three", "two", "one"].map(|id| format!("l/{}", link_of(&home, id)));
    assert_eq!(
        fs::read_to_string(home.join("last/lower")).unwrap(),
        links.join(":")
    );
    // An ID that cannot stand in the list: the older one decides.
    driver.create("a:b", Some("one"), &options).unwrap();
    driver.create("on a:b", Some("a:b"), &options).unwrap();
    assert!(!home.join("on a:b/lower-layers").exists());
    assert_eq!(count_seen(&driver, "on a:b").unwrap(), 1);
}

#[test]
fn layers_are_mounted_by_the_list_of_ids() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    // Without links and link IDs nothing has to be repaired.
    fs::remove_dir_all(home.join("l")).unwrap();
    fs::remove_file(home.join("two/link")).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert!(!home.join("l").exists() && !home.join("two/link").exists());
    // Both lists are there and disagree: IDs count.
    fs::write(home.join("three/lower-layers"), "one").unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 2);
    assert!(driver.overlay_diff("three", Some("two")).unwrap().is_none());
    assert!(driver.overlay_diff("three", Some("one")).unwrap().is_some());
    driver
        .create("four", Some("three"), &CreateOptions::default())
        .unwrap();
    assert_eq!(lower_layers(&home, "four"), "three:one");
    assert_eq!(count_seen(&driver, "four").unwrap(), 2);
    // What a power cut leaves of the file counts as none.
    fs::write(home.join("three/lower-layers"), "").unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
}

#[test]
fn a_list_of_ids_leads_to_layers_only() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let many = vec!["one"; 501].join(":");
    let huge = "x".repeat(300 * 1024);
    for bad in [
        "../../graph/overlay/one",
        "..",
        "/etc",
        "one\n",
        "one/diff",
        "l",
        "tempdirs",
        "one:",
        ":one",
        "two:one:one",
        "three",
        "missing",
        &many,
        &huge,
    ] {
        fs::write(home.join("three/lower-layers"), bad).unwrap();
        let create = driver.create("child", Some("three"), &CreateOptions::default());
        let private = driver.mount_private("three").map(drop);
        for error in [count_seen(&driver, "three").unwrap_err(), private.unwrap_err()] {
            let text = error.chain();
            assert!(text.contains("three"), "{bad:.40}: {text}");
            assert!(
                [ErrorKind::CorruptMetadata, ErrorKind::InvalidInput].contains(&error.kind()),
                "{bad:.40}: {text}"
            );
        }
        // A layer below that is missing stops a mount only, as with the older list.
        assert_eq!(create.is_ok(), bad == "missing", "{bad:.40}");
    }
    fs::remove_file(home.join("three/lower-layers")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        home.join("three/lower-layers"),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3, "a pipe blocks nobody");
    fs::remove_dir_all(home.join("one/diff")).unwrap();
    let error = count_seen(&driver, "three").unwrap_err();
    assert!(error.chain().contains("\"one\""), "{}", error.chain());
}

#[test]
fn link_ids_that_are_lost_everywhere_are_made_anew() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let options = CreateOptions::default();
    driver.create("leaf", Some("one"), &options).unwrap();
    for old in [false, true] {
        for id in ["one", "two", "three", "leaf"] {
            if old {
                forget_lower_layers(&home);
            }
            let before = link_of(&home, id);
            fs::remove_dir_all(home.join("l")).unwrap();
            fs::remove_file(home.join(id).join("link")).unwrap();
            if old {
                // The layers above name the link ID in a place that only this layer fits.
                assert_eq!(count_seen(&driver, "three").unwrap(), 3, "{id}");
            }
            let child = format!("on {id} {old}");
            driver.create(&child, Some(id), &options).unwrap();
            assert_eq!(
                count_seen(&driver, &child).unwrap(),
                if id == "three" {
                    3
                } else if id == "two" {
                    2
                } else {
                    1
                }
            );
            let after = link_of(&home, id);
            // A leaf's link ID is known to nobody else.
            assert_eq!(after == before, matches!(id, "one" | "two"), "{id}");
            assert_eq!(
                fs::read_link(home.join("l").join(&after)).unwrap(),
                Path::new("..").join(id).join("diff")
            );
            drop(driver.defer_remove(&child).unwrap());
        }
    }
    // Two layers that an unknown link ID may stand for: no guess is made.
    forget_lower_layers(&home);
    fs::remove_dir_all(home.join("l")).unwrap();
    fs::remove_file(home.join("two/link")).unwrap();
    fs::remove_file(home.join("leaf/link")).unwrap();
    let error = count_seen(&driver, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
    assert!(!home.join("two/link").exists() && !home.join("leaf/link").exists());
}

#[test]
fn links_that_lead_nowhere_are_removed() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let links = || fs::read_dir(home.join("l")).unwrap().count();
    // The link file of a layer that is deleted cannot be read, is missing, or is that of another layer.
    fs::write(home.join("three/link"), [0xff]).unwrap();
    drop(driver.defer_remove("three").unwrap());
    assert_eq!(links(), 2);
    fs::write(home.join("two/link"), link_of(&home, "one")).unwrap();
    drop(driver.defer_remove("two").unwrap());
    assert_eq!(links(), 1);
    assert_eq!(count_seen(&driver, "one").unwrap(), 1);
    for (target, name) in [("../gone/diff", "GONE"), ("/etc", "ELSEWHERE")] {
        symlink(target, home.join("l").join(name)).unwrap();
    }
    driver.remove_strays().unwrap();
    assert_eq!(links(), 1);
    assert!(home.join("l").join(link_of(&home, "one")).is_symlink());
}

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
fn a_layer_of_composefs_is_refused_and_can_be_removed() {
    let Some(place) = Place::new(&[]) else { return };
    let driver = place.open().unwrap();
    chain(&driver);
    fs::create_dir(place.home().join("two/composefs-data")).unwrap();
    for id in ["two", "three"] {
        let error = count_seen(&driver, id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{}", error.chain());
    }
    assert_eq!(count_seen(&driver, "one").unwrap(), 1);
    assert!(driver.overlay_diff("two", Some("one")).unwrap().is_none());
    drop(driver.defer_remove("two").unwrap().unwrap());
}
