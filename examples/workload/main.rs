//! The everyday work of a store, timed call by call: for comparing versions, machines, file systems, and other
//! programs that run the same list.
//!
//! ```text
//! cargo run --release --example workload -- ROOT LAYER_BLOB [--durability none|full] [--only GROUP]
//! ```
//!
//! `ROOT` is a directory that does not exist yet, on the file system to measure; `LAYER_BLOB` a layer of some size,
//! compressed or not. Needs root (overlay). Each line that is printed is a JSON object: `bench`, `n` (how many
//! operations), `total_ms`, `per_us` and `cpu_us` (microseconds for one, as they pass and of all processors), for diffs
//! also `bytes` (of one stream), for what many do at the same time also `p50_us` and `p99_us` (of the time of one
//! operation). Groups: `big`, `small`, `images`, `containers`, `churn`, `many`, `readers`, `procs`, `open`, in this order,
//! each on what the ones before have left.

#![expect(clippy::print_stdout, reason = "it is a program")]

mod concurrent;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use graphroot::{
    ContainerOptions, DiffOptions, Durability, ImageOptions, LayerOptions, MountOptions, Store, StoreOptions,
};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How often the work on big layers is done.
const ROUNDS: usize = 3;
/// How many small layers there are.
const SMALL_LAYERS: usize = 200;
/// Files in a small layer.
const SMALL_FILES: usize = 10;
/// How many small layers lie on each other.
const CHAIN: usize = 20;
/// How many tasks put small layers at the same time.
const TASKS: usize = 8;
/// How many big layers are put at the same time.
const BIG_TASKS: usize = 4;
/// How many images there are.
const IMAGES: usize = 1000;
/// How many keys of one image are written.
const KEYS: usize = 200;
/// How often something is looked up.
const LOOKUPS: usize = 5000;
/// How often all images are listed.
const LISTS: usize = 200;
/// How many containers there are.
const CONTAINERS: usize = 200;
/// How often the store is opened.
const OPENS: usize = 10;

fn main() -> Res<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(Arguments::parse()?))
}

/// What the command line says.
struct Arguments {
    root: PathBuf,
    blob: PathBuf,
    durability: Durability,
    only: Option<String>,
    /// Whether this is one of several processes that use a store which is there already.
    process: bool,
}

impl Arguments {
    fn parse() -> Res<Self> {
        let usage = "usage: workload ROOT LAYER_BLOB [--durability none|full] [--only GROUP]";
        let mut arguments = std::env::args().skip(1);
        let (mut paths, mut durability, mut only) = (Vec::new(), Durability::Default, None);
        let mut process = false;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--durability" => {
                    durability = match arguments.next().as_deref() {
                        Some("none") => Durability::None,
                        Some("full") => Durability::Full,
                        _ => return Err(usage.into()),
                    }
                }
                "--only" => only = Some(arguments.next().ok_or(usage)?),
                "--process" => process = true,
                path => paths.push(PathBuf::from(path)),
            }
        }
        let [root, blob]: [PathBuf; 2] = paths.try_into().map_err(|_other| usage)?;
        Ok(Self {
            root,
            blob,
            durability,
            only,
            process,
        })
    }

    async fn open(&self) -> Res<Store> {
        let options = StoreOptions::new(self.root.join("graph"), self.root.join("run"))
            .driver("overlay")
            .durability(self.durability);
        Ok(Store::open(options).await?)
    }

    fn wants(&self, group: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == group)
    }
}

async fn run(arguments: Arguments) -> Res<()> {
    if arguments.process {
        return concurrent::process(&arguments.open().await?).await;
    }
    std::fs::create_dir(&arguments.root)?;
    let store = arguments.open().await?;
    if arguments.wants("big") {
        big_layers(&store, &arguments.blob).await?;
    }
    if arguments.wants("small") {
        small_layers(&store).await?;
    }
    if arguments.wants("images") {
        images(&store).await?;
    }
    if arguments.wants("containers") {
        containers(&store).await?;
    }
    if arguments.wants("churn") {
        concurrent::churn(&store).await?;
    }
    if arguments.wants("many") {
        concurrent::many(&store).await?;
    }
    if arguments.wants("readers") {
        concurrent::readers(&store).await?;
    }
    if arguments.wants("procs") {
        concurrent::processes(&store).await?;
    }
    store.free();
    drop(store);
    if arguments.wants("open") {
        open_and_list(&arguments).await?;
    }
    let store = arguments.open().await?;
    store.wipe().await?;
    store.shutdown_force().await?;
    std::fs::remove_dir_all(&arguments.root)?;
    Ok(())
}

