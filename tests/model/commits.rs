//! A commit that is killed at each of its system calls, or in which each of them fails: the image is there as a whole or
//! not at all, and the next commit makes it.

use std::time::{Duration, UNIX_EPOCH};

use graphroot::{CommitOptions, ContainerOptions, Digest, Image, Store};
use tokio::runtime::Runtime;

use crate::every_call::CALLS;
use crate::support::root::TestRoot;
use crate::support::{needs, require_driver};
use crate::worker::{Location, Remote, was_injected};

pub(crate) const BASE: &str = "localhost/base:1";
pub(crate) const NEW: &str = "localhost/new:1";

/// How each commit of a container is made: of the same content it makes the same image.
pub(crate) fn options(name: &str) -> CommitOptions {
    let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    CommitOptions::new().name(name).created(created).cmd(["/bin/app"])
}

/// A container in which a file was written.
async fn container(store: &Store, image: Option<&str>, name: &str) {
    let options = ContainerOptions::default().name(name);
    store.create_container(image, options).await.unwrap();
    let mounted = store.mount(name, Default::default()).await.unwrap();
    std::fs::write(mounted.join(name), name).unwrap();
    store.unmount(name).await.unwrap();
}

/// An image, and a container on it that has changed. Another image has the name that the commit gives.
pub(crate) async fn prepare(store: &Store) {
    container(store, None, "first").await;
    store.commit("first", options(BASE)).await.unwrap();
    store.delete_container("first").await.unwrap();
    store.create_image(None, Default::default()).await.unwrap();
    let empty = store.images().await.unwrap().pop().unwrap();
    store.add_names(empty.id(), &[NEW]).await.unwrap();
    container(store, Some(BASE), "second").await;
}

/// Everything that an image names is there.
pub(crate) async fn check_image(store: &Store, image: &Image, files: &[&str]) {
    for key in image.big_data_names() {
        let data = store.image_big_data(image.id(), key).await.unwrap();
        assert_eq!(image.big_data_size(key), Some(data.len() as u64), "{key}");
        assert_eq!(image.big_data_digest(key), Some(Digest::sha256(&data)), "{key}");
    }
    let config = store.image_config(image.id()).await.unwrap();
    let layers = store.image_layers(image.id()).await.unwrap();
    let diffs: Vec<Digest> = layers
        .iter()
        .filter_map(graphroot::Layer::uncompressed_digest)
        .collect();
    assert_eq!(config.diff_ids, diffs);
    let mounted = store.mount_image(image.id(), Default::default()).await.unwrap();
    for file in files {
        assert_eq!(std::fs::read_to_string(mounted.join(file)).unwrap(), *file);
    }
    assert_eq!(store.unmount_image(image.id()).await.unwrap(), 0);
}

/// Looks at the store after a commit that may have happened.
async fn check(root: &TestRoot, succeeded: bool) {
    let store = root.open().await;
    let named = store.image(NEW).await.unwrap();
    let happened = named.top_layer().is_some();
    assert!(happened || !succeeded);
    check_image(&store, &store.image(BASE).await.unwrap(), &["first"]).await;
    if happened {
        check_image(&store, &named, &["first", "second"]).await;
    }
    assert_eq!(store.images().await.unwrap().len(), 2 + usize::from(happened));
    store.garbage_collect().await.unwrap();
    let again = store.commit("second", options(NEW)).await.unwrap();
    check_image(&store, &again, &["first", "second"]).await;
    assert!(!happened || again.id() == named.id());
    store.delete_container("second").await.unwrap();
    for image in store.images().await.unwrap() {
        store.delete_image(image.id()).await.unwrap();
    }
    assert!(store.layers().await.unwrap().is_empty());
    assert!(root.layer_directories().is_empty() && root.short_links().is_empty());
    assert!(root.temporary_files().is_empty() && root.half_written_records().is_empty());
}

/// Makes the commit with each of the system calls `calls` interrupted in turn.
fn interrupt_each(driver: &'static str, calls: &str, start: impl Fn(&TestRoot, u32) -> Remote) -> u32 {
    let runtime = Runtime::new().unwrap();
    for count in 1.. {
        let root = TestRoot::of_driver(driver);
        runtime.block_on(async { prepare(&root.open().await).await });
        let mut traced = start(&root, count);
        let opened = traced.try_open(&Location::of(&root, false).synced());
        let outcome = opened
            .is_some_and(|opened| opened.is_ok())
            .then(|| traced.commit("second"))
            .flatten();
        traced.kill();
        let trace = root.path().join("trace");
        let last = match trace.exists() {
            true => !was_injected(&trace),
            false => outcome.is_some(),
        };
        runtime.block_on(check(&root, outcome.is_some_and(|outcome| outcome.is_ok())));
        if last {
            eprintln!("{driver}: {} of {calls} interrupted", count - 1);
            return count;
        }
    }
    0
}

#[test]
fn killed() {
    needs!("strace");
    let all = CALLS.map(|calls| ("overlay", calls));
    let btrfs = require_driver("btrfs").then_some(("btrfs", CALLS[0]));
    for (driver, calls) in all.into_iter().chain([("vfs", CALLS[0])]).chain(btrfs) {
        let count = interrupt_each(driver, calls, |root, count| {
            Remote::start_killed(root, calls, count)
        });
        assert!(count > 2, "{driver}: {calls}: {count}");
    }
}

#[test]
fn failing() {
    needs!("strace");
    for (calls, error, more) in [(CALLS[0], "ENOSPC", "+"), ("fdatasync,fsync,pwrite64", "EIO", "")] {
        let count = interrupt_each("overlay", calls, |root, count| {
            let trace = root.path().join("trace");
            Remote::start_failing(root, calls, error, &format!("{count}{more}"), &trace)
        });
        assert!(count > 2, "{calls}: {count}");
    }
}
