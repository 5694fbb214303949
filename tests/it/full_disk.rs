//! Deleting when the disk has no free byte and no free inode.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, Store};

use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

/// A small file system.
pub(crate) struct Disk(tempfile::TempDir);

impl Disk {
    pub(crate) fn tmpfs() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=24m,nr_inodes=1500", "full-disk"]);
        command.arg(disk.0.path()).run();
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn ext4() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        let image = disk.0.path().join("image");
        File::create(&image).unwrap().set_len(48 << 20).unwrap();
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-N", "1500"]).arg(&image).run();
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(&image).arg(disk.0.path()).run();
        disk
    }

    /// Makes it full.
    fn fill(&self) -> PathBuf {
        let filler = self.0.path().join("filler");
        fs::create_dir(&filler).unwrap();
        let mut file = File::create(filler.join("bytes")).unwrap();
        for number in 0.. {
            if File::create(filler.join(format!("inode-{number}"))).is_err() {
                break;
            }
        }
        for size in [1 << 20, 4096, 1] {
            let chunk = vec![1; size];
            while file.write_all(&chunk).is_ok() {}
            // What is not allocated yet takes the rest, or there is room again.
            file.sync_data().ok();
            while file.write_all(&chunk).is_ok() {}
        }
        assert!(File::create(self.0.path().join("one-more")).is_err());
        filler
    }

    fn free(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        (stat.f_bfree, stat.f_ffree)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .args(["-R", "-l"])
            .arg(self.0.path())
            .status();
        unmounted.unwrap();
    }
}

fn id(digit: char) -> String {
    String::from(digit).repeat(64)
}

/// An image of two layers with a container, and a second image on the lower layer.
async fn fill_store(store: &Store) {
    let tar = |name: &str| Tar::new().file(name, "x".repeat(100_000)).build();
    let layer = |digit| LayerOptions::default().id(id(digit));
    put_bytes(store, None, layer('1'), tar("one")).await.unwrap();
    put_bytes(store, Some(&id('1')), layer('2'), tar("two"))
        .await
        .unwrap();
    put_bytes(store, Some(&id('1')), layer('3'), tar("three"))
        .await
        .unwrap();
    let image = |digit: char| {
        ImageOptions::default()
            .id(id(digit))
            .name(format!("localhost/{digit}:1"))
    };
    for (digit, layer) in [('4', '2'), ('5', '3')] {
        let options = image(digit).big_data("manifest", "{}");
        store.create_image(Some(&id(layer)), options).await.unwrap();
    }
    let container = ContainerOptions::default().id(id('6')).name("box");
    store.create_container(Some(&id('4')), container).await.unwrap();
}

/// Deletes everything, one after the other, each time with the disk full again.
async fn delete_on(disk: &Disk, driver: &'static str, set: PeerSet) {
    let root = TestRoot::in_dir(disk.0.path(), driver).of(set);
    let store = root.open().await;
    fill_store(&store).await;
    store.free();
    let refill = |path: &Path| {
        fs::remove_dir_all(path).unwrap();
        disk.fill()
    };
    let mut filler = disk.fill();
    let store = root.open().await;
    let mut before = disk.free();
    for what in ["container", "image", "the other image"] {
        match what {
            "container" => store.delete_container("box").await.unwrap(),
            "image" => drop(store.delete_image(&id('4')).await.unwrap()),
            _ => drop(store.delete_image(&id('5')).await.unwrap()),
        }
        let after = disk.free();
        assert!(
            after.0 >= before.0 && after.1 > before.1,
            "{driver}: {what}: {before:?} {after:?}"
        );
        // The Go library sees the same, on the disk as it is.
        let layers = root.go().words("layers --json").run();
        let layers: Option<Vec<serde_json::Value>> = serde_json::from_str(&layers).unwrap();
        let count = layers.unwrap_or_default().len();
        assert_eq!(count, store.layers().await.unwrap().len(), "{driver}: {what}");
        filler = refill(&filler);
        before = disk.free();
    }
    assert_eq!(store.layers().await.unwrap().len(), 0);
    fs::remove_dir_all(&filler).unwrap();
    fill_store(&store).await;
    let mounted = store.mount("box", Default::default()).await.unwrap();
    assert!(mounted.join("two").exists());
    disk.fill();
    store.garbage_collect().await.unwrap();
    store.wipe().await.unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 0);
    assert!(root.layer_directories().is_empty());
    store.garbage_collect().await.unwrap();
}

async fn everything_can_be_deleted_on_a_full_tmpfs(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        delete_on(&Disk::tmpfs(), driver, set).await;
    }
}
each_set!(async everything_can_be_deleted_on_a_full_tmpfs: "containers-storage");

async fn everything_can_be_deleted_on_a_full_ext4(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        delete_on(&Disk::ext4(), driver, set).await;
    }
}
each_set!(async everything_can_be_deleted_on_a_full_ext4: "containers-storage", "mkfs.ext4");
