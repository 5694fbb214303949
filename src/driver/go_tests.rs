//! The drivers beside the Go library's program `containers-storage` on the same directories: each mounts the layers that
//! the other has made, and their directories are the same.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use crate::driver::conformance::{MountGuard, path_of};
use crate::driver::select::open_driver;
use crate::driver::{CreateOptions, Driver, DriverConfig, MountOptions};
use crate::skip::skip;
use crate::sys::mount::is_mount_point;
use crate::sys::privilege;

/// A graph root that both use.
struct Root {
    config: DriverConfig,
    // In this order: the directory can only be removed when nothing is mounted in it.
    _guard: MountGuard,
    _tmp: tempfile::TempDir,
}

impl Root {
    fn new(driver: &str) -> Option<Self> {
        if !privilege::is_root()
            || Command::new("containers-storage")
                .arg("version")
                .output()
                .is_err()
        {
            skip("needs root and containers-storage");
            return None;
        }
        let tmp = tempfile::tempdir().unwrap();
        let config = DriverConfig {
            name: Some(driver.into()),
            root: tmp.path().join("graph"),
            run_root: tmp.path().join("run"),
            ..DriverConfig::default()
        };
        Some(Self {
            config,
            _guard: MountGuard::new(tmp.path()),
            _tmp: tmp,
        })
    }

    fn ours(&self) -> Arc<dyn Driver> {
        open_driver(&self.config).unwrap()
    }

    fn try_go(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("containers-storage");
        command
            .arg("--graph")
            .arg(&self.config.root)
            .arg("--run")
            .arg(&self.config.run_root);
        command
            .args(["--storage-driver", self.config.name.as_deref().unwrap()])
            .args(arguments);
        command.output().unwrap()
    }

    fn go(&self, arguments: &[&str]) -> String {
        let output = self.try_go(arguments);
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{arguments:?}: {out}{error}");
        out.trim().to_owned()
    }

    fn go_mount(&self, id: &str) -> PathBuf {
        let out = self.go(&["mount", id]);
        PathBuf::from(out.lines().last().unwrap())
    }
}

/// Older versions of the Go library remove the mount point.
fn is_mounted(merged: &Path) -> bool {
    merged.exists() && is_mount_point(merged).unwrap()
}

/// Replaces the directory of a layer that Go has recorded by one that our driver makes.
fn fill(driver: &Arc<dyn Driver>, id: &str, parent: Option<&str>, fill: impl FnOnce(&Path)) {
    let staged = Arc::clone(driver)
        .stage(parent, &CreateOptions::default())
        .unwrap();
    fill(&path_of(&*staged));
    staged.commit(id, parent, &CreateOptions::default()).unwrap();
}

/// Kind, mode, owner and size (of files) of everything in a layer directory.
fn shape(dir: &Path) -> Vec<String> {
    let mut lines: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let size = if meta.is_file() { meta.len() } else { 0 };
            let name = entry.file_name().into_string().unwrap();
            format!("{name} {:o} {}:{} {size}", meta.mode(), meta.uid(), meta.gid())
        })
        .collect();
    lines.push(format!(". {:o}", dir.metadata().unwrap().mode()));
    lines.sort();
    lines
}

#[test]
fn overlay_layers_have_the_shape_that_go_gives_them() {
    let Some(root) = Root::new("overlay") else { return };
    root.go(&["create-layer", "--id", "go-base"]);
    root.go(&["create-layer", "--id", "go-child", "go-base"]);
    let driver = root.ours();
    driver.create("base", None, &CreateOptions::default()).unwrap();
    driver
        .create("child", Some("base"), &CreateOptions::default())
        .unwrap();
    fill(&driver, "staged", Some("go-base"), |_tree| {});
    let home = driver.home();
    for (id, parent) in [("child", "base"), ("staged", "go-base")] {
        let path = home.join(id).join("lower-layers");
        assert_eq!(fs::read_to_string(&path).unwrap(), parent);
        // Programs before 1.64 do not write it.
        if !home.join("go-child/lower-layers").exists() {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(shape(&home.join("base")), shape(&home.join("go-base")));
    assert_eq!(shape(&home.join("child")), shape(&home.join("go-child")));
    assert_eq!(shape(&home.join("staged")), shape(&home.join("go-child")));
    for (id, parent) in [("child", "base"), ("go-child", "go-base"), ("staged", "go-base")] {
        let lower = fs::read_to_string(home.join(id).join("lower")).unwrap();
        let link = fs::read_to_string(home.join(parent).join("link")).unwrap();
        assert_eq!(lower, format!("l/{link}"));
        assert_eq!(
            fs::read_link(home.join("l").join(link)).unwrap(),
            Path::new("..").join(parent).join("diff")
        );
    }
}

#[test]
fn probes_leave_the_files_that_go_leaves() {
    let (Some(first), Some(second)) = (Root::new("overlay"), Root::new("overlay")) else {
        return;
    };
    first.go(&["create-layer"]);
    first.go(&["status"]);
    let status = second.ours().status();
    let files = |root: &Root| {
        let dir = root.config.run_root.join("overlay");
        let mut files: Vec<(String, String)> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    fs::read_to_string(&path).unwrap(),
                )
            })
            .filter(|(name, _content)| !name.starts_with("volatile"))
            .collect();
        files.sort();
        files
    };
    assert_eq!(files(&second), files(&first), "{status:?}");
    let flag = |root: &Root| fs::read_to_string(root.config.root.join("overlay/.has-mount-program")).unwrap();
    assert_eq!(flag(&second), flag(&first));
    let left: Vec<_> = fs::read_dir(root_dirs(&second))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| [".has-mount-program", "l", "tempdirs"].contains(&name.to_str().unwrap())),
        "{left:?}"
    );
}

