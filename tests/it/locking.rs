//! Store locks exclude Go processes, in both directions.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use graphroot::{ErrorKind, LayerOptions, Store};
use tokio::io::AsyncWriteExt as _;

use crate::support::locks::{Holder, kernel_locks, store_locks, wait_for_waiter, wait_until};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::{each_set, needs};

fn tar() -> Vec<u8> {
    Tar::new().file("file", "content").build()
}

async fn our_writer_waits_for_a_go_process(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    store
        .create_layer(None, LayerOptions::default().id("first"))
        .await
        .unwrap();
    let holder = Holder::go(&root, "theirs", &tar());

    let writer = tokio::spawn({
        let store = store.clone();
        async move { put_bytes(&store, None, LayerOptions::default().id("ours"), tar()).await }
    });
    wait_for_waiter(&root.layers_lock());
    assert!(!writer.is_finished());
    let held = || {
        kernel_locks(&root.layers_lock())
            .into_iter()
            .filter(|lock| !lock.waiting)
            .count()
    };
    assert_eq!(held(), 1, "only the Go process holds the lock");

    assert!(holder.release());
    writer.await.unwrap().unwrap();
    for id in ["first", "theirs", "ours"] {
        assert!(store.exists(id).await.unwrap(), "{id}");
    }
}
each_set!(async our_writer_waits_for_a_go_process: "containers-storage");

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_an_item_is_complete_before_the_lock_is_waited_for() {
    needs!("python3");
    let root = TestRoot::new();
    let store = root.open().await;
    let id = |id: &str| LayerOptions::default().id(id);
    store.create_layer(None, id("layer")).await.unwrap();
    let holder = Holder::posix(&root.layers_lock(), true);
    let size = 3 << 20;
    let setter = tokio::spawn({
        let (store, data) = (store.clone(), io::Cursor::new(vec![7; size]));
        async move { store.set_layer_big_data("layer", "item", data).await }
    });
    wait_for_waiter(&root.layers_lock());
    let layers = root.metadata_dir("layers");
    let temporary = std::fs::read_dir(layers.join("tmp")).unwrap();
    let dirs = temporary
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let waiting: Vec<_> = dirs
        .map(|dir| dir.join("0-addition").metadata().unwrap())
        .collect();
    assert_eq!(
        waiting.iter().map(Metadata::len).collect::<Vec<_>>(),
        [size as u64]
    );
    assert!(!setter.is_finished());
    assert!(holder.release());
    setter.await.unwrap().unwrap();
    let item = layers.join("layer/item").metadata().unwrap();
    assert_eq!(item.ino(), waiting[0].ino(), "it was not written once more");
    assert_eq!((item.len(), item.mode() & 0o7777), (size as u64, 0o600));
    assert!(root.temporary_files().is_empty());
}

async fn a_limited_wait_ends_with_an_error_that_names_the_lock(set: PeerSet) {
    let root = TestRoot::new().of(set);
    root.open().await.free();
    let options = root.options().lock_timeout(Some(Duration::from_millis(50)));
    let store = Store::open(options).await.unwrap();
    store
        .create_layer(None, LayerOptions::default().id("first"))
        .await
        .unwrap();
    let holder = Holder::go(&root, "theirs", &tar());
    let error = store
        .create_layer(None, LayerOptions::default().id("ours"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout, "{error:?}");
    assert_eq!(error.path(), Some(root.layers_lock().as_path()), "{error:?}");
    assert!(error.chain().contains("layers.lock"), "{error:?}");
    let error = store.layers().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout, "{error:?}");

    assert!(holder.release());
    store
        .create_layer(None, LayerOptions::default().id("ours"))
        .await
        .unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 3);
}
each_set!(async a_limited_wait_ends_with_an_error_that_names_the_lock: "containers-storage");

