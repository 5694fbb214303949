//! Many tasks and many processes on one store.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use graphroot::{LayerOptions, Store};
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};

use crate::support::locks::{kernel_locks, store_locks, wait_until};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::{exported, layer_ids, put_bytes};
use crate::support::tar::{BLOCK, Tar};
use crate::support::worker::Worker;
use crate::support::{each_set, json, needs, require_driver};

/// Numbers that differ from run to run; a test prints its seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = u64::try_from(now & u128::from(u64::MAX)).unwrap() | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Drops a future after it was polled some number of times; `None` if that happened before its end.
struct CancelAfter<F> {
    future: Option<Pin<Box<F>>>,
    polls: u64,
}

impl<F: Future> Future for CancelAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            self.future = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let future = self.future.as_mut().unwrap();
        future.as_mut().poll(cx).map(Some)
    }
}

/// A reader that is polled once more for each block, as if the blocks came one by one.
struct Dripping {
    bytes: bytes::Bytes,
    ready: bool,
}

impl AsyncRead for Dripping {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ready = !self.ready;
        if self.ready {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let size = self.bytes.len().min(BLOCK).min(buffer.remaining());
        let block = self.bytes.split_to(size);
        buffer.put_slice(&block);
        Poll::Ready(Ok(()))
    }
}

