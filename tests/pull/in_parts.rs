//! Pulls of parts of layers, beside the Go library's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use graphroot::oci::{BlobState, Event, ImageRef, Progress, PullOptions, Pulled, Puller};
use graphroot::test_util::TarBuilder;
use graphroot::{Digest, ErrorKind, Store, StoreOptions};
use serde_json::Value;

use crate::chunked::{image, push_chunked, tar};
use crate::records::podman_pull;
use crate::registry::Registry;
use crate::support::each_set;
use crate::support::json::{assert_same, rows};
use crate::support::manifest::{self, manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::text::text;

/// What an update of [`tar`] has: a file as before, one longer than before, a new one.
pub(crate) fn update() -> Vec<u8> {
    let long = [&text(150_000, 3)[..], b"one more line"].concat();
    TarBuilder::new()
        .dir("other/")
        .file("other/small", "small")
        .file("other/long", long)
        .file("other/new", text(1000, 7))
        .build()
}

/// A store that is asked for partial pulls, by our options and by the Go library's.
pub(crate) fn partial_root(set: PeerSet) -> TestRoot {
    root_with(set, &[])
}

/// The same with more options for pulls that are on.
pub(crate) fn root_with(set: PeerSet, more: &[&str]) -> TestRoot {
    let root = TestRoot::in_memory().of(set);
    let file = root.path().join("etc/storage.conf");
    let config = std::fs::read_to_string(&file).unwrap();
    let mut partial = "[storage.options.pull_options]\nenable_partial_images = \"true\"\n".to_owned();
    for key in more {
        partial += &format!("{key} = \"true\"\n");
    }
    std::fs::write(&file, format!("{config}\n{partial}")).unwrap();
    root
}

pub(crate) async fn open(root: &TestRoot) -> Store {
    open_with(root, &[]).await
}

/// With more options for pulls that are on.
pub(crate) async fn open_with(root: &TestRoot, more: &[&str]) -> Store {
    let options = root.options().pull_option("enable_partial_images", "true");
    let on = |options: StoreOptions, key: &&str| options.pull_option(*key, "true");
    Store::open(more.iter().fold(options, on)).await.unwrap()
}

/// The bytes of blobs that a pull has fetched and reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) fetched: u64,
    pub(crate) reused: u64,
}

pub(crate) async fn pull(store: &Store, image: &str) -> graphroot::Result<(Pulled, Bytes)> {
    let seen: Arc<Mutex<BTreeMap<Digest, Bytes>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let progress = Progress::new(move |event| {
        if let Event::Blob { digest, state } = event {
            let mut seen = sink.lock().unwrap();
            let bytes = seen.entry(digest).or_default();
            match state {
                BlobState::Transferred { bytes: sum } => bytes.fetched = sum,
                BlobState::PartlyReused { bytes: sum } => bytes.reused = sum,
                _ => {}
            }
        }
    });
    let reference: ImageRef = format!("docker://{image}").parse().unwrap();
    let options = PullOptions::default().progress(progress);
    let pulled = Puller::new(store, options).pull(&reference).await?;
    let mut sum = Bytes::default();
    for bytes in seen.lock().unwrap().values() {
        sum.fetched += bytes.fetched;
        sum.reused += bytes.reused;
    }
    Ok((pulled, sum))
}

/// The records of layers, without what differs from one pull to the next, and lists that are sets in their order.
pub(crate) fn layers(root: &TestRoot) -> Vec<Value> {
    let mut rows = rows(&root.metadata_dir("layers").join("layers.json"));
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.remove("created");
        for set in ["uidset", "gidset", "big-data-names"] {
            let Some(items) = row.get_mut(set).and_then(Value::as_array_mut) else {
                continue;
            };
            items.sort_by_key(Value::to_string);
            // Made by whoever looks for contents first.
            items.retain(|item| item != "chunked-manifest-cache");
        }
    }
    rows.sort_by_key(|row| row["id"].to_string());
    rows
}

pub(crate) fn tree(root: &TestRoot, layer: &str) -> manifest::Manifest {
    manifest(&root.graph().join("overlay").join(layer).join("diff"))
}

