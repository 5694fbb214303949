//! Caches are made once, stored where that is possible, and made again where they are no good.

use std::fs;
use std::io::Read as _;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::digest::{Digest, sha256_sum};
use crate::options::{LayerOptions, StoreOptions};

fn digest(text: &str) -> String {
    Digest::sha256(text).to_string()
}

fn file(name: &str, text: &str) -> Value {
    json!({"type": "reg", "name": name, "size": text.len(), "digest": digest(text)})
}

fn table(files: &[(&str, &str)]) -> String {
    let entries: Vec<Value> = files.iter().map(|(name, text)| file(name, text)).collect();
    json!({"version": 1, "entries": entries}).to_string()
}

fn options(root: &Path) -> StoreOptions {
    StoreOptions::new(root.join("graph"), root.join("run")).driver("vfs")
}

async fn open(root: &Path) -> Store {
    Store::open(options(root)).await.unwrap()
}

fn tree(root: &Path, id: &str) -> PathBuf {
    root.join("graph/vfs/dir").join(id)
}

fn item(root: &Path, id: &str, key: &str) -> PathBuf {
    root.join("graph/vfs-layers")
        .join(id)
        .join(&*big_data::file_name(key).unwrap())
}

/// Makes a layer with a table of contents and files.
async fn add(store: &Store, root: &Path, id: &str, toc: &str, files: &[(&str, &str)]) {
    let options = LayerOptions::default().id(id).big_data(TOC_KEY, toc.to_owned());
    drop(store.create_layer(None, options).await.unwrap());
    for (name, text) in files {
        let path = tree(root, id).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

async fn add_layer(store: &Store, root: &Path, id: &str, files: &[(&str, &str)]) {
    add(store, root, id, &table(files), files).await;
}

async fn content(store: &Store) -> LocalContent {
    store.local_content().await.unwrap()
}

fn read(content: &LocalContent, text: &str) -> Option<String> {
    let sum = sha256_sum(digest(text).as_bytes()).unwrap();
    let place = content.find(&sum, text.len() as u64)?;
    let (mut file, _) = content.open(place, text.len() as u64)?;
    let mut found = String::new();
    file.read_to_string(&mut found).unwrap();
    Some(found)
}

fn is_found(content: &LocalContent, text: &str) -> bool {
    let found = read(content, text);
    assert!(found.is_none() || found.as_deref() == Some(text));
    found.is_some()
}

async fn stored(store: &Store, id: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = store.layer_big_data(id, CACHE_KEY).await.ok()?;
    reader.read_to_end(&mut bytes).await.unwrap();
    Some(bytes)
}

#[tokio::test]
async fn a_cache_is_made_once_and_stored() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    assert!(content(&store).await.is_empty());
    drop(
        store
            .create_layer(None, LayerOptions::default().id("plain"))
            .await
            .unwrap(),
    );
    assert!(content(&store).await.is_empty());
    add_layer(&store, root, "one", &[("f", "text"), ("d/g", "more")]).await;
    let found = content(&store).await;
    assert!(is_found(&found, "text") && is_found(&found, "more") && !is_found(&found, "other"));
    let known = store.inner.local_layers.0.lock().await;
    assert_eq!(known.layers["one"].temporary, None, "the stored one is used");
    drop(known);
    let cache = stored(&store, "one").await.unwrap();
    let names = store.list_layer_big_data("one").await.unwrap();
    assert_eq!(names, [TOC_KEY, CACHE_KEY]);
    // What was there before finds no more than it did; what comes later has the new layer too.
    add_layer(&store, root, "two", &[("f", "second")]).await;
    assert!(!is_found(&found, "second"));
    let found = content(&store).await;
    assert!(is_found(&found, "second") && is_found(&found, "text"));
    // Another process has nothing to write.
    let path = item(root, "one", CACHE_KEY);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    drop(store);
    let store = open(root).await;
    assert!(is_found(&content(&store).await, "text"));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(stored(&store, "one").await.unwrap(), cache);
}

#[tokio::test]
async fn all_who_look_at_the_same_time_load_once() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    for id in ["one", "two", "three"] {
        add_layer(&store, root, id, &[("f", id)]).await;
    }
    let all = futures::future::join_all((0..16).map(|_| store.local_layers())).await;
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert!(all.iter().all(|layers| Arc::ptr_eq(layers, &all[0])));
    // Nothing has changed: nothing is loaded.
    assert!(Arc::ptr_eq(&store.local_layers().await.unwrap(), &all[0]));
    store.set_metadata("one", "other").await.unwrap();
    assert!(Arc::ptr_eq(&store.local_layers().await.unwrap(), &all[0]));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_rest_to_the_next() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    let ids: Vec<String> = (0..5).map(|number| format!("layer-{number}")).collect();
    for id in &ids {
        add_layer(&store, root, id, &[("f", id)]).await;
    }
    let mut polls = 0;
    loop {
        let mut call = Box::pin(store.local_content());
        let mut left = polls;
        let ended = std::future::poll_fn(|cx| {
            let polled = call.as_mut().poll(cx);
            if polled.is_ready() || left == 0 {
                return std::task::Poll::Ready(polled.is_ready());
            }
            left -= 1;
            std::task::Poll::Pending
        })
        .await;
        drop(call);
        let found = content(&store).await;
        assert!(ids.iter().all(|id| is_found(&found, id)), "{polls}");
        if ended {
            break;
        }
        polls += 1;
        // The next attempt begins anew.
        *store.inner.local_layers.0.lock().await = Known::default();
        for id in &ids {
            match fs::remove_file(item(root, id, CACHE_KEY)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }
    assert!(polls > 5, "{polls}");
}

#[tokio::test]
async fn a_cache_that_is_no_good_is_made_again() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    add_layer(&store, root, "one", &[("f", "text")]).await;
    content(&store).await;
    let good = stored(&store, "one").await.unwrap();
    let other_version = [&2u64.to_le_bytes()[..], &good[8..]].concat();
    let no_filter = {
        let mut bytes = good.clone();
        bytes[24..32].fill(0);
        bytes
    };
    let huge = {
        let mut bytes = good.clone();
        bytes[24..32].fill(0x7f);
        bytes
    };
    let longer = [&good[..], b"x"].concat();
    for bad in [
        b"" as &[u8],
        b"garbage",
        &good[..50],
        &good[..good.len() - 1],
        &longer,
        &other_version,
        &no_filter,
        &huge,
    ] {
        store.set_layer_big_data("one", CACHE_KEY, bad).await.unwrap();
        *store.inner.local_layers.0.lock().await = Known::default();
        assert!(is_found(&content(&store).await, "text"));
        assert_eq!(stored(&store, "one").await.unwrap(), good);
    }
    // Neither a missing file nor another thing in its place matters.
    let path = item(root, "one", CACHE_KEY);
    fs::remove_file(&path).unwrap();
    *store.inner.local_layers.0.lock().await = Known::default();
    assert!(is_found(&content(&store).await, "text"));
    assert_eq!(fs::read(&path).unwrap(), good);
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    *store.inner.local_layers.0.lock().await = Known::default();
    assert!(is_found(&content(&store).await, "text"));
    assert_eq!(fs::read(&path).unwrap(), good);
}

/// Another process may do that at any time.
#[tokio::test]
async fn a_cache_that_was_replaced_is_opened_anew() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    add_layer(&store, root, "one", &[("f", "text")]).await;
    let before = content(&store).await;
    let good = stored(&store, "one").await.unwrap();
    store
        .set_layer_big_data("one", CACHE_KEY, &good[..])
        .await
        .unwrap();
    assert!(!is_found(&before, "text"));
    assert!(is_found(&content(&store).await, "text"));
}

