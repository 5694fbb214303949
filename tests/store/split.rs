//! Images in a directory of their own, beside a graph root that has images from before.

use std::path::Path;

use graphroot::{Durability, ErrorKind, ImageOptions, LayerOptions, MultiListOptions, Store, StoreOptions};

use crate::support::{Layout, TestStore, kind};

async fn plain_store(root: &Path, driver: &str) -> Store {
    let options = StoreOptions::new(root.join("graph"), root.join("run"))
        .driver(driver)
        .durability(Durability::None);
    Store::open(options).await.unwrap()
}

/// A store with an image from before its images got a directory of their own, and the ID of that image.
async fn with_older_image(driver: &str) -> Option<(TestStore, String)> {
    let mut split = TestStore::open(driver, Layout::Split).await?;
    split.free();
    let plain = plain_store(split.path(), driver).await;
    let layer = plain
        .create_layer(None, LayerOptions::default().name("older-layer"))
        .await
        .unwrap();
    let options = ImageOptions::default().name("older").big_data("manifest", "{}");
    let image = plain.create_image(Some(layer.id()), options).await.unwrap();
    plain.shutdown_force().await.unwrap();
    plain.free();
    split.store = split.reopen().await;
    Some((split, image.id().to_owned()))
}

async fn found_and_deleted(driver: &str) {
    let Some((store, older)) = with_older_image(driver).await else {
        return;
    };
    let found = store.image("older").await.unwrap();
    assert!(found.id() == older && !found.read_only());
    assert_eq!(
        store.image_big_data("older", "manifest").await.unwrap(),
        b"{}"[..]
    );
    let listed = store.multi_list(MultiListOptions::ALL).await.unwrap();
    assert_eq!(listed.images.len(), 1);
    assert_eq!(
        kind(store.delete_layer("older-layer").await),
        ErrorKind::LayerUsedByImage
    );
    store.set_metadata("older", "changed").await.unwrap();
    assert_eq!(store.metadata("older").await.unwrap(), "changed");
    let layer = store.layer("older-layer").await.unwrap().id().to_owned();
    assert_eq!(store.layers_deleted_with_image("older").await.unwrap(), [&*layer]);
    assert_eq!(store.delete_image("older").await.unwrap(), [&*layer]);
    assert_eq!(kind(store.image("older").await), ErrorKind::ImageUnknown);
    let records = store.path().join(format!("graph/{driver}-images/images.json"));
    assert_eq!(std::fs::read_to_string(records).unwrap().trim(), "[]");
    assert!(
        !store
            .path()
            .join(format!("graph/{driver}-images/{older}"))
            .exists()
    );
}

async fn renamed_and_deleted_from_both(driver: &str) {
    let Some((store, older)) = with_older_image(driver).await else {
        return;
    };
    store.add_names("older", ["newer"]).await.unwrap();
    let apart = store.path().join(format!("images/{driver}-images/images.json"));
    assert!(std::fs::read_to_string(&apart).unwrap().contains(&older));
    assert_eq!(store.image("newer").await.unwrap().id(), older);
    let layer = store.layer("older-layer").await.unwrap().id().to_owned();
    assert_eq!(store.delete_image("newer").await.unwrap(), [&*layer]);
    assert!(store.images().await.unwrap().is_empty());
    assert_eq!(kind(store.layer(&layer).await), ErrorKind::LayerUnknown);
}

/// Another image, in the other store, stands on the same layer: it stays.
async fn layers_of_the_other_store_stay(driver: &str) {
    let Some((store, _)) = with_older_image(driver).await else {
        return;
    };
    let options = ImageOptions::default().name("second");
    store.create_image(Some("older-layer"), options).await.unwrap();
    assert!(store.delete_image("second").await.unwrap().is_empty());
    store.layer("older-layer").await.unwrap();
    store.delete("older").await.unwrap();
    store.delete_layer("older-layer").await.unwrap();
}

async fn wiped(driver: &str) {
    let Some((store, _)) = with_older_image(driver).await else {
        return;
    };
    store.wipe().await.unwrap();
    let left = store.multi_list(MultiListOptions::ALL).await.unwrap();
    assert!(left.images.is_empty() && left.layers.is_empty());
}

macro_rules! over_drivers {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test]
            async fn overlay() {
                super::$name("overlay").await;
            }

            #[tokio::test]
            async fn vfs() {
                super::$name("vfs").await;
            }
        }
    )*};
}

over_drivers!(found_and_deleted renamed_and_deleted_from_both layers_of_the_other_store_stay wiped);
