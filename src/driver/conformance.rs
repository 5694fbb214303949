//! What every driver must do, one case each, run for each driver.
//!
//! A case gets a [`Bench`]: a driver on a directory of its own. Whatever is mounted there is unmounted when the bench
//! goes, also after a failure.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode};

use crate::driver::choice::{DriverConfig, open_driver};
use crate::driver::{CreateOptions, Driver, MountOptions, Staged, mount_tree};
use crate::error::ErrorKind;
use crate::idmap::{IdMap, IdMappings};
use crate::lock::temp_dir;
use crate::sys::mount::{in_directory, is_mount_point, mounts_below, unmount_lazily};
use crate::sys::{at, privilege, xattr};
use crate::whiteout::{Form, OPAQUE_VALUE};

/// Says that a test did not run, and fails it where every test must.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("GRAPHROOT_TEST_REQUIRE").is_none_or(|value| value != "all"),
        "must not be skipped: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether overlay mounts can be tested; says so if not.
pub(crate) fn need_overlay() -> bool {
    if !privilege::is_root() {
        skip("overlay mounts need root");
    }
    privilege::is_root()
}

/// Unmounts everything below a directory when dropped.
pub(crate) struct MountGuard(PathBuf);

impl MountGuard {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        for mounted in mounts_below(&self.0).unwrap_or_default() {
            if let Err(error) = unmount_lazily(&mounted) {
                eprintln!("cannot unmount {}: {error}", mounted.display());
            }
        }
    }
}

/// A driver to try.
struct Bench {
    driver: Arc<dyn Driver>,
    config: DriverConfig,
    // In this order: the directory can only go when nothing is mounted in it.
    _guard: MountGuard,
    _tmp: tempfile::TempDir,
}

impl Bench {
    /// `None` if the driver cannot be tested here.
    fn new(name: &str, adjust: impl FnOnce(&mut DriverConfig, &Path)) -> Option<Self> {
        if name == "overlay" && !need_overlay() {
            return None;
        }
        let tmp = tempfile::tempdir().unwrap();
        let mut config = DriverConfig {
            name: Some(name.into()),
            root: tmp.path().join("graph"),
            run_root: tmp.path().join("run"),
            ..DriverConfig::default()
        };
        adjust(&mut config, tmp.path());
        let guard = MountGuard::new(tmp.path());
        let driver = open_driver(&config).unwrap();
        Some(Self {
            driver,
            config,
            _guard: guard,
            _tmp: tmp,
        })
    }

    fn is_overlay(&self) -> bool {
        self.driver.name() == "overlay"
    }

    fn create(&self, id: &str, parent: Option<&str>) {
        self.driver.create(id, parent, &CreateOptions::default()).unwrap();
    }

    fn stage(&self, parent: Option<&str>) -> Staged {
        self.driver.stage(parent, &CreateOptions::default()).unwrap()
    }

    /// A layer with content.
    fn layer(&self, id: &str, parent: Option<&str>, fill: impl FnOnce(&Path)) {
        let staged = self.stage(parent);
        fill(&staged.path);
        self.driver
            .commit_staged(id, parent, &CreateOptions::default(), staged)
            .unwrap();
    }

    fn mount(&self, id: &str, options: &[&str]) -> PathBuf {
        let options = options.iter().map(ToString::to_string).collect();
        self.driver
            .get(
                id,
                &MountOptions {
                    options,
                    ..MountOptions::default()
                },
            )
            .unwrap()
    }

    /// Every path in a layer as it is seen when mounted, with the content of files.
    fn seen(&self, id: &str) -> Vec<(String, String)> {
        let root = self.mount(id, &["ro"]);
        let found = listing(&root);
        self.driver.put(id).unwrap();
        found
    }

