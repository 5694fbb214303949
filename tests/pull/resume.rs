//! Resumable downloads: a pull that was interrupted continues with the first missing byte.

use std::path::PathBuf;
use std::process::Command;

use graphroot::oci::{PullOptions, Puller};

use crate::fake_registry::{FakeRegistry, Fault, layer};
use crate::support::locks::wait_until;
use crate::support::needs;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;
use crate::support::store::names_in;
use crate::support::worker::Worker;

const MIB: usize = 1 << 20;
/// Bytes that a kill may lose.
const STEP: usize = MIB / 4;

fn partial_dir(root: &TestRoot) -> PathBuf {
    root.graph().join(format!("{}-partial", root.driver()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_is_resumed() {
    needs!();
    let fake = FakeRegistry::start();
    let content = layer("file", 16);
    let image = fake.add("some/image", std::slice::from_ref(&content));
    let blob = &image.layers[0];
    fake.fail(blob, &[Fault::Stall(10 * MIB + 12345)]);
    let root = TestRoot::in_memory();
    let mut worker = Worker::start("pull-keeping", &root, &[&image.reference]);
    worker.expect_line("ready");
    worker.go_on();
    let file = partial_dir(&root).join(blob.as_str().replace(':', "-"));
    let size = || usize::try_from(std::fs::metadata(&file).map_or(0, |meta| meta.len())).unwrap();
    wait_until("the beginning is kept", || size() > 10 * MIB + 12345 - STEP);
    assert!(worker.kill());

    let kept = size();
    let store = root.open().await;
    assert!(store.layers().await.unwrap().is_empty());
    assert!(root.temporary_files().is_empty(), "{:?}", root.temporary_files());
    let puller = Puller::new(&store, PullOptions::default().keep_partial(true));
    puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let requests = fake.requests(blob);
    assert_eq!(requests.len(), 2);
    assert_eq!(
        (requests[1].start, requests[1].sent),
        (kept, content.len() - kept)
    );
    let again = requests[0].sent - kept;
    eprintln!(
        "killed after {} bytes: {again} of them fetched again",
        requests[0].sent
    );
    assert!(again < STEP, "{again}");
    assert!(
        names_in(&partial_dir(&root)).is_empty(),
        "a blob whose layer is in the store is not kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_not_trusted() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 2)]);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    std::fs::create_dir_all(partial_dir(&root)).unwrap();
    let file = partial_dir(&root).join(image.layers[0].as_str().replace(':', "-"));
    std::fs::write(&file, vec![7; MIB]).unwrap();
    let puller = Puller::new(&store, PullOptions::default().keep_partial(true));
    puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let starts: Vec<usize> = fake
        .requests(&image.layers[0])
        .iter()
        .map(|request| request.start)
        .collect();
    assert_eq!(starts.last(), Some(&0), "{starts:?}");
    assert!(names_in(&partial_dir(&root)).is_empty());
    std::fs::write(&file, vec![7; MIB]).unwrap();
    assert_eq!(puller.discard_partial().await.unwrap(), MIB as u64);
    assert!(names_in(&partial_dir(&root)).is_empty());
}

/// A small file system in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(mebibytes: usize) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let size = format!("size={mebibytes}m");
        Command::new("mount")
            .with(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .with([dir.path()])
            .run();
        Self(dir)
    }

    fn grow(&self, mebibytes: usize) {
        let size = format!("remount,size={mebibytes}m");
        Command::new("mount")
            .with(["-o", &size])
            .with([self.0.path()])
            .run();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount")
            .with(["--lazy"])
            .with([self.0.path()])
            .run();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_store_usable_and_the_beginning_kept() {
    needs!();
    let fake = FakeRegistry::start();
    let content = layer("file", 12);
    let image = fake.add("some/image", &[layer("small", 1), content.clone()]);
    let blob = &image.layers[1];
    let disk = Disk::new(16);
    let root = TestRoot::in_dir(disk.0.path(), "overlay");
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default().keep_partial(true));
    let reference = image.reference.parse().unwrap();
    let error = puller.pull(&reference).await.unwrap_err();
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert!(error.chain().contains(blob.as_str()), "{error:?}");
    wait_until("temporary files are removed", || {
        root.temporary_files().is_empty()
    });
    assert!(store.images().await.unwrap().is_empty());
    assert!(
        store.layers().await.unwrap().len() <= 1,
        "only the small one can be there"
    );
    let kept = names_in(&partial_dir(&root));
    assert!(kept.contains(&blob.as_str().replace(':', "-")), "{kept:?}");
    store
        .create_layer(None, graphroot::LayerOptions::default().name("works"))
        .await
        .unwrap();

    disk.grow(64);
    puller.pull(&reference).await.unwrap();
    let last = fake.requests(blob).pop().unwrap();
    assert!(last.start > MIB, "{last:?}");
    assert_eq!(last.start + last.sent, content.len());
    assert!(names_in(&partial_dir(&root)).is_empty());
}
