//! Layers that are known by the digests of their tables of contents, since nobody can verify their diff IDs: pulled, found
//! again, shown and sent as the Go library does.

use std::path::Path;

use graphroot::oci::{ImageRef, PushOptions, push};
use graphroot::test_util::TarBuilder;
use graphroot::{Compression, Digest, ErrorKind, ImageBuilder, Store};
use serde_json::{Value, json};

use crate::by_toc::ByToc;
use crate::chunked::{image, push_chunked};
use crate::in_parts::{layers, open, partial_root, pull, tree};
use crate::records::{assert_same_files, podman_pull, records};
use crate::registry::Registry;
use crate::support::json::{assert_same, rows};
use crate::support::manifest;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};
use crate::text::text;

const INSECURE: &str = "insecure_allow_unpredictable_image_contents";

/// A store that is asked for partial pulls of layers whose content nobody can predict.
fn insecure_root(set: PeerSet) -> TestRoot {
    let root = partial_root(set);
    let file = root.path().join("etc/storage.conf");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{config}{INSECURE} = \"true\"\n")).unwrap();
    root
}

async fn open_insecure(root: &TestRoot) -> Store {
    let options = root.options().pull_option("enable_partial_images", "true");
    Store::open(options.pull_option(INSECURE, "true")).await.unwrap()
}

/// Writes an OCI layout with one image, and has it copied to a registry.
fn publish(root: &TestRoot, name: &str, layers: &[&ByToc]) {
    let layout = root.scratch("layout");
    std::fs::remove_dir_all(&layout).unwrap();
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.encoded()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    };
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::sha256(&layer.tar).to_string())
        .collect();
    let config = json!({
        "created": "2026-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/d/a"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let mut blob = put(&layer.blob, layer.media_type);
            blob["annotations"] = json!(layer.annotations);
            blob
        })
        .collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let manifest = put(manifest.to_string().as_bytes(), media_type);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    root.skopeo()
        .words("copy --quiet --preserve-digests --dest-tls-verify=false")
        .with([format!("oci:{}", layout.display()), format!("docker://{name}")])
        .run();
}

fn blobs() -> [ByToc; 3] {
    let long = text_of_long();
    let update = text(90_000, 5);
    [
        ByToc::estargz(&[("d/a", b"small"), ("long", &long)]),
        ByToc::zstd(&[("d/a", b"other"), ("again", &long), ("d/empty", b"")]),
        ByToc::estargz(&[("d/a", b"small"), ("long", &long), ("new", &update)]),
    ]
}

/// The images of a store by their names.
fn images(root: &TestRoot) -> Vec<Value> {
    let mut images = records(root, "images");
    images.sort_by_key(|image| image["names"].to_string());
    images
}

/// The trees of all layers are the same, but for what the Go library makes otherwise: it leaves out devices, gives
/// directories and links the time of the pull, and files that it copies whole seconds.
fn assert_same_trees(ours: &TestRoot, theirs: &TestRoot) {
    let copied = |row: &Value| row.get("toc-digest").is_none();
    for (row, other) in layers(ours).iter().zip(&layers(theirs)) {
        let id = row["id"].as_str().unwrap();
        let mut trees = [tree(ours, id), tree(theirs, id)];
        for tree in &mut trees {
            tree.remove(Path::new("char"));
            for entry in tree.values_mut() {
                if entry.size.is_none() {
                    entry.mtime = (0, 0);
                } else if copied(row) || copied(other) {
                    entry.mtime.1 = 0;
                }
            }
        }
        manifest::assert_same("ours", &trees[0], "theirs", &trees[1]);
    }
}

