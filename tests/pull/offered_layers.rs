//! Pulls of images whose layers an additional layer store offers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use graphroot::oci::{ImageRef, PullOptions, Pulled, Puller};
use graphroot::{DiffOptions, Digest, Store};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::chunked::{image, push_chunked, tar};
use crate::registry::Registry;
use crate::support::needs;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;

async fn pull(store: &Store, image: &str) -> Pulled {
    let reference: ImageRef = format!("docker://{image}").parse().unwrap();
    let puller = Puller::new(store, PullOptions::default());
    puller.pull(&reference).await.unwrap()
}

/// Offers the one layer of an image that a store has. Returns the directory of the layer, and what is said of it.
async fn offer(root: &TestRoot, registry: &TestRoot, name: &str, store: &Store) -> (PathBuf, Value) {
    let image = store.image(name).await.unwrap();
    let manifest = store.image_big_data(image.id(), "manifest").await.unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let blob = &manifest["layers"][0];
    let toc = blob["annotations"]["io.github.containers.zstd-chunked.manifest-checksum"].clone();
    let name = base64::engine::general_purpose::STANDARD.encode(name);
    let dir = root.scratch("offered").join(name).join(toc.as_str().unwrap());
    fs::create_dir_all(&dir).unwrap();
    let layer = store.layer(image.top_layer().unwrap()).await.unwrap();
    let tree = store.graph_root().join("overlay").join(layer.id()).join("diff");
    Command::new("cp").arg("-a").arg(tree).arg(dir.join("diff")).run();
    let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
    let hex = digest.encoded();
    let blobs = registry.path().join("data/docker/registry/v2/blobs/sha256");
    fs::copy(blobs.join(&hex[..2]).join(hex).join("data"), dir.join("blob")).unwrap();
    let info = serde_json::json!({
        "compressed-diff-digest": digest,
        "compressed-size": blob["size"],
        "diff-digest": layer.uncompressed_digest(),
        "toc-digest": toc,
        "compression": 4,
    });
    fs::write(dir.join("info"), info.to_string()).unwrap();
    (dir, info)
}

#[tokio::test(flavor = "multi_thread")]
async fn offered_layers_are_not_transferred() {
    needs!("docker-registry");
    let source = TestRoot::in_memory();
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let name = registry.image("first");
    let (store, id) = image(&source, &tar()).await;
    push_chunked(&store, &id, &format!("docker://{name}")).await;

    let whole = TestRoot::in_memory();
    let whole_store = whole.open().await;
    assert_eq!(pull(&whole_store, &name).await.transferred, 1);
    let root = TestRoot::in_memory();
    let (dir, mut info) = offer(&root, &source, &name, &whole_store).await;
    let option = format!(
        "overlay.additionallayerstore={}:ref",
        root.scratch("offered").display()
    );
    let open = async || Store::open(root.options().driver_option(&option)).await.unwrap();
    let store = open().await;
    registry.settle("before");
    let mark = registry.requests().len();
    let pulled = pull(&store, &name).await;
    assert_eq!((pulled.transferred, pulled.reused), (0, 1));
    registry.settle("after");
    assert!(
        !registry
            .blobs_sent(mark)
            .contains_key(info["compressed-diff-digest"].as_str().unwrap())
    );
    // It is the same layer as the transferred one, but for where its files are.
    let layer = pulled.image.top_layer().unwrap();
    let expected = whole_store.layer(layer).await.unwrap();
    let layer = store.layer(layer).await.unwrap();
    assert_eq!(layer.uncompressed_digest(), expected.uncompressed_digest());
    assert_eq!(layer.compressed_digest(), expected.compressed_digest());
    let link = root.graph().join("overlay").join(layer.id()).join("diff");
    assert_eq!(fs::read_link(link).unwrap(), dir.join("diff"));
    let mut bytes = Vec::new();
    let mut diff = store
        .diff(None, layer.id(), DiffOptions::uncompressed())
        .await
        .unwrap();
    diff.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == tar());
    // Another pull finds it.
    assert_eq!(pull(&store, &name).await.reused, 1);

    // What is not said to be the layer of the image is transferred.
    for (key, value) in [
        ("diff-digest", Some(Digest::sha256("x").to_string())),
        ("diff-digest", None),
        ("compressed-diff-digest", Some(Digest::sha256("x").to_string())),
        ("toc-digest", Some(Digest::sha256("x").to_string())),
        ("compression", Some("wrong".into())),
    ] {
        let right = info[key].take();
        info[key] = value.map(Value::from).unwrap_or_default();
        fs::write(dir.join("info"), info.to_string()).unwrap();
        info[key] = right;
        store.wipe().await.unwrap();
        let pulled = pull(&store, &name).await;
        assert_eq!((pulled.transferred, pulled.reused), (1, 0), "{key}");
    }
}
