//! Streams that a store produces hold no thread: thousands of them stay open and unread while the store works on, on
//! every kind of runtime, however small its blocking pool is.

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::Stream;
use graphroot::{
    Compression, ContainerOptions, DiffOptions, DiffStream, ErrorKind, ImageOptions, LayerOptions, Store,
    StoreOptions,
};
use rustix::process::{Resource, Rlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::worker::{Worker, own_memory, store_location, tell};

const DIFFS: usize = 10_000;
const READERS: usize = 1000;
/// More threads than any number of streams may lead to.
const MAX_THREADS: usize = 64;

fn runtime(flavor: &str, pool: usize) -> Runtime {
    let mut builder = match flavor {
        "current" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .worker_threads(2)
        .max_blocking_threads(pool)
        .enable_all()
        .build()
        .unwrap()
}

/// Every kind of diff: replayed, made from an overlay upper directory, made by comparing two mounts.
const KINDS: [(Option<&str>, &str); 3] = [(None, "layer"), (None, "container"), (Some("other"), "container")];

fn options(number: usize) -> DiffOptions {
    DiffOptions::compressed(match number % 3 {
        0 => Compression::None,
        1 => Compression::Gzip,
        _ => Compression::Zstd,
    })
}

/// Mostly replays, some of the other kinds.
async fn open_diff(store: &Store, number: usize) -> DiffStream {
    let kind = match number % 100 {
        0..98 => 0,
        rare => rare - 97,
    };
    let (from, to) = KINDS[kind];
    store.diff(from, to, options(number / 100)).await.unwrap()
}

/// A layer with a big data item, a container that has changed something, and a layer to compare with. `size` is the
/// size of the largest file.
async fn prepare(size: usize) -> Store {
    let (graph, run, driver) = store_location();
    let options = StoreOptions::new(graph, run)
        .driver(driver)
        .durability(graphroot::Durability::None);
    fill(Store::open(options).await.unwrap(), size).await
}

async fn fill(store: Store, size: usize) -> Store {
    // Nothing that gets smaller when it is compressed.
    let mut state = 1u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(size)
    .collect();
    let tar = Tar::new()
        .dir("d/")
        .file("d/small", "s")
        .file("d/large", &content)
        .build();
    let id = |id: &str| LayerOptions::default().id(id);
    put_bytes(&store, None, id("layer"), tar).await.unwrap();
    put_bytes(&store, None, id("other"), Tar::new().file("x", "y").build())
        .await
        .unwrap();
    store
        .set_layer_big_data("layer", "item", Cursor::new(content.clone()))
        .await
        .unwrap();
    store
        .create_image(Some("layer"), ImageOptions::default().name("image"))
        .await
        .unwrap();
    let options = ContainerOptions::default().id("c").layer_id("container");
    let container = store.create_container(Some("image"), options).await;
    let container = container.unwrap();
    let mounted = store
        .mount(container.id(), graphroot::MountOptions::default())
        .await
        .unwrap();
    std::fs::write(mounted.join("d/new"), &content).unwrap();
    std::fs::remove_file(mounted.join("d/small")).unwrap();
    store.unmount(container.id()).await.unwrap();
    store
}

async fn read_all(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// All bytes by way of chunks.
async fn read_chunks(mut stream: impl Stream<Item = std::io::Result<bytes::Bytes>> + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// What a store does beside the streams.
async fn work(store: &Store, number: usize) {
    for round in 0..5 {
        let id = format!("work-{number}-{round}");
        let options = LayerOptions::default().id(&id);
        let tar = Tar::new().file("f", &id).build();
        put_bytes(store, Some("other"), options, tar).await.unwrap();
        assert!(store.layers().await.unwrap().iter().any(|layer| layer.id() == id));
        store
            .mount(&id, graphroot::MountOptions::default())
            .await
            .unwrap();
        store.unmount(&id).await.unwrap();
        store.delete_layer(&id).await.unwrap();
    }
}

/// Lets this process open as many files as it may. Returns how many streams that is enough for, at two files each.
fn raise_file_limit() -> usize {
    let wanted = 2 * DIFFS as u64 + READERS as u64 + 2000;
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limits.maximum.map(|maximum| maximum.max(wanted)),
    };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_err() {
        let raised = Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        };
        rustix::process::setrlimit(Resource::Nofile, raised).unwrap();
    }
    let files = rustix::process::getrlimit(Resource::Nofile)
        .current
        .unwrap_or(wanted);
    usize::try_from(files.min(wanted) - READERS as u64 - 2000).unwrap() / 2
}

/// In a child process, whose limits and threads are its own.
pub(crate) fn unread(flavor: &str, pool: usize) {
    let diffs = raise_file_limit();
    runtime(flavor, pool).block_on(async {
        let store = prepare(50_000).await;
        // One of each, read alone: what the others have to be, and everything that is set up only once.
        let mut expected = Vec::new();
        for (from, to) in KINDS {
            let mut kind = Vec::new();
            for number in 0..3 {
                let stream = store.diff(from, to, options(number)).await.unwrap();
                kind.push(read_all(stream).await);
            }
            expected.push(kind);
        }
        let item = read_all(store.layer_big_data("layer", "item").await.unwrap()).await;
        work(&store, 99).await;
        let (files, memory) = (open_files(), own_memory("VmRSS"));
        let (mut unread, mut readers) = (Vec::new(), Vec::new());
        for number in 0..diffs {
            unread.push(open_diff(&store, number).await);
        }
        for _ in 0..READERS {
            readers.push(store.layer_big_data("layer", "item").await.unwrap());
        }
        let report = |when: &str| {
            let (files, memory) = (open_files() - files, own_memory("VmRSS").saturating_sub(memory));
            tell(&format!(
                "{when}: {diffs} diffs, {READERS} readers: {files} files, {memory} KiB more, {} threads",
                threads()
            ));
        };
        report("open");
        assert!(threads() <= MAX_THREADS + pool, "{} threads", threads());

        let mut tasks = JoinSet::new();
        for number in 0..4 {
            let store = store.clone();
            tasks.spawn(async move { work(&store, number).await });
        }
        tasks.join_all().await;
        report("after work");
        // Then all at once.
        let mut tasks = JoinSet::new();
        for (number, diff) in unread.into_iter().enumerate() {
            let kind = match number % 100 {
                0..98 => 0,
                rare => rare - 97,
            };
            let expected = expected[kind][number / 100 % 3].clone();
            tasks.spawn(async move {
                let bytes = match number % 2 {
                    0 => read_all(diff).await,
                    _ => read_chunks(diff).await,
                };
                assert!(bytes == expected, "diff {number}");
            });
        }
        for reader in readers {
            assert_eq!(reader.size(), item.len() as u64);
            let expected = item.clone();
            tasks.spawn(async move { assert!(read_chunks(reader).await == expected) });
        }
        let mut most = 0;
        while let Some(read) = tasks.join_next().await {
            read.unwrap();
            if tasks.len() % 500 == 0 {
                most = most.max(threads());
            }
        }
        report("read");
        assert!(most <= MAX_THREADS + pool, "{most} threads");
        assert_eq!(open_files(), files);
    });
    tell("done");
}

/// In a child process: streams are dropped when some of their bytes were read.
pub(crate) fn dropped(flavor: &str, pool: usize) {
    runtime(flavor, pool).block_on(async {
        let store = prepare(8 << 20).await;
        let mut warm = open_diff(&store, 0).await;
        warm.read_exact(&mut [0; 1000]).await.unwrap();
        read_all(warm).await;
        let before = (open_files(), mounts());
        for read in [0, 1, 100_000] {
            let mut streams = Vec::new();
            for (from, to) in KINDS {
                for number in 0..12 {
                    let mut stream = store.diff(from, to, options(number)).await.unwrap();
                    let mut bytes = vec![0; read];
                    stream.read_exact(&mut bytes).await.unwrap();
                    streams.push(stream);
                }
            }
            let memory = own_memory("VmRSS");
            assert!(open_files() > before.0);
            tell(&format!(
                "{read}: {} files, {memory} KiB, {} threads",
                open_files() - before.0,
                threads()
            ));
            assert!(threads() <= MAX_THREADS + pool);
            drop(streams);
            let deadline = Instant::now() + Duration::from_secs(120);
            while (open_files(), mounts()) != before {
                assert!(
                    Instant::now() < deadline,
                    "{:?} instead of {before:?}",
                    (open_files(), mounts())
                );
                tokio::task::yield_now().await;
            }
        }
    });
    tell("done");
}

fn in_children(work: &str) {
    needs!();
    for flavor in ["current", "multi"] {
        for pool in [1, 4] {
            let root = TestRoot::in_memory();
            let lines = Worker::start(work, &root, &[flavor, &pool.to_string()]).finish();
            for line in &lines {
                eprintln!("{work}, {flavor}, pool of {pool}: {line}");
            }
            assert_eq!(lines.last().map(String::as_str), Some("done"));
        }
    }
}

#[test]
fn ten_thousand_unread_streams_hold_nothing_up() {
    in_children("streams-unread");
}

#[test]
fn a_stream_dropped_half_read_leaves_nothing() {
    in_children("streams-dropped");
}

#[test]
fn a_runtime_can_be_dropped_before_its_streams() {
    needs!();
    for (flavor, pool) in [("current", 1), ("multi", 4)] {
        for read in [0, 1] {
            let root = TestRoot::in_memory();
            let runtime = runtime(flavor, pool);
            let mut streams = runtime.block_on(async {
                let store = fill(root.open().await, 8 << 20).await;
                let mut streams = Vec::new();
                for (from, to) in KINDS {
                    for number in 0..3 {
                        let mut stream = store.diff(from, to, options(number)).await.unwrap();
                        stream.read_exact(&mut vec![0; read]).await.unwrap();
                        streams.push(stream);
                    }
                }
                streams
            });
            drop(runtime);
            for stream in &mut streams {
                let rest = futures::executor::block_on(stream.read_to_end(&mut Vec::new()));
                match rest {
                    // The few large blocks that are compressed ahead of the reader may be the whole stream.
                    Ok(_) if read > 0 && stream.compression() == Compression::Zstd => {}
                    Ok(size) => panic!("{size} bytes were read"),
                    Err(error) => {
                        let error = graphroot::Error::try_from_io(error).unwrap();
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                    }
                }
            }
        }
    }
}