async fn layers_without_diff_ids_are_pulled_as_podman_does(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let [first, second, update] = blobs();
    let names = ["first", "update"].map(|name| registry.image(name));
    publish(&source, &names[0], &[&first, &second]);
    publish(&source, &names[1], &[&update, &second]);
    let (ours, theirs) = (insecure_root(set), insecure_root(set));
    let (pulled, _) = pull(&open_insecure(&ours).await, &names[0]).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (2, 0));
    podman_pull(&theirs, &names[..1]);
    // The other one pulls the update. A layer that lies on another one now is copied.
    podman_pull(&ours, &names[1..]);
    let (pulled, bytes) = pull(&open_insecure(&theirs).await, &names[1]).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (1, 1), "{bytes:?}");
    for (ours, theirs) in layers(&ours).iter().zip(&layers(&theirs)) {
        assert_eq!(ours["id"], theirs["id"]);
        // A copy by the Go library says of itself only what its own stream is.
        if ours.get("toc-digest").is_some() {
            assert_same("layers", ours, theirs);
        } else {
            assert!(
                theirs.get("diff-digest").is_none()
                    && theirs["toc-digest"] == second.toc_digest().to_string()
            );
        }
    }
    assert_eq!(layers(&ours).len(), 4);
    let dir = |root: &TestRoot, row: &Value| root.metadata_dir("images").join(row["id"].as_str().unwrap());
    for (mine, other) in images(&ours).iter_mut().zip(&mut images(&theirs)) {
        assert_same_files(&dir(&ours, mine), &dir(&theirs, other));
        // Podman 5 leaves the config out of the ID.
        let pulled_by_us = mine["names"][0] == names[0];
        let (by_us, by_podman) = if pulled_by_us {
            (&mut *mine, &mut *other)
        } else {
            (&mut *other, &mut *mine)
        };
        let tables: String = if pulled_by_us {
            [&first, &second]
        } else {
            [&update, &second]
        }
        .iter()
        .map(|layer| format!("{}|", layer.toc_digest()))
        .collect();
        let config = by_us["big-data-names"][0]
            .as_str()
            .unwrap()
            .replace("sha256:", "");
        let id = |text: String| Digest::sha256(text).encoded().to_owned();
        assert_eq!(by_us["id"], id(format!("@With TOC:{config}|{tables}")));
        assert_eq!(by_podman["id"], id(format!("@With TOC:{tables}")));
        for image in [&mut *mine, &mut *other] {
            image["id"] = Value::Null;
        }
        assert_same("images", mine, other);
    }
    assert_same_trees(&ours, &theirs);
}
each_set!(newer async layers_without_diff_ids_are_pulled_as_podman_does: "podman", "skopeo", "docker-registry");

/// How a program ends, and what it says.
fn answer(command: &mut std::process::Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), text)
}

async fn programs_use_layers_without_diff_ids(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let [first, second, _] = blobs();
    let name = registry.image("first");
    publish(&source, &name, &[&first, &second]);
    let root = insecure_root(set);
    let (pulled, _) = pull(&open_insecure(&root).await, &name).await.unwrap();
    let text = root.podman().words("images --no-trunc --quiet").run();
    assert!(text.contains(pulled.image.id()), "{text}");
    let inspect = "image inspect --format {{.RootFS.Layers}}";
    let text = root.podman().words(inspect).with([&name]).run();
    for layer in [&first, &second] {
        assert!(text.contains(Digest::sha256(&layer.tar).as_str()), "{text}");
    }
    let mounted = root.podman().words("image mount").with([&name]).run();
    let read = |file: &str| std::fs::read(Path::new(mounted.trim()).join(file)).unwrap();
    assert!(read("d/a") == b"other" && read("long") == text_of_long() && read("again") == text_of_long());
    root.podman().words("image unmount").with([&name]).run();
    if set == PeerSet::Forky {
        root.go().words("check").run();
    }
    // The stream that a layer gives is not that of the config.
    let to = format!("oci:{}", root.scratch("out").display());
    let (sent, text) = answer(&mut root.podman().words("push").with([&name, &to]));
    assert!(!sent && text.contains("Digest did not match"), "{text}");
    // What is built on such layers has streams of its own.
    root.podman().words("create --name c").with([&name]).run();
    root.podman().words("commit --quiet c localhost/committed").run();
    let to = format!("docker://{}", registry.image("committed"));
    root.podman()
        .words("push --quiet --tls-verify=false localhost/committed")
        .with([to])
        .run();
    assert_eq!(
        open_insecure(&root)
            .await
            .image_layers("localhost/committed:latest")
            .await
            .unwrap()
            .len(),
        3
    );
}
each_set!(newer async programs_use_layers_without_diff_ids: "podman", "skopeo", "docker-registry");

