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
