//! The main job from one end to the other: layer blobs in, an image, a container, a mount, and everything out again.
//!
//! ```text
//! cargo run --example quickstart [-- LAYER.tar[.gz|.zst] …]
//! ```
//!
//! Without arguments it packs real files of this machine into three layer blobs. The store lies in a fresh temporary
//! directory (overlay as root, vfs otherwise) and is gone at the end.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_compression::tokio::write::GzipEncoder;
use graphroot::{
    BoxReader, ContainerOptions, DiffOptions, Digest, ImageBuilder, Layer, LayerOptions, MountOptions, Store,
    StoreOptions,
};
use sha2::Digest as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Res<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let home = tempfile::Builder::new()
        .prefix("graphroot-quickstart-")
        .tempdir()?;
    // Also after a failure nothing is left behind: the directory goes with its guard.
    run(home.path(), arguments).await
}

async fn run(home: &Path, arguments: Vec<PathBuf>) -> Res<()> {
    let blobs = if arguments.is_empty() {
        pack_machine(home).await?
    } else {
        arguments
    };
    let driver = if rustix::process::geteuid().is_root() {
        "overlay"
    } else {
        "vfs"
    };
    let mut options = StoreOptions::new(home.join("graph"), home.join("run")).driver(driver);
    if driver == "vfs" {
        // Who is not root owns everything himself.
        options = options.driver_option("vfs.ignore_chown_errors=true");
    }
    let store = Store::open(options).await?;
    say(&format!(
        "opened a store with the {driver} driver in {}",
        home.display()
    ));
    let outcome = main_job(&store, &blobs).await;
    store.wipe().await?;
    store.shutdown_force().await?;
    outcome
}

