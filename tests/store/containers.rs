use graphroot::{ContainerOptions, ErrorKind, Flag, ImageOptions};

use crate::support::{Layout, kind};

each_driver! {
    async fn a_container_has_a_layer_of_its_own(store) {
        let base = store.put(None, "base", &[("file", "1")]).await;
        let image = store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let mut options = ContainerOptions::default().id("c").name("box");
        options.layer_id = Some("the-layer".into());
        options.metadata = "meta".into();
        options.mount_opts = vec!["nodev".into()];
        let container = store.create_container(Some("image"), options).await.unwrap();
        assert_eq!((container.id(), container.image_id(), container.layer_id()), ("c", Some(image.id()), "the-layer"));
        let again = store.reopen().await;
        let container = again.container("box").await.unwrap();
        assert_eq!((container.metadata(), container.names()), ("meta", &["box".to_owned()][..]));
        assert_eq!(container.mount_opts(), ["nodev"]);
        assert_eq!(container.flags().get("MountLabel"), Some(&Flag::Text(String::new())));
        assert_eq!(again.layer("the-layer").await.unwrap().parent(), Some(base.id()));
        for key in ["c", "the-layer"] {
            assert_eq!(again.container(key).await.unwrap().id(), "c");
        }
        assert_eq!(again.container_by_layer("the-layer").await.unwrap().id(), "c");
        assert_eq!(kind(again.container_by_layer("base").await), ErrorKind::ContainerUnknown);
        assert_eq!(again.containers().await.unwrap().len(), 1);
        for dir in [again.container_directory("box").await.unwrap(), again.container_run_directory("box").await.unwrap()] {
            assert!(dir.is_dir() && dir.ends_with("c/userdata"));
        }
    }

    async fn a_refused_container_leaves_no_layer(store) {
        store.create_container(None, ContainerOptions::default().id("c").name("box")).await.unwrap();
        let before = store.own_layers().await.len();
        let create = |options| store.create_container(None, options);
        assert_eq!(kind(create(ContainerOptions::default().id("c")).await), ErrorKind::DuplicateId);
        assert_eq!(kind(create(ContainerOptions::default().name("box")).await), ErrorKind::DuplicateName);
        let mut one_label = ContainerOptions::default();
        one_label.mount_label = Some("system_u:object_r:container_file_t:s0".into());
        assert_eq!(kind(create(one_label).await), ErrorKind::InvalidInput);
        let mut bad = ContainerOptions::default();
        bad.id_mappings.uid_map = vec![graphroot::IdMap::new(0, 1000, 10), graphroot::IdMap::new(5, 3000, 10)];
        assert_eq!(kind(create(bad).await), ErrorKind::InvalidMappings);
        let image = store.create_container(Some("nobody"), ContainerOptions::default()).await;
        assert_eq!(kind(image), ErrorKind::ImageUnknown);
        assert_eq!(store.own_layers().await.len(), before);
        assert_eq!(store.containers().await.unwrap().len(), 1);
    }

    /// Where SELinux is off: as in the Go library options are not even looked at, and both labels are recorded as empty.
    async fn without_selinux_there_are_no_labels(store) {
        if std::path::Path::new("/sys/fs/selinux/policy").exists() {
            return;
        }
        let create = |options| store.create_container(None, options);
        let plain = create(ContainerOptions::default().label_opts(["type:x", "nonsense"])).await.unwrap();
        let given = ContainerOptions::default().process_label("u:r:p:s0:c1,c2").mount_label("u:r:f:s0:c1,c2").label_opt("disable");
        let given = create(given).await.unwrap();
        let again = store.reopen().await;
        for (container, process, files) in [(plain, "", ""), (given, "u:r:p:s0:c1,c2", "u:r:f:s0:c1,c2")] {
            let found = again.container(container.id()).await.unwrap();
            let flags = [("MountLabel", files), ("ProcessLabel", process)];
            let expected = flags.map(|(name, label)| (name.to_owned(), graphroot::Flag::Text(label.to_owned())));
            assert_eq!(found.flags().into_iter().filter(|(name, _)| name.ends_with("Label")).collect::<Vec<_>>(), expected);
            assert_eq!(found.process_label().unwrap_or_default(), process);
            assert_eq!(found.mount_label().unwrap_or_default(), files);
            let layer = again.layer(container.layer_id()).await.unwrap();
            assert_eq!(layer.mount_label().unwrap_or_default(), files);
        }
    }

    async fn a_volatile_container_is_recorded_apart(store) {
        let mut options = ContainerOptions::default().name("fleeting");
        options.volatile = true;
        let container = store.create_container(None, options).await.unwrap();
        assert!(container.volatile());
        let stable = store.records("containers").join("containers.json");
        let read = |kind: &str| {
            let dir = match store.layout() {
                Layout::Transient => store.path().join(format!("run/{}-{kind}", store.graph_driver_name())),
                _ => store.records(kind),
            };
            std::fs::read_to_string(dir.join(format!("volatile-{kind}.json"))).unwrap()
        };
        let (volatile, layers) = (read("containers"), read("layers"));
        assert!(volatile.contains(container.id()));
        // A list that says that there are none, which was not lost.
        assert_eq!(std::fs::read_to_string(stable).unwrap(), "[]");
        assert!(layers.contains(container.layer_id()));
        assert_eq!(store.reopen().await.container("fleeting").await.unwrap().id(), container.id());
    }
}

