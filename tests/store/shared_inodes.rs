//! Layers whose files take less space than their content, since they are hard links to those of others or have holes, and layers
//! that get a table of contents while they are unpacked.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    ChunkedDiffer, ConvertingDiffer, Digest, ErrorKind, LayerOptions, MountOptions, Savings, StagingOptions,
    Store,
};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::manifest::{Manifest, assert_same, manifest};
use crate::staged_layers::{Chunked, chunked, everything, read_all};
use crate::support::{Layout, TestStore, assert_nothing_temporary, over, tree_of};
use crate::text::text;

/// Names and contents that both layers have.
const NAMES: [&str; 8] = [
    "same",
    "small",
    "mode",
    "owner",
    "time",
    "attribute",
    "twice",
    "parted",
];

fn file(name: &str) -> TarEntry {
    let content = match name {
        "small" => b"small".to_vec(),
        name => [name.as_bytes(), &text(20_000, 3)].concat(),
    };
    TarEntry::file(name, content).mode(0o640).owner(7, 8)
}

fn first() -> Vec<u8> {
    let files = NAMES.iter().map(|name| file(name));
    files.fold(TarBuilder::new().dir("."), TarBuilder::entry).build()
}

/// The same files, most of them with something else about them.
fn second() -> Vec<u8> {
    TarBuilder::new()
        .dir(".")
        .entry(file("same"))
        .entry(file("small"))
        .entry(file("mode").mode(0o641))
        .entry(file("owner").owner(7, 9))
        .entry(file("time").pax("mtime", "1.000000001"))
        .entry(file("attribute").xattr("user.a", "b"))
        .entry(file("twice"))
        .entry(TarEntry::hard_link("twice-too", "twice").mode(0o640).owner(7, 8))
        .entry(file("parted"))
        .entry(
            TarEntry::hard_link("parted-too", "parted")
                .mode(0o640)
                .owner(7, 8),
        )
        .entry(
            TarEntry::hard_link("parted-again", "parted")
                .mode(0o600)
                .owner(1, 2),
        )
        .build()
}

async fn put_parts(store: &Store, image: &Chunked, id: &str) -> Vec<Savings> {
    let (source, seen) = (image.source(), Arc::new(Mutex::new(Vec::new())));
    let sink = Arc::clone(&seen);
    let differ = ChunkedDiffer::open(store, &image.annotations, image.blob.len() as u64, source).await;
    let differ = differ
        .unwrap()
        .expect(image.diff_id.clone())
        .report(move |savings| sink.lock().unwrap().push(savings));
    let staged = store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await
        .unwrap();
    store
        .apply_staged_layer(None, LayerOptions::default().id(id), staged)
        .await
        .unwrap();
    seen.lock().unwrap().clone()
}

async fn convert(store: &Store, blob: &[u8], id: &str) -> graphroot::Result<graphroot::Layer> {
    let differ = ConvertingDiffer::new(store, Cursor::new(blob.to_vec()))
        .expect_blob(Digest::sha256(blob), blob.len() as u64);
    let staged = store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await?;
    store
        .apply_staged_layer(None, LayerOptions::default().id(id), staged)
        .await
}

fn inode(store: &TestStore, layer: &str, name: &str) -> u64 {
    tree_of(store, layer).join(name).symlink_metadata().unwrap().ino()
}

/// Its files. Directories without an entry of their own have the time at which they were made.
fn tree(store: &TestStore, layer: &str) -> Manifest {
    let mut tree = manifest(&tree_of(store, layer));
    for implied in ["", "a", "a/b"] {
        if let Some(entry) = tree.get_mut(Path::new(implied)) {
            entry.mtime = (0, 0);
        }
    }
    tree
}

fn on_overlay(case: fn(TestStore) -> std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    over("overlay", Layout::Plain, case);
}

/// What `second` has of `first`, whichever way it was made.
async fn check_links(test: &TestStore, store: &Store, before: &Manifest) {
    let shared: BTreeSet<&str> = NAMES
        .into_iter()
        .filter(|name| inode(test, "first", name) == inode(test, "second", name))
        .collect();
    assert_eq!(shared, BTreeSet::from(["same", "small", "twice"]));
    assert_eq!(inode(test, "second", "twice"), inode(test, "second", "twice-too"));
    let parted = ["parted", "parted-too", "parted-again"].map(|name| inode(test, "second", name));
    assert_eq!(parted, [parted[0]; 3]);
    assert_same("before", before, "after", &tree(test, "first"));
    let whole = store
        .put_layer(None, LayerOptions::default().id("whole"), Cursor::new(second()))
        .await;
    whole.unwrap();
    assert_same("whole", &tree(test, "whole"), "with links", &tree(test, "second"));
    assert!(read_all(store, "second").await == second());
    assert!(read_all(store, "first").await == first());
    // Each layer is as it is without the other one.
    store.delete_layer("first").await.unwrap();
    assert!(read_all(store, "second").await == second());
    assert_same("whole", &tree(test, "whole"), "alone", &tree(test, "second"));
}

