//! composefs layers beside Podman, which makes images with `mkcomposefs`: each side mounts, shows and diffs what the other one
//! has pulled.

use std::path::Path;
use std::process::Command;

use graphroot::oci::{ImageRef, PullOptions, Puller};
use graphroot::test_util::TarBuilder;
use graphroot::{ContainerOptions, DiffOptions, Digest, ImageOptions, MountOptions, Store};
use tokio::io::AsyncReadExt as _;

use crate::chunked::{push_chunked, tar};
use crate::in_parts::partial_root;
use crate::records::podman_pull;
use crate::registry::Registry;
use crate::support::json::rows;
use crate::support::manifest::{self, Manifest, manifest};
use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _, block_on};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;

/// Whether the programs are there that have composefs.
fn is_ready(set: PeerSet) -> bool {
    set.is_ready(&["podman", "containers-storage", "docker-registry", "mkcomposefs"])
}

/// Podman with the option, which it does not take from a file for a store that is given as an argument.
fn podman(root: &TestRoot) -> Command {
    root.podman().words("--storage-opt overlay.use_composefs=true")
}

async fn open(root: &TestRoot) -> Store {
    let options = root.options().pull_option("enable_partial_images", "true");
    Store::open(options.driver_option("overlay.use_composefs=true"))
        .await
        .unwrap()
}

async fn pull(store: &Store, image: &str) {
    let reference: ImageRef = format!("docker://{image}").parse().unwrap();
    Puller::new(store, PullOptions::default())
        .pull(&reference)
        .await
        .unwrap();
}

fn has_image(root: &TestRoot, layer: &str) -> bool {
    let dir = root.graph().join("overlay").join(layer);
    dir.join("composefs-data/composefs.blob").is_file()
}