fn root_dirs(root: &Root) -> PathBuf {
    root.config.root.join("overlay")
}

#[test]
fn go_mounts_what_we_made() {
    for driver_name in ["overlay", "vfs"] {
        let Some(root) = Root::new(driver_name) else {
            return;
        };
        root.go(&["create-layer", "--id", "base"]);
        root.go(&["create-layer", "--id", "child", "base"]);
        let driver = root.ours();
        fill(&driver, "base", None, |tree| {
            fs::write(tree.join("base"), "base").unwrap();
            fs::write(tree.join("changed"), "base").unwrap();
        });
        fill(&driver, "child", Some("base"), |tree| {
            fs::write(tree.join("changed"), "child").unwrap();
        });
        let merged = root.go_mount("child");
        assert_eq!(fs::read_to_string(merged.join("base")).unwrap(), "base");
        assert_eq!(fs::read_to_string(merged.join("changed")).unwrap(), "child");
        // Our driver uses its mount, and does not end it.
        assert_eq!(driver.mount("child", &MountOptions::default()).unwrap(), merged);
        driver.unmount("child").unwrap();
        assert!(merged.join("base").exists());
        fs::write(merged.join("new"), "by go's mount").unwrap();
        root.go(&["unmount", "child"]);
        assert!(driver_name == "vfs" || !is_mounted(&merged));
        let merged = driver.mount("child", &MountOptions::default()).unwrap();
        assert_eq!(fs::read_to_string(merged.join("new")).unwrap(), "by go's mount");
        driver.unmount("child").unwrap();
        drop(driver.defer_remove("child").unwrap());
        root.go(&["shutdown"]);
    }
}

#[test]
fn we_mount_what_go_made() {
    for driver_name in ["overlay", "vfs"] {
        let Some(root) = Root::new(driver_name) else {
            return;
        };
        root.go(&["create-layer", "--id", "base"]);
        let merged = root.go_mount("base");
        fs::write(merged.join("base"), "base").unwrap();
        fs::write(merged.join("doomed"), "base").unwrap();
        root.go(&["unmount", "base"]);
        root.go(&["create-layer", "--id", "child", "base"]);
        let merged = root.go_mount("child");
        fs::write(merged.join("child"), "child").unwrap();
        fs::remove_file(merged.join("doomed")).unwrap();
        root.go(&["unmount", "child"]);
        let driver = root.ours();
        driver
            .create("top", Some("child"), &CreateOptions::default())
            .unwrap();
        let merged = driver.mount("top", &MountOptions::default()).unwrap();
        assert_eq!(fs::read_to_string(merged.join("base")).unwrap(), "base");
        assert_eq!(fs::read_to_string(merged.join("child")).unwrap(), "child");
        assert!(!merged.join("doomed").exists());
        driver.unmount("top").unwrap();
        assert_eq!(
            driver.overlay_diff("child", Some("base")).unwrap().is_some(),
            driver_name == "overlay"
        );
    }
}

#[test]
fn our_mounts_are_where_go_sees_them() {
    let Some(root) = Root::new("overlay") else { return };
    root.go(&["create-layer", "--id", "a"]);
    let driver = root.ours();
    driver.cleanup().unwrap();
    assert!(!is_mount_point(driver.home()).unwrap());
    let merged = driver.mount("a", &MountOptions::default()).unwrap();
    fs::write(merged.join("file"), "").unwrap();
    // Another process that starts now must use the mount, and must not mount over it.
    assert_eq!(root.go_mount("a"), merged);
    assert!(merged.join("file").exists());
    root.go(&["unmount", "a"]);
    assert!(!is_mounted(&merged), "the last use, by go's count");
    driver.unmount("a").unwrap();
}

#[test]
fn go_clears_what_a_killed_process_of_ours_left_and_we_what_go_left() {
    let Some(root) = Root::new("overlay") else { return };
    root.go(&["create-layer", "--id", "a"]);
    let driver = root.ours();
    let staged = Arc::clone(&driver)
        .stage(Some("a"), &CreateOptions::default())
        .unwrap();
    fs::write(path_of(&*staged).join("file"), "").unwrap();
    root.go(&["create-layer", "--id", "b", "a"]);
    root.go(&["delete-layer", "b"]);
    assert!(path_of(&*staged).join("file").exists(), "in use");
    staged.commit("c", Some("a"), &CreateOptions::default()).unwrap();
    assert_eq!(
        root.try_go(&["mount", "c"]).status.code(),
        Some(1),
        "no record names it"
    );
}