fn layer_tar(seed: u64) -> Vec<u8> {
    let mut tar = Tar::new().dir("etc/");
    for file in 0..40 {
        tar = tar.file(format!("etc/file-{file}"), format!("{seed} {file} ").repeat(100));
    }
    tar.hard_link("etc/link", "etc/file-0")
        .symlink("symbolic", "etc")
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_tasks_put_64_layers_while_32_others_are_cancelled() {
    needs!();
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let mut random = Random::new();
    let mut wanted = tokio::task::JoinSet::new();
    for task in 0..16 {
        let store = store.clone();
        wanted.spawn(async move {
            let mut parent: Option<String> = None;
            for step in 0..4 {
                let number = task * 4 + step;
                let options = LayerOptions::default()
                    .id(format!("wanted-{number}"))
                    .name(format!("name-{number}"));
                let layer = put_bytes(&store, parent.as_deref(), options, layer_tar(number))
                    .await
                    .unwrap();
                assert_eq!(layer.parent(), parent.as_deref());
                parent = Some(layer.id().to_owned());
            }
        });
    }
    let mut cancelled = tokio::task::JoinSet::new();
    for number in 0..32 {
        let store = store.clone();
        let polls = random.below(if number % 4 == 0 { 3 } else { 80 });
        cancelled.spawn(async move {
            let options = LayerOptions::default().id(format!("cancelled-{number}"));
            let future = Box::pin(async move {
                // One blocking step after another, or a long stream.
                if number % 4 == 0 {
                    store.create_layer(None, options).await.map(drop)
                } else {
                    let bytes = layer_tar(1000 + number).into();
                    let diff = Dripping { bytes, ready: false };
                    store.put_layer(None, options, diff).await.map(drop)
                }
            });
            CancelAfter {
                future: Some(future),
                polls,
            }
            .await
            .map(Result::unwrap)
            .is_none()
        });
    }
    let dropped = cancelled
        .join_all()
        .await
        .into_iter()
        .filter(|dropped| *dropped)
        .count();
    wanted.join_all().await;
    eprintln!("{dropped} of 32 were cancelled before their end");
    assert!(dropped >= 16, "only {dropped} of 32");

    // Steps that had begun when their caller went away end in the background; then every lock is free.
    let locks = store_locks(&root);
    wait_until("all locks free", || {
        locks.iter().all(|lock| kernel_locks(lock).is_empty())
    });
    let ids = layer_ids(&store).await;
    for number in 0..64 {
        assert!(
            ids.contains(&format!("wanted-{number}")),
            "layer {number} is missing"
        );
    }
    check_consistent(&root, &store).await;
    for number in (0..64).step_by(7) {
        let (digest, _) = exported(&store, &format!("wanted-{number}")).await;
        assert_eq!(digest, graphroot::Digest::sha256(layer_tar(number)));
    }

    Worker::start("open", &root, &[]).finish();
    assert_eq!(root.temporary_files(), Vec::<String>::new());
    assert_eq!(layer_ids(&store).await, ids);
}

/// Records and directories tell of the same layers, and records are valid.
async fn check_consistent(root: &TestRoot, store: &Store) {
    let ids = layer_ids(store).await;
    assert_eq!(root.layer_directories(), ids, "directories and records");
    if root.driver() == "overlay" {
        assert_eq!(
            root.short_links().len(),
            ids.len(),
            "one short link for each layer"
        );
    }
    let rows = json::rows(&root.metadata_dir("layers").join("layers.json"));
    assert_eq!(rows.len(), ids.len());
    assert!(
        rows.iter().all(|row| row["flags"]["incomplete"].is_null()),
        "{rows:?}"
    );
    for layer in store.layers().await.unwrap() {
        let tar_split = root
            .metadata_dir("layers")
            .join(format!("{}.tar-split.gz", layer.id()));
        assert_eq!(
            layer.uncompressed_digest().is_some(),
            tar_split.exists(),
            "tar-split of {}",
            layer.id()
        );
    }
}

/// Runs a process of Go's command beside others. Its library makes the lock file of a temporary directory, closes it, and
/// opens it again to lock it; another process of its kind that looks in between removes the directory. Then the command
/// runs again, after its library has deleted what was half made or half deleted.
fn run_beside_others(mut command: Command) -> String {
    let mut has_lost = false;
    loop {
        let output = command.output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        let is_gone = has_lost && stderr.contains("layer not known");
        if output.status.success() || is_gone {
            return stdout.trim_end().to_owned();
        }
        // Once in some thousands of commands; not twice in turn.
        let lost = stderr.contains("/temp-dir-") && stderr.contains("no such file or directory");
        assert!(
            lost && !has_lost,
            "{command:?}: {}\n{stdout}{stderr}",
            output.status
        );
        has_lost = true;
    }
}

/// As the worker of the same name, with one process of Go's command for each step.
fn create_and_delete_with_go(root: &TestRoot, prefix: &str, count: usize) -> BTreeSet<String> {
    let archive = root.path().join(format!("{prefix}.tar"));
    std::fs::write(&archive, layer_tar(7)).unwrap();
    let mut kept = BTreeSet::new();
    for index in 0..count {
        let id = format!("{prefix}{index}");
        let parent = (index % 4 == 3).then(|| format!("{prefix}{}", index - 3));
        let command = if index % 3 == 0 {
            root.go().with(["create-layer"])
        } else {
            root.go().with(["import-layer", "--file"]).with([&archive])
        };
        let name = format!("name of {id}");
        let created = run_beside_others(command.with(["--id", &id, "--name", &name]).with(&parent));
        assert!(created.starts_with(&id), "{created}");
        kept.insert(id.clone());
        if index % 2 == 1 && parent.is_none() {
            run_beside_others(root.go().with(["delete-layer", &id]));
            kept.remove(&id);
        }
    }
    kept
}

async fn two_processes_of_ours_and_two_of_go_create_and_delete_layers(set: PeerSet) {
    writers_of_both_kinds(TestRoot::in_memory().of(set)).await;
}
each_set!(async two_processes_of_ours_and_two_of_go_create_and_delete_layers: "containers-storage");

async fn writers_of_both_kinds_on_btrfs(set: PeerSet) {
    if require_driver("btrfs") {
        writers_of_both_kinds(TestRoot::of_driver("btrfs").of(set)).await;
    }
}
each_set!(newer async writers_of_both_kinds_on_btrfs: "containers-storage");

async fn writers_of_both_kinds(root: TestRoot) {
    const COUNT: usize = 200;
    let store = root.open().await;
    let count = COUNT.to_string();
    let mut ours: Vec<Worker> = ["ours-a-", "ours-b-"]
        .map(|prefix| Worker::start("create-and-delete", &root, &[prefix, &count]))
        .into();
    for worker in &mut ours {
        worker.expect_line("ready");
    }
    let started = Instant::now();
    ours.iter_mut().for_each(Worker::go_on);
    let mut kept: BTreeSet<String> = std::thread::scope(|scope| {
        let theirs =
            ["go-a-", "go-b-"].map(|prefix| scope.spawn(|| create_and_delete_with_go(&root, prefix, COUNT)));
        theirs
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    for worker in ours {
        kept.extend(
            worker
                .finish()
                .iter()
                .map(|line| line.strip_prefix("kept ").unwrap().to_owned()),
        );
    }
    eprintln!(
        "4 processes, {COUNT} layers each: {:?}, {} kept",
        started.elapsed(),
        kept.len()
    );
    assert!(kept.len() > COUNT && kept.len() < 4 * COUNT);

    assert_eq!(layer_ids(&store).await, kept);
    check_consistent(&root, &store).await;
    let theirs: Value = serde_json::from_str(&root.go().with(["layers", "--json"]).run()).unwrap();
    let theirs: BTreeSet<String> = theirs
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(theirs, kept);
    Worker::start("open", &root, &[]).finish();
    assert_eq!(root.temporary_files(), Vec::<String>::new());

    store.wipe().await.unwrap();
    assert_eq!(root.layer_directories(), BTreeSet::new());
    assert_eq!(root.short_links(), BTreeSet::new());
}
