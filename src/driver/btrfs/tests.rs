use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::io::Errno;

use crate::driver::conformance::btrfs::{Btrfs as FileSystem, shared};
use crate::driver::select::open_driver;
use crate::driver::{Copied, CreateOptions, Driver, DriverConfig, MountOptions};
use crate::error::ErrorKind;
use crate::skip::skip;
use crate::sys::{at, btrfs};

fn config(root: &Path, options: &[&str]) -> DriverConfig {
    DriverConfig {
        name: Some("btrfs".into()),
        root: root.join("graph"),
        run_root: root.join("run"),
        options: options.iter().map(ToString::to_string).collect(),
        ..DriverConfig::default()
    }
}

/// A driver on the file system that all share.
fn driver() -> Option<(Arc<dyn Driver>, tempfile::TempDir)> {
    let dir = match shared() {
        Ok(dir) => tempfile::tempdir_in(dir).unwrap(),
        Err(why) => {
            skip(why);
            return None;
        }
    };
    Some((open_driver(&config(dir.path(), &[])).unwrap(), dir))
}

/// A file system on which space is counted.
fn own_file_system() -> Option<FileSystem> {
    if std::env::var_os(crate::driver::conformance::btrfs::VARIABLE).is_some() {
        // In a user namespace, which the outer process says.
        return None;
    }
    FileSystem::new().map_err(skip).ok()
}

fn container(size: &str) -> CreateOptions {
    CreateOptions {
        read_write: true,
        storage_opt: [("size".to_owned(), size.to_owned())].into(),
        ..CreateOptions::default()
    }
}

