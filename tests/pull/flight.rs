//! Each layer is transferred once, however many tasks and processes pull it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graphroot::oci::{BlobState, Event, Progress, PullOptions, Puller};

use crate::fake_registry::{FakeRegistry, Fault, layer};
use crate::library::{APPS, Library, SMALL_LAYERS};
use crate::records::{assert_same_stores, podman_pull};
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::worker::Worker;
use crate::support::{each_set, needs};

async fn four_tasks_in_two_processes_fetch_each_blob_once(set: PeerSet) {
    let library = Library::open();
    let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
    let registry = library.own_registry(&ours);
    let images: Vec<String> = Library::apps().iter().map(|app| registry.image(app)).collect();
    let arguments: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut workers = [(); 2].map(|()| Worker::start("pull", &ours, &arguments));
    for worker in &mut workers {
        worker.expect_line("ready");
    }
    for worker in &mut workers {
        worker.go_on();
    }
    let mut transferred = 0;
    for worker in workers {
        let lines = worker.finish();
        transferred += lines[0]
            .strip_prefix("transferred ")
            .unwrap()
            .parse::<usize>()
            .unwrap();
    }
    registry.settle("two-processes");
    let sent = registry.blobs_sent(0);
    let layers = 1 + SMALL_LAYERS + APPS;
    let configs = APPS;
    assert_eq!(transferred, layers);
    assert_eq!(sent.len(), layers + configs);
    assert!(sent.values().all(|count| *count == 1), "{sent:?}");
    assert!(ours.temporary_files().is_empty(), "{:?}", ours.temporary_files());
    assert_eq!(ours.layer_directories().len(), layers);

    podman_pull(&theirs, &images);
    assert_same_stores(&ours, &theirs);
}
each_set!(async four_tasks_in_two_processes_fetch_each_blob_once: "podman", "buildah", "skopeo", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn when_the_process_that_downloads_dies_another_takes_over() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 4)]);
    let blob = &image.layers[0];
    fake.fail(blob, &[Fault::Stall(1 << 20)]);
    let root = TestRoot::in_memory();
    let mut worker = Worker::start("pull", &root, &[&image.reference]);
    worker.expect_line("ready");
    worker.go_on();
    fake.wait_for_bytes(blob, 1 << 20);

    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let reference = image.reference.parse().unwrap();
    let mut pulling = Box::pin(puller.pull(&reference));
    // It waits as long as the other process lives.
    let waits = tokio::time::timeout(std::time::Duration::from_millis(300), &mut pulling).await;
    assert!(waits.is_err());
    assert_eq!(fake.requests(blob).len(), 1);
    assert!(worker.kill());
    let pulled = pulling.await.unwrap();
    assert_eq!(pulled.transferred, 1);
    assert_eq!(fake.requests(blob).len(), 2);
    assert_eq!(store.layers().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_diffs_in_another_order_are_fetched_once_and_do_not_deadlock() {
    needs!();
    for driver in ["overlay", "vfs"] {
        let fake = FakeRegistry::start();
        let (a, b) = (layer("a", 1), layer("bb", 1));
        let first = fake.add("first", &[a.clone(), b.clone(), a.clone()]);
        let second = fake.add("second", &[b, a]);
        let root = TestRoot::in_dir(std::path::Path::new("/dev/shm"), driver);
        let store = root.open().await;
        let puller = Puller::new(&store, PullOptions::default());
        let images = [
            first.reference.parse().unwrap(),
            second.reference.parse().unwrap(),
        ];
        for pulled in puller.pull_all(&images).await {
            pulled.unwrap();
        }
        assert_eq!(store.layers().await.unwrap().len(), 5);
        // While the layer below is not there, the other image may fetch as well; within one image nothing is repeated.
        for blob in &first.layers {
            assert!(fake.requests(blob).len() <= 2, "{:?}", fake.requests(blob));
        }
        // And once it is there, it is copied.
        let third = fake.add("third", &[layer("ccc", 1), layer("a", 1)]);
        let before = fake.requests(&first.layers[0]).len();
        let pulled = puller.pull(&third.reference.parse().unwrap()).await.unwrap();
        assert_eq!((pulled.transferred, pulled.reused), (1, 1));
        assert_eq!(fake.requests(&first.layers[0]).len(), before);
        let (digest, _) = crate::support::store::exported(&store, pulled.image.top_layer().unwrap()).await;
        assert_eq!(digest, first.layers[0]);
    }
}

/// An image of six layers.
fn six_layers(fake: &FakeRegistry) -> crate::fake_registry::Image {
    let names = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"];
    fake.add("six/layers", &names.map(|name| layer(name, 1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_of_an_image_are_downloaded_at_the_same_time() {
    needs!();
    let fake = FakeRegistry::start();
    let image = six_layers(&fake);
    for blob in &image.layers {
        fake.fail(blob, &[Fault::Stall(1000)]);
    }
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let reference = image.reference.parse().unwrap();
    let pulling = tokio::spawn(async move { puller.pull(&reference).await.map(drop) });
    // No download ends, so each has to begin before another one ends.
    for blob in image.layers.clone() {
        let fake = fake.clone();
        #[expect(clippy::disallowed_methods, reason = "a test may wait on a thread")]
        tokio::task::spawn_blocking(move || fake.wait_for_bytes(&blob, 1000))
            .await
            .unwrap();
    }
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    assert!(store.layers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_and_unpackers_are_bounded() {
    needs!();
    for (downloads, unpackers, bound) in [(2, 8, 2), (8, 3, 3), (0, 0, 1)] {
        let fake = FakeRegistry::start();
        let image = six_layers(&fake);
        let (active, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, most) = (Arc::clone(&active), Arc::clone(&peak));
        let progress = Progress::new(move |event| match event {
            Event::Blob {
                state: BlobState::Started { .. },
                ..
            } => {
                most.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            }
            Event::Blob {
                state: BlobState::Unpacked,
                ..
            } => drop(count.fetch_sub(1, Ordering::SeqCst)),
            _ => {}
        });
        let root = TestRoot::in_memory();
        let store = root.open().await;
        let options = PullOptions::default()
            .downloads(downloads)
            .unpackers(unpackers)
            .progress(progress);
        Puller::new(&store, options)
            .pull(&image.reference.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(active.load(Ordering::SeqCst), 0);
        let peak = peak.load(Ordering::SeqCst);
        assert!(
            (1..=bound).contains(&peak),
            "{peak} at the same time, allowed {bound}"
        );
    }
}
