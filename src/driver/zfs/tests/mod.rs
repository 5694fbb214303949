mod exchange;
mod programs;
mod unmounts;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::io::Errno;

use crate::driver::conformance::MountGuard;
use crate::driver::conformance::zfs::{self, Dataset};
use crate::driver::select::open_driver;
use crate::driver::{CreateOptions, Driver, DriverConfig, LeftoverKind, MountOptions};
use crate::error::ErrorKind;
use crate::skip::skip;

fn config(root: &Path, options: &[&str]) -> DriverConfig {
    DriverConfig {
        name: Some("zfs".into()),
        root: root.join("graph"),
        run_root: root.join("run"),
        options: options.iter().map(ToString::to_string).collect(),
        ..DriverConfig::default()
    }
}

/// A driver in a dataset of its own.
struct Setup {
    driver: Arc<dyn Driver>,
    _guard: MountGuard,
    dataset: Dataset,
}

fn dataset() -> Option<Dataset> {
    Dataset::new().map_err(|why| zfs::without(why, skip)).ok()
}

fn setup(options: &[&str]) -> Option<Setup> {
    let dataset = dataset()?;
    Some(Setup {
        driver: open_driver(&config(dataset.path(), options)).unwrap(),
        _guard: MountGuard::new(dataset.path()),
        dataset,
    })
}

impl Setup {
    fn create(&self, id: &str, parent: Option<&str>) {
        self.driver.create(id, parent, &CreateOptions::default()).unwrap();
    }

    /// Runs a command on the dataset of this name below the one of the setup, and returns what it prints.
    fn zfs(&self, arguments: &[&str], name: &str) -> String {
        let name = format!("{}/{name}", self.dataset.name());
        zfs(arguments, &name)
    }

    /// Everything below the dataset of the setup.
    fn names(&self) -> Vec<String> {
        let listed = zfs(
            &["list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name"],
            self.dataset.name(),
        );
        let prefix = format!("{}/", self.dataset.name());
        let names = listed.lines().filter_map(|name| name.strip_prefix(&prefix));
        names.map(str::to_owned).collect()
    }

    fn write(&self, id: &str, name: &str) {
        let root = self.driver.mount(id, &MountOptions::default()).unwrap();
        fs::write(root.join(name), name).unwrap();
        self.driver.unmount(id).unwrap();
    }
}

fn zfs(arguments: &[&str], name: &str) -> String {
    let output = Command::new("zfs").args(arguments).arg(name).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?} {name}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn container(size: &str) -> CreateOptions {
    CreateOptions {
        read_write: true,
        storage_opt: [("size".to_owned(), size.to_owned())].into(),
        ..CreateOptions::default()
    }
}

/// Writes a file until something is in the way.
fn fill(dir: &Path, mebibytes: usize) -> std::result::Result<(), Errno> {
    let mut file = fs::File::create(dir.join("file")).unwrap();
    let write = |_| {
        // Not all zero, which a file system could leave out.
        std::io::Write::write_all(&mut file, &[7; 1 << 20])?;
        file.sync_data()
    };
    let written = (0..mebibytes).try_for_each(write);
    written.map_err(|error| Errno::from_io_error(&error).unwrap())
}

#[test]
fn every_layer_is_a_dataset_with_the_names_of_go() {
    let Some(setup) = setup(&[]) else { return };
    let options = CreateOptions::default();
    setup.create("base", None);
    let staged = Arc::clone(&setup.driver).stage(Some("base"), &options).unwrap();
    staged.commit("child", Some("base"), &options).unwrap();
    setup.create("container", Some("child"));
    let names = setup.names();
    let layers: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !name.contains('@'))
        .collect();
    assert_eq!(layers, ["base", "child", "container"]);
    // One for each clone, which goes with it.
    assert_eq!(names.len() - layers.len(), 2, "{names:?}");
    for (id, parent) in [("child", "base"), ("container", "child")] {
        let origin = setup.zfs(&["get", "-H", "-o", "value", "origin"], id);
        let expected = format!("{}/{parent}@graphroot-", setup.dataset.name());
        assert!(origin.starts_with(&expected), "{origin}");
    }
    for id in ["container", "child"] {
        drop(setup.driver.defer_remove(id).unwrap().unwrap());
    }
    assert_eq!(setup.names(), ["base"]);
}