/// Time that has passed, and time for which processors have worked for this process.
#[derive(Clone, Copy, Default)]
struct Spent {
    wall: Duration,
    processors: Duration,
}

impl Spent {
    /// Adds what `work` takes.
    async fn on<T>(&mut self, work: impl Future<Output = T>) -> T {
        let started = Clock::start();
        let result = work.await;
        let spent = started.stop();
        self.wall += spent.wall;
        self.processors += spent.processors;
        result
    }
}

/// When something began.
struct Clock {
    wall: Instant,
    processors: Duration,
}

impl Clock {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            processors: processors(),
        }
    }

    fn stop(&self) -> Spent {
        Spent {
            wall: self.wall.elapsed(),
            processors: processors().saturating_sub(self.processors),
        }
    }
}

fn processors() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Prints one line.
fn report(bench: &str, count: usize, total: Spent, bytes: Option<u64>) {
    let per = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let bytes = bytes.map_or(String::new(), |bytes| format!(",\"bytes\":{bytes}"));
    println!(
        "{{\"bench\":\"{bench}\",\"n\":{count},\"total_ms\":{:.3},\"per_us\":{:.2},\"cpu_us\":{:.2}{bytes}}}",
        total.wall.as_secs_f64() * 1e3,
        per(total.wall),
        per(total.processors),
    );
}

async fn put_file(store: &Store, blob: &Path) -> Res<String> {
    let file = tokio::fs::File::open(blob).await?;
    let put = store.put_layer(None, LayerOptions::default(), file).await?;
    Ok(put.layer.id().to_owned())
}

/// Reads a diff to its end; returns its size.
async fn drain(store: &Store, layer: &str, options: DiffOptions) -> Res<u64> {
    let mut diff = store.diff(None, layer, options).await?;
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        match diff.read(&mut buffer).await? {
            0 => return Ok(size),
            count => size += u64::try_from(count)?,
        }
    }
}

async fn big_layers(store: &Store, blob: &Path) -> Res<()> {
    let [mut put, mut diff, mut plain, mut delete] = [Spent::default(); 4];
    let (mut diff_bytes, mut plain_bytes) = (0, 0);
    for _ in 0..ROUNDS {
        let layer = put.on(put_file(store, blob)).await?;
        diff_bytes = diff.on(drain(store, &layer, DiffOptions::default())).await?;
        plain_bytes = plain
            .on(drain(store, &layer, DiffOptions::uncompressed()))
            .await?;
        delete.on(store.delete_layer(&layer)).await?;
    }
    report("put_big_layer", ROUNDS, put, None);
    report("diff_big_layer", ROUNDS, diff, Some(diff_bytes));
    report("diff_plain", ROUNDS, plain, Some(plain_bytes));
    report("delete_big_layer", ROUNDS, delete, None);

    let started = Clock::start();
    let mut tasks = JoinSet::new();
    for _ in 0..BIG_TASKS {
        let (store, blob) = (store.clone(), blob.to_owned());
        tasks.spawn(async move { put_file(&store, &blob).await });
    }
    let layers = tasks.join_all().await;
    report("put_big_layer_par4", BIG_TASKS, started.stop(), None);
    for layer in layers {
        store.delete_layer(&layer?).await?;
    }
    Ok(())
}

/// A tar of tiny files, different for each number.
async fn small_tar(number: usize) -> Res<Vec<u8>> {
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for file in 0..SMALL_FILES {
        let content = format!("file {file} of layer {number}\n");
        let mut header = tokio_tar::Header::new_ustar();
        header.set_size(u64::try_from(content.len())?);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        let name = format!("etc/layer-{number}/file-{file}");
        builder.append_data(&mut header, name, content.as_bytes()).await?;
    }
    Ok(builder.into_inner().await?)
}

async fn put_small(store: &Store, parent: Option<&str>, tar: Vec<u8>) -> Res<String> {
    let put = store
        .put_layer(parent, LayerOptions::default(), std::io::Cursor::new(tar))
        .await?;
    Ok(put.layer.id().to_owned())
}

