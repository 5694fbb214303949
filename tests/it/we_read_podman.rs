//! What Podman, Buildah and Skopeo put into a store is listed, mounted, exported and deleted by this library.

use std::path::Path;

use graphroot::{Image, Store};
use serde_json::Value;

use crate::support::debian::{self, Form};
use crate::support::each_set;
use crate::support::manifest::sha256_of;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::exported;

/// The image's layers, top first.
async fn chain(store: &Store, image: &Image) -> Vec<graphroot::Layer> {
    let mut layers = Vec::new();
    let mut next = image.top_layer().map(str::to_owned);
    while let Some(id) = next {
        let layer = store.layer(&id).await.unwrap();
        next = layer.parent().map(str::to_owned);
        layers.push(layer);
    }
    layers
}

/// The image is listed under its name, its config tells the diff IDs of its layers, each layer comes out with that
/// diff ID, its files are there when it is mounted.
async fn assert_usable(store: &Store, name: &str, files: &[(&str, Option<&str>)]) {
    let image = store.image(name).await.unwrap();
    let listed = store.images().await.unwrap();
    assert!(
        listed
            .iter()
            .any(|one| one.id() == image.id() && one.names().contains(&name.to_owned()))
    );
    assert_eq!(
        store
            .images_by_top_layer(image.top_layer().unwrap())
            .await
            .unwrap()[0]
            .id(),
        image.id()
    );
    let by_digest = store.images_by_digest(&image.digest().unwrap()).await.unwrap();
    assert!(by_digest.iter().any(|one| one.id() == image.id()));

    let config = store
        .image_big_data(image.id(), &format!("sha256:{}", image.id()))
        .await
        .unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut layers = chain(store, &image).await;
    layers.reverse();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(layers.len(), diff_ids.len());
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let (digest, size) = exported(store, layer.id()).await;
        assert_eq!(digest.to_string(), diff_id.as_str().unwrap());
        assert_eq!(layer.uncompressed_digest(), Some(digest.clone()));
        assert_eq!(layer.uncompressed_size(), Some(size));
        let found = store.layers_by_uncompressed_digest(&digest).await.unwrap();
        assert!(found.iter().any(|one| one.id() == layer.id()));
    }

    let mounted = store.mount_image(image.id(), Default::default()).await.unwrap();
    for (file, content) in files {
        let path = mounted.join(file);
        match content {
            Some(expected) => {
                let content = std::fs::read_to_string(&path).unwrap();
                assert!(content.starts_with(expected), "{file}: {content:?}");
            }
            None => assert!(!path.exists(), "{file} is there"),
        }
    }
    assert_eq!(store.unmount_image(image.id()).await.unwrap(), 0);
}

/// Deletes the image and everything that only it used; no reader sees it any more.
async fn delete(root: &TestRoot, store: &Store, name: &str) {
    let image = store.image(name).await.unwrap();
    let removed = store.delete_image(image.id()).await.unwrap();
    for layer in &removed {
        assert!(!store.exists(layer).await.unwrap());
    }
    assert!(!store.exists(image.id()).await.unwrap());
    let listed = root
        .podman()
        .with(["images", "--all", "--no-trunc", "--quiet"])
        .run();
    assert!(
        !listed.contains(image.id()),
        "podman still lists {name}: {listed}"
    );
}

fn assert_empty(root: &TestRoot) {
    assert_eq!(root.layer_directories(), Default::default());
    assert_eq!(root.short_links(), Default::default());
    assert_eq!(root.temporary_files(), Vec::<String>::new());
    let layers: Value = serde_json::from_str(&root.go().with(["layers", "--json"]).run()).unwrap();
    assert_eq!(layers.as_array().map_or(0, Vec::len), 0);
}

fn import(root: &TestRoot, layer: &Path, name: &str) {
    root.podman()
        .with(["import", "--quiet"])
        .with([layer])
        .with([name])
        .run();
}

async fn an_image_imported_by_podman(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Plain) else {
        return;
    };
    let root = TestRoot::new().of(set);
    let name = "localhost/imported:1";
    import(&root, &layer, name);

    let store = root.open().await;
    assert_usable(&store, name, &[("etc/debian_version", Some("12"))]).await;
    let image = store.image(name).await.unwrap();
    let (digest, _) = exported(&store, image.top_layer().unwrap()).await;
    assert_eq!(digest.encoded(), sha256_of(&layer));
    delete(&root, &store, name).await;
    assert_empty(&root);
}
each_set!(async an_image_imported_by_podman: "podman", "containers-storage");