async fn main_job(store: &Store, blobs: &[PathBuf]) -> Res<()> {
    // With overlay, unpacking a layer needs nothing of the one below: all streams flow at the same time, and each
    // layer becomes visible as soon as the one below it is.
    let started = Instant::now();
    let layers = put_layers(store, blobs).await?;
    let plain: u64 = layers.iter().filter_map(|layer| layer.uncompressed_size()).sum();
    say(&format!(
        "put {} layers, {} unpacked, in {}: {}",
        layers.len(),
        size(plain),
        time(started.elapsed()),
        rate(plain, started.elapsed())
    ));
    for layer in &layers {
        println!(
            "    {} {} diff ID {}",
            short(layer.id()),
            layer.compression(),
            text(layer.uncompressed_digest())
        );
    }

    let top = layers.last().ok_or("no layers")?;
    let image = ImageBuilder::new()
        .top_layer(top.id())
        .name("localhost/quickstart:latest")
        .build(store)
        .await?;
    say(&format!(
        "created image {} ({})",
        short(image.id()),
        image.names().join(", ")
    ));

    let options = ContainerOptions::default().name("quickstart");
    let container = store
        .create_container(Some("localhost/quickstart:latest"), options)
        .await?;
    let mounted = store.mount(container.id(), MountOptions::default()).await?;
    say(&format!(
        "created container {} and mounted it on {}",
        short(container.id()),
        mounted.display()
    ));
    let file = first_file(&mounted).ok_or("the container has no readable file")?;
    let bytes = std::fs::read(&file)?.len() as u64;
    println!(
        "    read {} ({})",
        file.strip_prefix(&mounted)?.display(),
        size(bytes)
    );
    if !rustix::process::geteuid().is_root() {
        // The root directory of a layer is closed, to its owner too.
        std::fs::set_permissions(&mounted, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    std::fs::write(
        mounted.join("written-by-quickstart"),
        "hello from the container\n",
    )?;
    for change in store.changes(None, container.layer_id()).await? {
        println!("    change: {change}");
    }

    let mut diff = store
        .diff(None, container.layer_id(), DiffOptions::uncompressed())
        .await?;
    let (digest, count) = drain(&mut diff).await?;
    say(&format!(
        "exported the container's diff: {} {digest}",
        size(count)
    ));

    let started = Instant::now();
    let mut exported = 0;
    for layer in &layers {
        let mut diff = store.diff(None, layer.id(), DiffOptions::uncompressed()).await?;
        let (digest, count) = drain(&mut diff).await?;
        exported += count;
        if Some(&digest) != layer.uncompressed_digest().as_ref() {
            return Err(format!("layer {} came out as {digest}", layer.id()).into());
        }
    }
    say(&format!(
        "exported all layers, every diff ID as recorded: {} in {}: {}",
        size(exported),
        time(started.elapsed()),
        rate(exported, started.elapsed())
    ));

    let still = store.unmount(container.id()).await?;
    store.delete_container(container.id()).await?;
    let removed = store.delete_image(image.id()).await?;
    say(&format!(
        "unmounted ({still} mounts left), deleted the container, the image and {} layers",
        removed.len()
    ));
    Ok(())
}

/// Stacks all blobs as layers; all streams flow at the same time.
async fn put_layers(store: &Store, blobs: &[PathBuf]) -> Res<Vec<Layer>> {
    let total: u64 = blobs
        .iter()
        .filter_map(|blob| blob.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    let read = Arc::new(AtomicU64::new(0));
    let mut sources: Vec<(LayerOptions, BoxReader)> = Vec::new();
    for blob in blobs {
        let file = tokio::fs::File::open(blob).await?;
        let counted = Counted {
            file,
            read: Arc::clone(&read),
        };
        sources.push((LayerOptions::default(), Box::pin(counted)));
    }
    let put = store.put_layers(None, sources);
    tokio::pin!(put);
    loop {
        tokio::select! {
            done = &mut put => {
                progress_line("");
                return Ok(done?.into_iter().map(|put| put.layer).collect());
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                progress_line(&format!("{} of {} read", size(read.load(Ordering::Relaxed)), size(total)));
            }
        }
    }
}

/// Counts what is read from a blob.
struct Counted {
    file: tokio::fs::File,
    read: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.file).poll_read(cx, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        polled
    }
}

/// Enough to see rates, few enough for a slow disk.
const FILES_PER_LAYER: u64 = 1500;

/// Packs real files of this machine into three gzip layer blobs.
async fn pack_machine(home: &Path) -> Res<Vec<PathBuf>> {
    let candidates = [
        "/usr/share/doc",
        "/usr/share/man",
        "/usr/share/perl",
        "/usr/share/zoneinfo",
        "/usr/lib/python3",
    ];
    let found: Vec<&str> = candidates
        .into_iter()
        .filter(|path| Path::new(path).is_dir())
        .take(3)
        .collect();
    if found.is_empty() {
        return Err(
            "this machine has none of the directories that the example packs: name layer blobs".into(),
        );
    }
    let started = Instant::now();
    let mut blobs = Vec::new();
    let (mut files, mut bytes) = (0, 0);
    for source in found {
        let blob = home.join(format!(
            "{}.tar.gz",
            source.trim_start_matches('/').replace('/', "-")
        ));
        let mut builder = tokio_tar::Builder::new(GzipEncoder::new(tokio::fs::File::create(&blob).await?));
        builder.follow_symlinks(false);
        let mut todo = vec![PathBuf::from(source)];
        let enough = files + FILES_PER_LAYER;
        while let Some(directory) = todo.pop().filter(|_| files < enough) {
            let mut entries: Vec<_> = std::fs::read_dir(&directory)?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            entries.sort();
            for path in entries {
                let name = path.strip_prefix("/")?;
                let meta = path.symlink_metadata()?;
                if meta.is_dir() {
                    builder.append_dir(name, &path).await?;
                    todo.push(path);
                } else if meta.is_file() || meta.is_symlink() {
                    builder.append_path_with_name(&path, name).await?;
                    files += 1;
                    bytes += meta.len();
                }
            }
        }
        builder.into_inner().await?.shutdown().await?;
        blobs.push(blob);
        progress_line(&format!("{files} files packed"));
    }
    progress_line("");
    let count = blobs.len();
    say(&format!(
        "packed {files} files of this machine, {}, into {count} layer blobs in {}",
        size(bytes),
        time(started.elapsed())
    ));
    Ok(blobs)
}

/// Reads a stream to its end; returns its digest and length.
async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> Res<(Digest, u64)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                count += read as u64;
            }
        }
    }
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((format!("sha256:{hex}").parse()?, count))
}

/// Some regular file below `directory`.
fn first_file(directory: &Path) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries.into_iter().find_map(|path| {
        let meta = path.symlink_metadata().ok()?;
        if meta.is_dir() {
            first_file(&path)
        } else {
            (meta.is_file() && meta.len() > 0).then_some(path)
        }
    })
}

fn say(line: &str) {
    println!("{line}");
}

/// Overwrites the progress line on a terminal; elsewhere nothing is shown.
fn progress_line(line: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        // Without a terminal there is no one to tell.
        write!(out, "\r\x1b[K{line}").and_then(|()| out.flush()).ok();
    }
}

fn text(digest: Option<Digest>) -> String {
    digest.map_or_else(|| "unknown".into(), |digest| digest.to_string())
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn size(bytes: u64) -> String {
    if bytes < 1_000_000 {
        format!("{:.1} kB", bytes as f64 / 1e3)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

fn time(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn rate(bytes: u64, duration: Duration) -> String {
    format!(
        "{:.0} MB/s",
        bytes as f64 / 1e6 / duration.as_secs_f64().max(1e-9)
    )
}