/// Writes a file until something is in the way.
fn fill(dir: &Path, mebibytes: usize) -> Result<(), Errno> {
    let mut file = fs::File::create(dir.join("file")).unwrap();
    let write = |_| {
        // Not all zero, which a file system could leave out.
        file.write_all(&[7; 1 << 20])?;
        file.sync_data()
    };
    let written = (0..mebibytes).try_for_each(write);
    written.map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn subvolume(driver: &dyn Driver, id: &str) -> PathBuf {
    driver.home().join("subvolumes").join(id)
}

fn make_subvolume(path: &Path) {
    let above = at::open_dir(path.parent().unwrap()).unwrap();
    btrfs::create_subvolume(above.as_fd(), path.file_name().unwrap().as_encoded_bytes()).unwrap();
}

#[test]
fn other_file_systems_are_refused_and_stay_as_they_are() {
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let error = open_driver(&config(tmp.path(), &[])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let text = error.chain();
    assert!(text.contains("is not on a btrfs filesystem"), "{text}");
    assert!(
        text.contains("prerequisites for driver not satisfied (wrong filesystem?)"),
        "{text}"
    );
    assert!(!tmp.path().join("graph").exists());
}

#[test]
fn every_layer_is_a_subvolume() {
    let Some((driver, _dir)) = driver() else { return };
    let options = CreateOptions::default();
    driver.create("base", None, &options).unwrap();
    let staged = Arc::clone(&driver).stage(Some("base"), &options).unwrap();
    staged.commit("child", Some("base"), &options).unwrap();
    driver.create("container", Some("child"), &options).unwrap();
    let mut ids = Vec::new();
    for id in ["base", "child", "container"] {
        let path = subvolume(&*driver, id);
        assert_eq!(path.metadata().unwrap().ino(), 256, "{id}");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "{id}");
        let dir = at::open_dir(&path).unwrap();
        ids.push(btrfs::subvolume_or_inode(dir.as_fd()).unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(!driver.home().join("quotas").exists());
}

#[test]
fn staged_content_leaves_the_root_as_its_parent_has_it() {
    let Some((driver, _dir)) = driver() else { return };
    let options = CreateOptions::default();
    driver.create("base", None, &options).unwrap();
    let before = subvolume(&*driver, "base").metadata().unwrap();
    let staged = Arc::clone(&driver).stage(Some("base"), &options).unwrap();
    assert!(staged.unpack_dir().is_some());
    staged.commit("child", Some("base"), &options).unwrap();
    let after = subvolume(&*driver, "child").metadata().unwrap();
    let times = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.mode());
    assert_eq!(times(&before), times(&after));
}

#[test]
fn what_a_killed_move_has_left_is_removed() {
    let Some((driver, _dir)) = driver() else { return };
    driver.create("a", None, &CreateOptions::default()).unwrap();
    let root = subvolume(&*driver, "a");
    let number = "0123456789abcdef0123456789abcdef";
    let (left, other) = (
        root.join(format!(".graphroot-unpack-{number}")),
        root.join(".graphroot-unpack-1"),
    );
    for dir in [&left, &other] {
        fs::create_dir_all(dir.join("below")).unwrap();
    }
    driver.remove_half_moved("a").unwrap();
    assert!(!left.exists() && other.exists());
    driver.remove_half_moved("none").unwrap();
}

#[test]
fn subvolumes_in_a_layer_go_with_it() {
    let Some((driver, _dir)) = driver() else { return };
    let options = CreateOptions::default();
    driver.create("a", None, &options).unwrap();
    let root = subvolume(&*driver, "a");
    let mut deep = root.join("directory");
    fs::create_dir(&deep).unwrap();
    for level in 0..40 {
        deep.push(format!("nested{level}"));
        make_subvolume(&deep);
        fs::write(deep.join("file"), "content").unwrap();
    }
    for number in 0..300 {
        make_subvolume(&root.join(format!("wide{number}")));
    }
    // A snapshot has empty directories in their places.
    driver.create("b", Some("a"), &options).unwrap();
    assert!(subvolume(&*driver, "b").join("directory/nested0").is_dir());
    assert!(!subvolume(&*driver, "b").join("directory/nested0/file").exists());
    drop(driver.defer_remove("b").unwrap().unwrap());
    drop(driver.defer_remove("a").unwrap().unwrap());
    assert_eq!(fs::read_dir(driver.home().join("tempdirs")).unwrap().count(), 0);

    driver.create("a", None, &options).unwrap();
    make_subvolume(&root.join("nested"));
    driver.remove_in_place("a").unwrap();
    assert!(!root.exists());
}

#[test]
fn a_layer_that_was_made_read_only_can_be_removed() {
    let Some((driver, _dir)) = driver() else { return };
    if Command::new("btrfs").arg("--version").output().is_err() {
        return skip("btrfs-progs are not installed");
    }
    let options = CreateOptions::default();
    for id in ["moved", "in_place", "replaced"] {
        driver.create(id, None, &options).unwrap();
        let set = Command::new("btrfs")
            .args(["property", "set"])
            .arg(subvolume(&*driver, id))
            .args(["ro", "true"])
            .status();
        assert!(set.unwrap().success());
    }
    driver.create("child", Some("moved"), &options).unwrap();
    fs::write(subvolume(&*driver, "child").join("file"), "").unwrap();
    drop(driver.defer_remove("moved").unwrap().unwrap());
    driver.remove_in_place("in_place").unwrap();
    driver.create("replaced", None, &options).unwrap();
    assert_eq!(driver.list_layers().unwrap().len(), 2);
    fs::write(subvolume(&*driver, "replaced").join("file"), "").unwrap();
}

/// As one that was restored from a backup, or of an additional store on another file system.
#[test]
fn a_layer_that_is_no_subvolume_is_copied() {
    let Some((driver, _dir)) = driver() else { return };
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = CreateOptions::default();
    let elsewhere = other.path().join("btrfs/subvolumes/elsewhere");
    for copied in [subvolume(&*driver, "restored"), elsewhere] {
        fs::create_dir_all(copied.join("directory")).unwrap();
        fs::write(copied.join("directory/file"), "content").unwrap();
    }
    let config = config(
        driver.home().parent().unwrap().parent().unwrap(),
        &[&format!("btrfs.imagestore={}", other.path().display())],
    );
    let driver = open_driver(&config).unwrap();
    for parent in ["restored", "elsewhere"] {
        let child = format!("on-{parent}");
        driver.create(&child, Some(parent), &options).unwrap();
        let root = subvolume(&*driver, &child);
        assert_eq!(root.metadata().unwrap().ino(), 256);
        assert_eq!(
            fs::read_to_string(root.join("directory/file")).unwrap(),
            "content"
        );
    }
    let copy = driver
        .copy_layer("restored", Copied::Tree { durable: true })
        .unwrap();
    drop(copy.unwrap().take_place().unwrap());
    assert_eq!(subvolume(&*driver, "restored").metadata().unwrap().ino(), 256);
    let error = driver
        .copy_layer("elsewhere", Copied::Tree { durable: true })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIsReadOnly);
    assert!(driver.defer_remove("elsewhere").unwrap().is_none() && driver.exists("elsewhere").unwrap());
}

#[test]
fn copies_take_the_place_of_a_subvolume() {
    let Some((driver, _dir)) = driver() else { return };
    driver.create("a", None, &CreateOptions::default()).unwrap();
    let root = subvolume(&*driver, "a");
    fs::write(root.join("file"), "old").unwrap();
    let identity = || {
        let dir = at::open_dir(&root).unwrap();
        btrfs::subvolume_or_inode(dir.as_fd()).unwrap()
    };
    let before = identity();
    for (copied, files) in [(Copied::Tree { durable: true }, 1), (Copied::Root, 0)] {
        let copy = driver.copy_layer("a", copied).unwrap().unwrap();
        drop(copy.take_place().unwrap());
        assert_ne!(identity(), before);
        assert_eq!(fs::read_dir(&root).unwrap().count(), files, "{copied:?}");
        assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o555);
    }
}

