//! A process that is killed while it puts a layer leaves the store in the old state or the new one.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Instant;

use graphroot::{LayerOptions, Store};

use crate::support::debian::{self, Form};
use crate::support::manifest::{Manifest, assert_same, layer_manifest};
use crate::support::needs;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;
use crate::support::store::{layer_ids, put_bytes, put_file};
use crate::support::tar::Tar;
use crate::support::worker::Worker;

/// How many moments.
const MOMENTS: usize = 50;
/// How many of them before the end of the stream.
const IN_STREAM: usize = 40;
/// The layer that is being put.
const VICTIM: &str = "victim";

/// The next open succeeds; the layer is complete or absent, and nothing else is there. Returns whether it is there.
async fn check(root: &TestRoot, expected: &Manifest, moment: &str) -> bool {
    // In a process of its own, as the next opener would be.
    Worker::start("open", root, &[]).finish();
    let store = root.open().await;
    let mut ids = layer_ids(&store).await;
    let complete = ids.remove(VICTIM);
    assert_eq!(ids.into_iter().collect::<Vec<_>>(), ["before"], "{moment}");
    let layer_count = 1 + usize::from(complete);
    assert_eq!(
        root.layer_directories().len(),
        layer_count,
        "{moment}: layer directories"
    );
    assert_eq!(root.short_links().len(), layer_count, "{moment}: short links");
    assert_eq!(root.temporary_files(), Vec::<String>::new(), "{moment}");
    if complete {
        assert_complete(&store, expected, moment).await;
    } else {
        let tar_split = root.metadata_dir("layers").join(format!("{VICTIM}.tar-split.gz"));
        assert!(!tar_split.exists(), "{moment}: tar-split without a layer");
    }
    complete
}

async fn assert_complete(store: &Store, expected: &Manifest, moment: &str) {
    let mounted = store.mount(VICTIM, Default::default()).await.unwrap();
    assert_same(moment, &layer_manifest(&mounted), "the whole layer", expected);
    assert_eq!(store.unmount(VICTIM).await.unwrap(), 0);
    let layer = store.layer(VICTIM).await.unwrap();
    assert!(layer.uncompressed_digest().is_some(), "{moment}");
}

/// The layer can be put (again), and is then as it should be.
async fn put_again(root: &TestRoot, file: &Path, expected: &Manifest, moment: &str) {
    let store = root.open().await;
    store.garbage_collect().await.unwrap();
    assert_eq!(root.half_written_records(), Vec::<String>::new(), "{moment}");
    if store.exists(VICTIM).await.unwrap() {
        store.delete_layer(VICTIM).await.unwrap();
    }
    put_file(&store, None, LayerOptions::default().id(VICTIM), file)
        .await
        .unwrap();
    assert_complete(&store, expected, moment).await;
    store.delete_layer(VICTIM).await.unwrap();
    assert_eq!(root.temporary_files(), Vec::<String>::new(), "{moment}");
}

/// A store with one layer, and what the victim is when it is whole.
async fn prepare(root: &TestRoot, file: &Path) -> Manifest {
    let store = root.open().await;
    let tar = Tar::new().file("file", "content").build();
    put_bytes(&store, None, LayerOptions::default().id("before"), tar)
        .await
        .unwrap();
    put_file(&store, None, LayerOptions::default().id(VICTIM), file)
        .await
        .unwrap();
    let files = layer_manifest(&store.mount(VICTIM, Default::default()).await.unwrap());
    store.unmount(VICTIM).await.unwrap();
    store.delete_layer(VICTIM).await.unwrap();
    files
}