#[tokio::test]
async fn without_a_table_that_can_be_read_nothing_is_found() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    add(&store, root, "garbage", "no table", &[("f", "text")]).await;
    add_layer(&store, root, "odd", &[("f", "odd")]).await;
    store
        .set_layer_big_data("odd", FORMAT_KEY, &b"{\"format\":7}"[..])
        .await
        .unwrap();
    add_layer(&store, root, "good", &[("f", "good")]).await;
    add(&store, root, "other", "{\"version\":7}", &[]).await;
    let found = content(&store).await;
    assert!(is_found(&found, "good"));
    assert!(!is_found(&found, "text") && !is_found(&found, "odd"));
    // As the Go library does it: an empty one, so that the table is not read again.
    assert_eq!(stored(&store, "garbage").await.unwrap().len(), 68);
    for id in ["odd", "other"] {
        assert_eq!(stored(&store, id).await, None, "{id}");
    }
    // What would be waited for.
    let path = item(root, "garbage", TOC_KEY);
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::remove_file(item(root, "garbage", CACHE_KEY)).unwrap();
    // A layer with a cache but without a table.
    store
        .set_layer_big_data("other", CACHE_KEY, &b"garbage"[..])
        .await
        .unwrap();
    *store.inner.local_layers.0.lock().await = Known::default();
    assert!(is_found(&content(&store).await, "good"));
}