/// The layers of a store, those below first.
fn layers(root: &TestRoot) -> Vec<String> {
    let rows = rows(&root.metadata_dir("layers").join("layers.json"));
    rows.iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

/// A layer above [`tar`] without deletions, which the Go library loses in such layers.
fn above() -> Vec<u8> {
    TarBuilder::new()
        .dir("dir/")
        .file("dir/above", "above")
        .file("dir/small", "replaced")
        .file("above-empty", "")
        .build()
}

/// One with deletions.
fn deleting() -> Vec<u8> {
    TarBuilder::new()
        .file(".wh.link", "")
        .dir("dir/")
        .file("dir/.wh.long", "")
        .dir("a/")
        .file("a/.wh..wh..opq", "")
        .file("a/new", "new")
        .build()
}

/// An image of layers in a registry.
async fn publish(set: PeerSet, name: &str, tars: &[Vec<u8>]) {
    let root = TestRoot::in_memory().of(set);
    let store = root.open().await;
    let mut layers = Vec::new();
    for (number, tar) in tars.iter().enumerate() {
        let below = number.checked_sub(1).map(|below| below.to_string());
        let options = graphroot::LayerOptions::default().name(number.to_string());
        layers.push(
            put_bytes(&store, below.as_deref(), options, tar.clone())
                .await
                .unwrap(),
        );
    }
    let top = (tars.len() - 1).to_string();
    let options: ImageOptions = OciImage::new(&layers).options("localhost/layered");
    let image = store.create_image(Some(&top), options).await.unwrap();
    push_chunked(&store, image.id(), &format!("docker://{name}")).await;
}

/// What was made now has other times than what was made before; the root is the driver's.
fn comparable(root: &Path) -> Manifest {
    let mut tree = manifest(root);
    tree.remove(Path::new(""));
    for entry in tree.values_mut().filter(|entry| entry.kind == "directory") {
        entry.mtime = (0, 0);
    }
    tree
}

/// What we show of a layer.
async fn shown_by_us(store: &Store, layer: &str) -> Manifest {
    let root = store
        .mount(layer, MountOptions::default().option("ro"))
        .await
        .unwrap();
    let tree = comparable(&root);
    store.unmount(layer).await.unwrap();
    tree
}

/// What Podman shows of an image.
fn shown_by_podman(root: &TestRoot, image: &str) -> Manifest {
    let mounted = podman(root).words("image mount").with([image]).run();
    let tree = comparable(Path::new(mounted.trim()));
    podman(root).words("image unmount").with([image]).run();
    tree
}

async fn diff_by_us(store: &Store, layer: &str) -> Vec<u8> {
    let mut stream = store
        .diff(None, layer, DiffOptions::uncompressed())
        .await
        .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// The Go library's stream of a layer.
fn diff_by_go(root: &TestRoot, layer: &str) -> Vec<u8> {
    let file = root.path().join("diff");
    let command = root.go().words("diff --uncompressed --file");
    command.with([file.as_os_str()]).with([layer]).run();
    std::fs::read(&file).unwrap()
}

#[test]
fn we_read_what_podman_has_pulled() {
    let set = PeerSet::Forky;
    if !is_ready(set) {
        return;
    }
    block_on(async move {
        let source = TestRoot::in_memory().of(set);
        let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
        let name = registry.image("layered");
        publish(set, &name, &[tar(), above()]).await;
        let (theirs, plain) = (partial_root(set), TestRoot::in_memory().of(set));
        podman(&theirs)
            .words("pull --quiet --tls-verify=false")
            .with([&name])
            .run();
        podman_pull(&plain, std::slice::from_ref(&name));
        // One that knows nothing of the option reads them, too.
        let store = theirs.open().await;
        let whole = plain.open().await;
        for (layer, tar) in layers(&theirs).iter().zip([tar(), above()]) {
            assert!(has_image(&theirs, layer));
            assert!(diff_by_us(&store, layer).await == tar);
            let (expected, found) = (shown_by_us(&whole, layer).await, shown_by_us(&store, layer).await);
            manifest::assert_same("plain", &expected, "composefs", &found);
        }
        // A container on it.
        let options = ContainerOptions::default().id("box");
        let container = store.create_container(Some(&name), options).await.unwrap();
        let root = store.mount("box", MountOptions::default()).await.unwrap();
        std::fs::remove_file(root.join("dir/above")).unwrap();
        std::fs::write(root.join("dir/new"), "1").unwrap();
        store.unmount("box").await.unwrap();
        let changes = store.changes(None, container.layer_id()).await.unwrap();
        let mut paths: Vec<_> = changes.iter().map(|change| change.to_string()).collect();
        paths.sort();
        assert_eq!(paths, ["A /dir/new", "C /dir", "D /dir/above"]);
        // One that we pull ourselves is the same.
        let third = partial_root(set);
        pull(&open(&third).await, &name).await;
        // Contents that Podman has stored by their digests are found; parts of them are in no cache file.
        let update = registry.image("update");
        publish(set, &update, &[crate::in_parts::update()]).await;
        // Opened once more, it would be the same, without partial pulls.
        store.free();
        let store = open(&theirs).await;
        let (_, bytes) = crate::in_parts::pull(&store, &update).await.unwrap();
        assert!(bytes.reused > 500, "{bytes:?}");
        store.delete_image(&update).await.unwrap();
        let mut ours = open(&theirs).await;
        ours.delete("box").await.unwrap();
        ours.delete_image(&name).await.unwrap();
        pull(&ours, &name).await;
        ours = open(&theirs).await;
        assert_eq!(shown_by_podman(&theirs, &name), shown_by_podman(&third, &name));
        assert_eq!(ours.shutdown_force().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn podman_reads_what_we_have_pulled() {
    let set = PeerSet::Forky;
    if !is_ready(set) {
        return;
    }
    block_on(async move {
        let source = TestRoot::in_memory().of(set);
        let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
        let name = registry.image("layered");
        let tars = [tar(), above(), deleting()];
        publish(set, &name, &tars).await;
        let (ours, plain) = (partial_root(set), TestRoot::in_memory().of(set));
        pull(&open(&ours).await, &name).await;
        podman_pull(&plain, std::slice::from_ref(&name));
        for (layer, tar) in layers(&ours).iter().zip(&tars) {
            assert!(has_image(&ours, layer));
            assert!(diff_by_go(&ours, layer) == *tar);
        }
        let expected = shown_by_podman(&plain, &name);
        manifest::assert_same("plain", &expected, "composefs", &shown_by_podman(&ours, &name));
        assert!(!expected.contains_key(Path::new("link")) && !expected.contains_key(Path::new("a/b")));
        // A container of theirs.
        let id = ours
            .podman()
            .words("create --name box")
            .with([&name])
            .words("true")
            .run();
        let mounted = podman(&ours).words("mount box").run();
        let root = Path::new(mounted.trim());
        std::fs::write(root.join("a/new"), "changed").unwrap();
        std::fs::remove_file(root.join("dir/above")).unwrap();
        assert_eq!(
            std::fs::read_to_string(root.join("dir/small")).unwrap(),
            "replaced"
        );
        podman(&ours).words("umount box").run();
        let changes = podman(&ours).words("diff box").run();
        assert!(
            changes.contains("C /a/new") && changes.contains("D /dir/above"),
            "{changes}"
        );
        let store = open(&ours).await;
        let container = store.container(id.trim()).await.unwrap();
        let changes = store.changes(None, container.layer_id()).await.unwrap();
        let texts: Vec<_> = changes.iter().map(|change| change.to_string()).collect();
        assert!(texts.contains(&"C /a/new".to_owned()) && texts.contains(&"D /dir/above".to_owned()));
        // What they have changed can be committed, and pushed from what we have pulled.
        podman(&ours).words("commit box localhost/committed").run();
        let pushed = registry.image("again");
        let push = podman(&ours).words("push --tls-verify=false");
        push.with([name.as_str(), &format!("docker://{pushed}")]).run();
        podman(&ours).words("rm box").run();
        // The cache files of both say where contents are.
        let sums: Vec<_> = tars.iter().map(Digest::sha256).collect();
        let rows = rows(&ours.metadata_dir("layers").join("layers.json"));
        for (row, sum) in rows.iter().zip(&sums) {
            assert_eq!(row["diff-digest"], sum.to_string());
        }
        assert_eq!(store.shutdown_force().await.unwrap(), Vec::<String>::new());
    });
}