async fn an_image_built_by_buildah(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Plain) else {
        return;
    };
    let root = TestRoot::new().of(set);
    import(&root, &layer, "localhost/base:1");
    let container = root.buildah().with(["from", "localhost/base:1"]).run();
    let script = "rm -r /media && mkdir /opt/new && echo built > /opt/new/file && ln /opt/new/file /opt/new/link && \
                  rm /etc/debian_version && mkdir /etc/debian_version && rm -r /usr/share/doc && mkdir /usr/share/doc";
    root.buildah()
        .with([
            "run",
            "--isolation",
            "chroot",
            &container,
            "--",
            "sh",
            "-c",
            script,
        ])
        .run();
    root.buildah()
        .with(["config", "--label", "made=by-buildah", &container])
        .run();
    root.buildah()
        .with(["commit", "--quiet", "--rm", &container, "localhost/built:1"])
        .run();

    let store = root.open().await;
    let files = [
        ("opt/new/link", Some("built")),
        ("media", None),
        ("etc/passwd", Some("root:")),
        ("usr/share/doc/apt", None),
    ];
    assert_usable(&store, "localhost/built:1", &files).await;
    assert_eq!(
        chain(&store, &store.image("localhost/built:1").await.unwrap())
            .await
            .len(),
        2
    );

    // Its base is an image of its own and stays.
    delete(&root, &store, "localhost/built:1").await;
    assert_usable(&store, "localhost/base:1", &[("etc/debian_version", Some("12"))]).await;
    delete(&root, &store, "localhost/base:1").await;
    assert_empty(&root);
}
each_set!(async an_image_built_by_buildah: "podman", "buildah", "containers-storage");

async fn an_image_pulled_by_skopeo_and_podman(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Plain) else {
        return;
    };
    // A registry's stand-in: a layout with a compressed layer.
    let source = TestRoot::new().of(set);
    import(&source, &layer, "localhost/source:1");
    let layout = format!("oci:{}:latest", source.path().join("layout").display());
    source
        .skopeo()
        .with([
            "copy",
            "--quiet",
            &source.image_reference("localhost/source:1"),
            &layout,
        ])
        .run();
    let archive = format!(
        "docker-archive:{}:localhost/loaded:1",
        source.path().join("archive.tar").display()
    );
    source.skopeo().with(["copy", "--quiet", &layout, &archive]).run();

    let root = TestRoot::new().of(set);
    root.skopeo()
        .with([
            "copy",
            "--quiet",
            &layout,
            &root.image_reference("localhost/copied:1"),
        ])
        .run();
    root.podman()
        .with(["load", "--quiet", "--input"])
        .with([source.path().join("archive.tar")])
        .run();

    let store = root.open().await;
    let names = ["localhost/copied:1", "localhost/loaded:1"];
    for name in names {
        assert_usable(&store, name, &[("etc/debian_version", Some("12"))]).await;
    }
    // Both have the same config and so the same ID: one image with two names.
    let image = store.image(names[0]).await.unwrap();
    assert_eq!(image.id(), store.image(names[1]).await.unwrap().id());
    let layer = store.layer(image.top_layer().unwrap()).await.unwrap();
    assert_eq!(layer.compression().to_string(), "gzip");
    let by_blob = store
        .layers_by_compressed_digest(&layer.compressed_digest().unwrap())
        .await
        .unwrap();
    assert_eq!(by_blob.len(), 1);

    store.remove_names(image.id(), &[names[0]]).await.unwrap();
    let listed = root
        .podman()
        .with(["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .run();
    assert_eq!(listed, names[1]);
    delete(&root, &store, names[1]).await;
    assert_empty(&root);
}
each_set!(async an_image_pulled_by_skopeo_and_podman: "podman", "skopeo", "buildah", "containers-storage");

async fn a_container_of_buildah_holds_its_image(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Plain) else {
        return;
    };
    let root = TestRoot::new().of(set);
    import(&root, &layer, "localhost/base:1");
    let name = root
        .buildah()
        .with(["from", "--name", "working", "localhost/base:1"])
        .run();
    assert_eq!(name, "working");

    let store = root.open().await;
    let container = store.container("working").await.unwrap();
    assert_eq!(
        container.image_id(),
        Some(store.image("localhost/base:1").await.unwrap().id())
    );
    assert_eq!(
        store.container_by_layer(container.layer_id()).await.unwrap().id(),
        container.id()
    );
    let error = store.delete_image("localhost/base:1").await.unwrap_err();
    assert_eq!(
        error.kind(),
        graphroot::ErrorKind::ImageUsedByContainer,
        "{error:?}"
    );

    // Mounted by Buildah and by us: two counts of one mount.
    let theirs = root.buildah().with(["mount", "working"]).run();
    let ours = store.mount("working", Default::default()).await.unwrap();
    assert_eq!(Path::new(&theirs), ours);
    std::fs::write(ours.join("etc/ours"), "ours").unwrap();
    let changes: Vec<String> = store
        .changes(None, container.layer_id())
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(changes.contains(&"A /etc/ours".to_owned()), "{changes:?}");
    assert_eq!(store.mounted("working").await.unwrap(), 2);
    assert_eq!(store.unmount("working").await.unwrap(), 1);
    root.buildah().with(["umount", "working"]).run();
    assert_eq!(store.mounted("working").await.unwrap(), 0);

    store.delete_container("working").await.unwrap();
    assert_eq!(root.buildah().with(["containers", "--quiet", "--all"]).run(), "");
    delete(&root, &store, "localhost/base:1").await;
    assert_empty(&root);
}
each_set!(async a_container_of_buildah_holds_its_image: "podman", "buildah", "containers-storage");