#[test]
fn limits_hold() {
    let Some(file_system) = own_file_system() else {
        return;
    };
    let driver = open_driver(&config(file_system.path(), &[])).unwrap();
    driver.create("image", None, &CreateOptions::default()).unwrap();
    driver.create("small", Some("image"), &container("8m")).unwrap();
    driver
        .create("free", Some("image"), &CreateOptions::default())
        .unwrap();
    let file = |id: &str| driver.home().join("quotas").join(id);
    assert_eq!(fs::read_to_string(file("small")).unwrap(), "8388608");
    assert!(!file("free").exists() && !file("image").exists());
    assert_eq!(fill(&subvolume(&*driver, "small"), 16), Err(Errno::DQUOT));
    assert_eq!(fill(&subvolume(&*driver, "free"), 16), Ok(()));

    // Staged layers get theirs when they are complete.
    let staged = Arc::clone(&driver)
        .stage(Some("image"), &container("8m"))
        .unwrap();
    staged.commit("staged", Some("image"), &container("8m")).unwrap();
    assert_eq!(fill(&subvolume(&*driver, "staged"), 16), Err(Errno::DQUOT));

    // A tree that takes the place of another one has the limit when it is mounted.
    let copy = driver.copy_layer("small", Copied::Root).unwrap().unwrap();
    drop(copy.take_place().unwrap());
    let root = driver.mount("small", &MountOptions::default()).unwrap();
    assert_eq!(fill(&root, 16), Err(Errno::DQUOT));

    drop(driver.defer_remove("small").unwrap().unwrap());
    assert!(!file("small").exists());
    // Another layer of that ID has no limit.
    fs::write(file("small"), "1").unwrap();
    driver.create("small", None, &CreateOptions::default()).unwrap();
    assert!(!file("small").exists());
    // A file that no number is in, and one of no layer.
    fs::write(file("free"), "x").unwrap();
    assert_eq!(
        driver.mount("free", &MountOptions::default()).unwrap(),
        subvolume(&*driver, "free")
    );
    fs::write(file("gone"), "1").unwrap();
    driver.remove_strays().unwrap();
    assert!(!file("gone").exists() && file("staged").exists());
}

#[test]
fn limits_have_a_default_and_a_least() {
    let Some(file_system) = own_file_system() else {
        return;
    };
    let options = ["btrfs.size=8m", "btrfs.min_space=4m"];
    let driver = open_driver(&config(file_system.path(), &options)).unwrap();
    driver.create("image", None, &CreateOptions::default()).unwrap();
    let usual = CreateOptions {
        read_write: true,
        ..CreateOptions::default()
    };
    driver.create("usual", Some("image"), &usual).unwrap();
    let file = |id: &str| driver.home().join("quotas").join(id);
    assert_eq!(fs::read_to_string(file("usual")).unwrap(), "8388608");
    assert!(!file("image").exists());
    for (size, text) in [
        ("0", "btrfs: invalid storage size: 0B"),
        ("1m", "btrfs: storage size cannot be less than 4.194MB"),
        ("x", "\"size\""),
    ] {
        let error = driver.create("b", Some("image"), &container(size)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.chain().contains(text), "{}", error.chain());
        let error = Arc::clone(&driver).stage(None, &container(size)).unwrap_err();
        assert!(error.chain().contains(text), "{}", error.chain());
    }
    assert!(!driver.exists("b").unwrap());
    let many = CreateOptions {
        storage_opt: [("inodes".into(), "5".into())].into(),
        ..CreateOptions::default()
    };
    let error = driver.create("b", None, &many).unwrap_err();
    assert!(
        error.chain().contains("unknown option inodes"),
        "{}",
        error.chain()
    );
}
