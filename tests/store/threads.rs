//! Layers that come in hold no thread of the runtime: a store works however few threads there are.

use std::io::Cursor;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_compression::tokio::bufread::{GzipEncoder, XzEncoder, ZstdEncoder};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{DiffOptions, Digest, ErrorKind, LayerOptions, Result, Store, StoreOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::task::JoinSet;

use crate::support::{Layout, TestStore, read_all, tar};

/// How many layers are put at the same time.
const PUTS: usize = 64;

/// Long enough for everything here on a busy machine; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a case over one driver with each kind of runtime, each with one thread and with four for blocking calls.
fn on_runtimes<F: Future<Output = ()>>(driver: &str, case: impl Fn(TestStore) -> F) {
    for blocking in [1, 4] {
        for threads in [0, 2] {
            let mut runtime = match threads {
                0 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = runtime
                .worker_threads(threads.max(1))
                .max_blocking_threads(blocking)
                .enable_all()
                .build()
                .unwrap();
            let done = runtime.block_on(async {
                let Some(store) = TestStore::open(driver, Layout::Plain).await else {
                    return Ok(());
                };
                tokio::time::timeout(PATIENCE, case(store)).await
            });
            // A thread that hangs must not keep the test from failing.
            runtime.shutdown_background();
            assert!(
                done.is_ok(),
                "hangs with {threads} workers and {blocking} blocking threads"
            );
        }
    }
}

macro_rules! on_runtimes {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident) $body:block)*) => {
        mod cases {
            use super::*;
            $($(#[$doc])* pub(super) async fn $name($store: TestStore) $body)*
        }
        mod overlay {
            $(#[test] fn $name() { super::on_runtimes("overlay", super::cases::$name); })*
        }
        mod vfs {
            $(#[test] fn $name() { super::on_runtimes("vfs", super::cases::$name); })*
        }
    };
}

/// A layer with content of its own, of some 2 MiB, which does not fit into the channels of a pipeline.
fn layer(number: usize) -> Vec<u8> {
    let mut state = Digest::sha256(number.to_string());
    let mut content = String::new();
    while content.len() < 64 << 10 {
        state = Digest::sha256(state.as_str());
        content.push_str(state.encoded());
    }
    let content = content.repeat(32);
    tar(&[("d/", ""), ("d/file", &content), ("name", &number.to_string())])
}

fn named(number: usize) -> LayerOptions {
    LayerOptions::default().name(format!("layer-{number}"))
}

async fn put_all<R, F>(store: &Store, open: impl Fn(usize) -> F) -> Vec<Digest>
where
    R: AsyncRead + Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let mut puts = JoinSet::new();
    for number in 0..PUTS {
        let (store, reader) = (store.clone(), open(number));
        puts.spawn(async move { store.put_layer(None, named(number), reader.await).await });
    }
    let puts: Result<Vec<_>> = puts.join_all().await.into_iter().collect();
    puts.unwrap()
        .into_iter()
        .map(|put| put.layer.uncompressed_digest().unwrap())
        .collect()
}

/// Nothing that a put makes for itself is left.
async fn wait_until_clean(store: &TestStore) {
    let driver = store.graph_driver_name();
    loop {
        let dirs = [
            format!("{driver}/staging"),
            format!("{driver}/tempdirs"),
            format!("{driver}-layers/tmp"),
        ];
        let count = |dir: &String| {
            let listing = std::fs::read_dir(store.path().join("graph").join(dir));
            listing.map_or(0, |entries| {
                entries
                    .flatten()
                    .filter(|entry| entry.file_name() != "staging.lock")
                    .count()
            })
        };
        if dirs.iter().map(count).sum::<usize>() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Gives some bytes and then waits for ever; tells that it does.
struct Endless {
    bytes: Cursor<Vec<u8>>,
    waits: Arc<AtomicUsize>,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let left = out.remaining();
        let read = std::io::Read::read(&mut self.bytes, out.initialize_unfilled()).unwrap();
        out.advance(read);
        if read == 0 && left > 0 {
            self.waits.fetch_add(1, Ordering::SeqCst);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

/// Starts a put that never ends, and returns when it has unpacked what it can.
async fn endless_put(store: &Store, number: usize) -> tokio::task::JoinHandle<()> {
    let store = store.clone();
    let put = |reader| async move { drop(store.put_layer(None, named(number), reader).await) };
    endless(number, put).await
}

/// A diff for a layer that does not end.
async fn endless_apply(store: &Store, id: &str, number: usize) -> tokio::task::JoinHandle<()> {
    let (store, id) = (store.clone(), id.to_owned());
    let apply = |reader| async move { drop(store.apply_diff(&id, reader).await) };
    endless(number, apply).await
}

async fn endless<F>(number: usize, work: impl FnOnce(Endless) -> F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let waits = Arc::new(AtomicUsize::new(0));
    let mut bytes = layer(number);
    bytes.truncate(bytes.len() / 2);
    let reader = Endless {
        bytes: Cursor::new(bytes),
        waits: Arc::clone(&waits),
    };
    let task = tokio::spawn(work(reader));
    while waits.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    task
}

on_runtimes! {
    async fn files_are_put_side_by_side(store) {
        let files: Vec<(PathBuf, Digest)> = (0..PUTS)
            .map(|number| {
                let (path, bytes) = (store.path().join(format!("blob-{number}")), layer(number));
                std::fs::write(&path, &bytes).unwrap();
                (path, Digest::sha256(&bytes))
            })
            .collect();
        let mut digests = put_all(&store, |number| {
            let path = files[number].0.clone();
            async move { tokio::fs::File::open(path).await.unwrap() }
        })
        .await;
        digests.sort();
        let mut expected: Vec<_> = files.into_iter().map(|(_, digest)| digest).collect();
        expected.sort();
        assert_eq!(digests, expected);
        wait_until_clean(&store).await;
    }

    async fn diffs_of_the_same_store_are_put_side_by_side(store) {
        let bytes = layer(0);
        let below = LayerOptions::default().name("below");
        let below = store.put_layer(None, below, Cursor::new(bytes.clone())).await.unwrap().layer;
        let (source, id) = (store.store.clone(), below.id().to_owned());
        let digests = put_all(&store, move |number| {
            let (source, id) = (source.clone(), id.clone());
            let options = match number % 2 {
                0 => DiffOptions::uncompressed(),
                _ => DiffOptions::compressed(graphroot::Compression::Gzip),
            };
            async move { source.diff(None, &id, options).await.unwrap() }
        })
        .await;
        assert!(digests.iter().all(|digest| *digest == Digest::sha256(&bytes)));
    }

    async fn a_stack_is_put_from_files(store) {
        let mut layers: Vec<(LayerOptions, graphroot::BoxReader)> = Vec::new();
        for number in 0..16 {
            let path = store.path().join(format!("blob-{number}"));
            std::fs::write(&path, layer(number)).unwrap();
            layers.push((named(number), Box::pin(tokio::fs::File::open(path).await.unwrap())));
        }
        let puts = store.put_layers(None, layers).await.unwrap();
        let parents: Vec<_> = puts.iter().map(|put| put.layer.parent().map(str::to_owned)).collect();
        let ids: Vec<_> = puts.iter().map(|put| Some(put.layer.id().to_owned())).collect();
        assert_eq!(parents[0], None);
        assert_eq!(parents[1..], ids[..15]);
    }

    async fn a_diff_is_applied_from_a_file(store) {
        let made = store.create_layer(None, LayerOptions::default()).await.unwrap();
        let path = store.path().join("blob");
        std::fs::write(&path, layer(1)).unwrap();
        let file = tokio::fs::File::open(path).await.unwrap();
        store.apply_diff(made.id(), file).await.unwrap();
        let stream = store.diff(None, made.id(), DiffOptions::uncompressed()).await.unwrap();
        assert!(read_all(stream).await == layer(1));
    }

    /// A reader that borrows: the caller's future polls it, and nothing else.
    async fn a_reader_may_borrow(store) {
        let bytes = layer(2);
        let put = store.put_layer(None, named(2), &bytes[..]).await.unwrap();
        assert_eq!(put.layer.uncompressed_size(), Some(bytes.len() as u64));
        let mut file = Cursor::new(layer(3));
        store.put_layer(None, named(3), &mut file).await.unwrap();
        assert_eq!(file.position(), layer(3).len() as u64);
    }

    async fn a_put_that_is_dropped_frees_what_it_held(store) {
        let puts = [endless_put(&store, 1).await, endless_put(&store, 2).await];
        for put in puts {
            put.abort();
            assert!(put.await.unwrap_err().is_cancelled());
        }
        wait_until_clean(&store).await;
        store.put_layer(None, named(1), Cursor::new(layer(1))).await.unwrap();
        assert_eq!(store.layers().await.unwrap().len(), 1);
    }

    async fn diffs_that_never_end_hold_up_nobody_else(store) {
        let below = store.put_layer(None, named(1), Cursor::new(layer(1))).await.unwrap().layer;
        let (id, diff_id) = (below.id().to_owned(), below.uncompressed_digest());
        let mut applying = Vec::new();
        for number in 0..4 {
            applying.push(endless_apply(&store, &id, number).await);
        }
        assert_eq!(store.layer(&id).await.unwrap().uncompressed_digest(), diff_id);
        let other = store.reopen().await;
        let child = other.put_layer(Some(&id), named(2), Cursor::new(layer(2))).await.unwrap().layer;
        other.mount(child.id(), Default::default()).await.unwrap();
        other.unmount(child.id()).await.unwrap();
        store.apply_diff(child.id(), Cursor::new(layer(3))).await.unwrap();
        other.apply_diff(&id, Cursor::new(layer(4))).await.unwrap();
        other.delete_layer(child.id()).await.unwrap();
        for task in applying {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        wait_until_clean(&store).await;
        let left = store.layer(&id).await.unwrap();
        assert_eq!(left.uncompressed_digest(), Some(Digest::sha256(layer(4))));
        // A diff for a layer that goes meanwhile is for nobody.
        let (mut feed, stream) = tokio::io::duplex(1024);
        let late = store.apply_diff(&id, stream);
        let gone = async {
            tokio::io::AsyncWriteExt::write_all(&mut feed, &layer(5)).await.unwrap();
            other.delete_layer(&id).await.unwrap();
            let options = LayerOptions::default().id(&id);
            other.create_layer(None, options).await.unwrap();
            drop(feed);
        };
        let (late, ()) = tokio::join!(late, gone);
        assert_eq!(late.unwrap_err().kind(), ErrorKind::LayerUnknown);
        assert_eq!(store.layer(&id).await.unwrap().uncompressed_digest(), None);
        wait_until_clean(&store).await;
    }

    async fn readers_that_never_end_hold_up_nobody_else(store) {
        let mut puts = Vec::new();
        for number in 0..20 {
            puts.push(endless_put(&store, number).await);
        }
        for number in 20..24 {
            let path = store.path().join("blob");
            std::fs::write(&path, layer(number)).unwrap();
            let file = tokio::fs::File::open(path).await.unwrap();
            store.put_layer(None, named(number), file).await.unwrap();
        }
        let made = store.create_layer(Some("layer-20"), LayerOptions::default()).await.unwrap();
        store.delete_layer(made.id()).await.unwrap();
        assert_eq!(store.layers().await.unwrap().len(), 4);
        puts.iter().for_each(tokio::task::JoinHandle::abort);
        wait_until_clean(&store).await;
    }
}

#[test]
fn no_more_layers_are_unpacked_at_once_than_the_store_allows() {
    on_runtimes("vfs", |first| async move {
        let root = first.path().join("limited");
        let options = StoreOptions::new(root.join("graph"), root.join("run"))
            .driver("vfs")
            .max_unpacks(2);
        let options = options.driver_option("vfs.ignore_chown_errors=true");
        let store = Store::open(options).await.unwrap();
        let puts = [endless_put(&store, 1).await, endless_put(&store, 2).await];
        let mut third = Box::pin(store.put_layer(None, named(3), Cursor::new(layer(3))));
        let other = store.create_layer(None, LayerOptions::default());
        tokio::select! {
            _ = &mut third => panic!("two are at it"),
            created = other => drop(created.unwrap()),
        }
        puts[0].abort();
        third.await.unwrap();
        puts[1].abort();
        drop(first);
    });
}

/// What the runtime was dropped over must not keep it from being dropped, nor hold up the next one.
#[test]
fn a_runtime_is_dropped_while_layers_come_in() {
    let new = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let runtime = new();
    let store = runtime.block_on(async {
        let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
        for number in 0..8 {
            drop(endless_put(&store, number).await);
        }
        store
    });
    drop(runtime);
    new().block_on(async {
        wait_until_clean(&store).await;
        store
            .put_layer(None, named(1), Cursor::new(layer(1)))
            .await
            .unwrap();
    });
}

async fn encoded(number: usize) -> Vec<u8> {
    let plain = layer(number);
    let mut out = Vec::new();
    match number % 4 {
        0 => GzipEncoder::new(&plain[..]).read_to_end(&mut out).await.unwrap(),
        1 => ZstdEncoder::new(&plain[..]).read_to_end(&mut out).await.unwrap(),
        2 => XzEncoder::new(&plain[..]).read_to_end(&mut out).await.unwrap(),
        _ => return plain,
    };
    out
}

/// What the only thread of a runtime computes between two looks at its timers, while eight layers come in whose
/// readers always have data. Processor time: it does not count when other programs run.
#[test]
fn a_timer_is_not_held_up_by_layers_that_come_in() {
    const ROUNDS: usize = 4;
    let ticks = std::sync::Mutex::new(Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
        let mut blobs = Vec::new();
        for number in 0..8 {
            blobs.push(encoded(number).await);
        }
        let ticker = async {
            loop {
                let (now, used) = (Instant::now(), thread_time());
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks.lock().unwrap().push((thread_time() - used, now.elapsed()));
            }
        };
        let puts = async {
            for round in 0..ROUNDS {
                let mut puts = JoinSet::new();
                for (number, blob) in blobs.iter().enumerate() {
                    let (store, blob) = (store.store.clone(), blob.clone());
                    let options = named(round * 8 + number);
                    puts.spawn(async move { store.put_layer(None, options, Cursor::new(blob)).await });
                }
                while let Some(put) = puts.join_next().await {
                    put.unwrap().unwrap();
                }
            }
        };
        tokio::select! {
            () = ticker => unreachable!(),
            () = puts => {}
        }
    });
    let ticks = ticks.into_inner().unwrap();
    let mut computed: Vec<_> = ticks.iter().map(|(computed, _)| *computed).collect();
    computed.sort();
    let part = |part: usize| computed[(computed.len() - 1) * part / 1000];
    eprintln!(
        "{} ticks of 1 ms beside eight layers that come in: computed in between {:?} (median), {:?} (99 %), {:?} (most); latest {:?}",
        ticks.len(),
        part(500),
        part(990),
        part(1000),
        ticks.iter().map(|(_, late)| late).max().unwrap(),
    );
    // Between two of them no task can have decoded more than the pace allows: eight times half a MiB of 64 MiB.
    assert!(ticks.len() > ROUNDS * 4, "{} ticks", ticks.len());
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// The changes of a layer are found in steps that others get in between, on the one thread that there is.
#[expect(
    clippy::disallowed_methods,
    reason = "the other work on the pool is not the store's"
)]
#[test]
fn changes_and_their_size_leave_the_pool_to_others() {
    /// Several times what one step looks at.
    const FILES: usize = 20_000;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    for driver in ["overlay", "vfs"] {
        runtime.block_on(async {
            let Some(store) = TestStore::open(driver, Layout::Plain).await else {
                return;
            };
            let entries = (0..FILES).map(|number| TarEntry::file(format!("d{}/{number}", number / 100), "x"));
            let dirs = (0..FILES / 100).map(|number| TarEntry::dir(format!("d{number}")));
            let tar = dirs.chain(entries).collect::<TarBuilder>().build();
            let layer = store
                .put_layer(None, named(0), Cursor::new(tar))
                .await
                .unwrap()
                .layer;
            let others = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&others);
            let busy = tokio::spawn(async move {
                loop {
                    tokio::task::spawn_blocking(|| {}).await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            let changes = store.changes(None, layer.id()).await.unwrap();
            assert_eq!(changes.len(), FILES + FILES / 100);
            let between = others.swap(0, Ordering::Relaxed);
            assert!(between > FILES / 2048, "{driver}: {between}");
            assert_eq!(store.diff_size(None, layer.id()).await.unwrap(), FILES as u64);
            let between = others.swap(0, Ordering::Relaxed);
            assert!(between > FILES / 2048, "{driver}: {between}");
            busy.abort();
        });
    }
}