    /// Deletes a name of the layers below in a layer's own tree.
    fn hide(&self, tree: &Path, name: &str) {
        let path = tree.join(name);
        if self.is_overlay() {
            rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
        } else if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// Hides what a directory of a layer's own tree has below.
    fn make_opaque(&self, tree: &Path, name: &str) {
        if let Form::Overlay(namespace) = self.stage(None).content.form {
            fs::create_dir(tree.join(name)).unwrap();
            let dir = at::open_dir(tree).unwrap();
            xattr::set_at(
                dir.as_fd(),
                name.as_bytes(),
                namespace.opaque().as_bytes(),
                OPAQUE_VALUE,
            )
            .unwrap();
        } else {
            fs::remove_dir_all(tree.join(name)).unwrap();
            fs::create_dir(tree.join(name)).unwrap();
        }
    }

    /// The directory of a layer of this driver's own home.
    fn dir(&self, id: &str) -> PathBuf {
        let home = self.driver.home();
        if self.is_overlay() {
            home.join(id)
        } else {
            home.join("dir").join(id)
        }
    }

    fn nothing_temporary(&self) {
        for root in self.driver.temp_dir_roots() {
            let left = fs::read_dir(&root).map_or(0, Iterator::count);
            assert_eq!(left, 0, "left in {}", root.display());
        }
    }

    /// Everything of the driver that carries a layer's name, for checks that nothing of it is left.
    fn short_names(&self) -> usize {
        fs::read_dir(self.driver.home().join("l")).map_or(0, Iterator::count)
    }

    fn second_driver(&self) -> Arc<dyn Driver> {
        open_driver(&self.config).unwrap()
    }
}

fn listing(root: &Path) -> Vec<(String, String)> {
    fn walk(root: &Path, below: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let content = if full.is_dir() {
                "/".into()
            } else {
                fs::read_to_string(&full).unwrap()
            };
            found.push((path.to_str().unwrap().to_owned(), content));
            if full.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found);
    found.sort();
    found
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(path, content)| (path.to_string(), content.to_string()))
        .collect()
}

fn write(root: &Path, name: &str, content: &str) {
    fs::write(root.join(name), content).unwrap();
}