#[tokio::test]
async fn files_stored_by_digest_are_found() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    let hex = digest("text").split_off("sha256:".len());
    let path = format!("{}/{}", &hex[..2], &hex[2..]);
    add(
        &store,
        root,
        "one",
        &table(&[("d/f", "text")]),
        &[(&path, "text")],
    )
    .await;
    store
        .set_layer_big_data("one", FORMAT_KEY, &b"{\"format\":1}"[..])
        .await
        .unwrap();
    assert!(is_found(&content(&store).await, "text"));
}

#[tokio::test]
async fn a_layer_that_was_deleted_is_forgotten() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let store = open(root).await;
    add_layer(&store, root, "one", &[("f", "text")]).await;
    let before = content(&store).await;
    assert!(is_found(&before, "text"));
    store.delete_layer("one").await.unwrap();
    assert!(!is_found(&before, "text"));
    assert!(content(&store).await.is_empty());
    // Another layer of this ID has another content.
    add_layer(&store, root, "one", &[("f", "other")]).await;
    let found = content(&store).await;
    assert!(is_found(&found, "other") && !is_found(&found, "text"));
    assert!(!is_found(&before, "text"));
}

#[tokio::test]
async fn additional_stores_are_looked_at_and_not_changed() {
    let tmp = tempfile::tempdir().unwrap();
    let (root, other) = (tmp.path().join("one"), tmp.path().join("other"));
    {
        let store = open(&other).await;
        add_layer(&store, &other, "cached", &[("f", "cached")]).await;
        content(&store).await;
        add_layer(&store, &other, "uncached", &[("f", "uncached")]).await;
        add_layer(&store, &other, "twice", &[("f", "below")]).await;
        store.shutdown().await.unwrap();
    }
    let options = options(&root).driver_option(format!("vfs.imagestore={}", other.join("graph").display()));
    let store = Store::open(options).await.unwrap();
    add_layer(&store, &root, "own", &[("f", "own")]).await;
    let found = content(&store).await;
    for text in ["own", "cached", "uncached"] {
        assert!(is_found(&found, text), "{text}");
    }
    assert!(stored(&store, "own").await.is_some() && stored(&store, "cached").await.is_some());
    assert!(stored(&store, "uncached").await.is_none());
    // Filters that find no room are read where they are.
    let mut known = store.inner.local_layers.0.lock().await;
    *known = Known::default();
    known.layers.insert(
        "full".into(),
        Entry {
            created: crate::time::Time::default(),
            layer: None,
            filter: MAX_FILTERS,
            whole: MAX_WHOLE,
            temporary: Some(MAX_TEMPORARY_TOCS),
        },
    );
    let candidates = store.layers_with_toc().await.unwrap();
    store.load(&mut known, candidates).await.unwrap();
    let filters: usize = known.layers.values().map(|entry| entry.filter).sum();
    assert_eq!(filters, MAX_FILTERS);
    let is_there = |id: &str| known.layers[id].layer.is_some();
    assert!(is_there("own") && is_there("cached"));
    assert!(
        !is_there("uncached"),
        "there is no room for another temporary cache"
    );
}

#[tokio::test]
async fn repositories_are_those_of_the_options() {
    let tmp = tempfile::tempdir().unwrap();
    let repo = tmp.path().join("repo");
    let hex = digest("text").split_off("sha256:".len());
    let dir = repo.join("objects").join(&hex[..2]);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("{}.payload-link", &hex[2..])), "text").unwrap();
    let options = options(tmp.path()).pull_option("ostree_repos", repo.to_str().unwrap());
    let store = Store::open(options).await.unwrap();
    assert!(is_found(&content(&store).await, "text"));
    assert!(!is_found(&content(&store).await, "other"));
}
