//! Cache files of layers are exchanged with the Go library: each side makes the same bytes, finds contents by the other's
//! and leaves them as they are.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use graphroot::Store;
use graphroot::test_util::TarBuilder;

use crate::chunked::{image, push_chunked, tar};
use crate::in_parts::{damage_blobs, open, partial_root, pull, update};
use crate::records::podman_pull;
use crate::registry::Registry;
use crate::support::each_set;
use crate::support::json::rows;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::text::text;

/// The file name of the big data item `chunked-manifest-cache`.
const CACHE: &str = "=Y2h1bmtlZC1tYW5pZmVzdC1jYWNoZQ==";

/// The cache files of a store, by the digest of their layer's table of contents.
fn caches(root: &TestRoot) -> BTreeMap<String, PathBuf> {
    let dir = root.metadata_dir("layers");
    let rows = rows(&dir.join("layers.json"));
    let files = rows.iter().map(|row| {
        let file = dir.join(row["id"].as_str().unwrap()).join(CACHE);
        (row["toc-digest"].as_str().unwrap().to_owned(), file)
    });
    files.filter(|(_, file)| file.exists()).collect()
}

fn contents(root: &TestRoot) -> BTreeMap<String, Vec<u8>> {
    let read = |(toc, file)| (toc, std::fs::read::<PathBuf>(file).unwrap());
    caches(root).into_iter().map(read).collect()
}

fn inodes(root: &TestRoot) -> BTreeMap<String, u64> {
    let inode = |(toc, file): (String, PathBuf)| (toc, file.metadata().unwrap().ino());
    caches(root).into_iter().map(inode).collect()
}

/// As another process sees it.
async fn open_again(root: &TestRoot, store: Store) -> Store {
    drop(store);
    open(root).await
}

async fn caches_are_those_of_podman(set: PeerSet) {
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    // Of which only the start can be read from the registry.
    let known = TarBuilder::new()
        .file("new", text(50, 11))
        .file("known", text(150_000, 3))
        .build();
    let small = |seed| TarBuilder::new().file("small", text(20, seed)).build();
    let mut names = Vec::new();
    for (number, tar) in [tar(), update(), known, small(1), small(2)].iter().enumerate() {
        let root = TestRoot::in_memory().of(set);
        let (store, id) = image(&root, tar).await;
        let name = registry.image(&format!("image-{number}"));
        push_chunked(&store, &id, &format!("docker://{name}")).await;
        names.push(name);
    }
    let root = partial_root(set);
    let store = open(&root).await;
    pull(&store, &names[0]).await.unwrap();
    pull(&store, &names[1]).await.unwrap();
    let ours = inodes(&root);
    assert_eq!(ours.len(), 1, "that of the layer that was there");
    damage_blobs(&source.path().join("data"));
    podman_pull(&root, &names[2..3]);
    let (after, made) = (inodes(&root), contents(&root));
    assert_eq!(after.len(), 2);
    assert!(ours.iter().all(|(toc, inode)| after[toc] == *inode));
    // We make the same, of both.
    for file in caches(&root).values() {
        std::fs::remove_file(file).unwrap();
    }
    let store = open_again(&root, store).await;
    pull(&store, &names[3]).await.unwrap();
    let again = contents(&root);
    assert_eq!(again.len(), 3);
    for (toc, content) in &made {
        assert!(again[toc] == *content, "{toc}");
    }
    // What is damaged is made again, by whoever comes next, and stays after that.
    for file in caches(&root).values() {
        std::fs::write(file, "damaged").unwrap();
    }
    podman_pull(&root, &names[4..]);
    let theirs = contents(&root);
    assert!(again.iter().all(|(toc, content)| theirs[toc] == *content));
    let before = inodes(&root);
    let store = open_again(&root, store).await;
    pull(&store, &names[4]).await.unwrap();
    let after = inodes(&root);
    assert!(before.iter().all(|(toc, inode)| after[toc] == *inode));
}
each_set!(newer async caches_are_those_of_podman: "podman", "containers-storage", "docker-registry");