fn maps(uid: u32, gid: u32) -> IdMappings {
    IdMappings {
        uids: vec![IdMap::new(0, uid, 1000)],
        gids: vec![IdMap::new(0, gid, 1000)],
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid())
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn empty_layer(bench: &Bench) {
    bench.create("a", None);
    let root = bench.mount("a", &[]);
    assert_eq!(listing(&root), []);
    assert_eq!(mode(&root), 0o555);
    let me = privilege::effective_owner();
    assert_eq!(owner(&root), (me.uid, me.gid));
    bench.driver.put("a").unwrap();
    bench.nothing_temporary();
}

fn base_with_content(bench: &Bench) {
    bench.layer("base", None, |tree| {
        fs::create_dir(tree.join("dir")).unwrap();
        write(tree, "dir/file", "content");
    });
    assert_eq!(
        bench.seen("base"),
        pairs(&[("dir", "/"), ("dir/file", "content")])
    );
    bench.nothing_temporary();
}

fn snapshot_sees_and_hides(bench: &Bench) {
    bench.layer("base", None, |tree| {
        for name in ["kept", "changed", "deleted"] {
            write(tree, name, "base");
        }
        for name in ["shared", "replaced"] {
            fs::create_dir(tree.join(name)).unwrap();
            write(tree, &format!("{name}/old"), "base");
        }
    });
    bench.layer("child", Some("base"), |tree| {
        write(tree, "changed", "child");
        bench.hide(tree, "deleted");
        fs::create_dir_all(tree.join("shared")).unwrap();
        write(tree, "shared/new", "child");
        bench.make_opaque(tree, "replaced");
        write(tree, "replaced/new", "child");
    });
    let expected = [
        ("changed", "child"),
        ("kept", "base"),
        ("replaced", "/"),
        ("replaced/new", "child"),
        ("shared", "/"),
        ("shared/new", "child"),
        ("shared/old", "base"),
    ];
    assert_eq!(bench.seen("child"), pairs(&expected));
    assert_eq!(bench.seen("base").len(), 7, "the parent is as it was");
}

fn deep_chain(bench: &Bench) {
    let depth = 130;
    for number in 0..depth {
        let parent = (number > 0).then(|| format!("layer{}", number - 1));
        bench.layer(&format!("layer{number}"), parent.as_deref(), |tree| {
            write(tree, "top", &number.to_string());
            write(tree, &format!("file{number}"), "");
        });
    }
    let top = format!("layer{}", depth - 1);
    let seen = bench.seen(&top);
    assert_eq!(seen.len(), depth + 1);
    assert!(seen.contains(&("top".into(), (depth - 1).to_string())));
    let root = bench.mount(&top, &[]);
    write(&root, "file0", "written");
    bench.driver.put(&top).unwrap();
    assert!(bench.seen(&top).contains(&("file0".into(), "written".into())));
    assert!(bench.seen("layer0").contains(&("file0".into(), String::new())));
}

fn root_mode_is_inherited(bench: &Bench) {
    bench.layer("base", None, |tree| {
        fs::set_permissions(tree, fs::Permissions::from_mode(0o7751)).unwrap();
    });
    bench.create("child", Some("base"));
    bench.layer("staged", Some("base"), |_tree| {});
    // Overlay layers have never had more than nine bits of their parents'.
    let expected = if bench.is_overlay() { 0o751 } else { 0o7751 };
    for id in ["child", "staged"] {
        let root = bench.mount(id, &["ro"]);
        assert_eq!(mode(&root), expected, "{id}");
        bench.driver.put(id).unwrap();
    }
}

fn modes_do_not_depend_on_the_umask(bench: &Bench) {
    let here = at::open_dir(&bench.config.root).unwrap();
    // The umask is part of what such a thread has for itself.
    in_directory(here.as_fd(), || {
        rustix::process::umask(Mode::from_raw_mode(0o077));
        bench.create("a", None);
        bench.layer("b", Some("a"), |_tree| {});
    })
    .unwrap();
    for id in ["a", "b"] {
        let dir = bench.dir(id);
        if bench.is_overlay() {
            assert_eq!(mode(&dir.join("diff")), 0o555, "{id}");
            assert_eq!(mode(&dir.join("link")), 0o644, "{id}");
            assert_eq!(mode(&dir), 0o700, "{id}");
        } else {
            assert_eq!(mode(&dir), 0o555, "{id}");
        }
    }
}

fn read_only_mount(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", "content"));
    let root = bench.mount("a", &["ro"]);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
    if bench.is_overlay() {
        let error = fs::write(root.join("file"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    bench.driver.put("a").unwrap();
}

fn writes_land_in_the_layer_only(bench: &Bench) {
    bench.layer("base", None, |tree| {
        write(tree, "file", "base");
        write(tree, "doomed", "base");
    });
    bench.create("child", Some("base"));
    let root = bench.mount("child", &[]);
    write(&root, "file", "child");
    write(&root, "new", "child");
    fs::remove_file(root.join("doomed")).unwrap();
    bench.driver.put("child").unwrap();
    assert_eq!(bench.seen("child"), pairs(&[("file", "child"), ("new", "child")]));
    assert_eq!(bench.seen("base"), pairs(&[("doomed", "base"), ("file", "base")]));
    let content = bench.driver.content("child").unwrap();
    assert!(at::lstat_at(content.dir.as_fd(), b"new").unwrap().is_some());
}

fn mounts_are_counted(bench: &Bench) {
    bench.create("a", None);
    let path = bench.mount("a", &[]);
    assert_eq!(
        bench.mount("a", &["ro"]),
        path,
        "the second use gets the same mount"
    );
    let other = bench.second_driver();
    assert_eq!(other.get("a", &MountOptions::default()).unwrap(), path);
    for remaining in [2, 1, 0] {
        assert_eq!(
            is_mount_point(&path).unwrap(),
            bench.is_overlay(),
            "{remaining} uses and this one"
        );
        bench.driver.put("a").unwrap();
    }
    assert!(!is_mount_point(&path).unwrap());
    bench.driver.put("a").unwrap();
    assert!(!is_mount_point(&path).unwrap());
}

fn a_mount_of_another_process_counts_once(bench: &Bench) {
    if !bench.is_overlay() {
        return;
    }
    bench.create("a", None);
    // Mounted by somebody else, as far as this process knows.
    let merged = bench.dir("a").join("merged");
    rustix::mount::mount(
        c"none",
        &merged,
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        c"",
    )
    .unwrap();
    write(&merged, "foreign", "");
    assert_eq!(bench.mount("a", &[]), merged);
    assert!(merged.join("foreign").exists(), "nothing was mounted over it");
    bench.driver.put("a").unwrap();
    assert!(
        is_mount_point(&merged).unwrap(),
        "a use that only looks does not end it"
    );
    bench.driver.put("a").unwrap();
    assert!(!is_mount_point(&merged).unwrap());
    assert_eq!(mode(&merged), 0o700);
}

fn a_mount_ended_by_another_process_is_made_again(bench: &Bench) {
    if !bench.is_overlay() {
        return;
    }
    bench.create("a", None);
    let path = bench.mount("a", &[]);
    unmount_lazily(&path).unwrap();
    assert_eq!(bench.mount("a", &[]), path);
    assert!(is_mount_point(&path).unwrap());
    bench.driver.put("a").unwrap();
    assert!(!is_mount_point(&path).unwrap());
}

fn removal_is_immediate_and_deletion_deferred(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    bench.create("b", Some("a"));
    let names = bench.short_names();
    let temp = bench.driver.defer_remove("b").unwrap().unwrap();
    assert!(!bench.driver.exists("b") && bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), ["a"]);
    assert!(bench.short_names() < names || !bench.is_overlay());
    assert_eq!(
        fs::read_dir(temp.path()).unwrap().count(),
        if bench.is_overlay() { 2 } else { 1 }
    );
    drop(temp);
    bench.nothing_temporary();
    assert!(bench.driver.defer_remove("b").unwrap().is_none());
    assert_eq!(
        bench
            .driver
            .get("b", &MountOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        bench.driver.content("b").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

fn a_mounted_layer_can_be_removed(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    let root = bench.mount("a", &[]);
    write(&root, "more", "");
    drop(bench.driver.defer_remove("a").unwrap().unwrap());
    bench.nothing_temporary();
    let mounts = mounts_below(bench.driver.home()).unwrap();
    assert!(
        mounts.iter().all(|mounted| mounted == bench.driver.home()),
        "{mounts:?}"
    );
}

fn leftovers_are_replaced(bench: &Bench) {
    for id in ["plain", "staged"] {
        bench.layer(id, None, |tree| write(tree, "old", ""));
    }
    let names = bench.short_names();
    bench.create("plain", None);
    bench.layer("staged", None, |tree| write(tree, "new", ""));
    assert_eq!(bench.seen("plain"), []);
    assert_eq!(bench.seen("staged"), pairs(&[("new", "")]));
    assert_eq!(bench.short_names(), names);
    bench.nothing_temporary();
    // Not even a layer.
    fs::create_dir(bench.dir("empty")).unwrap();
    fs::write(bench.dir("file"), "").unwrap();
    for id in ["empty", "file"] {
        bench.layer(id, None, |tree| write(tree, "new", ""));
        assert_eq!(bench.seen(id), pairs(&[("new", "")]), "{id}");
    }
}

fn staged_content_is_nothing_until_committed(bench: &Bench) {
    bench.create("base", None);
    let names = bench.short_names();
    let staged = bench.stage(Some("base"));
    write(&staged.path, "file", "");
    assert!(
        at::lstat_at(staged.content.dir.as_fd(), b"file")
            .unwrap()
            .is_some(),
        "the path is the directory's"
    );
    assert_eq!(bench.driver.list_layers().unwrap(), ["base"]);
    for root in bench.driver.temp_dir_roots() {
        temp_dir::recover(&root).unwrap();
    }
    assert!(
        staged.path.join("file").exists(),
        "others do not take it for litter"
    );
    drop(staged);
    bench.nothing_temporary();
    assert_eq!(bench.short_names(), names);
}

fn a_vanished_parent_is_noticed(bench: &Bench) {
    let options = CreateOptions::default();
    assert_eq!(
        bench.driver.stage(Some("none"), &options).unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
    assert_eq!(
        bench
            .driver
            .create("a", Some("none"), &options)
            .unwrap_err()
            .kind(),
        ErrorKind::LayerUnknown
    );
    assert!(!bench.driver.exists("a"));
    bench.create("base", None);
    let staged = bench.stage(Some("base"));
    drop(bench.driver.defer_remove("base").unwrap());
    let error = bench
        .driver
        .commit_staged("a", Some("base"), &options, staged)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LayerUnknown, "{error:?}");
    assert!(error.chain().contains("base"), "{}", error.chain());
    assert!(!bench.driver.exists("a"));
    assert_eq!(bench.driver.list_layers().unwrap(), [""; 0]);
    assert_eq!(bench.short_names(), 0);
    bench.nothing_temporary();
}

fn content_can_be_staged_apart(bench: &Bench) {
    if !bench.driver.stages_apart() {
        return;
    }
    let options = CreateOptions::default();
    bench.layer("base", None, |tree| {
        write(tree, "below", "");
        fs::set_permissions(tree, fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(tree, Some(5), Some(6)).unwrap();
    });
    let alone = bench.stage(None);
    write(&alone.path, "above", "");
    bench
        .driver
        .commit_staged("child", Some("base"), &options, alone)
        .unwrap();
    assert_eq!(bench.seen("child"), pairs(&[("above", ""), ("below", "")]));
    let root = bench.mount("child", &["ro"]);
    assert_eq!((mode(&root), owner(&root)), (0o751, (5, 6)));
    bench.driver.put("child").unwrap();
    assert!(!bench.dir("child").join("empty").exists());
    // Staged on one layer, committed on another; and on one of the same name that is not the same.
    let moved = bench.stage(Some("base"));
    bench
        .driver
        .commit_staged("grandchild", Some("child"), &options, moved)
        .unwrap();
    assert_eq!(bench.seen("grandchild").len(), 2);
    let late = bench.stage(Some("base"));
    bench.layer("base", None, |tree| write(tree, "other", ""));
    bench
        .driver
        .commit_staged("late", Some("base"), &options, late)
        .unwrap();
    assert_eq!(bench.seen("late"), pairs(&[("other", "")]));
    let orphan = bench.stage(Some("base"));
    assert_eq!(
        bench
            .driver
            .commit_staged("orphan", None, &options, orphan)
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
}

fn layers_are_listed_and_described(bench: &Bench) {
    bench.create("a", None);
    bench.create("b", Some("a"));
    let mut ids = bench.driver.list_layers().unwrap();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
    assert!(bench.driver.exists("a") && !bench.driver.exists("c"));
    assert!(bench.driver.home().starts_with(&bench.config.root));
    let (status, metadata) = (bench.driver.status(), bench.driver.metadata("b").unwrap());
    if !bench.is_overlay() {
        assert_eq!((status.len(), metadata.len()), (0, 0));
        return;
    }
    let names: Vec<&str> = status.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "Backing Filesystem",
        "Supports d_type",
        "Native Overlay Diff",
        "Using metacopy",
        "Supports shifting",
        "Supports volatile",
    ];
    assert_eq!(names, expected);
    let home = bench.driver.home().to_str().unwrap();
    assert_eq!(metadata["UpperDir"], format!("{home}/b/diff"));
    assert_eq!(metadata["WorkDir"], format!("{home}/b/work"));
    assert_eq!(metadata["MergedDir"], format!("{home}/b/merged"));
    assert_eq!(metadata["LowerDir"], format!("{home}/a/diff"));
    assert!(!bench.driver.metadata("a").unwrap().contains_key("LowerDir"));
    assert_eq!(
        bench.driver.metadata("c").unwrap_err().kind(),
        ErrorKind::LayerUnknown
    );
}

fn bad_ids_are_refused(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    let options = CreateOptions::default();
    for id in ["", ".", "..", "a/b", "../x", "l", "staging", "tempdirs", "x\0y"] {
        let driver = &bench.driver;
        assert_eq!(
            driver.create(id, None, &options).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        let staged = bench.stage(None);
        let error = driver.commit_staged(id, None, &options, staged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafePath, "{id:?}");
        assert_eq!(
            driver.defer_remove(id).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert_eq!(
            driver.get(id, &MountOptions::default()).unwrap_err().kind(),
            ErrorKind::UnsafePath,
            "{id:?}"
        );
        assert!(!driver.exists(id), "{id:?}");
    }
    assert_eq!(bench.seen("a"), pairs(&[("file", "")]), "nothing was touched");
}

fn owners_can_be_mapped_by_a_copy(bench: &Bench) {
    if !privilege::is_root() {
        return skip("changing owners needs root");
    }
    bench.layer("base", None, |tree| {
        write(tree, "a", "one letter");
        fs::create_dir(tree.join("dir")).unwrap();
        write(tree, "dir/file", "content");
        fs::hard_link(tree.join("dir/file"), tree.join("link")).unwrap();
        std::os::unix::fs::chown(tree.join("a"), Some(7), Some(8)).unwrap();
    });
    let to = maps(100_000, 200_000);
    let options = CreateOptions {
        mappings: to.clone(),
        ..CreateOptions::default()
    };
    bench.driver.create("mapped", Some("base"), &options).unwrap();
    bench
        .driver
        .update_id_map("mapped", &IdMappings::default(), &to, "")
        .unwrap();
    bench.driver.create("child", Some("mapped"), &options).unwrap();
    for id in ["mapped", "child"] {
        let root = bench.mount(id, &["ro"]);
        assert_eq!(owner(&root), (100_000, 200_000), "{id}");
        assert_eq!(owner(&root.join("a")), (100_007, 200_008), "{id}");
        for path in ["dir", "dir/file", "link"] {
            assert_eq!(owner(&root.join(path)), (100_000, 200_000), "{id} {path}");
        }
        let inode = |path: &str| root.join(path).metadata().unwrap().ino();
        assert_eq!(inode("dir/file"), inode("link"), "{id}");
        assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "content");
        bench.driver.put(id).unwrap();
    }
    // A second time: back again, as far as it goes.
    bench
        .driver
        .create("back", Some("mapped"), &CreateOptions::default())
        .unwrap();
    bench.driver.update_id_map("back", &to, &maps(0, 0), "").unwrap();
    bench
        .driver
        .update_id_map("back", &maps(0, 0), &maps(300_000, 300_000), "")
        .unwrap();
    let root = bench.mount("back", &["ro"]);
    assert_eq!(owner(&root.join("a")), (300_007, 300_008));
    bench.driver.put("back").unwrap();
    let root = bench.mount("base", &["ro"]);
    assert_eq!(owner(&root.join("a")), (7, 8), "the parent is as it was");
    bench.driver.put("base").unwrap();
    if bench.is_overlay() {
        assert!(bench.dir("back").join("diff2/a").exists() && bench.dir("back").join("diff1/a").exists());
        let upper = bench.driver.upper("mapped", Some("base")).unwrap().unwrap();
        assert!(
            is_empty(&upper.dir),
            "new owners are no change of the layer's own"
        );
        assert_eq!(bench.driver.disk_usage("mapped").unwrap().inodes, 1);
    }
}

fn is_empty(dir: &OwnedFd) -> bool {
    rustix::fs::Dir::read_from(dir).unwrap().count() == 2
}

fn owners_can_be_mapped_by_the_mount(bench: &Bench) {
    let to = maps(100_000, 200_000);
    if !bench.driver.supports_shifting(&to) {
        if bench.is_overlay() {
            skip("no ID-mapped lowers on this kernel and file system");
        }
        return;
    }
    bench.layer("base", None, |tree| write(tree, "base", ""));
    bench.layer("middle", Some("base"), |tree| {
        write(tree, "middle", "");
        std::os::unix::fs::chown(tree.join("middle"), Some(7), Some(8)).unwrap();
    });
    let create = CreateOptions {
        mappings: to.clone(),
        read_write: true,
        ..CreateOptions::default()
    };
    bench.driver.create("top", Some("middle"), &create).unwrap();
    let options = MountOptions {
        mappings: to.clone(),
        ..MountOptions::default()
    };
    for round in 0..2 {
        let root = bench.driver.get("top", &options).unwrap();
        assert_eq!(owner(&root), (100_000, 200_000));
        assert_eq!(owner(&root.join("base")), (100_000, 200_000));
        assert_eq!(owner(&root.join("middle")), (100_007, 200_008));
        write(&root, "new", "");
        assert_eq!(
            owner(&root.join("new")),
            (0, 0),
            "what is written has the host's owner"
        );
        let inside = mounts_below(&bench.dir("top")).unwrap();
        assert_eq!(
            inside,
            std::slice::from_ref(&root),
            "views are gone, round {round}"
        );
        assert!(!bench.dir("top").join("mapped").exists());
        bench.driver.put("top").unwrap();
    }
    let plain = MountOptions {
        disable_shifting: true,
        ..options
    };
    let root = bench.driver.get("top", &plain).unwrap();
    assert_eq!(owner(&root.join("middle")), (7, 8));
    bench.driver.put("top").unwrap();
}

fn space_is_measured(bench: &Bench) {
    bench.layer("base", None, |tree| {
        write(tree, "file", "12345");
        fs::hard_link(tree.join("file"), tree.join("link")).unwrap();
        std::os::unix::fs::symlink("123", tree.join("symlink")).unwrap();
        fs::create_dir(tree.join("dir")).unwrap();
    });
    let usage = bench.driver.disk_usage("base").unwrap();
    assert_eq!((usage.size, usage.inodes), (8, 4));
    bench.layer("child", Some("base"), |tree| write(tree, "more", "1234567"));
    let usage = bench.driver.disk_usage("child").unwrap();
    assert_eq!(
        (usage.size, usage.inodes),
        if bench.is_overlay() { (7, 2) } else { (15, 5) }
    );
}

fn files_are_found_through_all_trees(bench: &Bench) {
    bench.layer("base", None, |tree| write(tree, "below", ""));
    bench.layer("child", Some("base"), |tree| write(tree, "above", ""));
    let trees = bench.driver.file_trees("child").unwrap();
    let holds = |tree: &OwnedFd, name: &[u8]| at::lstat_at(tree.as_fd(), name).unwrap().is_some();
    assert!(holds(&trees[0], b"above"));
    assert!(trees.iter().any(|tree| holds(tree, b"below")));
    let upper = bench.driver.upper("child", Some("base")).unwrap();
    assert_eq!(upper.is_some(), bench.is_overlay());
    if let Some(upper) = upper {
        assert!(holds(&upper.dir, b"above") && !holds(&upper.dir, b"below"));
        assert!(upper.lowers.len() == 1 && holds(&upper.lowers[0], b"below"));
        assert!(
            bench.driver.upper("child", None).unwrap().is_none(),
            "it has a parent"
        );
        bench.create("grandchild", Some("child"));
        assert!(
            bench.driver.upper("grandchild", Some("base")).unwrap().is_none(),
            "not the direct parent"
        );
        assert!(bench.driver.upper("base", None).unwrap().is_some());
    }
}

fn a_tree_mount_ends_with_its_guard(bench: &Bench) {
    bench.layer("a", None, |tree| write(tree, "file", ""));
    let mount = mount_tree(&bench.driver, "a").unwrap();
    assert!(at::lstat_at(mount.dir.as_fd(), b"file").unwrap().is_some());
    drop(mount);
    let mounts = mounts_below(bench.driver.home()).unwrap();
    assert!(
        mounts.iter().all(|mounted| mounted == bench.driver.home()),
        "{mounts:?}"
    );
}

fn shutdown_leaves_no_mount(bench: &Bench) {
    bench.create("a", None);
    let _path = bench.mount("a", &[]);
    bench.driver.put("a").unwrap();
    assert_eq!(
        is_mount_point(bench.driver.home()).unwrap(),
        bench.is_overlay(),
        "private while in use"
    );
    bench.driver.cleanup().unwrap();
    assert!(mounts_below(&bench.config.root).unwrap().is_empty());
    bench.driver.cleanup().unwrap();
    assert_eq!(bench.seen("a"), [], "works again afterwards");
}

fn unknown_mount_options_are_refused(bench: &Bench) {
    bench.create("a", None);
    let options = MountOptions {
        options: vec!["nonsense=1".into()],
        ..MountOptions::default()
    };
    bench.driver.get("a", &options).unwrap_err();
    assert!(!bench.is_overlay() || !is_mount_point(&bench.dir("a").join("merged")).unwrap());
    assert_eq!(bench.seen("a"), [], "a failed mount does not count");
    let storage = CreateOptions {
        storage_opt: [("size".into(), "1g".into())].into(),
        ..CreateOptions::default()
    };
    bench.driver.create("b", None, &storage).unwrap_err();
    assert!(!bench.driver.exists("b"));
}

fn volatile_mounts_can_be_repeated(bench: &Bench) {
    bench.create("a", None);
    for _ in 0..3 {
        let options = MountOptions {
            volatile: true,
            ..MountOptions::default()
        };
        let root = bench.driver.get("a", &options).unwrap();
        write(&root, "file", "");
        bench.driver.put("a").unwrap();
    }
    assert_eq!(bench.seen("a").len(), 1);
}

/// Cases of stores that consist of several roots; they make their own benches.
fn additional_stores_are_read(name: &str) {
    let mut other = None;
    let bench = Bench::new(name, |config, tmp| {
        let root = tmp.join("additional");
        let first = DriverConfig {
            root: root.clone(),
            ..config.clone()
        };
        let driver = open_driver(&first).unwrap();
        for (id, parent) in [("base", None), ("image", Some("base"))] {
            let staged = driver.stage(parent, &CreateOptions::default()).unwrap();
            write(&staged.path, id, "");
            driver
                .commit_staged(id, parent, &CreateOptions::default(), staged)
                .unwrap();
        }
        config
            .options
            .push(format!("{}.imagestore={}", driver.name(), root.display()));
        other = Some(root);
    });
    let (Some(bench), Some(other)) = (bench, other) else {
        return;
    };
    assert_eq!(
        bench.driver.additional_image_stores(),
        std::slice::from_ref(&other)
    );
    assert!(bench.driver.exists("image"));
    assert_eq!(bench.driver.list_layers().unwrap(), [""; 0]);
    bench.create("container", Some("image"));
    let root = bench.mount("container", &[]);
    write(&root, "new", "");
    assert_eq!(listing(&root).len(), 3);
    bench.driver.put("container").unwrap();
    let root = bench.mount("image", &[]);
    assert_eq!(listing(&root).len(), 2);
    if bench.is_overlay() {
        assert!(root.starts_with(&bench.config.run_root), "{}", root.display());
        assert!(
            fs::write(root.join("x"), "").is_err(),
            "there is no lock for writing there"
        );
        assert!(
            bench.driver.metadata("container").unwrap()["LowerDir"]
                .contains("/additional/overlay/image/diff:")
        );
        bench.driver.put("image").unwrap();
        assert!(!bench.config.run_root.join("overlay/image").exists());
    }
    // A layer of the same ID is made in the own home, whatever the other store has.
    bench.layer("image", None, |tree| write(tree, "own", ""));
    assert_eq!(bench.seen("image"), pairs(&[("own", "")]));
    drop(bench.driver.defer_remove("image").unwrap().unwrap());
    assert_eq!(bench.seen("image").len(), 2);
    assert!(
        bench.driver.defer_remove("image").unwrap().is_none(),
        "not ours to remove"
    );
    assert!(bench.driver.exists("image"));
    let error = bench
        .driver
        .update_id_map("image", &IdMappings::default(), &maps(1, 1), "")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIsReadOnly);
}

fn images_can_lie_in_a_store_of_their_own(name: &str) {
    let bench = Bench::new(name, |config, tmp| config.image_store = Some(tmp.join("images")));
    let Some(bench) = bench else { return };
    let images = bench.config.image_store.clone().unwrap().join(name);
    let read_write = CreateOptions {
        read_write: true,
        ..CreateOptions::default()
    };
    bench.layer("image", None, |tree| {
        assert!(tree.starts_with(&images), "{}", tree.display());
        write(tree, "image", "");
    });
    bench
        .driver
        .create("container", Some("image"), &read_write)
        .unwrap();
    let staged = bench.driver.stage(Some("image"), &read_write).unwrap();
    assert!(
        staged.path.starts_with(bench.driver.home()),
        "{}",
        staged.path.display()
    );
    bench
        .driver
        .commit_staged("staged", Some("image"), &read_write, staged)
        .unwrap();
    let in_images = |id: &str| {
        images
            .join(if bench.is_overlay() { "" } else { "dir" })
            .join(id)
            .exists()
    };
    assert!(in_images("image") && !in_images("container") && !in_images("staged"));
    assert_eq!(bench.seen("container"), pairs(&[("image", "")]));
    assert_eq!(bench.seen("image"), pairs(&[("image", "")]));
    bench.create("mapped", Some("image"));
    if privilege::is_root() {
        bench
            .driver
            .update_id_map("mapped", &IdMappings::default(), &maps(100, 100), "")
            .unwrap();
        let root = bench.mount("mapped", &["ro"]);
        assert_eq!(owner(&root.join("image")), (100, 100));
        bench.driver.put("mapped").unwrap();
    }
    drop(bench.driver.defer_remove("image").unwrap().unwrap());
    assert!(!bench.driver.exists("image"));
    if bench.is_overlay() {
        assert_eq!(
            fs::read_dir(images.join("l")).unwrap().count(),
            1,
            "the short name went too"
        );
    }
    assert_eq!(bench.driver.temp_dir_roots().len(), 2);
    bench.nothing_temporary();
}

/// One test for each case, of one driver.
macro_rules! suite {
    ($driver:ident, $($case:ident)* ; $($own:ident)*) => {
        mod $driver {
            $(#[test]
            fn $case() {
                if let Some(bench) = super::Bench::new(stringify!($driver), |_config, _tmp| {}) {
                    super::$case(&bench);
                }
            })*
            $(#[test]
            fn $own() {
                super::$own(stringify!($driver));
            })*
        }
    };
}

/// The suite for each driver.
macro_rules! suites {
    ($($driver:ident)*) => {
        $(suite! {
            $driver,
            empty_layer
            base_with_content
            snapshot_sees_and_hides
            deep_chain
            root_mode_is_inherited
            modes_do_not_depend_on_the_umask
            read_only_mount
            writes_land_in_the_layer_only
            mounts_are_counted
            a_mount_of_another_process_counts_once
            a_mount_ended_by_another_process_is_made_again
            removal_is_immediate_and_deletion_deferred
            a_mounted_layer_can_be_removed
            leftovers_are_replaced
            staged_content_is_nothing_until_committed
            a_vanished_parent_is_noticed
            content_can_be_staged_apart
            layers_are_listed_and_described
            bad_ids_are_refused
            owners_can_be_mapped_by_a_copy
            owners_can_be_mapped_by_the_mount
            space_is_measured
            files_are_found_through_all_trees
            a_tree_mount_ends_with_its_guard
            shutdown_leaves_no_mount
            unknown_mount_options_are_refused
            volatile_mounts_can_be_repeated
            ;
            additional_stores_are_read
            images_can_lie_in_a_store_of_their_own
        })*
    };
}

suites! { vfs overlay }
