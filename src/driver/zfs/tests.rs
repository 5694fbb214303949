use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::driver::conformance::MountGuard;
use crate::driver::conformance::zfs::{self, Dataset};
use crate::driver::select::open_driver;
use crate::driver::zfs::command::Program;
use crate::driver::{Copied, CreateOptions, Driver, DriverConfig, LeftoverKind, MountOptions};
use crate::error::{ErrorKind, Result};
use crate::skip::skip;
use crate::sys::privilege;

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
    assert!(!driver.exists("b"));
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
                &["create", "-o", "mountpoint=none", "-o", "graphroot:removed=1"],
                "gone",
            );
        }),
    ];
    for (moment, make) in states {
        fs::create_dir_all(dirs.join("temp-dir-1")).unwrap();
        fs::write(dirs.join("lock-1"), "").unwrap();
        make();
        assert_eq!(driver.list_layers().unwrap(), ["base"], "{moment}");
        assert!(!driver.exists("gone"), "{moment}");
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
fn a_layer_is_removed_while_files_in_it_are_open() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    setup.write("a", "file");
    let root = setup.driver.mount_private("a").unwrap();
    let temp = setup.driver.defer_remove("a").unwrap().unwrap();
    assert!(!setup.driver.exists("a") && setup.driver.list_layers().unwrap().is_empty());
    assert!(setup.driver.defer_remove("a").unwrap().is_none());
    // It cannot be destroyed yet.
    drop(temp);
    assert_eq!(setup.names().len(), 1);
    drop(root);
    setup.driver.prune().unwrap();
    assert_eq!(setup.names(), [""; 0]);
    setup.create("a", None);
    let root = setup.driver.mount("a", &MountOptions::default()).unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

/// zfs-fuse answers nobody any more if a file system goes before it has read that a file in it is closed.
#[test]
fn files_are_closed_until_the_moment_of_an_unmount() {
    const FILES: u64 = 30;
    // Without care, that happens within some hundreds where other programs want the processors too.
    const ROUNDS: u32 = 400;
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    let root = setup.driver.mount("a", &MountOptions::default()).unwrap();
    for number in 0..FILES {
        fs::write(root.join(number.to_string()), "").unwrap();
    }
    setup.driver.unmount("a").unwrap();
    let is_done = AtomicBool::new(false);
    let read = |first_pause: usize| {
        let mut pauses = (0..7).cycle().skip(first_pause).map(Duration::from_millis);
        while !is_done.load(Ordering::Relaxed) {
            let open = (0..FILES).map(|number| fs::File::open(root.join(number.to_string())));
            drop(open.collect::<Vec<_>>());
            std::thread::sleep(pauses.next().unwrap());
        }
    };
    let mounted = std::thread::scope(|scope| {
        scope.spawn(|| read(0));
        scope.spawn(|| read(3));
        let mounted = (0..ROUNDS).try_for_each(|_| {
            setup.driver.mount("a", &MountOptions::default())?;
            setup.driver.unmount("a")
        });
        is_done.store(true, Ordering::Relaxed);
        mounted
    });
    mounted.unwrap();
    setup.driver.unmount_all("a").unwrap();
    assert_eq!(setup.names(), ["a"]);
}

#[test]
fn the_content_of_a_layer_is_not_exchanged() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    for copied in [Copied::Root, Copied::Tree { durable: true }] {
        assert!(setup.driver.copy_layer("a", copied).unwrap().is_none());
    }
    let staged = Arc::clone(&setup.driver)
        .stage(None, &CreateOptions::default())
        .unwrap();
    assert_eq!(staged.into_copy("a").unwrap_err().kind(), ErrorKind::NotSupported);
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

/// A program in place of `zfs`: a shell script, in a directory of its own.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new(script: &str) -> Self {
        let fake = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fake.does(script);
        fake
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("zfs")
    }

    /// Changes what it does. `$@` are the arguments; every call is noted.
    fn does(&self, script: &str) {
        let script = format!(
            "#!/bin/sh\nprintf '%s|' \"$@\" >>{0}/calls\necho >>{0}/calls\n{script}\n",
            self.dir.path().display()
        );
        let new = self.dir.path().join("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// The arguments of all calls so far.
    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    fn open(&self, options: &[&str]) -> Result<Arc<dyn Driver>> {
        let config = DriverConfig {
            search_path: Some(self.dir.path().into()),
            ..config(self.dir.path(), options)
        };
        open_driver(&config)
    }
}

/// What it answers when it is asked for the dataset of the layers.
const ANSWERS: &str = r#"case "$*" in "list -H -t filesystem -o name tank/a") echo tank/a; exit;; esac"#;

fn needs_root() -> bool {
    if privilege::is_rootless() {
        skip("zfs takes root");
    }
    !privilege::is_rootless()
}

#[test]
fn a_program_that_is_missing_or_does_not_work_is_told_of() {
    let tmp = tempfile::tempdir().unwrap();
    let mut without = config(tmp.path(), &["zfs.fsname=tank"]);
    without.search_path = Some(tmp.path().into());
    let error = open_driver(&without).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let expected =
        "the 'zfs' command is not available: prerequisites for driver not satisfied (wrong filesystem?)";
    assert_eq!(error.chain(), expected);
    if !needs_root() {
        return;
    }
    for (script, kind, texts) in [
        (
            "echo 'The ZFS modules are not loaded.' >&2; exit 1",
            ErrorKind::NotSupported,
            [
                "The ZFS modules are not loaded",
                "prerequisites for driver not satisfied",
            ],
        ),
        (
            "echo \"cannot open '$7': dataset does not exist\" >&2; exit 1",
            ErrorKind::InvalidInput,
            ["cannot find root filesystem tank/a", "dataset does not exist"],
        ),
        (
            "exit 1",
            ErrorKind::NotSupported,
            ["no message", "exit status: 1"],
        ),
        ("kill -SEGV $$", ErrorKind::NotSupported, ["signal: 11", "tank/a"]),
        (
            "echo other",
            ErrorKind::Io,
            ["prints something that was not asked for", "other"],
        ),
        (
            "exit 0",
            ErrorKind::Io,
            ["prints something that was not asked for", "list -H"],
        ),
        (
            "printf '\\377'",
            ErrorKind::NotSupported,
            ["bytes that are no text", "tank/a"],
        ),
        (
            "exec yes",
            ErrorKind::NotSupported,
            ["prints more than 67108864 bytes", "tank/a"],
        ),
        ("exec yes >&2", ErrorKind::NotSupported, ["failed", "y; y; y"]),
    ] {
        let fake = Fake::new(script);
        let error = fake.open(&["zfs.fsname=tank/a"]).unwrap_err();
        let text = error.chain();
        assert_eq!(error.kind(), kind, "{script}: {text}");
        for part in texts {
            assert!(text.contains(part), "{script}: {text}");
        }
        assert!(text.len() < 10_000, "{script}: {}", text.len());
        assert!(!fake.dir.path().join("graph").exists(), "{script}");
    }
}

#[test]
fn hostile_names_of_datasets_reach_no_program() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new("exit 1");
    for name in [
        "-R",
        "tank@x",
        "tank/../x",
        "tank;reboot",
        "$(reboot)",
        "tank/a\tb",
        "/etc",
        "x\ny",
    ] {
        let error = fake.open(&[&format!("zfs.fsname={name}")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
        assert!(error.chain().contains(&format!("{name:?}")), "{}", error.chain());
    }
    assert_eq!(fake.calls(), "");
}

#[test]
fn arguments_reach_the_program_as_they_are() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new(ANSWERS);
    let driver = fake.open(&["zfs.fsname=tank/a"]).unwrap();
    assert_eq!(fake.calls(), "list|-H|-t|filesystem|-o|name|tank/a|\n");
    for id in ["a b", "-R", "a@b", "a;b", "graphroot-1-new"] {
        let is_dataset = !id.contains([' ', '@', ';']) && !id.starts_with("graphroot-");
        let error = driver.create(id, None, &CreateOptions::default());
        match is_dataset {
            // After the name of the dataset it is no option.
            true => assert!(fake.calls().contains("|tank/a/-R|\n"), "{}", fake.calls()),
            false => assert_eq!(error.unwrap_err().kind(), ErrorKind::UnsafePath, "{id:?}"),
        }
    }
    assert!(
        !fake.calls().contains(';') && !fake.calls().contains('@'),
        "{}",
        fake.calls()
    );
}

#[test]
fn failures_of_commands_are_told_with_their_reason() {
    if !needs_root() {
        return;
    }
    let fake = Fake::new(ANSWERS);
    let driver = fake.open(&["zfs.fsname=tank/a"]).unwrap();
    let run = |script: &str| {
        // Datasets that are there, without properties of ours.
        let there =
            r#"case "$1 $5" in "list -o") for last; do :; done; printf '%s\t-\t-\n' "$last"; exit;; esac"#;
        fake.does(&format!("{there}\n{script}"));
        driver
            .create("b", Some("base"), &CreateOptions::default())
            .unwrap_err()
    };
    let error = run("echo \"cannot create '$2': out of space\" >&2; exit 1");
    assert!(error.is_full(), "{error:?}");
    assert!(error.chain().contains("out of space"), "{error:?}");
    let error = run("case $1 in clone) echo 'no such thing' >&2; exit 3;; esac");
    assert!(
        error.chain().contains("no such thing") && error.chain().contains("tank/a/b"),
        "{error:?}"
    );
    // The snapshot does not stay.
    let calls = fake.calls();
    let (snapshot, destroyed) = (
        calls.find("snapshot|tank/a/base@graphroot-"),
        calls.rfind("destroy|-d|tank/a/base@graphroot-"),
    );
    assert!(snapshot.unwrap() < destroyed.unwrap(), "{calls}");
    // One that says that a dataset is in the way, whatever is done about it.
    let error = run("case $1 in clone) echo 'dataset already exists' >&2; exit 1;; esac");
    assert!(error.chain().contains("dataset already exists"), "{error:?}");
    // Lists that are none.
    for garbage in [
        "echo tank/a/x",
        "printf 'other\\t-\\t-\\n'",
        "printf 'tank/a\\t\\t\\t\\n'",
    ] {
        fake.does(garbage);
        let error = driver.list_layers().unwrap_err();
        assert!(
            error.chain().contains("prints something that was not asked for"),
            "{error:?}"
        );
        assert!(!driver.exists("b"), "{garbage}");
        driver.mount_private("b").unwrap_err();
        driver.defer_remove("b").unwrap_err();
    }
    fake.does("echo no >&2; exit 1");
    let rows = driver.status();
    assert!(
        rows[0].1.contains("error while getting pool information"),
        "{rows:?}"
    );
    assert_eq!(rows[1].1, "not available");
    fs::remove_file(fake.path()).unwrap();
    let error = driver.list_layers().unwrap_err();
    assert_eq!(error.path(), Some(&*fake.path()), "{error:?}");
}

#[test]
fn a_program_that_does_not_end_is_killed() {
    let fake = Fake::new("echo oh >&2; exec sleep 1000");
    let program = Program::new(fake.path()).with_limit(Duration::from_millis(2400));
    let fails = |program: &Program, after: &str| {
        let error = program.run(&["list", "tank"]).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::TimedOut), "{error:?}");
        let text = error.chain();
        assert!(text.contains("list tank") && text.contains(after), "{text}");
        text
    };
    assert!(fails(&program, "after 2.4 s").contains("oh"));
    // Those that follow, by which things are put in order, are not waited for as long.
    fails(&program, "after 0.2 s");
    fails(&program.clone(), "after 0.2 s");
    fails(&program.beside("zfs"), "after 0.2 s");
    let answers = Fake::new("echo tank");
    std::fs::rename(answers.path(), fake.path()).unwrap();
    // Whether it ends in time depends on the machine; once it does, all is as before.
    while program.run(&["list", "tank"]).is_err() {}
    fake.does("exec sleep 1000");
    fails(&program, "after 2.4 s");
}

#[test]
fn other_file_systems_are_refused_and_stay_as_they_are() {
    if !needs_root() {
        return;
    }
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let fake = Fake::new("exit 0");
    let mut config = config(tmp.path(), &[]);
    config.search_path = Some(fake.dir.path().into());
    let error = open_driver(&config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let text = error.chain();
    assert!(text.contains("no zfs dataset found for rootdir"), "{text}");
    assert!(
        text.contains("prerequisites for driver not satisfied (wrong filesystem?)"),
        "{text}"
    );
    assert!(!tmp.path().join("graph").exists());
    assert_eq!(fake.calls(), "");
}
