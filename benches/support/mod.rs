//! What the benchmarks share: where they run, what they run on, and the rows that they print.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::{Store, StoreOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A result with any error.
pub(crate) type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A new directory below `$GRAPHROOT_BENCH_DIR`, else below `/dev/shm`.
pub(crate) fn directory() -> Res<TempDir> {
    let base = std::env::var_os("GRAPHROOT_BENCH_DIR").unwrap_or_else(|| "/dev/shm".into());
    Ok(tempfile::Builder::new()
        .prefix("graphroot-bench-")
        .tempdir_in(base)?)
}

/// The gzip layer that the command line names, or one of this machine's files below `/` + `files`.
pub(crate) fn layer(dir: &Path, files: &str) -> Res<PathBuf> {
    // `cargo bench` passes options of its own.
    let named = std::env::args_os().skip(1).map(PathBuf::from);
    if let Some(blob) = { named }.find(|path| path.is_file()) {
        return Ok(blob);
    }
    let blob = dir.join("layer.tar.gz");
    run(Command::new("tar")
        .args(["-C", "/", "-czf"])
        .arg(&blob)
        .arg(files))?;
    Ok(blob)
}

/// A multi-thread runtime with as many workers as the figures in the documentation are for.
pub(crate) fn runtime() -> Res<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    Ok(runtime.worker_threads(2).enable_all().build()?)
}

/// Options of a store in `root`.
pub(crate) fn options(root: &Path, driver: &str) -> StoreOptions {
    StoreOptions::new(root.join("graph"), root.join("run")).driver(driver)
}

/// Empties a store and unmounts its home, so that its directory can be removed.
pub(crate) async fn remove(store: &Store) -> Res<()> {
    store.wipe().await?;
    store.shutdown_force().await?;
    Ok(())
}

/// Whether a program can be started; says so if not.
pub(crate) fn is_there(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    let status = command
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if status.is_err() {
        println!("SKIPPED {program}: it is not installed");
    }
    status.is_ok()
}

/// Runs a command that has to succeed, without its output.
pub(crate) fn run(command: &mut Command) -> Res<()> {
    let output = command.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// As [`run`]; returns how long it took.
pub(crate) fn timed(command: &mut Command) -> Res<Duration> {
    let started = Instant::now();
    run(command)?;
    Ok(started.elapsed())
}

/// Prints a row for each contender that has times: the median, the range, and the ratio to the first row.
pub(crate) fn print_rows<'a>(rows: impl IntoIterator<Item = (&'a str, &'a [Duration])>) {
    let mut first = None;
    for (name, times) in rows {
        let mut times = times.to_vec();
        times.sort();
        let (Some(least), Some(most)) = (times.first(), times.last()) else {
            continue;
        };
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let ratio = median.as_secs_f64() / first.get_or_insert(median).as_secs_f64();
        println!("  {name:34} {median:>9.2?} ({least:.2?} to {most:.2?})  x{ratio:.2}");
    }
}