/// Files of a container whose owners are mapped when it is mounted: the records say so, the files come later.
#[tokio::test]
async fn owners_that_a_mount_maps_are_in_both_records() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(test) = crate::support::TestStore::open("overlay", Layout::Plain).await else {
        return;
    };
    let shifting = ("Supports shifting".to_owned(), "true".to_owned());
    if !test.status().await.unwrap().contains(&shifting) {
        eprintln!("SKIPPED: the kernel has no ID-mapped lower layers");
        return;
    }
    test.put(None, "base", &[("file", "1")]).await;
    test.create_image(Some("base"), ImageOptions::default().name("image"))
        .await
        .unwrap();
    let mapped = vec![graphroot::IdMap::new(0, 100_000, 65_536)];
    let mut options = ContainerOptions::default().name("box");
    options.id_mappings.uid_map.clone_from(&mapped);
    options.id_mappings.gid_map.clone_from(&mapped);
    let container = test.create_container(Some("image"), options).await.unwrap();
    assert_eq!((container.uid_map(), container.gid_map()), (&*mapped, &*mapped));
    let layer = test.layer(container.layer_id()).await.unwrap();
    assert_eq!((layer.uid_map(), layer.gid_map()), (&*mapped, &*mapped));
    assert_eq!(test.layers().await.unwrap().len(), 2, "no copy with other owners");
    let owner = |path: &std::path::Path| {
        let meta = path.metadata().unwrap();
        (meta.uid(), meta.gid())
    };
    let dir = test.graph_root().join("overlay").join(container.layer_id());
    assert!(!dir.join("diff1").exists());
    assert_eq!(owner(&dir.join("diff")), (0, 0));

    let path = test.mount("box", Default::default()).await.unwrap();
    assert_eq!(owner(&path), (100_000, 100_000));
    assert_eq!(owner(&path.join("file")), (100_000, 100_000));
    std::fs::write(path.join("new"), "2").unwrap();
    std::os::unix::fs::chown(path.join("new"), Some(100_007), Some(100_008)).unwrap();
    test.unmount("box").await.unwrap();
    // The diff has the container's own owners.
    let mut diff = Vec::new();
    let mut stream = test
        .diff(None, container.layer_id(), Default::default())
        .await
        .unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut diff)
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&diff[..512]).into_owned();
    assert!(
        text.starts_with("new\0") && text[108..].starts_with("0000007\x000000010\0"),
        "{text:?}"
    );
    // And the layer itself shows the owners on disk.
    let path = test
        .mount(container.layer_id(), Default::default())
        .await
        .unwrap();
    assert_eq!(
        owner(&path.join("file")),
        (100_000, 100_000),
        "it is the container's"
    );
    test.unmount_all("box").await.unwrap();
}