fn text_of_long() -> Vec<u8> {
    text(150_000, 3)
}

async fn layers_without_diff_ids_of_podman_are_used(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let [first, second, _] = blobs();
    let name = registry.image("first");
    publish(&source, &name, &[&first, &second]);
    let root = insecure_root(set);
    podman_pull(&root, std::slice::from_ref(&name));
    // Whether parts are pulled or not: they are found.
    let store = root.open().await;
    let (pulled, _) = pull(&store, &name).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (0, 2));
    assert_eq!(rows(&root.metadata_dir("layers").join("layers.json")).len(), 2);
    let mount = store
        .mount_image(pulled.image.id(), Default::default())
        .await
        .unwrap();
    assert!(std::fs::read(mount.join("long")).unwrap() == text_of_long());
    store.unmount_image(pulled.image.id()).await.unwrap();
    // Sent where the blobs are, nothing changes; elsewhere nobody knows that it is the same.
    let send = async |image: &str, to: String| {
        let options = PushOptions::default().compression(Compression::Gzip);
        push(&store, image, &to.parse::<ImageRef>().unwrap(), options).await
    };
    let sent = send(
        pulled.image.id(),
        format!("docker://{}/team/first:v2", registry.address()),
    )
    .await
    .unwrap();
    assert!(sent.unchanged && sent.sent == 0);
    let out = root.scratch("out");
    let error = send(pulled.image.id(), format!("oci:{}", out.display()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{}", error.chain());
    let built = ImageBuilder::new()
        .base(pulled.image.id())
        .name("localhost/built")
        .build(&store)
        .await
        .unwrap();
    send(built.id(), format!("docker://{}", registry.image("built")))
        .await
        .unwrap();
    let other = TestRoot::in_memory().of(set);
    podman_pull(&other, &[registry.image("built")]);
    let tree = tree(
        &other,
        rows(&other.metadata_dir("layers").join("layers.json"))[0]["id"]
            .as_str()
            .unwrap(),
    );
    assert!(tree.contains_key(Path::new("long")));
}
each_set!(newer async layers_without_diff_ids_of_podman_are_used: "podman", "skopeo", "docker-registry");

/// Podman does not compute diff IDs where it may leave that; where tar-split data is there, we do.
async fn a_layer_with_tar_split_data_has_a_diff_id(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let name = registry.image("chunked");
    let other = TestRoot::in_memory().of(set);
    // Podman remembers for all stores of a user which diff ID a table of contents comes with.
    let once = other.path().display().to_string();
    let content = TarBuilder::new()
        .file("once", once)
        .file("long", text_of_long())
        .build();
    let (store, id) = image(&other, &content).await;
    push_chunked(&store, &id, &format!("docker://{name}")).await;
    let (ours, theirs) = (insecure_root(set), insecure_root(set));
    let (pulled, _) = pull(&open_insecure(&ours).await, &name).await.unwrap();
    let diff_id = Digest::sha256(&content);
    assert_eq!(layers(&ours)[0]["diff-digest"], diff_id.to_string());
    assert_eq!(pulled.image.top_layer(), Some(diff_id.encoded()));
    // Its layer without one is used, as podman uses it itself.
    podman_pull(&theirs, std::slice::from_ref(&name));
    assert!(layers(&theirs)[0].get("diff-digest").is_none());
    let (pulled, _) = pull(&open_insecure(&theirs).await, &name).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (0, 1));
    assert_ne!(pulled.image.top_layer(), Some(diff_id.encoded()));
}
each_set!(newer async a_layer_with_tar_split_data_has_a_diff_id: "podman", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_contents_vouches_for_no_diff_id() {
    needs!("skopeo", "docker-registry");
    let source = TestRoot::in_memory();
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let [first, second, _] = blobs();
    let name = registry.image("first");
    publish(&source, &name, &[&first, &second]);
    // Without being asked to, nobody trusts a table of contents.
    let root = TestRoot::in_memory();
    let store = open(&root).await;
    let (pulled, _) = pull(&store, &name).await.unwrap();
    assert_eq!(pulled.transferred, 2);
    let layers = store.image_layers(pulled.image.id()).await.unwrap();
    let wanted = [&first, &second].map(|layer| Some(Digest::sha256(&layer.tar)));
    assert_eq!(
        [layers[0].uncompressed_digest(), layers[1].uncompressed_digest()],
        wanted
    );
    assert!(layers[1].flags().is_empty() && layers[1].toc_digest().is_none());
    let ordinary = pulled.image.id().to_owned();
    drop(store);
    // Where layers with the diff IDs are, those are used, also by who would do without.
    let store = open_insecure(&root).await;
    let (again, _) = pull(&store, &name).await.unwrap();
    assert_eq!((again.image.id(), again.reused), (&*ordinary, 2));
    // A layer that comes by the table of another one: its diff ID is verified.
    let lies = ByToc {
        annotations: first.annotations.clone(),
        ..ByToc::estargz(&[("d/a", b"a lie")])
    };
    let name = registry.image("lies");
    publish(&source, &name, &[&lies]);
    let other = TestRoot::in_memory();
    let insecure = open_insecure(&other).await;
    assert!(pull(&insecure, &name).await.is_err());
    assert!(insecure.layers().await.unwrap().is_empty());
    // The layer of the honest table is known by it; then it is taken for what the image with the lie says.
    let honest = registry.image("first");
    let (honest, _) = pull(&insecure, &honest).await.unwrap();
    let (lied, _) = pull(&insecure, &name).await.unwrap();
    assert_eq!((lied.transferred, lied.reused), (0, 1));
    assert_ne!(lied.image.id(), honest.image.id());
    let layers = insecure.image_layers(lied.image.id()).await.unwrap();
    assert_eq!(layers[0].uncompressed_digest(), None);
    assert_eq!(layers[0].toc_digest(), Some(first.toc_digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_additional_stores_are_found_by_their_tables() {
    needs!("skopeo", "docker-registry");
    let source = TestRoot::in_memory();
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let [first, second, update] = blobs();
    let names = ["first", "update"].map(|name| registry.image(name));
    publish(&source, &names[0], &[&first, &second]);
    publish(&source, &names[1], &[&update, &second]);
    let shared = TestRoot::in_memory();
    pull(&open_insecure(&shared).await, &names[0]).await.unwrap();
    let root = TestRoot::in_memory();
    let options = root
        .options()
        .driver_option(format!("overlay.imagestore={}", shared.graph().display()));
    let store = Store::open(options).await.unwrap();
    let (pulled, _) = pull(&store, &names[0]).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (0, 2));
    // On another layer it is copied, each file verified; the layer below is fetched as a whole, as this store is asked to.
    let (pulled, bytes) = pull(&store, &names[1]).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (1, 1), "{bytes:?}");
    let layers = store.image_layers(pulled.image.id()).await.unwrap();
    assert_eq!(layers[0].uncompressed_digest(), Some(Digest::sha256(&update.tar)));
    assert_eq!(
        (layers[1].uncompressed_digest(), layers[1].toc_digest()),
        (None, Some(second.toc_digest()))
    );
    assert!(layers[1].flags().contains_key("expected-layer-diffid"));
    // A file that was changed is not copied: the layer is fetched.
    let top = shared.graph().join("overlay").join(layers[1].id());
    drop((top, store));
    let changed = TestRoot::in_memory();
    let store = open_insecure(&changed).await;
    let (pulled, _) = pull(&store, &names[0]).await.unwrap();
    let top = pulled.image.top_layer().unwrap().to_owned();
    std::fs::write(
        changed.graph().join("overlay").join(top).join("diff/d/a"),
        "wrong",
    )
    .unwrap();
    let (pulled, _) = pull(&store, &names[1]).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (2, 0));
    let top = pulled.image.top_layer().unwrap();
    assert_eq!(
        std::fs::read(changed.graph().join("overlay").join(top).join("diff/d/a")).unwrap(),
        b"other"
    );
}