#[test]
fn files_that_are_the_same_in_everything_become_hard_links() {
    on_overlay(|test| {
        Box::pin(async move {
            let [one, two] = [chunked(&test, &first()).await, chunked(&test, &second()).await];
            let store = test.reopen_with("use_hard_links", "true").await;
            put_parts(&store, &one, "first").await;
            let before = tree(&test, "first");
            let savings = put_parts(&store, &two, "second").await;
            assert_eq!((savings.len(), savings[0].fetched), (1, 0));
            check_links(&test, &store, &before).await;
            drop(store);
            assert_nothing_temporary(&test).await;
        })
    });
}

#[test]
fn without_the_option_no_file_is_a_hard_link() {
    on_overlay(|test| {
        Box::pin(async move {
            let image = chunked(&test, &first()).await;
            put_parts(&test, &image, "first").await;
            put_parts(&test, &image, "second").await;
            for name in NAMES {
                assert_ne!(
                    inode(&test, "first", name),
                    inode(&test, "second", name),
                    "{name}"
                );
            }
        })
    });
}

/// The text of the table of contents that a layer has.
async fn table_text(store: &Store, layer: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = store
        .layer_big_data(layer, "zstd-chunked-manifest")
        .await
        .unwrap();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Its entries, without positions.
async fn table(store: &Store, layer: &str) -> Value {
    let text = table_text(store, layer).await;
    // Names may be anything.
    let mut table: Value = serde_json::from_str(&String::from_utf8_lossy(&text)).unwrap();
    let mut entries = table["entries"].take();
    for entry in entries.as_array_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        for position in ["offset", "endOffset"] {
            entry.remove(position);
        }
    }
    entries
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    crate::hostile_blobs::zstd(bytes)
}

#[test]
fn a_layer_without_a_table_gets_one() {
    on_overlay(|test| {
        Box::pin(async move {
            let image = chunked(&test, &everything()).await;
            let blob = zstd(&everything());
            let layer = convert(&test, &blob, "converted").await.unwrap();
            assert_eq!(layer.uncompressed_digest().as_ref(), Some(&image.diff_id));
            assert_eq!(layer.uncompressed_size(), Some(everything().len() as u64));
            assert_eq!(layer.compressed_digest(), Some(Digest::sha256(&blob)));
            assert_eq!(layer.toc_digest(), None);
            let mut keys = test.list_layer_big_data("converted").await.unwrap();
            keys.sort_unstable();
            assert_eq!(keys, ["zstd-chunked-layer-data", "zstd-chunked-manifest"]);
            assert!(read_all(&test, "converted").await == everything());
            // It is the table of the blob that the layer would make.
            let savings = put_parts(&test, &image, "in-parts").await;
            assert_eq!((savings.len(), savings[0].fetched), (1, 0), "{savings:?}");
            assert_eq!(table(&test, "converted").await, table(&test, "in-parts").await);
            let trees = [tree(&test, "converted"), tree(&test, "in-parts")];
            assert_same("converted", &trees[0], "in parts", &trees[1]);
            // Of nothing, too.
            let nothing = TarBuilder::new().build();
            convert(&test, &nothing, "empty").await.unwrap();
            assert_eq!(
                table_text(&test, "empty").await,
                b"{\"version\":1,\"entries\":null}"
            );
            // A name that is there twice keeps a layer from having a table, and no more than that.
            let twice = TarBuilder::new().file("name", "1").file("name", "2").build();
            convert(&test, &twice, "twice").await.unwrap();
            assert!(test.list_layer_big_data("twice").await.unwrap().is_empty());
            assert!(read_all(&test, "twice").await == twice);
        })
    });
}

#[test]
fn converted_files_become_hard_links() {
    on_overlay(|test| {
        Box::pin(async move {
            let store = test.reopen_with("use_hard_links", "true").await;
            convert(&store, &first(), "first").await.unwrap();
            let before = tree(&test, "first");
            convert(&store, &second(), "second").await.unwrap();
            check_links(&test, &store, &before).await;
            drop(store);
            assert_nothing_temporary(&test).await;
        })
    });
}

