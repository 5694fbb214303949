//! What cannot be removed, or has no room, keeps nothing else from being done. Needs root, for mounts.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use graphroot::{Durability, LayerOptions, Store, StoreOptions};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use crate::support::{Layout, TestStore, tar};

/// A store, if mounts can be made.
async fn open(driver: &str) -> Option<TestStore> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("GRAPHROOT_TEST_REQUIRE").as_deref() != Ok("all"));
        eprintln!("SKIPPED: mounting needs root");
        return None;
    }
    TestStore::open(driver, Layout::Plain).await
}

/// A directory that cannot be moved: it is a mount point.
fn lasting(dir: &Path) {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .unwrap();
    fs::write(dir.join("file"), "").unwrap();
    mount_bind(dir, dir).unwrap();
    mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
}

/// As with the Go library, stray data that stays is reported.
#[tokio::test]
async fn garbage_that_stays() {
    let Some(store) = open("vfs").await else { return };
    let layer = store.put(None, "layer", &[("f", "1")]).await;
    let image = graphroot::ImageOptions::default();
    let image = store.create_image(Some(layer.id()), image).await.unwrap();
    let container = graphroot::ContainerOptions::default();
    store.create_container(Some(image.id()), container).await.unwrap();
    let id = |digit: &str| digit.repeat(64);
    let layers = store.records("layers");
    lasting(&layers.join(id("1")));
    fs::write(layers.join(format!("{}.tar-split.gz", id("3"))), "").unwrap();
    for kind in ["layers", "containers", "images"] {
        fs::create_dir_all(store.records(kind).join(id("2")).join("d")).unwrap();
    }
    let error = store.garbage_collect().await.unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::ResourceBusy));
    assert!(layers.join(id("1")).join("file").exists());
    assert!(!layers.join(format!("{}.tar-split.gz", id("3"))).exists());
    for kind in ["layers", "containers", "images"] {
        assert!(!store.records(kind).join(id("2")).exists(), "{kind}");
    }
}

async fn a_disk_that_becomes_full(driver: &str) {
    let Some(outer) = open(driver).await else { return };
    let disk = outer.path().join("disk");
    fs::create_dir(&disk).unwrap();
    mount("small", &disk, "tmpfs", MountFlags::empty(), c"size=2m").unwrap();
    let options = StoreOptions::new(disk.join("graph"), outer.path().join("run-of-disk")).driver(driver);
    let store = Store::open(options.durability(Durability::None)).await.unwrap();
    let content = "x".repeat(4 << 20);
    let archive = tar(&[("d/", ""), ("d/large", &content)]);
    let put = store
        .put_layer(None, LayerOptions::default(), Cursor::new(archive))
        .await;
    let error = put.unwrap_err();
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert!(error.chain().contains("d/large"), "{}", error.chain());
    assert!(store.layers().await.unwrap().is_empty());
    let small = Cursor::new(tar(&[("small", "1")]));
    store
        .put_layer(None, LayerOptions::default(), small)
        .await
        .unwrap();
    store.free();
}

#[tokio::test]
async fn a_disk_that_becomes_full_with_overlay() {
    a_disk_that_becomes_full("overlay").await;
}

#[tokio::test]
async fn a_disk_that_becomes_full_with_vfs() {
    a_disk_that_becomes_full("vfs").await;
}
