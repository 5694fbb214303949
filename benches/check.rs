//! A store that is checked, deduplicated and healed: `check` and `dedup` beside those of `containers-storage` of Debian
//! testing, `heal` beside what a user would do instead, which is to put the layer again.
//!
//! ```text
//! cargo bench --bench check [-- LAYER.tar.gz]
//! ```
//!
//! Everything runs in one directory (`$GRAPHROOT_BENCH_DIR`, else `/dev/shm`), in turn, several rounds. The tables show
//! the median and the range of each, and the ratio of the median to that of the first row. Needs root, and for `dedup`
//! the programs that make xfs and btrfs.
#![expect(clippy::print_stdout, reason = "it is a program")]

#[path = "support/command.rs"]
mod command;
#[path = "support/disk.rs"]
mod disk;
mod support;
#[path = "support/testing.rs"]
mod testing;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use graphroot::{
    CheckOptions, DedupOptions, Durability, HealOptions, Image, ImageBuilder, LayerOptions, Store,
};

use command::command;
use disk::Disk;
use support::{Res, is_there, options, print_rows, remove, run, runtime, timed};
use testing::testing_programs;

/// How often each contender runs.
const ROUNDS: usize = 3;

/// Layers of the store that is checked.
const LAYERS: usize = 10;

fn main() -> Res<()> {
    let dir = support::directory()?;
    let dir = dir.path();
    let blob = support::layer(dir, "usr/share")?;
    let megabytes = blob.metadata()?.len() / 1_000_000;
    println!(
        "{} ({megabytes} MB) in {LAYERS} layers, {ROUNDS} rounds each",
        blob.display()
    );
    let go = testing_programs().map(|bin| bin.join("containers-storage"));
    for driver in ["overlay", "vfs"] {
        check(dir, &blob, go.as_deref(), driver)?;
    }
    for kind in ["xfs", "btrfs"] {
        if is_there(&format!("mkfs.{kind}"), "-V") {
            dedup(dir, &blob, go.as_deref(), kind)?;
        }
    }
    heal(dir, &blob)
}

/// Opens a store in `root` that does not wait for the disk.
async fn open(root: &Path, driver: &str) -> Res<Store> {
    Ok(Store::open(options(root, driver).durability(Durability::None)).await?)
}

/// Puts the layer `count` times, each on top of the one before, and makes an image of them.
async fn put(store: &Store, blob: &Path, count: usize) -> Res<Image> {
    let mut top: Option<String> = None;
    for _ in 0..count {
        let file = tokio::fs::File::open(blob).await?;
        let put = store
            .put_layer(top.as_deref(), LayerOptions::default(), file)
            .await?;
        top = Some(put.layer.id().to_owned());
    }
    let top = top.ok_or("an image without layers")?;
    Ok(ImageBuilder::new()
        .top_layer(top)
        .cmd(["sh"])
        .build(store)
        .await?)
}

fn check(dir: &Path, blob: &Path, go: Option<&Path>, driver: &str) -> Res<()> {
    println!("check, everything, {driver}");
    let root = tempfile::tempdir_in(dir)?;
    // The layers of vfs are copies.
    let layers = if driver == "vfs" { 3 } else { LAYERS };
    runtime()?.block_on(async { put(&open(root.path(), driver).await?, blob, layers).await })?;
    let mut rows = [
        ("Store::check", Vec::new()),
        ("containers-storage check", Vec::new()),
    ];
    for _ in 0..ROUNDS {
        rows[0].1.push(our_check(root.path(), driver)?);
        if let Some(go) = go {
            // It is not content with layers that lack entries for the directories above their files.
            let started = Instant::now();
            command(go, root.path(), driver, "check").output()?;
            rows[1].1.push(started.elapsed());
        }
    }
    print_rows(rows.iter().map(|(name, times)| (*name, times.as_slice())));
    runtime()?.block_on(async { remove(&open(root.path(), driver).await?).await })
}

fn our_check(root: &Path, driver: &str) -> Res<Duration> {
    runtime()?.block_on(async {
        let store = open(root, driver).await?;
        let started = Instant::now();
        let report = store.check(CheckOptions::everything()).await?;
        let time = started.elapsed();
        match report.is_clean() {
            true => Ok(time),
            false => Err(format!("found in a healthy store: {report:?}").into()),
        }
    })
}

