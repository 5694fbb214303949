//! `put_layer` beside what a user would use instead: `tar -xzf` and the `containers-storage` command.
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

use graphroot::{Durability, LayerOptions, Store, StoreOptions};

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
    let command = Command::new("containers-storage")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if command.is_err() {
        println!("SKIPPED containers-storage: the command is not installed");
    }
    let mut rows = [
        ("put_layer, content not synced", Vec::new()),
        ("put_layer, durable", Vec::new()),
        ("tar -xzf", Vec::new()),
        ("containers-storage import-layer", Vec::new()),
    ];
    for _ in 0..ROUNDS {
        rows[0].1.push(put_layer(dir.path(), &blob, Durability::None)?);
        rows[1].1.push(put_layer(dir.path(), &blob, Durability::Default)?);
        rows[2].1.push(tar(dir.path(), &blob)?);
        if command.is_ok() {
            rows[3].1.push(import_layer(dir.path(), &blob)?);
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

fn import_layer(dir: &Path, blob: &Path) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let base = |verb: &str| {
        let mut command = Command::new("containers-storage");
        command
            .arg("--graph")
            .arg(root.path().join("graph"))
            .arg("--run")
            .arg(root.path().join("run"));
        command.args(["--storage-driver", "overlay", verb]);
        command
    };
    let time = timed(base("import-layer").arg("-f").arg(blob))?;
    timed(&mut base("wipe"))?;
    timed(&mut base("shutdown"))?;
    Ok(time)
}