#[test]
fn the_dataset_can_be_elsewhere() {
    let Some(dataset) = dataset() else {
        return;
    };
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let option = format!("zfs.fsname={}", dataset.name());
    let _guard = MountGuard::new(tmp.path());
    let driver = open_driver(&config(tmp.path(), &[&option, "zfs.mountopt=nodev,noatime"])).unwrap();
    driver.create("a", None, &CreateOptions::default()).unwrap();
    let root = driver.mount("a", &MountOptions::default()).unwrap();
    assert_eq!(root, tmp.path().join("graph/zfs/graph/a"));
    assert_ne!(
        root.metadata().unwrap().dev(),
        tmp.path().metadata().unwrap().dev()
    );
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(root.to_str().unwrap()))
        .unwrap();
    assert!(line.contains("nodev") && line.contains("noatime"), "{line}");
    driver.unmount("a").unwrap();
    assert_eq!(
        driver.metadata("a").unwrap()["Dataset"],
        format!("{}/a", dataset.name())
    );
}

#[test]
fn what_is_not_of_this_graph_root_is_left_alone() {
    let Some(setup) = setup(&[]) else { return };
    let other_root = tempfile::tempdir_in("/dev/shm").unwrap();
    let _guard = MountGuard::new(other_root.path());
    let option = format!("zfs.fsname={}", setup.dataset.name());
    let other = open_driver(&config(other_root.path(), &[&option])).unwrap();
    setup.create("ours", None);
    other.create("others", None, &CreateOptions::default()).unwrap();
    // As the Go library makes one, and somebody else.
    let id = "0123456789abcdef".repeat(4);
    setup.zfs(&["create", "-o", "mountpoint=legacy"], &id);
    setup.zfs(&["create", "-o", "mountpoint=none"], "somebody");
    assert_eq!(setup.driver.list_layers().unwrap(), ["ours"]);
    assert_eq!(other.list_layers().unwrap(), ["others"]);
    // By its ID it is a layer like all others.
    setup.write(&id, "file");
    setup.create("on-it", Some(&id));
    let root = setup.driver.mount("on-it", &MountOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "file");
    setup.driver.unmount("on-it").unwrap();
    for id in ["on-it", &id] {
        drop(setup.driver.defer_remove(id).unwrap().unwrap());
    }
    setup.driver.prune().unwrap();
    assert_eq!(setup.names(), ["others", "ours", "somebody"]);
}

#[test]
fn limits_are_quotas() {
    let Some(setup) = setup(&["zfs.size=9m"]) else {
        return;
    };
    setup.create("image", None);
    let quota = |id: &str| {
        setup
            .zfs(&["get", "-H", "-p", "-o", "value", "quota"], id)
            .trim()
            .to_owned()
    };
    let usual = CreateOptions {
        read_write: true,
        ..CreateOptions::default()
    };
    let driver = &setup.driver;
    for (id, options, expected) in [
        ("small", container("8m"), "8388608"),
        ("usual", usual, "9437184"),
        ("free", container("0"), "0"),
    ] {
        driver.create(id, Some("image"), &options).unwrap();
        assert_eq!(quota(id), expected, "{id}");
    }
    assert_eq!(quota("image"), "0");
    let staged = Arc::clone(driver).stage(Some("image"), &container("8m")).unwrap();
    staged.commit("staged", Some("image"), &container("8m")).unwrap();
    for (id, expected) in [
        ("small", Err(Errno::DQUOT)),
        ("staged", Err(Errno::DQUOT)),
        ("free", Ok(())),
    ] {
        let root = driver.mount(id, &MountOptions::default()).unwrap();
        assert_eq!(fill(&root, 32), expected, "{id}");
        driver.unmount(id).unwrap();
    }
    for (key, value, text) in [
        ("size", "x", "\"size\""),
        ("inodes", "5", "unknown option inodes"),
    ] {
        let options = CreateOptions {
            storage_opt: [(key.to_owned(), value.to_owned())].into(),
            ..CreateOptions::default()
        };
        let error = driver.create("b", Some("image"), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.chain().contains(text), "{}", error.chain());
        let error = Arc::clone(driver).stage(None, &options).unwrap_err();
        assert!(error.chain().contains(text), "{}", error.chain());
    }
    assert!(!driver.exists("b").unwrap());
}

/// As a copy of a template, which a record does not say to be a child.
#[test]
fn a_layer_goes_though_others_are_clones_of_it() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("below", None);
    setup.write("below", "file");
    for id in ["first", "second", "third"] {
        setup.create(id, Some("below"));
    }
    drop(setup.driver.defer_remove("below").unwrap().unwrap());
    let mut left = setup.names();
    left.retain(|name| !name.contains('@'));
    assert_eq!(left, ["first", "second", "third"]);
    setup.driver.remove_in_place("second").unwrap();
    for id in ["first", "third"] {
        let root = setup.driver.mount(id, &MountOptions::default()).unwrap();
        assert!(root.join("file").exists(), "{id}");
        setup.driver.unmount(id).unwrap();
        drop(setup.driver.defer_remove(id).unwrap().unwrap());
    }
    assert_eq!(setup.names(), [""; 0]);
}