/// Bytes of a file system that are in use, everything written.
fn used(disk: &Disk) -> Res<u64> {
    run(Command::new("sync").arg("-f").arg(disk.path()))?;
    let stat = rustix::fs::statvfs(disk.path())?;
    Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
}

/// Two images with the same layer, whose files share nothing before.
fn dedup(dir: &Path, blob: &Path, go: Option<&Path>, kind: &str) -> Res<()> {
    println!("dedup, two images of the same content, {kind}");
    let mut rows = [
        (String::from("Store::dedup"), Vec::new()),
        (String::from("containers-storage dedup"), Vec::new()),
    ];
    for _ in 0..ROUNDS {
        for (row, program) in rows.iter_mut().zip([None, go]) {
            if program.is_none() && !row.0.starts_with("Store") {
                continue;
            }
            let root = tempfile::tempdir_in(dir)?;
            let disk = Disk::new(kind, root.path())?;
            runtime()?.block_on(async {
                let store = open(disk.path(), "overlay").await?;
                put(&store, blob, 1).await?;
                put(&store, blob, 1).await
            })?;
            let before = used(&disk)?;
            let time = match program {
                Some(go) => timed(&mut command(go, disk.path(), "overlay", "dedup"))?,
                None => runtime()?.block_on(async {
                    let store = open(disk.path(), "overlay").await?;
                    let started = Instant::now();
                    store.dedup(DedupOptions::default()).await?;
                    Ok(started.elapsed()) as Res<Duration>
                })?,
            };
            let name = row.0.split(',').next().unwrap_or_default();
            let megabytes = [before, used(&disk)?].map(|bytes| bytes / 1_000_000);
            row.0 = format!("{name}, {} to {} MB", megabytes[0], megabytes[1]);
            row.1.push(time);
        }
    }
    print_rows(rows.iter().map(|(name, times)| (name.as_str(), times.as_slice())));
    Ok(())
}

/// One layer of three has lost a file, and then its tree; another store has the content.
fn heal(dir: &Path, blob: &Path) -> Res<()> {
    println!("a layer is healed from another store, overlay");
    let (healthy, damaged) = (tempfile::tempdir_in(dir)?, tempfile::tempdir_in(dir)?);
    let mut rows = [
        ("put_layer", Vec::new()),
        ("heal, one file", Vec::new()),
        ("heal, the tree", Vec::new()),
    ];
    runtime()?.block_on(async {
        let source = open(healthy.path(), "overlay").await?;
        put(&source, blob, 3).await?;
        let store = open(damaged.path(), "overlay").await?;
        let image = put(&store, blob, 3).await?;
        let top = image.top_layer().ok_or("an image without layers")?.to_owned();
        let tree = damaged.path().join("graph/overlay").join(&top).join("diff");
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let file = tokio::fs::File::open(blob).await?;
            let put = store.put_layer(Some(&top), LayerOptions::default(), file).await?;
            rows[0].1.push(started.elapsed());
            store.delete_layer(put.layer.id()).await?;
            std::fs::write(a_file(&tree)?, "damaged")?;
            rows[1].1.push(healed(&store, &source, &top).await?);
            std::fs::remove_dir_all(&tree)?;
            rows[2].1.push(healed(&store, &source, &top).await?);
        }
        remove(&source).await?;
        remove(&store).await
    })?;
    print_rows(rows.iter().map(|(name, times)| (*name, times.as_slice())));
    Ok(())
}

/// Heals what a check finds in a layer; the time of the healing alone.
async fn healed(store: &Store, source: &Store, layer: &str) -> Res<Duration> {
    let found = store.check(CheckOptions::everything()).await?;
    let options = HealOptions::default()
        .item(layer)
        .found(found)
        .source(source.clone());
    let started = Instant::now();
    let report = store.heal(options).await?;
    match report.is_success() {
        true => Ok(started.elapsed()),
        false => Err(format!("not healed: {report:?}").into()),
    }
}

/// Some regular file below a directory.
fn a_file(dir: &Path) -> Res<PathBuf> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() {
            return Ok(entry.path());
        }
        if kind.is_dir()
            && let Ok(file) = a_file(&entry.path())
        {
            return Ok(file);
        }
    }
    Err(format!("no file in {}", dir.display()).into())
}
