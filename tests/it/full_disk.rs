//! Deleting when the disk has no free byte and no free inode.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, Store};
use rustix::fs::FallocateFlags;

use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::{each_set, needs};

/// A small file system.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    inodes: Inodes,
}

/// How the inodes of a file system end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inodes {
    /// There is a number of them.
    Counted,
    /// They are made as long as there is space.
    Made,
    /// They lie in space that is kept for them.
    Apart,
}

impl Disk {
    pub(crate) fn tmpfs() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=24m,nr_inodes=1500", "full-disk"]);
        command.arg(dir.path()).run();
        Self {
            dir,
            inodes: Inodes::Counted,
        }
    }

    /// In a file, made by a program with these arguments.
    fn made_by(program: &str, arguments: &[&str], mebibytes: u64, inodes: Inodes) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        Command::new(program).args(arguments).arg(&image).run();
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(&image).arg(dir.path()).run();
        Self { dir, inodes }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn ext4() -> Self {
        Self::made_by("mkfs.ext4", &["-q", "-F", "-N", "1500"], 48, Inodes::Counted)
    }

    pub(crate) fn xfs() -> Self {
        Self::made_by("mkfs.xfs", &["-q"], 320, Inodes::Made)
    }

    fn btrfs() -> Self {
        Self::made_by("mkfs.btrfs", &["-q"], 128, Inodes::Apart)
    }

    /// Makes it full.
    pub(crate) fn fill(&self) -> PathBuf {
        let filler = self.dir.path().join("filler");
        fs::create_dir(&filler).unwrap();
        let mut file = File::create(filler.join("bytes")).unwrap();
        let take_inodes = || {
            let mut numbers = 0..;
            numbers.find(|number| File::create(filler.join(format!("inode-{number}"))).is_err());
        };
        if self.inodes == Inodes::Counted {
            take_inodes();
        }
        // Most of it at once, the rest byte by byte.
        let (mut size, mut end) = (64 << 20, 0);
        while size >= 4096 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), end, size) {
                Ok(()) => end += size,
                Err(_) => size /= 2,
            }
        }
        file.seek(SeekFrom::End(0)).unwrap();
        for size in [4096, 1] {
            let chunk = vec![1; size];
            while file.write_all(&chunk).is_ok() {}
            // What is not allocated yet takes the rest, or there is room again.
            file.sync_data().ok();
            while file.write_all(&chunk).is_ok() {}
        }
        if self.inodes == Inodes::Made {
            take_inodes();
        }
        let more = self.dir.path().join("one-more");
        // A small file needs no space of its own where inodes lie apart.
        assert!(fs::write(&more, [1; 8192]).is_err());
        fs::remove_file(&more).ok();
        filler
    }

    /// Makes it full again.
    pub(crate) fn fill_up(&self) {
        fs::remove_dir_all(self.dir.path().join("filler")).unwrap();
        self.fill();
    }

    fn free(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.dir.path()).unwrap();
        (stat.f_bfree, stat.f_ffree)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .args(["-R", "-l"])
            .arg(self.dir.path())
            .status();
        unmounted.unwrap();
    }
}

fn id(digit: char) -> String {
    String::from(digit).repeat(64)
}

