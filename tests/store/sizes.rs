use graphroot::{ContainerOptions, Digest, ErrorKind, ImageOptions, LayerOptions, MultiListOptions};

use crate::support::{Layout, kind, read_all, tar};

each_driver! {
    async fn layers_images_and_containers_are_measured(store) {
        let one = tar(&[("f", &"x".repeat(1000))]);
        let layer = store.put(None, "one", &[("f", &"x".repeat(1000))]).await;
        store.put(Some("one"), "two", &[("g", "12345")]).await;
        let empty = store.create_layer(None, Default::default()).await.unwrap();
        assert_eq!(store.layer_size("one").await.unwrap(), Some(one.len() as u64));
        assert_eq!(store.layer_size(empty.id()).await.unwrap(), None);
        assert_eq!(kind(store.layer_size("nobody").await), ErrorKind::LayerUnknown);
        let options = ImageOptions::default().name("image").big_data("manifest", "{}").big_data("other", "1234");
        store.create_image(Some("two"), options).await.unwrap();
        let two = store.layer("two").await.unwrap().uncompressed_size().unwrap();
        assert_eq!(store.image_size("image").await.unwrap(), layer.uncompressed_size().unwrap() + two + 2 + 4);
        assert_eq!(kind(store.image_size("nobody").await), ErrorKind::ImageUnknown);
        // An image of a layer whose size has to be measured, and one without any.
        store.create_image(Some(empty.id()), ImageOptions::default()).await.unwrap();
        store.create_image(None, ImageOptions::default().big_data("other", "1")).await.unwrap();
        let sizes = store.image_sizes().await.unwrap();
        let listed = store.images().await.unwrap();
        assert_eq!(sizes.len(), listed.len());
        for ((image, size), listed) in sizes.iter().zip(&listed) {
            assert_eq!((image.id(), image.read_only()), (listed.id(), listed.read_only()));
            assert_eq!(*size.as_ref().unwrap(), store.image_size(image.id()).await.unwrap());
        }
        // One that is damaged keeps the others from nothing.
        store.delete("two").await.unwrap();
        let sizes = store.image_sizes().await.unwrap();
        let failed: Vec<_> = sizes.iter().filter_map(|(image, size)| size.as_ref().err().map(|error| (image, error))).collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].0.names() == ["image"] && failed[0].1.kind() == ErrorKind::LayerUnknown, "{failed:?}");
        store.delete_image("image").await.unwrap();
        store.put(Some("one"), "two", &[("g", "12345")]).await;
        store.create_image(Some("two"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        let path = crate::support::writable(store.mount("box", Default::default()).await.unwrap());
        std::fs::write(path.join("new"), "123").unwrap();
        store.set_container_big_data("box", "item", "4567").await.unwrap();
        store.set_container_directory_file("box", "a/b", "89").await.unwrap();
        assert_eq!(store.container_size("box").await.unwrap(), 3 + 4 + 2);
        assert_eq!(kind(store.container_size("nobody").await), ErrorKind::ContainerUnknown);
        assert!(store.container_parent_owners("box").await.unwrap().uids.is_empty());
        assert!(store.layer_parent_owners(container.layer_id()).await.unwrap().gids.is_empty());
        store.unmount("box").await.unwrap();
    }

    async fn files_in_container_directories_stay_inside(store) {
        store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        store.set_container_directory_file("box", "deep/er/file", "one").await.unwrap();
        store.set_container_directory_file("box", "deep/er/file", "two").await.unwrap();
        store.set_container_run_directory_file("box", "file", "run").await.unwrap();
        assert_eq!(store.from_container_directory("box", "deep/er/file").await.unwrap(), b"two"[..]);
        assert_eq!(store.from_container_run_directory("box", "file").await.unwrap(), b"run"[..]);
        for bad in ["../x", "/etc/passwd", "a/../../x", "", "."] {
            assert_eq!(kind(store.set_container_directory_file("box", bad, "x").await), ErrorKind::UnsafePath, "{bad}");
            assert_eq!(kind(store.from_container_directory("box", bad).await), ErrorKind::UnsafePath, "{bad}");
        }
        let missing = store.from_container_directory("box", "nothing").await.unwrap_err();
        assert_eq!(missing.io_kind(), Some(std::io::ErrorKind::NotFound));
    }

    async fn several_kinds_are_listed_at_one_moment(store) {
        store.put(None, "one", &[("f", "1")]).await;
        store.create_image(Some("one"), ImageOptions::default()).await.unwrap();
        store.create_container(None, ContainerOptions::default()).await.unwrap();
        let more = usize::from(store.layout() == Layout::Additional);
        let all = store.multi_list(MultiListOptions::ALL).await.unwrap();
        assert_eq!((all.layers.len(), all.images.len(), all.containers.len()), (2 + more, 1 + more, 1));
        let mut some = MultiListOptions::default();
        some.images = true;
        let some = store.multi_list(some).await.unwrap();
        assert_eq!((some.layers.len(), some.images.len(), some.containers.len()), (0, 1 + more, 0));
    }

    async fn digest_locks_exclude_and_their_holder_is_found(store) {
        let lock = store.get_digest_lock(&Digest::sha256("x")).await.unwrap();
        let held = lock.lock().await.unwrap();
        assert!(lock.try_lock().unwrap().is_none());
        drop(held);
        let shared = [lock.read_lock().await.unwrap(), lock.read_lock().await.unwrap()];
        assert!(lock.try_lock().unwrap().is_none());
        drop(shared);
        assert!(lock.try_lock().unwrap().is_some());
        assert!(store.lock_owners().await.unwrap().is_empty());
    }

    async fn the_driver_tells_where_layers_are(store) {
        let layer = store.put(None, "one", &[("f", "123")]).await;
        let driver = store.graph_driver();
        assert_eq!(driver.name(), store.graph_driver_name());
        assert!(driver.exists(layer.id()).await.unwrap() && !driver.exists("nobody").await.unwrap());
        // The driver's own home only: with a split store images' layers lie elsewhere, but for btrfs.
        let own = store.create_layer(None, LayerOptions::default().writeable(true)).await.unwrap();
        let mut expected = vec![layer.id().to_owned(), own.id().to_owned()];
        let is_apart = store.layout() == Layout::Split && driver.name() != "btrfs";
        expected.retain(|id| !is_apart || id == own.id());
        expected.sort();
        let mut listed = driver.list_layers().await.unwrap();
        listed.sort();
        assert_eq!(listed, expected);
        assert_eq!(driver.read_write_disk_usage(layer.id()).await.unwrap().size, 3);
        let paths = driver.metadata(layer.id()).await.unwrap();
        assert_eq!(paths.contains_key("UpperDir"), driver.name() == "overlay");
        let more = usize::from(store.layout() == Layout::Additional);
        assert!(driver.home().is_dir() && driver.additional_image_stores().len() == more);
    }

    async fn the_driver_makes_no_layer_in_the_place_of_another(store) {
        let layer = store.put(None, "one", &[("f", "123")]).await;
        let driver = store.graph_driver();
        for parent in [None, Some(layer.id())] {
            let made = driver.create_layer(parent, LayerOptions::default().id(layer.id())).await;
            assert_eq!(kind(made), ErrorKind::DuplicateId);
        }
        let other = driver.create_layer(Some(layer.id()), LayerOptions::default().id("other")).await.unwrap();
        assert_eq!(kind(driver.create_layer(None, LayerOptions::default().id(other)).await), ErrorKind::DuplicateId);
        let diff = store.diff(None, layer.id(), Default::default()).await.unwrap();
        assert!(!read_all(diff).await.is_empty());
    }

    async fn a_layer_is_unmounted_by_its_path(store) {
        let layer = store.put(None, "one", &[("f", "1")]).await;
        let path = store.mount("one", Default::default()).await.unwrap();
        assert_eq!(store.unmount(path.to_str().unwrap()).await.unwrap(), 0);
        assert_eq!(store.mounted(layer.id()).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn every_durability_gives_whole_layers() {
    use graphroot::{Durability, LayerOptions, Store, StoreOptions};
    let driver = if rustix::process::geteuid().is_root() {
        "overlay"
    } else {
        "vfs"
    };
    for durability in [Durability::None, Durability::Default, Durability::Full] {
        let root = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(root.path().join("graph"), root.path().join("run"));
        let store = Store::open(options.driver(driver).durability(durability))
            .await
            .unwrap();
        let put = |name: &'static str, parent| {
            let options = LayerOptions::default().name(name);
            store.put_layer(parent, options, std::io::Cursor::new(tar(&[(name, "1")])))
        };
        put("one", None).await.unwrap();
        put("two", Some("one")).await.unwrap();
        let path = store.mount("two", Default::default()).await.unwrap();
        assert!(
            path.join("one").exists() && path.join("two").exists(),
            "{durability:?}"
        );
        store.wipe().await.unwrap();
        store.shutdown_force().await.unwrap();
    }
}