#[test]
fn a_file_that_was_changed_is_no_origin() {
    on_overlay(|test| {
        Box::pin(async move {
            let store = test.reopen_with("use_hard_links", "true").await;
            convert(&store, &first(), "first").await.unwrap();
            let path = tree_of(&test, "first").join("same");
            let meta = path.metadata().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let changed = std::fs::File::options().write(true).open(&path).unwrap();
            changed.set_modified(meta.modified().unwrap()).unwrap();
            convert(&store, &first(), "second").await.unwrap();
            assert!(read_all(&store, "second").await == first());
            assert_ne!(inode(&test, "first", "same"), inode(&test, "second", "same"));
            assert_eq!(inode(&test, "first", "twice"), inode(&test, "second", "twice"));
            // In parts, it is only found out at the end: once more without.
            let image = chunked(&test, &first()).await;
            store.delete_layer("second").await.unwrap();
            let savings = put_parts(&store, &image, "second").await;
            assert_eq!(savings.len(), 2, "{savings:?}");
            assert!(read_all(&store, "second").await == first());
        })
    });
}

#[test]
fn a_blob_that_is_another_one_is_not_converted() {
    on_overlay(|test| {
        Box::pin(async move {
            let blob = zstd(&first());
            let another = ConvertingDiffer::new(&test, Cursor::new(blob.clone()))
                .expect_blob(Digest::sha256("another"), blob.len() as u64);
            let diff = ConvertingDiffer::new(&test, Cursor::new(blob)).expect(Digest::sha256("another"));
            for differ in [another, diff] {
                let error = test.prepare_staged_layer(StagingOptions::default(), differ).await;
                assert_eq!(error.unwrap_err().kind(), ErrorKind::DigestMismatch);
            }
            assert_nothing_temporary(&test).await;
        })
    });
}

#[test]
fn a_diff_changes_no_file_of_another_layer() {
    on_overlay(|test| {
        Box::pin(async move {
            let image = chunked(&test, &first()).await;
            let store = test.reopen_with("use_hard_links", "true").await;
            for id in ["first", "second", "third"] {
                put_parts(&store, &image, id).await;
            }
            let before = tree(&test, "first");
            // The header of a link describes the file: of a layer that is changed as a whole, and of one that is mounted.
            let diff = TarBuilder::new()
                .entry(TarEntry::hard_link("link", "same").mode(0o600).owner(1, 2))
                .build();
            store.mount("third", MountOptions::default()).await.unwrap();
            for id in ["second", "third"] {
                assert_eq!(inode(&test, "first", "same"), inode(&test, id, "same"));
                store.apply_diff(id, Cursor::new(diff.clone())).await.unwrap();
                assert_same("before", &before, "after", &tree(&test, "first"));
                let tree = tree(&test, id);
                for name in ["same", "link"] {
                    let entry = &tree[Path::new(name)];
                    assert_eq!((entry.mode, entry.uid, entry.gid), (0o600, 1, 2), "{name}");
                }
                assert_eq!(inode(&test, id, "same"), inode(&test, id, "link"));
            }
            store.unmount("third").await.unwrap();
        })
    });
}

#[test]
fn long_runs_of_zeros_take_no_space() {
    on_overlay(|test| {
        Box::pin(async move {
            let content = [
                &text(5000, 1)[..],
                &vec![0; 8 << 20],
                &text(5000, 2),
                &vec![0; 8 << 20],
            ]
            .concat();
            let tar = TarBuilder::new().file("zeros", &content).build();
            let image = chunked(&test, &tar).await;
            put_parts(&test, &image, "in-parts").await;
            convert(&test, &tar, "converted").await.unwrap();
            let options = LayerOptions::default().id("whole");
            test.put_layer(None, options, Cursor::new(tar.clone()))
                .await
                .unwrap();
            for id in ["in-parts", "converted", "whole"] {
                let path = tree_of(&test, id).join("zeros");
                assert!(std::fs::read(&path).unwrap() == content);
                let taken = path.metadata().unwrap().blocks() * 512;
                assert!(taken < 256 << 10, "{id}: {taken} bytes");
                assert!(read_all(&test, id).await == tar);
            }
        })
    });
}

#[test]
fn a_layer_that_is_stored_by_digests_changes_no_file_of_another_one() {
    on_overlay(|test| {
        Box::pin(async move {
            let image = chunked(&test, &first()).await;
            put_parts(&test, &image, "first").await;
            let before = tree(&test, "first");
            let store = test
                .reopen_as_with(Layout::Composefs, "use_hard_links", "true")
                .await;
            put_parts(&store, &image, "second").await;
            convert(&store, &first(), "third").await.unwrap();
            assert_same("before", &before, "after", &tree(&test, "first"));
        })
    });
}
