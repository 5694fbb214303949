use graphroot::{ContainerOptions, ErrorKind, ImageOptions, LayerOptions};

use crate::support::kind;

each_driver! {
    async fn nothing_in_use_is_deleted(store) {
        store.put(None, "one", &[("a", "1")]).await;
        store.put(Some("one"), "two", &[("b", "1")]).await;
        store.create_image(Some("two"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        assert_eq!(kind(store.delete_layer("one").await), ErrorKind::LayerHasChildren);
        assert_eq!(kind(store.delete_layer("two").await), ErrorKind::LayerHasChildren);
        assert_eq!(kind(store.delete_layer(container.layer_id()).await), ErrorKind::LayerUsedByContainer);
        assert_eq!(kind(store.delete_image("image").await), ErrorKind::ImageUsedByContainer);
        store.delete_container("box").await.unwrap();
        assert_eq!(kind(store.delete_layer("two").await), ErrorKind::LayerUsedByImage);
        assert_eq!(kind(store.delete_layer("nobody").await), ErrorKind::NotALayer);
        assert_eq!(kind(store.delete_image("nobody").await), ErrorKind::NotAnImage);
        assert_eq!(kind(store.delete_container("nobody").await), ErrorKind::NotAContainer);
        assert_eq!(kind(store.delete("nobody").await), ErrorKind::LayerUnknown);
        assert_eq!(store.own_layers().await.len(), 2);
    }

    async fn an_image_takes_the_layers_that_nobody_needs(store) {
        let one = store.put(None, "one", &[("a", "1")]).await.id().to_owned();
        let two = store.put(Some("one"), "two", &[("b", "1")]).await.id().to_owned();
        let three = store.put(Some("two"), "three", &[("c", "1")]).await.id().to_owned();
        let side = store.put(Some("one"), "side", &[("d", "1")]).await.id().to_owned();
        store.create_image(Some("three"), ImageOptions::default().name("top")).await.unwrap();
        store.create_image(Some("side"), ImageOptions::default().name("other")).await.unwrap();
        assert_eq!(store.layers_deleted_with_image("top").await.unwrap(), [three.clone(), two.clone()]);
        assert!(store.exists("top").await.unwrap());
        assert_eq!(store.delete_image("top").await.unwrap(), [three, two]);
        assert_eq!(store.delete_image("other").await.unwrap(), [side, one]);
        assert!(store.own_layers().await.is_empty());
        let again = store.reopen().await;
        assert!(again.layers().await.unwrap().iter().all(graphroot::Layer::read_only));
        assert_eq!(leftovers(&store), Vec::<String>::new());
    }

    async fn delete_asks_nobody(store) {
        let one = store.put(None, "one", &[("a", "1")]).await.id().to_owned();
        store.create_image(Some("one"), ImageOptions::default().id("i")).await.unwrap();
        let container = store.create_container(Some("i"), ContainerOptions::default().id("c")).await.unwrap();
        store.delete(&one).await.unwrap();
        store.delete("i").await.unwrap();
        store.delete("c").await.unwrap();
        assert!(!store.exists(container.layer_id()).await.unwrap());
        assert!(store.own_layers().await.is_empty());
    }

    async fn temporary_data_that_cannot_be_removed_keeps_no_store_from_opening(store) {
        store.put(None, "one", &[("a", "1")]).await;
        // A lock file that is a directory cannot be locked, so whether the data is in use is not known.
        let temp = store.path().join("graph").join(store.graph_driver_name()).join("tempdirs");
        for name in ["lock-1", "temp-dir-1", "temp-dir-2"] {
            std::fs::create_dir_all(temp.join(name)).unwrap();
        }
        let again = store.reopen().await;
        assert!(again.exists("one").await.unwrap());
        again.create_layer(Some("one"), LayerOptions::default()).await.unwrap();
        assert!(temp.join("temp-dir-1").exists() && !temp.join("temp-dir-2").exists());
        let error = again.garbage_collect().await.unwrap_err();
        assert!(error.chain().contains("lock-1"), "{}", error.chain());
        std::fs::remove_dir(temp.join("lock-1")).unwrap();
        again.garbage_collect().await.unwrap();
        assert!(!temp.join("temp-dir-1").exists());
    }

    async fn a_mounted_layer_is_unmounted_first(store) {
        let container = store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        let path = store.mount("box", Default::default()).await.unwrap();
        store.mount("box", Default::default()).await.unwrap();
        store.delete_container("box").await.unwrap();
        assert!(!path.exists());
        assert!(!store.exists(container.layer_id()).await.unwrap());
    }

    async fn wipe_leaves_nothing(store) {
        store.put(None, "one", &[("a", "1")]).await;
        store.put(Some("one"), "two", &[("b", "1")]).await;
        store.create_image(Some("two"), ImageOptions::default().name("image").big_data("manifest", "{}")).await.unwrap();
        store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        store.mount("box", Default::default()).await.unwrap();
        store.wipe().await.unwrap();
        assert!(store.own_layers().await.is_empty());
        assert!(store.own_images().await.is_empty());
        assert!(store.containers().await.unwrap().is_empty());
        assert_eq!(leftovers(&store), Vec::<String>::new());
    }

    async fn garbage_is_collected(store) {
        let layer = store.create_layer(None, LayerOptions::default()).await.unwrap();
        let image = store.create_image(None, ImageOptions::default()).await.unwrap();
        store.create_container(Some(image.id()), ContainerOptions::default()).await.unwrap();
        let id = "ab".repeat(32);
        for kind in ["layers", "images", "containers"] {
            std::fs::create_dir_all(store.records(kind).join(&id).join("x")).unwrap();
        }
        std::fs::write(store.records("layers").join(format!("{id}.tar-split.gz")), "x").unwrap();
        std::fs::create_dir(store.records("images").join("kept-since-it-is-no-id")).unwrap();
        store.garbage_collect().await.unwrap();
        for kind in ["layers", "images", "containers"] {
            assert!(!store.records(kind).join(&id).exists(), "{kind}");
        }
        assert!(!store.records("layers").join(format!("{id}.tar-split.gz")).exists());
        assert!(store.records("images").join("kept-since-it-is-no-id").exists());
        assert!(store.exists(layer.id()).await.unwrap());
    }
}

/// Whatever still looks like a layer's content.
fn leftovers(store: &crate::support::TestStore) -> Vec<String> {
    let name = store.graph_driver_name();
    if name == "zfs" {
        return store.datasets();
    }
    let home = store.path().join("graph").join(name);
    let dir = match name {
        "vfs" => home.join("dir"),
        "btrfs" => home.join("subvolumes"),
        _ => home,
    };
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> = entries
        .filter(|name| {
            ![
                "l",
                "tempdirs",
                "staging",
                ".has-mount-program",
                "backingFsBlockDev",
            ]
            .contains(&name.as_str())
        })
        .collect();
    if name == "overlay" {
        let links = std::fs::read_dir(store.path().join("graph/overlay/l")).unwrap();
        left.extend(links.map(|entry| format!("l/{}", entry.unwrap().file_name().display())));
    }
    left
}