/// The Go library's stream of a layer.
pub(crate) fn diff_by_go(root: &TestRoot, layer: &str) -> Vec<u8> {
    let file = root.path().join("diff");
    let command = root.go().words("diff --uncompressed --file");
    command.with([file.as_os_str()]).with([layer]).run();
    std::fs::read(&file).unwrap()
}

/// Changes a byte in the middle of each large file of a registry.
pub(crate) fn damage_blobs(data: &std::path::Path) {
    let mut dirs = vec![data.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.metadata().unwrap().len() > 100_000 {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }
}

async fn parts_are_pulled_as_podman_does(set: PeerSet) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let before = i64::try_from(now.as_secs()).unwrap() - 60;
    let source = TestRoot::in_memory().of(set);
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let names = ["first", "update"].map(|name| registry.image(name));
    for (name, tar) in names.iter().zip([tar(), update()]) {
        let root = TestRoot::in_memory().of(set);
        let (store, id) = image(&root, &tar).await;
        push_chunked(&store, &id, &format!("docker://{name}")).await;
    }
    let (ours, theirs) = (partial_root(set), partial_root(set));
    let (_, bytes) = pull(&open(&ours).await, &names[0]).await.unwrap();
    assert_eq!(bytes.reused, 0);
    podman_pull(&theirs, &names[..1]);
    // The other one pulls the update.
    podman_pull(&ours, &names[1..]);
    let (_, bytes) = pull(&open(&theirs).await, &names[1]).await.unwrap();
    assert!(bytes.reused > 5 * bytes.fetched, "{bytes:?}");
    for (ours, theirs) in layers(&ours).iter().zip(&layers(&theirs)) {
        assert_same("layers", ours, theirs);
    }
    assert_eq!(layers(&ours).len(), 2);
    // What was pulled in part by whomever is what was pulled as a whole.
    let whole = TestRoot::in_memory().of(set);
    podman_pull(&whole, &names);
    let expected = [tar(), update()];
    for row in rows(&whole.metadata_dir("layers").join("layers.json")) {
        let id = row["id"].as_str().unwrap();
        let is_first = row["diff-digest"] == Digest::sha256(&expected[0]).to_string();
        let content = &expected[usize::from(!is_first)];
        for root in [&ours, &theirs] {
            assert!(diff_by_go(root, id) == *content);
        }
        let pulled_by_us = if is_first { &ours } else { &theirs };
        let mut trees = [tree(&whole, id), tree(pulled_by_us, id)];
        for tree in &mut trees {
            // Directories without an entry have the time at which they were made.
            for entry in tree.values_mut().filter(|entry| entry.mtime.0 > before) {
                entry.mtime = (0, 0);
            }
        }
        manifest::assert_same("whole", &trees[0], "in parts", &trees[1]);
    }
    // Another one that has nothing takes it from a store that has.
    let third = partial_root(set);
    let store = open(&third).await;
    for name in &names {
        let (pulled, _) = pull(&store, name).await.unwrap();
        assert_eq!(pulled.transferred, 1);
    }
    assert_eq!(store.layers().await.unwrap().len(), 2);
}
each_set!(newer async parts_are_pulled_as_podman_does: "podman", "containers-storage", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_lies_is_refused() {
    if crate::support::require("docker-registry").is_none() {
        return;
    }
    let source = TestRoot::in_memory();
    let registry = Registry::start(&source.scratch("registry"), &source.path().join("data"));
    let (store, id) = image(&source, &tar()).await;
    let name = registry.image("first");
    push_chunked(&store, &id, &format!("docker://{name}")).await;
    damage_blobs(&source.path().join("data"));
    let root = TestRoot::in_memory();
    let store = open(&root).await;
    let error = pull(&store, &name).await.unwrap_err();
    let kinds = [ErrorKind::InvalidArchive, ErrorKind::DigestMismatch];
    assert!(kinds.contains(&error.kind()), "{}", error.chain());
    assert!(store.layers().await.unwrap().is_empty());
}