/// The states in which a killed process can leave the datasets, made by the commands up to there.
#[test]
fn what_a_killed_process_has_left_is_removed() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("base", None);
    setup.write("base", "file");
    let driver = &setup.driver;
    let dirs = driver.home().join("tempdirs");
    let mark = setup.zfs(&["get", "-H", "-o", "value", "graphroot:home"], "base");
    let mark = format!("graphroot:home={}", mark.trim());
    let snapshot = || setup.zfs(&["snapshot"], "base@graphroot-1");
    let new = |name: &str| {
        let snapshot = format!("{}/base@graphroot-1", setup.dataset.name());
        setup.zfs(&["clone", "-o", "mountpoint=none", "-o", &mark, &snapshot], name)
    };
    let states: &[(&str, &dyn Fn())] = &[
        ("before a snapshot", &|| {}),
        ("before a clone", &|| drop(snapshot())),
        ("before the snapshot is left to the clone", &|| {
            snapshot();
            new("graphroot-1-new");
        }),
        ("while the layer is made", &|| {
            snapshot();
            new("graphroot-1-new");
            setup.zfs(&["destroy", "-d"], "base@graphroot-1");
        }),
        ("while it is removed", &|| {
            setup.zfs(
                &["create", "-o", "mountpoint=none", "-o", &mark],
                "graphroot-1-old",
            );
        }),
        ("while it is removed and could not be renamed", &|| {
            setup.zfs(
                &[
                    "create",
                    "-o",
                    "mountpoint=none",
                    "-o",
                    &mark,
                    "-o",
                    "graphroot:removed=1",
                ],
                "gone",
            );
        }),
    ];
    for (moment, make) in states {
        fs::create_dir_all(dirs.join("temp-dir-1")).unwrap();
        fs::write(dirs.join("lock-1"), "").unwrap();
        make();
        assert_eq!(driver.list_layers().unwrap(), ["base"], "{moment}");
        assert!(!driver.exists("gone").unwrap(), "{moment}");
        let leftovers = driver.leftovers().unwrap();
        assert_eq!(leftovers.len(), 1, "{moment}");
        assert_eq!(leftovers[0].kind, LeftoverKind::TempDir, "{moment}");
        driver.prune().unwrap();
        assert_eq!(setup.names(), ["base"], "{moment}");
        assert_eq!(fs::read_dir(&dirs).unwrap().count(), 0, "{moment}");
    }
    // Of another number, and of another graph root.
    setup.zfs(
        &["create", "-o", "mountpoint=none", "-o", &mark],
        "graphroot-2-new",
    );
    setup.zfs(&["create", "-o", "mountpoint=none"], "graphroot-1-new");
    fs::write(dirs.join("lock-1"), "").unwrap();
    driver.prune().unwrap();
    assert_eq!(setup.names(), ["base", "graphroot-1-new", "graphroot-2-new"]);
}

#[test]
fn two_drivers_on_one_root_are_named() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    let mut config = config(setup.dataset.path(), &[]);
    config.name = None;
    config.priority = vec!["vfs".into()];
    assert_eq!(open_driver(&config).unwrap().name(), "zfs");
    fs::create_dir_all(config.root.join("vfs/dir")).unwrap();
    let error = open_driver(&config).unwrap_err();
    let text = error.chain();
    assert!(
        text.contains("contains several valid graphdrivers: zfs, vfs;"),
        "{text}"
    );
}

#[test]
fn zfs_comes_before_vfs_where_the_graph_root_is_in_it() {
    let Some(dataset) = dataset() else {
        return;
    };
    let config = DriverConfig {
        name: None,
        ..config(dataset.path(), &[])
    };
    fs::create_dir_all(config.run_root.join("overlay")).unwrap();
    fs::write(config.run_root.join("overlay/overlay-false"), "no overlay here").unwrap();
    // Nothing but zfs, so no program mounts overlay.
    let programs = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let program = crate::driver::program::find("zfs", &path).unwrap();
    std::os::unix::fs::symlink(program, programs.path().join("zfs")).unwrap();
    let config = DriverConfig {
        search_path: Some(programs.path().into()),
        ..config
    };
    assert_eq!(open_driver(&config).unwrap().name(), "zfs");
    assert!(!config.root.join("vfs").exists() && !config.root.join("overlay").exists());
}
