//! `put_layer` beside what a user would use instead: `tar -xzf`, `containers-storage import-layer`, and `skopeo copy` of
//! an image with this one layer.
//!
//! ```text
//! cargo bench --bench put_layer [-- LAYER.tar.gz]
//! ```
//!
//! Everything runs in one directory (`$GRAPHROOT_BENCH_DIR`, else `/dev/shm`), in turn, several rounds. The table
//! shows the median and the range of each, and the ratio of the median to that of the first row. Needs root.
#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::{Digest, Durability, LayerOptions, Store, StoreOptions};

type Res<T> = Result<T, Box<dyn Error>>;

/// How often each contender runs.
const ROUNDS: usize = 5;

fn main() -> Res<()> {
    // `cargo bench` passes options of its own.
    let blob = std::env::args_os()
        .skip(1)
        .map(PathBuf::from)
        .find(|path| path.is_file());
    let base =
        std::env::var_os("GRAPHROOT_BENCH_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::Builder::new()
        .prefix("graphroot-bench-")
        .tempdir_in(base)?;
    let blob = match blob {
        Some(blob) => blob,
        None => pack(dir.path())?,
    };
    println!(
        "{} ({} MB), {ROUNDS} rounds each",
        blob.display(),
        blob.metadata()?.len() / 1_000_000
    );
    let command = is_there("containers-storage", "version");
    let layout = match is_there("skopeo", "--version") {
        true => Some(layout(dir.path(), &blob)?),
        false => None,
    };
    let mut rows = [
        ("put_layer, content not synced", Vec::new()),
        ("put_layer, durable", Vec::new()),
        ("tar -xzf", Vec::new()),
        ("containers-storage import-layer", Vec::new()),
        ("skopeo copy", Vec::new()),
    ];
    for _ in 0..ROUNDS {
        rows[0].1.push(put_layer(dir.path(), &blob, Durability::None)?);
        rows[1].1.push(put_layer(dir.path(), &blob, Durability::Default)?);
        rows[2].1.push(tar(dir.path(), &blob)?);
        if command {
            rows[3].1.push(import_layer(dir.path(), &blob)?);
        }
        if let Some(layout) = &layout {
            rows[4].1.push(skopeo(dir.path(), layout)?);
        }
    }
    let baseline = median(&rows[0].1);
    for (name, times) in rows.iter().filter(|(_, times)| !times.is_empty()) {
        let ratio = median(times).as_secs_f64() / baseline.as_secs_f64();
        let range = (
            times.iter().min().copied().unwrap_or_default(),
            times.iter().max().copied().unwrap_or_default(),
        );
        println!(
            "{name:32} {:>8.2?} ({:.2?} to {:.2?})  x{ratio:.2}",
            median(times),
            range.0,
            range.1
        );
    }
    Ok(())
}

fn is_there(program: &str, argument: &str) -> bool {
    let status = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if status.is_err() {
        println!("SKIPPED {program}: it is not installed");
    }
    status.is_ok()
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A gzip layer of real files.
fn pack(dir: &Path) -> Res<PathBuf> {
    let blob = dir.join("layer.tar.gz");
    let status = Command::new("tar")
        .args(["-C", "/", "-czf"])
        .arg(&blob)
        .arg("usr/share")
        .status()?;
    if status.success() {
        Ok(blob)
    } else {
        Err("packing /usr/share failed".into())
    }
}

/// An OCI layout with an image of the one layer.
fn layout(dir: &Path, blob: &Path) -> Res<PathBuf> {
    let root = dir.join("layout");
    let blobs = root.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let mut plain = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::MultiGzDecoder::new(std::fs::File::open(blob)?),
        &mut plain,
    )?;
    let put = |data: &[u8], kind: &str| -> Res<serde_json::Value> {
        let digest = Digest::sha256(data);
        std::fs::write(blobs.join(digest.encoded()), data)?;
        let kind = format!("application/vnd.oci.image.{kind}");
        Ok(serde_json::json!({"mediaType": kind, "digest": digest.as_str(), "size": data.len()}))
    };
    let layer = put(&std::fs::read(blob)?, "layer.v1.tar+gzip")?;
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&plain).as_str()]},
    });
    let config = put(&serde_json::to_vec(&config)?, "config.v1+json")?;
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = put(&serde_json::to_vec(&manifest)?, "manifest.v1+json")?;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(root.join("index.json"), serde_json::to_vec(&index)?)?;
    std::fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(root)
}

fn put_layer(dir: &Path, blob: &Path, durability: Durability) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = StoreOptions::new(root.path().join("graph"), root.path().join("run"));
        let store = Store::open(options.driver("overlay").durability(durability)).await?;
        let started = Instant::now();
        store
            .put_layer(None, LayerOptions::default(), tokio::fs::File::open(blob).await?)
            .await?;
        let time = started.elapsed();
        store.wipe().await?;
        store.shutdown(true).await?;
        Ok(time)
    })
}

fn timed(command: &mut Command) -> Res<Duration> {
    let started = Instant::now();
    let status = command.stdout(Stdio::null()).status()?;
    if status.success() {
        Ok(started.elapsed())
    } else {
        Err(format!("{command:?} failed").into())
    }
}

fn tar(dir: &Path, blob: &Path) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    timed(
        Command::new("tar")
            .arg("-C")
            .arg(root.path())
            .args(["--xattrs", "-xpzf"])
            .arg(blob),
    )
}

/// The `containers-storage` command on a store in `root`.
fn containers_storage(root: &Path, verb: &str) -> Command {
    let mut command = Command::new("containers-storage");
    command
        .arg("--graph")
        .arg(root.join("graph"))
        .arg("--run")
        .arg(root.join("run"));
    command.args(["--storage-driver", "overlay", verb]);
    command
}

/// Empties the store of another program, so that its directory can be removed.
fn empty(root: &Path) -> Res<()> {
    let options = StoreOptions::new(root.join("graph"), root.join("run")).driver("overlay");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = Store::open(options).await?;
        store.wipe().await?;
        store.shutdown(true).await?;
        Ok(())
    })
}

fn import_layer(dir: &Path, blob: &Path) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let time = timed(
        containers_storage(root.path(), "import-layer")
            .arg("-f")
            .arg(blob),
    )?;
    empty(root.path())?;
    Ok(time)
}

fn skopeo(dir: &Path, layout: &Path) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let at = root.path().display();
    let target = format!("containers-storage:[overlay@{at}/graph+{at}/run]localhost/bench:latest");
    let time = timed(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}", layout.display()))
            .arg(target),
    )?;
    empty(root.path())?;
    Ok(time)
}
