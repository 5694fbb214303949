use graphroot::{ContainerOptions, ErrorKind, ImageOptions, MountOptions};

use crate::support::kind;

each_driver! {
    async fn a_container_is_mounted_written_and_counted(store) {
        store.put(None, "base", &[("etc/", ""), ("etc/file", "from the image")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        let path = store.mount("box", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("etc/file")).unwrap(), "from the image");
        std::fs::write(path.join("etc/new"), "x").unwrap();
        assert_eq!(store.mount(container.layer_id(), Default::default()).await.unwrap(), path);
        // Without a mount in the kernel (vfs) a count is taken up again all the same.
        assert_eq!(store.mounted("box").await.unwrap(), 2);
        assert_eq!(store.layer(container.layer_id()).await.unwrap().mount_point(), Some(path.as_path()));
        assert_eq!(store.unmount("box").await.unwrap(), 1);
        assert_eq!(store.unmount("box").await.unwrap(), 0);
        assert_eq!(store.mounted("box").await.unwrap(), 0);
        assert_eq!(store.unmount("box").await.unwrap(), 0);
        let path = store.mount("box", Default::default()).await.unwrap();
        assert!(path.join("etc/new").exists());
        store.mount("box", Default::default()).await.unwrap();
        store.unmount_all("box").await.unwrap();
        assert_eq!(kind(store.mount("nobody", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount("nobody").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.mounted("nobody").await), ErrorKind::LayerUnknown);
    }

    async fn a_count_beyond_all_bounds_takes_one_save(store) {
        store.put(None, "base", &[("file", "1")]).await;
        store.mount("base", Default::default()).await.unwrap();
        let dir = store.path().join("run").join(format!("{}-layers", store.graph_driver_name()));
        let counts = std::fs::read_to_string(dir.join("mountpoints.json")).unwrap();
        let hostile = counts.replace("\"count\":1", &format!("\"count\":{}", i64::MAX));
        assert_ne!(hostile, counts);
        std::fs::write(dir.join("mountpoints.json"), hostile).unwrap();
        std::fs::write(dir.join("mountpoints.lock"), "changed").unwrap();
        store.mount("base", Default::default()).await.unwrap();
        assert_eq!(store.mounted("base").await.unwrap(), i64::MAX.unsigned_abs());
        store.unmount_all("base").await.unwrap();
        assert_eq!(store.mounted("base").await.unwrap(), 0);
        store.delete_layer("base").await.unwrap();
    }

    async fn no_other_layer_is_mounted_for_a_containers_own(store) {
        let container = store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        let layer = container.layer_id();
        // The layer alone: by its whole ID it would be the container that is deleted.
        store.delete(&layer[..20]).await.unwrap();
        store.create_layer(None, graphroot::LayerOptions::default().name(layer)).await.unwrap();
        assert_eq!(kind(store.mount("box", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.mounted("box").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount("box").await), ErrorKind::LayerUnknown);
        assert_eq!(store.container("box").await.unwrap().layer_id(), layer);

        let base = store.put(None, "base", &[("file", "1")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        store.delete("base").await.unwrap();
        store.create_layer(None, graphroot::LayerOptions::default().name(base.id())).await.unwrap();
        assert_eq!(kind(store.mount_image("image", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount_image("image").await), ErrorKind::LayerUnknown);
    }

    async fn an_image_is_mounted_to_look_at(store) {
        store.put(None, "base", &[("file", "1")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let path = store.mount_image("image", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "1");
        if store.graph_driver_name() == "overlay" {
            assert!(std::fs::write(path.join("file"), "2").is_err());
        }
        assert_eq!(store.unmount_image("image").await.unwrap(), 0);
        assert_eq!(kind(store.mount_image("image", MountOptions::default().option("rw")).await), ErrorKind::NotSupported);
        assert_eq!(kind(store.mount_image("nobody", Default::default()).await), ErrorKind::ImageUnknown);
        assert_eq!(kind(store.unmount_image("nobody").await), ErrorKind::ImageUnknown);
    }

    async fn shutdown_minds_mounts_and_the_store_comes_back(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let container = store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        store.mount("box", Default::default()).await.unwrap();
        assert_eq!(kind(store.shutdown().await), ErrorKind::LayerUsedByContainer);
        assert_eq!(store.shutdown_force().await.unwrap(), [container.layer_id()]);
        let path = store.mount("box", Default::default()).await.unwrap();
        assert!(path.is_dir());
        store.unmount("box").await.unwrap();
        store.shutdown().await.unwrap();
    }
}

/// What one mounted directory of this process's namespace is mounted with.
fn mounted_with(path: &std::path::Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str());
    line.unwrap_or_else(|| panic!("{} is not mounted", path.display()))
        .to_owned()
}

#[tokio::test]
async fn volatile_mounts_can_be_forbidden() {
    let Some(test) = crate::support::TestStore::open("overlay", crate::support::Layout::Plain).await else {
        return;
    };
    let store = test.store.clone();
    let mut volatile = ContainerOptions::default().name("box");
    volatile.volatile = true;
    store.create_container(None, volatile).await.unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert!(mounted_with(&path).contains("volatile"));
    store.shutdown_force().await.unwrap();
    store.free();

    let mut options = graphroot::StoreOptions::new(store.graph_root(), store.run_root()).driver("overlay");
    options.disable_volatile = true;
    let store = graphroot::Store::open(options).await.unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert!(!mounted_with(&path).contains("volatile"));
    store.unmount_all("box").await.unwrap();
}
