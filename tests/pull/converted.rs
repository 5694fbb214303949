//! Layers without a table of contents that get one when they are pulled, and files that become hard links, beside the Go
//! library's.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use graphroot::oci::{ImageRef, PushOptions, push};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{Compression, Digest};
use serde_json::Value;

use crate::chunked::{image, push_chunked};
use crate::in_parts::{damage_blobs, diff_by_go, layers, open_with, pull, root_with, tree};
use crate::records::podman_pull;
use crate::registry::Registry;
use crate::support::each_set;
use crate::support::json::{assert_same, rows};
use crate::support::manifest;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::text::text;

const CONVERT: [&str; 1] = ["convert_images"];

const LINKS: [&str; 1] = ["use_hard_links"];

fn known() -> TarEntry {
    TarEntry::file("dir/known", text(150_000, 3))
        .mode(0o640)
        .owner(7, 8)
}

/// Of which all can be said in a table of contents by either side.
fn first() -> Vec<u8> {
    let holes = [&text(2000, 1)[..], &[0; 300_000], &text(5000, 2)].concat();
    TarBuilder::new()
        .dir("dir/")
        .entry(known())
        .file("dir/empty", "")
        .file("dir/small", "small")
        .file("dir/holes", holes)
        .symlink("link", "dir/small")
        .hard_link("hard", "dir/small")
        .entry(
            TarEntry::file("owned", "x")
                .owner(1000, 1001)
                .mode(0o104_755)
                .xattr("user.a", "a"),
        )
        .build()
}

/// Of which only the start can be read from a registry whose blobs are damaged.
fn update() -> Vec<u8> {
    TarBuilder::new()
        .dir("dir/")
        .file("dir/new", text(50, 11))
        .entry(known())
        .build()
}

/// The table of contents of the layer of a store with this content, without what depends on what was converted: the tar stream,
/// or a blob that older versions have made of it first.
fn table(root: &TestRoot, tar: &[u8]) -> Value {
    let id = layer(root, tar);
    let file = root
        .metadata_dir("layers")
        .join(id)
        .join("=enN0ZC1jaHVua2VkLW1hbmlmZXN0");
    let mut table: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    table.as_object_mut().unwrap().remove("tarSplitDigest");
    for entry in table["entries"].as_array_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        entry.remove("offset");
        entry.remove("endOffset");
    }
    table
}

/// The ID of the layer with this content.
fn layer(root: &TestRoot, tar: &[u8]) -> String {
    let digest = Digest::sha256(tar).to_string();
    let rows = rows(&root.metadata_dir("layers").join("layers.json"));
    let row = rows.iter().find(|row| row["diff-digest"] == digest).unwrap();
    row["id"].as_str().unwrap().to_owned()
}

fn inode(root: &TestRoot, tar: &[u8], name: &str) -> u64 {
    let tree: PathBuf = root.graph().join("overlay").join(layer(root, tar)).join("diff");
    tree.join(name).symlink_metadata().unwrap().ino()
}

/// Without times of directories, which the Go library does not keep.
fn comparable(root: &TestRoot, layer: &str) -> manifest::Manifest {
    let mut tree = tree(root, layer);
    tree.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    tree
}

async fn push_plain(source: &TestRoot, tar: &[u8], name: &str, compression: Compression) {
    let (store, id) = image(source, tar).await;
    let to: ImageRef = format!("docker://{name}").parse().unwrap();
    let options = PushOptions::default().compression(compression);
    push(&store, &id, &to, options).await.unwrap();
}

async fn layers_are_converted_as_podman_does(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let names = ["plain", "zstd", "update"].map(|name| registry.image(name));
    push_plain(
        &TestRoot::in_memory().of(set),
        &first(),
        &names[0],
        Compression::Gzip,
    )
    .await;
    push_plain(
        &TestRoot::in_memory().of(set),
        &first(),
        &names[1],
        Compression::Zstd,
    )
    .await;
    let (store, id) = image(&source, &update()).await;
    push_chunked(&store, &id, &format!("docker://{}", names[2])).await;
    for name in &names[..2] {
        let (ours, theirs) = (root_with(set, &CONVERT), root_with(set, &CONVERT));
        let (_, bytes) = pull(&open_with(&ours, &CONVERT).await, name).await.unwrap();
        assert_eq!(bytes.reused, 0);
        podman_pull(&theirs, std::slice::from_ref(name));
        for (ours, theirs) in layers(&ours).iter().zip(&layers(&theirs)) {
            assert_same("layers", ours, theirs);
        }
        assert_same("table", &table(&ours, &first()), &table(&theirs, &first()));
        assert!(diff_by_go(&ours, &layer(&ours, &first())) == first());
        // The tree is that of the ordinary pull.
        let whole = TestRoot::in_memory().of(set);
        podman_pull(&whole, std::slice::from_ref(name));
        let id = layer(&whole, &first());
        let trees = [&whole, &ours].map(|root| comparable(root, &id));
        manifest::assert_same("whole", &trees[0], "converted", &trees[1]);
        if name == &names[0] {
            continue;
        }
        // Each side takes from what the other one has converted what it cannot fetch.
        damage_blobs(&source.path().join("data"));
        podman_pull(&ours, &names[2..]);
        let (_, bytes) = pull(&open_with(&theirs, &CONVERT).await, &names[2])
            .await
            .unwrap();
        assert!(bytes.reused > 10 * bytes.fetched, "{bytes:?}");
        for root in [&ours, &theirs] {
            assert!(diff_by_go(root, &layer(root, &update())) == update());
        }
    }
}
each_set!(newer async layers_are_converted_as_podman_does: "podman", "containers-storage", "docker-registry");

async fn files_become_hard_links_as_podman_makes_them(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let names = ["first", "update"].map(|name| registry.image(name));
    for (name, tar) in names.iter().zip([first(), update()]) {
        let root = TestRoot::in_memory().of(set);
        let (store, id) = image(&root, &tar).await;
        push_chunked(&store, &id, &format!("docker://{name}")).await;
    }
    let (ours, theirs) = (root_with(set, &LINKS), root_with(set, &LINKS));
    pull(&open_with(&ours, &LINKS).await, &names[0]).await.unwrap();
    podman_pull(&theirs, &names[..1]);
    // The other one pulls the update.
    podman_pull(&ours, &names[1..]);
    pull(&open_with(&theirs, &LINKS).await, &names[1]).await.unwrap();
    for root in [&ours, &theirs] {
        assert_eq!(
            inode(root, &first(), "dir/known"),
            inode(root, &update(), "dir/known")
        );
        for tar in [first(), update()] {
            assert!(diff_by_go(root, &layer(root, &tar)) == tar);
        }
    }
    // What we have made of both is sound to the Go library.
    let root = root_with(set, &LINKS);
    let store = open_with(&root, &LINKS).await;
    for name in &names {
        pull(&store, name).await.unwrap();
    }
    drop(store);
    assert_eq!(
        inode(&root, &first(), "dir/known"),
        inode(&root, &update(), "dir/known")
    );
    // An older one takes a directory of ours for a layer.
    if set == PeerSet::Forky {
        root.go().words("check").run();
    }
}
each_set!(newer async files_become_hard_links_as_podman_makes_them: "podman", "containers-storage", "docker-registry");
