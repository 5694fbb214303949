//! Stores that are only read: found, used, and never changed.

use graphroot::{ContainerOptions, DiffOptions, Digest, ErrorKind, LayerOptions};

use crate::support::{Layout, TestStore, kind, read_all, tar};

async fn with_additional(driver: &str) -> Option<TestStore> {
    TestStore::open(driver, Layout::Additional).await
}

/// Everything below a directory with its time of change.
fn listing(dir: &std::path::Path) -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            // A child's mount makes an access, not a change.
            all.push((path.clone(), meta.modified().unwrap()));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    all.sort();
    all
}

/// The layer and the image of the additional store are mounted read-only, and counted over all processes.
async fn looked_at_in_place(store: &crate::support::TestStore) {
    let read_only = || graphroot::MountOptions::default().option("ro");
    let path = store.mount("additional-layer", read_only()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("from-below")).unwrap(), "1");
    if store.graph_driver_name() == "overlay" {
        assert!(std::fs::write(path.join("from-below"), "2").is_err());
    }
    let other = store.reopen().await;
    assert_eq!(
        other
            .mount_image("additional-image", Default::default())
            .await
            .unwrap(),
        path
    );
    assert_eq!(other.mounted("additional-layer").await.unwrap(), 2);
    let layer = store.layer("additional-layer").await.unwrap();
    assert_eq!(
        (layer.mount_count(), layer.mount_point()),
        (2, Some(path.as_path()))
    );
    // Other layers' counts are written meanwhile.
    store.mount("on-top", Default::default()).await.unwrap();
    store.unmount("on-top").await.unwrap();
    assert_eq!(other.unmount_image("additional-image").await.unwrap(), 1);
    assert_eq!(std::fs::read_to_string(path.join("from-below")).unwrap(), "1");
    assert_eq!(kind(other.shutdown().await), ErrorKind::LayerUsedByContainer);
    assert_eq!(store.unmount(path.to_str().unwrap()).await.unwrap(), 0);
    assert_eq!(store.mounted("additional-layer").await.unwrap(), 0);
    store
        .mount_image("additional-image", Default::default())
        .await
        .unwrap();
    store.unmount_image_all("additional-image").await.unwrap();
    if store.graph_driver_name() == "overlay" {
        assert!(!path.exists());
    }
}

async fn used_but_not_changed(driver: &str) {
    let Some(store) = with_additional(driver).await else {
        return;
    };
    let before = listing(&store.path().join("additional"));
    let layer = store.layer("additional-layer").await.unwrap();
    assert!(layer.read_only());
    let image = store.image("additional-image").await.unwrap();
    assert!(image.read_only());
    assert_eq!(
        store
            .images_by_digest(&Digest::sha256("{\"a\":1}"))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        store
            .image_big_data("additional-image", "manifest")
            .await
            .unwrap(),
        b"{\"a\":1}"[..]
    );
    assert_eq!(
        read_all(store.layer_big_data(layer.id(), "item").await.unwrap()).await,
        b"data"
    );
    assert_eq!(store.lookup("additional-image").await.unwrap(), image.id());
    let diff = store
        .diff(None, layer.id(), DiffOptions::uncompressed())
        .await
        .unwrap();
    assert_eq!(
        Some(Digest::sha256(read_all(diff).await)),
        layer.uncompressed_digest()
    );
    // A container and a layer on top of it live here.
    let container = store
        .create_container(Some("additional-image"), ContainerOptions::default())
        .await
        .unwrap();
    let path = store.mount(container.id(), Default::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("from-below")).unwrap(), "1");
    std::fs::write(path.join("from-below"), "changed").unwrap();
    store.unmount(container.id()).await.unwrap();
    let options = LayerOptions::default().name("on-top");
    let put = store
        .put_layer(
            Some("additional-layer"),
            options,
            std::io::Cursor::new(tar(&[("top", "2")])),
        )
        .await;
    assert_eq!(put.unwrap().layer.parent(), Some(layer.id()));
    let path = store.mount("on-top", Default::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("from-below")).unwrap(), "1");
    store.unmount("on-top").await.unwrap();
    looked_at_in_place(&store).await;
    // Nothing can be changed there.
    assert_eq!(
        kind(store.mount("additional-layer", Default::default()).await),
        ErrorKind::StoreIsReadOnly
    );
    assert_eq!(
        kind(store.delete_layer("additional-layer").await),
        ErrorKind::NotALayer
    );
    assert_eq!(
        kind(store.delete_image("additional-image").await),
        ErrorKind::NotAnImage
    );
    assert_eq!(
        kind(store.set_metadata(image.id(), "x").await),
        ErrorKind::NotAnId
    );
    assert_eq!(
        kind(store.set_image_big_data("additional-image", "k", "v", None).await),
        ErrorKind::ImageUnknown
    );
    assert_eq!(listing(&store.path().join("additional")), before);
}

