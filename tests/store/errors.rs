use graphroot::{ErrorKind, Store, StoreOptions};

use crate::support::kind;

#[tokio::test]
async fn a_store_needs_both_roots_and_a_driver_that_exists() {
    assert_eq!(
        kind(Store::open(StoreOptions::new("", "/tmp/x")).await),
        ErrorKind::IncompleteOptions
    );
    assert_eq!(
        kind(Store::open(StoreOptions::new("/tmp/x", "")).await),
        ErrorKind::IncompleteOptions
    );
    let root = tempfile::tempdir().unwrap();
    let options = || StoreOptions::new(root.path().join("graph"), root.path().join("run"));
    assert_eq!(
        kind(Store::open(options().driver("nonsense")).await),
        ErrorKind::NotSupported
    );
    let odd = options().driver("vfs").driver_option("vfs.nonsense=1");
    assert_eq!(kind(Store::open(odd).await), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn the_same_roots_give_the_same_store_until_it_is_freed() {
    let root = tempfile::tempdir().unwrap();
    let options = || StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let first = Store::open(options()).await.unwrap();
    let second = Store::open(options()).await.unwrap();
    let layer = first.create_layer(None, Default::default()).await.unwrap();
    assert!(second.exists(layer.id()).await.unwrap());
    assert!(std::ptr::eq(first.graph_root(), second.graph_root()), "one store");
    first.free();
    let third = Store::open(options()).await.unwrap();
    assert!(
        !std::ptr::eq(first.graph_root(), third.graph_root()),
        "another store"
    );
    assert!(third.exists(layer.id()).await.unwrap());
}

#[tokio::test]
async fn corrupt_records_are_an_error_that_names_the_file_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    store.create_layer(None, Default::default()).await.unwrap();
    let path = root.path().join("graph/vfs-layers/layers.json");
    let before = std::fs::read(&path).unwrap();
    std::fs::write(&path, &before[..before.len() - 1]).unwrap();
    let error = store.layers().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata);
    assert!(error.chain().contains("layers.json"), "{error:?}");
    assert_eq!(
        kind(store.create_layer(None, Default::default()).await),
        ErrorKind::CorruptMetadata
    );
    assert_eq!(std::fs::read(&path).unwrap().len(), before.len() - 1);
    std::fs::write(&path, &before).unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn records_with_hostile_ids_lead_nowhere() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    let victim = root.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("manifest"), "secret").unwrap();
    let record = r#"[{"id":"../../victim","names":["evil"],"image":"","layer":"","big-data-names":["manifest"],"created":"2024-01-01T00:00:00Z"}]"#;
    for kind in ["layers", "images", "containers"] {
        std::fs::write(root.path().join(format!("graph/vfs-{kind}/{kind}.json")), record).unwrap();
    }
    assert_eq!(store.image("evil").await.unwrap().id(), "../../victim");
    assert_eq!(
        kind(store.image_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(
        kind(store.container_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(
        kind(store.layer_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(
        kind(store.delete_image("evil", true).await),
        ErrorKind::UnsafePath
    );
    assert_eq!(kind(store.delete_layer("evil").await), ErrorKind::UnsafePath);
    assert_eq!(kind(store.delete_container("evil").await), ErrorKind::UnsafePath);
    assert_eq!(std::fs::read(victim.join("manifest")).unwrap(), b"secret");
    // The store works all the same.
    store.create_layer(None, Default::default()).await.unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 2);
}