/// An image with a container, and a second image on the same lowest layer. Each layer's record has a text of this length.
async fn fill_store(store: &Store, metadata: usize) {
    let tar = |name: &str| Tar::new().file(name, "x".repeat(100_000)).build();
    let layer = |digit| LayerOptions::default().id(id(digit));
    put_bytes(store, None, layer('1'), tar("one")).await.unwrap();
    put_bytes(store, Some(&id('1')), layer('2'), tar("two"))
        .await
        .unwrap();
    put_bytes(store, Some(&id('1')), layer('3'), tar("three"))
        .await
        .unwrap();
    // The records fill more than a block.
    for (below, digit) in [
        ('2', '7'),
        ('7', '8'),
        ('8', '9'),
        ('3', 'a'),
        ('a', 'b'),
        ('b', 'c'),
    ] {
        let options = layer(digit)
            .name(String::from(digit).repeat(400))
            .metadata("m".repeat(metadata));
        store.create_layer(Some(&id(below)), options).await.unwrap();
    }
    let image = |digit: char| {
        ImageOptions::default()
            .id(id(digit))
            .name(format!("localhost/{digit}:1"))
    };
    for (digit, layer) in [('4', '9'), ('5', 'c')] {
        let options = image(digit).big_data("manifest", "{}");
        store.create_image(Some(&id(layer)), options).await.unwrap();
    }
    let container = ContainerOptions::default().id(id('6')).name("box");
    store.create_container(Some(&id('4')), container).await.unwrap();
}

/// Deletes everything, one after the other, each time with the disk full again.
async fn delete_on(disk: &Disk, driver: &'static str, set: PeerSet) {
    delete_records_on(disk, driver, set, 0).await;
}

/// As [`delete_on`], with this much text in each layer's record.
async fn delete_records_on(disk: &Disk, driver: &'static str, set: PeerSet, metadata: usize) {
    let root = TestRoot::in_dir(disk.dir.path(), driver).of(set);
    let store = root.open().await;
    fill_store(&store, metadata).await;
    store.free();
    let refill = |path: &Path| {
        fs::remove_dir_all(path).ok();
        disk.fill()
    };
    let mut filler = disk.fill();
    let mut before = disk.free();
    for what in ["container", "image", "the other image"] {
        // What was left of the reserves by the last one has to do.
        let store = root.open().await;
        match what {
            "container" => store.delete_container("box").await.unwrap(),
            "image" => drop(store.delete_image(&id('4')).await.unwrap()),
            _ => drop(store.delete_image(&id('5')).await.unwrap()),
        }
        let after = disk.free();
        assert!(
            disk.inodes != Inodes::Counted || after.0 >= before.0 && after.1 > before.1,
            "{driver}: {what}: {before:?} {after:?}"
        );
        if disk.inodes == Inodes::Made || metadata > 0 {
            // The Go library does not open a store where it cannot make a directory.
            fs::remove_dir_all(&filler).unwrap();
        }
        // The Go library sees the same, on the disk as it is.
        let layers = root.go().words("layers --json").run();
        let layers: Option<Vec<serde_json::Value>> = serde_json::from_str(&layers).unwrap();
        let count = layers.unwrap_or_default().len();
        assert_eq!(count, store.layers().await.unwrap().len(), "{driver}: {what}");
        filler = refill(&filler);
        before = disk.free();
    }
    let store = root.open().await;
    assert_eq!(store.layers().await.unwrap().len(), 0);
    fs::remove_dir_all(&filler).unwrap();
    fill_store(&store, metadata).await;
    let mounted = store.mount("box", Default::default()).await.unwrap();
    assert!(mounted.join("two").exists());
    disk.fill();
    store.garbage_collect().await.unwrap();
    store.wipe().await.unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 0);
    assert_eq!(root.layer_directories(), BTreeSet::new());
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

/// What changes in large records is written to their reserves on a disk with space too.
#[tokio::test(flavor = "multi_thread")]
async fn large_records_can_be_deleted_on_a_full_disk() {
    needs!("containers-storage", "mkfs.ext4", "mkfs.btrfs");
    let disks: [fn() -> Disk; 3] = [Disk::tmpfs, Disk::ext4, Disk::btrfs];
    for disk in disks {
        delete_records_on(&disk(), "overlay", PeerSet::Installed, 70_000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_deleted_on_a_full_xfs() {
    needs!("containers-storage", "mkfs.xfs");
    delete_on(&Disk::xfs(), "overlay", PeerSet::Installed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_deleted_on_a_full_btrfs() {
    needs!("containers-storage", "mkfs.btrfs");
    delete_on(&Disk::btrfs(), "overlay", PeerSet::Installed).await;
}