async fn renamed_after_a_copy_of_the_record(driver: &str) {
    let Some(store) = with_additional(driver).await else {
        return;
    };
    let original = store.image("additional-image").await.unwrap();
    store.add_names("additional-image", ["here"]).await.unwrap();
    let here = store.image("here").await.unwrap();
    assert!(!here.read_only() && here.id() == original.id());
    assert_eq!(here.names(), ["here", "additional-image"]);
    assert_eq!(
        store.image_big_data("here", "manifest").await.unwrap(),
        b"{\"a\":1}"[..]
    );
    store.remove_names("here", ["additional-image"]).await.unwrap();
    assert_eq!(
        kind(store.image("additional-image").await),
        ErrorKind::ImageUnknown
    );
    // Deleting the copy leaves the layers, which are not ours.
    assert!(store.delete_image("here").await.unwrap().is_empty());
    assert_eq!(store.image("additional-image").await.unwrap().id(), original.id());
}

#[tokio::test]
async fn overlay_uses_it_and_changes_nothing() {
    used_but_not_changed("overlay").await;
}

#[tokio::test]
async fn vfs_uses_it_and_changes_nothing() {
    used_but_not_changed("vfs").await;
}

#[tokio::test]
async fn overlay_renames_a_copy() {
    renamed_after_a_copy_of_the_record("overlay").await;
}

#[tokio::test]
async fn vfs_renames_a_copy() {
    renamed_after_a_copy_of_the_record("vfs").await;
}

/// A store that is filled in one place and mounted read-only in another, with or without its lock files.
async fn read_only_mount(at: &std::path::Path, driver: &str, name: &str, locks: bool) {
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    let source = at.with_extension("source");
    let options = graphroot::StoreOptions::new(&source, source.join("run")).driver(driver);
    let store = graphroot::Store::open(options).await.unwrap();
    let layer = LayerOptions::default().name(format!("{name}-layer"));
    let put = store
        .put_layer(None, layer, std::io::Cursor::new(tar(&[("who", name)])))
        .await
        .unwrap();
    let image = graphroot::ImageOptions::default().name(format!("{name}-image"));
    store.create_image(Some(put.layer.id()), image).await.unwrap();
    store.shutdown_force().await.unwrap();
    store.free();
    if !locks {
        for lock in ["layers/layers.lock", "images/images.lock"] {
            std::fs::remove_file(source.join(format!("{driver}-{lock}"))).unwrap();
        }
    }
    std::fs::create_dir_all(at).unwrap();
    mount_bind(&source, at).unwrap();
    mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    let refused = std::fs::write(at.join("x"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// Two additional stores, both on read-only file systems; one of them without lock files, as a store
/// that was copied by hand may be.
async fn several_on_read_only_file_systems(driver: &str) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("GRAPHROOT_TEST_REQUIRE").as_deref() != Ok("all"));
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let Some(mut store) = TestStore::open(driver, Layout::Plain).await else {
        return;
    };
    let (first, second) = (store.path().join("first"), store.path().join("second"));
    read_only_mount(&first, driver, "first", true).await;
    read_only_mount(&second, driver, "second", false).await;
    store.free();
    let options = graphroot::StoreOptions::new(store.path().join("graph"), store.path().join("run"))
        .driver(driver)
        .driver_option(format!(
            "{driver}.imagestore={},{}",
            first.display(),
            second.display()
        ));
    store.store = graphroot::Store::open(options).await.unwrap();
    let names: Vec<_> = store
        .images()
        .await
        .unwrap()
        .iter()
        .map(|image| (image.names()[0].clone(), image.read_only()))
        .collect();
    assert_eq!(
        names,
        [("first-image".into(), true), ("second-image".into(), true)]
    );
    for name in ["first", "second"] {
        let image = format!("{name}-image");
        let container = store
            .create_container(Some(&image), ContainerOptions::default())
            .await
            .unwrap();
        let path = store.mount(container.id(), Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("who")).unwrap(), name);
        std::fs::write(path.join("new"), "x").unwrap();
        store.unmount_all(container.id()).await.unwrap();
        let exported = store
            .diff(None, &format!("{name}-layer"), DiffOptions::uncompressed())
            .await
            .unwrap();
        assert_eq!(read_all(exported).await, tar(&[("who", name)]));
        store.add_names(&image, ["mine"]).await.unwrap();
        assert!(!store.image("mine").await.unwrap().read_only());
        store.delete_container(container.id()).await.unwrap();
    }
}

#[tokio::test]
async fn overlay_uses_several_on_read_only_file_systems() {
    several_on_read_only_file_systems("overlay").await;
}

#[tokio::test]
async fn vfs_uses_several_on_read_only_file_systems() {
    several_on_read_only_file_systems("vfs").await;
}