/// The moments lie in the stream, as many bytes as the victim was given, and after its end, where the layer becomes
/// visible.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_fifty_moments_of_put_layer() {
    needs!("mmdebstrap");
    let Some(layer) = debian::layer(Form::Zstd) else {
        return;
    };
    let stream = std::fs::read(&layer).unwrap();
    let root = TestRoot::in_memory();
    let expected = prepare(&root, &layer).await;
    let start = || {
        let mut worker = Worker::start("put", &root, &["/dev/stdin", VICTIM]);
        worker.expect_line("begin");
        worker
    };

    // How long the end takes when it is not interrupted.
    let mut worker = start();
    worker.feed(&stream);
    worker.end_input();
    let ended = Instant::now();
    worker.expect_line("done");
    let tail = ended.elapsed();
    worker.finish();
    root.open().await.delete_layer(VICTIM).await.unwrap();

    let (mut complete, mut killed) = (0, 0);
    for number in 0..MOMENTS {
        let mut worker = start();
        let moment = if number < IN_STREAM {
            let bytes = stream.len() * number / IN_STREAM;
            worker.feed(&stream[..bytes]);
            format!("killed after {bytes} of {} bytes", stream.len())
        } else {
            let delay = tail.mul_f32(0.2) * u32::try_from(number - IN_STREAM).unwrap();
            worker.feed(&stream);
            worker.end_input();
            std::thread::sleep(delay);
            format!("killed {delay:?} after the end of the stream")
        };
        let was_killed = worker.kill();
        assert!(was_killed || number >= IN_STREAM, "{moment}: it had ended");
        killed += u32::from(was_killed);
        if check(&root, &expected, &moment).await {
            assert!(number >= IN_STREAM, "{moment}: a layer from a part of its stream");
            complete += 1;
        }
        if number % 5 == 0 || number > IN_STREAM {
            put_again(&root, &layer, &expected, &moment).await;
        }
    }
    eprintln!(
        "{killed} of {MOMENTS} killed; {complete} times the layer was complete; its end takes {tail:?}"
    );
    put_again(&root, &layer, &expected, "in the end").await;
}

/// System calls that change the disk, or say that something is on it.
pub(crate) const CALLS: [&str; 6] = [
    "rename,renameat,renameat2",
    "unlinkat,unlink,rmdir",
    "symlinkat,symlink",
    "mkdirat,mkdir",
    "pwrite64",
    "fsync,fdatasync,syncfs",
];

/// Does `work` and kills it when one of its threads makes the `count`-th of some system calls; `false` if none does.
pub(crate) fn killed_at(root: &TestRoot, work: &str, arguments: &[&str], call: &str, count: u32) -> bool {
    // Without `--seccomp-bpf`, with which strace 6.1 counts only to one.
    let tracer = root
        .program("strace")
        .words("--follow-forks --quiet=all --signal=none --output=/dev/null")
        .with([
            format!("--trace={call}"),
            format!("--inject={call}:signal=KILL:when={count}"),
        ]);
    let mut worker = Worker::spawn(Worker::command_under(tracer, work, root, arguments));
    let last = std::iter::from_fn(|| worker.next_line()).last();
    let status = worker.wait();
    let killed = status.signal() == Some(9);
    assert!(
        killed || status.success() && last.as_deref() == Some("done"),
        "{status}, {last:?}"
    );
    killed
}

/// Kills `work` at one call after the other, until there are no more. Returns how often.
async fn kill_at_every_call(root: &TestRoot, file: &Path, expected: &Manifest, work: &str) -> u32 {
    // Where tracing is forbidden every count would look like the last.
    root.program("strace").words("--output=/dev/null true").run();
    let arguments = [file.to_str().unwrap(), VICTIM];
    let arguments = if work == "delete" {
        &arguments[1..]
    } else {
        &arguments
    };
    let (mut total, mut report) = (0, Vec::new());
    for call in CALLS {
        let (mut count, mut complete) = (0, 0);
        loop {
            if work == "delete" {
                let store = root.open().await;
                put_file(&store, None, LayerOptions::default().id(VICTIM), file)
                    .await
                    .unwrap();
            }
            if !killed_at(root, work, arguments, call, count + 1) {
                break;
            }
            count += 1;
            let moment = format!("{work} killed at call {count} of {call}");
            complete += u32::from(check(root, expected, &moment).await);
            put_again(root, file, expected, &moment).await;
        }
        let there = check(root, expected, "not killed").await;
        assert_eq!(there, work == "put");
        if there {
            root.open().await.delete_layer(VICTIM).await.unwrap();
        }
        report.push(format!("{call}: {count} ({complete} complete)"));
        total += count;
    }
    eprintln!("{work} killed at {}", report.join("; "));
    total
}

async fn killed_at_system_calls(work: &str) {
    let root = TestRoot::in_memory();
    let file = root.path().join("layer.tar");
    let archive = Tar::new()
        .dir("etc/")
        .file("etc/hosts", "localhost")
        .symlink("link", "etc")
        .build();
    std::fs::write(&file, archive).unwrap();
    let expected = prepare(&root, &file).await;
    let total = kill_at_every_call(&root, &file, &expected, work).await;
    assert!(total >= 10, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_put_layer() {
    needs!("strace");
    killed_at_system_calls("put").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_delete_layer() {
    needs!("strace");
    killed_at_system_calls("delete").await;
}