/// A mount program that tells that it runs, and ends without a mount when it is told to.
fn waiting_program(root: &TestRoot) -> (PathBuf, PathBuf) {
    let dir = root.scratch("waiting");
    let (program, go_on) = (dir.join("program"), dir.join("go-on"));
    let text = format!(
        "#!/bin/sh\nuntil [ -e {go_on} ]; do sleep 0.01; done\nexit 1\n",
        go_on = go_on.display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (program, go_on)
}

async fn a_go_process_waits_for_our_writer(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let (program, go_on) = waiting_program(&root);
    let option = format!("overlay.mount_program={}", program.display());
    let store = Store::open(root.options().driver_option(option)).await.unwrap();
    store
        .create_layer(None, LayerOptions::default().id("ours"))
        .await
        .unwrap();
    // A mount that does not come about keeps the locks.
    let writer = tokio::spawn({
        let store = store.clone();
        async move { store.mount("ours", Default::default()).await }
    });
    let held = |file: &Path| kernel_locks(file).iter().any(|lock| lock.write && !lock.waiting);
    wait_until("our writer's lock", || held(&root.layers_lock()));

    let mut go = root.go();
    let mut go = go
        .args(["create-layer", "--id", "theirs"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The first lock that it asks for.
    wait_for_waiter(&root.graph().join("storage.lock"));
    assert_eq!(go.try_wait().unwrap(), None);
    assert!(!writer.is_finished());

    std::fs::write(go_on, "").unwrap();
    writer.await.unwrap().unwrap_err();
    assert!(go.wait().unwrap().success());
    assert!(store.exists("theirs").await.unwrap());
}
each_set!(async a_go_process_waits_for_our_writer: "containers-storage");

async fn a_go_process_does_not_wait_for_a_diff_that_arrives(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    store
        .create_layer(None, LayerOptions::default().id("ours"))
        .await
        .unwrap();
    let (mut feed, diff) = tokio::io::duplex(64 * 1024);
    let tar = tar();
    feed.write_all(&tar[..600]).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move { store.apply_diff("ours", diff).await }
    });
    wait_until("a place for the diff", || !root.temporary_files().is_empty());
    root.go().args(["create-layer", "--id", "theirs"]).run();
    assert!(!writer.is_finished());
    feed.write_all(&tar[600..]).await.unwrap();
    drop(feed);
    writer.await.unwrap().unwrap();
    assert!(store.exists("theirs").await.unwrap());
    assert!(store.layer("ours").await.unwrap().uncompressed_digest().is_some());
}
each_set!(async a_go_process_does_not_wait_for_a_diff_that_arrives: "containers-storage");

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_and_writers_wait_for_readers() {
    needs!("python3");
    let root = TestRoot::new();
    let store = root.open().await;
    store
        .create_layer(None, LayerOptions::default().id("first"))
        .await
        .unwrap();
    let lock = root.layers_lock();
    let holder = Holder::posix(&lock, false);
    assert_eq!(store.layers().await.unwrap().len(), 1);

    let writer = tokio::spawn({
        let store = store.clone();
        async move { store.create_layer(None, LayerOptions::default().id("ours")).await }
    });
    wait_for_waiter(&lock);
    assert!(!writer.is_finished());
    assert!(holder.release());
    writer.await.unwrap().unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_is_dropped_takes_no_lock() {
    needs!("python3");
    let root = TestRoot::new();
    let store = root.open().await;
    store
        .create_layer(None, LayerOptions::default().id("first"))
        .await
        .unwrap();
    let locks = store_locks(&root);
    for lock in &locks {
        let holder = Holder::posix(lock, true);
        let waiter = tokio::spawn({
            let store = store.clone();
            async move { store.delete("first").await }
        });
        wait_for_waiter(lock);
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
        assert!(holder.release());
        wait_until("all locks free again", || {
            locks.iter().all(|lock| kernel_locks(lock).is_empty())
        });
        // A wait that was given up may not have deleted anything.
        assert!(store.exists("first").await.unwrap());
    }
    store.delete("first").await.unwrap();
}

async fn unpacking_holds_no_lock(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let (mut feed, diff) = tokio::io::duplex(64 * 1024);
    let tar = tar();
    feed.write_all(&tar[..600]).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .put_layer(None, LayerOptions::default().id("ours"), diff)
                .await
        }
    });
    wait_until("a staging directory", || !root.temporary_files().is_empty());
    // Neither Go nor another task of ours has to wait for the stream.
    let mut command = root.go();
    let status = command
        .args(["create-layer", "--id", "theirs"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    store
        .create_layer(Some("theirs"), LayerOptions::default().id("third"))
        .await
        .unwrap();
    // Nor has one who opens the store and looks around.
    store.free();
    let fresh = root.open().await;
    assert_eq!(fresh.layers().await.unwrap().len(), 2);
    assert!(fresh.images().await.unwrap().is_empty());
    assert!(fresh.multi_list(graphroot::MultiListOptions::ALL).await.is_ok());
    let listed = root.go().arg("layers").output().unwrap();
    assert!(listed.status.success());
    assert!(!writer.is_finished());
    feed.write_all(&tar[600..]).await.unwrap();
    feed.shutdown().await.unwrap();
    assert_eq!(writer.await.unwrap().unwrap().layer.id(), "ours");
    assert_eq!(store.layers().await.unwrap().len(), 3);
    assert_eq!(root.temporary_files(), Vec::<String>::new());
}
each_set!(async unpacking_holds_no_lock: "containers-storage");

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_leaves_the_store_as_it_was() {
    needs!();
    let root = TestRoot::new();
    let store = root.open().await;
    store
        .create_layer(None, LayerOptions::default().id("first"))
        .await
        .unwrap();
    let record = std::fs::read(root.metadata_dir("layers").join("layers.json")).unwrap();
    let tar = tar();
    let failing = failing_reader(tar[..600].to_vec(), io::Error::other("the network is down"));
    let error = store
        .put_layer(None, LayerOptions::default().id("ours"), failing)
        .await
        .unwrap_err();
    assert!(error.chain().contains("the network is down"), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        std::fs::read(root.metadata_dir("layers").join("layers.json")).unwrap(),
        record
    );
    assert_eq!(root.layer_directories().len(), 1);
    assert_eq!(root.temporary_files(), Vec::<String>::new());
}

/// Yields some bytes and then an error.
fn failing_reader(bytes: Vec<u8>, error: io::Error) -> impl tokio::io::AsyncRead + Send + 'static {
    struct Failing(io::Cursor<Vec<u8>>, Option<io::Error>);
    impl tokio::io::AsyncRead for Failing {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let this = &mut *self;
            if this.0.position() < u64::try_from(this.0.get_ref().len()).unwrap() {
                return std::pin::Pin::new(&mut this.0).poll_read(cx, buffer);
            }
            std::task::Poll::Ready(this.1.take().map_or(Ok(()), Err))
        }
    }
    Failing(io::Cursor::new(bytes), Some(error))
}