async fn small_layers(store: &Store) -> Res<()> {
    let mut tars = Vec::new();
    for number in 0..2 * SMALL_LAYERS {
        tars.push(small_tar(number).await?);
    }
    let rest = tars.split_off(SMALL_LAYERS);
    let mut below: Option<String> = None;
    let started = Clock::start();
    for (number, tar) in tars.into_iter().enumerate() {
        let parent = below.take().filter(|_| number % CHAIN != 0);
        below = Some(put_small(store, parent.as_deref(), tar).await?);
    }
    report("put_small_layer_seq", SMALL_LAYERS, started.stop(), None);

    let tars = Arc::new(rest);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Clock::start();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (store, tars, next) = (store.clone(), Arc::clone(&tars), Arc::clone(&next));
        tasks.spawn(async move {
            while let Some(tar) = tars.get(next.fetch_add(1, Ordering::Relaxed)) {
                put_small(&store, None, tar.clone()).await?;
            }
            Res::Ok(())
        });
    }
    for result in tasks.join_all().await {
        result?;
    }
    report("put_small_layer_par8", SMALL_LAYERS, started.stop(), None);
    Ok(())
}

/// The name of an image.
fn name(number: usize) -> String {
    format!("localhost/workload/image-{number}:latest")
}

async fn images(store: &Store) -> Res<()> {
    let top = put_small(store, None, small_tar(2 * SMALL_LAYERS).await?).await?;
    let mut last = String::new();
    let started = Clock::start();
    for number in 0..IMAGES {
        let options = ImageOptions::default().name(name(number));
        last = store.create_image(Some(&top), options).await?.id().to_owned();
    }
    report("create_image", IMAGES, started.stop(), None);

    let started = Clock::start();
    for key in 0..KEYS {
        store
            .set_image_big_data(&last, &format!("key-{key}"), "12345", None)
            .await?;
    }
    report("set_image_big_data", KEYS, started.stop(), None);

    let names: Vec<String> = (0..LOOKUPS).map(|number| name(number * 7 % IMAGES)).collect();
    let started = Clock::start();
    for name in &names {
        store.lookup(name).await?;
    }
    report("lookup_name", LOOKUPS, started.stop(), None);

    let layers = store.layers().await?;
    let ids: Vec<&str> = layers
        .iter()
        .cycle()
        .take(LOOKUPS)
        .map(|layer| layer.id())
        .collect();
    let started = Clock::start();
    for id in ids {
        store.layer(id).await?;
    }
    report("layer_get", LOOKUPS, started.stop(), None);

    let started = Clock::start();
    for _ in 0..LISTS {
        if store.images().await?.len() < IMAGES {
            return Err("images are missing from the list".into());
        }
    }
    report("images_list_1000", LISTS, started.stop(), None);
    Ok(())
}

async fn containers(store: &Store) -> Res<()> {
    let image = match store.image(&name(IMAGES - 1)).await {
        Ok(image) => image.id().to_owned(),
        Err(_only_this_group) => {
            let top = put_small(store, None, small_tar(2 * SMALL_LAYERS).await?).await?;
            let options = ImageOptions::default().name(name(IMAGES - 1));
            store.create_image(Some(&top), options).await?.id().to_owned()
        }
    };
    let mut ids = Vec::with_capacity(CONTAINERS);
    let started = Clock::start();
    for number in 0..CONTAINERS {
        let options = ContainerOptions::default().name(format!("workload-{number}"));
        ids.push(
            store
                .create_container(Some(&image), options)
                .await?
                .id()
                .to_owned(),
        );
    }
    report("create_container", CONTAINERS, started.stop(), None);

    let started = Clock::start();
    for id in &ids {
        store.mount(id, MountOptions::default()).await?;
    }
    report("mount", CONTAINERS, started.stop(), None);

    let started = Clock::start();
    for id in &ids {
        store.unmount(id).await?;
    }
    report("unmount", CONTAINERS, started.stop(), None);

    let started = Clock::start();
    for id in &ids {
        store.delete_container(id).await?;
    }
    report("delete_container", CONTAINERS, started.stop(), None);
    Ok(())
}

async fn open_and_list(arguments: &Arguments) -> Res<()> {
    let started = Clock::start();
    for _ in 0..OPENS {
        let store = arguments.open().await?;
        let (images, layers) = (store.images().await?, store.layers().await?);
        if arguments.only.is_none() && (images.len() < IMAGES || layers.len() < SMALL_LAYERS) {
            return Err("something is missing from the lists".into());
        }
        store.free();
    }
    report("open_and_list", OPENS, started.stop(), None);
    Ok(())
}
