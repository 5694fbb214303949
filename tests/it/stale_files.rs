//! What killed processes leave: either side removes what the other has left, and what cannot be removed keeps nothing from
//! being done.

use std::fs;
use std::path::{Path, PathBuf};

use graphroot::LayerOptions;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

/// A temporary directory of a killed process in the driver's home, with a layer that it was about to delete.
fn leave(home: &Path, number: u32) -> PathBuf {
    let dirs = home.join("tempdirs");
    let dir = dirs.join(format!("temp-dir-{number}"));
    fs::create_dir_all(dir.join("0-gone/diff")).unwrap();
    fs::write(dir.join("0-gone/diff/file"), "").unwrap();
    fs::write(dirs.join(format!("lock-{number}")), "").unwrap();
    dir
}

/// A directory whose content cannot be removed: it is a mount point, and read-only.
fn lasting(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("file"), "").unwrap();
    mount_bind(dir, dir).unwrap();
    mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
}

async fn put(store: &graphroot::Store, id: &str) {
    let tar = Tar::new().file("file", id).build();
    put_bytes(store, None, LayerOptions::default().id(id), tar)
        .await
        .unwrap();
}

/// Before the home is made a mount of its own: what is mounted below it is found by who opens the store next.
async fn temporary_directories_are_removed_at_the_start(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    put(&store, "layer").await;
    store.shutdown_force().await.unwrap();
    store.free();
    let home = root.graph().join("overlay");
    for (number, by_them) in [(1234, false), (2345, true)] {
        if by_them && !moves_away(set) {
            continue;
        }
        let stale = leave(&home, number);
        // In use by a process that is alive.
        let used = leave(&home, number + 1);
        let lock = home.join(format!("tempdirs/lock-{}", number + 1));
        let holder = crate::support::locks::Holder::posix(&lock, true);
        if by_them {
            root.go().words("layers").run();
        } else {
            let store = root.open().await;
            assert_eq!(store.layers().await.unwrap().len(), 1);
            store.shutdown_force().await.unwrap();
            store.free();
        }
        assert!(!stale.exists(), "by them: {by_them}");
        assert!(used.join("0-gone/diff/file").exists(), "by them: {by_them}");
        assert!(holder.release());
        fs::remove_dir_all(used).unwrap();
        fs::remove_file(lock).unwrap();
    }
}
each_set!(newer async temporary_directories_are_removed_at_the_start: "containers-storage", "python3");

/// Whether programs of the set move what they delete to temporary directories.
fn moves_away(set: PeerSet) -> bool {
    set.storage_version() >= (1, 64)
}

/// The layer is gone although its files are still there.
async fn a_deletion_whose_files_stay_succeeds(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        let root = TestRoot::in_dir(&std::env::temp_dir(), driver).of(set);
        let store = root.open().await;
        for by_them in [false, true] {
            if by_them && !moves_away(set) {
                continue;
            }
            put(&store, "layer").await;
            let content = match driver {
                "overlay" => root.graph().join("overlay/layer/diff"),
                _ => root.graph().join("vfs/dir/layer"),
            };
            lasting(&content.join("stays"));
            if by_them {
                // It may report what stays.
                root.go().words("delete-layer layer").output().unwrap();
            } else {
                store.delete_layer("layer").await.unwrap();
            }
            assert!(store.layers().await.unwrap().is_empty());
            // Their program does not open a store with such a directory.
            crate::support::root::unmount_below(root.path());
            assert_eq!(root.go().words("layers").run(), "");
            store.garbage_collect().await.unwrap();
            assert!(root.layer_directories().is_empty());
        }
    }
}
each_set!(newer async a_deletion_whose_files_stay_succeeds: "containers-storage");

/// Data of a layer without a record that cannot be removed is reported; everything else is removed.
async fn garbage_that_stays_keeps_nothing_else(set: PeerSet) {
    // Older ones fail.
    if set.storage_version() < (1, 64) {
        return;
    }
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs").of(set);
    let store = root.open().await;
    put(&store, "layer").await;
    let image = graphroot::ImageOptions::default();
    let image = store.create_image(Some("layer"), image).await.unwrap();
    store
        .create_container(Some(image.id()), graphroot::ContainerOptions::default())
        .await
        .unwrap();
    let layers = root.metadata_dir("layers");
    let id = |digit: &str| digit.repeat(64);
    for by_them in [false, true] {
        lasting(&layers.join(id("1")));
        let stray = root.graph().join("vfs/dir").join(id("1"));
        fs::create_dir(&stray).unwrap();
        let others = [
            layers.join(id("2")),
            root.metadata_dir("images").join(id("3")),
            root.metadata_dir("containers").join(id("4")),
        ];
        for other in &others {
            fs::create_dir_all(other.join("data")).unwrap();
        }
        let tar_split = layers.join(format!("{}.tar-split.gz", id("5")));
        fs::write(&tar_split, "").unwrap();
        if by_them {
            let output = root.go().words("gc").output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("read-only file system"), "{said}");
        } else {
            let error = store.garbage_collect().await.unwrap_err();
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::ResourceBusy));
        }
        assert!(layers.join(id("1")).join("file").exists());
        for other in &others {
            assert!(!other.exists(), "by them: {by_them}: {}", other.display());
        }
        assert!(!tar_split.exists() && !stray.exists(), "by them: {by_them}");
        crate::support::root::unmount_below(root.path());
        fs::remove_dir_all(layers.join(id("1"))).unwrap();
    }
}

each_set!(newer async garbage_that_stays_keeps_nothing_else: "containers-storage");
