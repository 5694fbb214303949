//! The parts that a store is made of, each beside the plainest thing that does the same.
//!
//! ```text
//! cargo bench --features bench --bench pieces [-- LAYER.tar.gz]
//! ```
//!
//! Everything runs in one directory (`$GRAPHROOT_BENCH_DIR`, else `/dev/shm`), the contenders of a group in turn,
//! several rounds. A row shows the median for one operation, the range, and how many times the first row of its group
//! it takes: below 1 is faster. Needs root, `tar`, `gzip`.
#![expect(clippy::print_stdout, reason = "it is a program")]
#![expect(
    clippy::disallowed_methods,
    reason = "flock is what the locks are compared with"
)]

#[expect(dead_code, reason = "not every benchmark uses all of it")]
mod support;

use std::collections::HashMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::bench::{self, Lock, Rows};
use tokio::runtime::Runtime;

use support::{Res, print_rows, run};

const ROUNDS: usize = 7;

/// One contender: its name and one round, which says how often it did the thing and how long that took.
type Contender<'a> = (&'a str, Box<dyn FnMut() -> Res<(u32, Duration)> + 'a>);

fn main() -> Res<()> {
    let dir = support::directory()?;
    let home = dir.path();
    let runtime = support::runtime()?;
    let blob = support::layer(home, "usr/lib/python3")?;
    archives(home, &runtime, &blob)?;
    locks(home, &runtime)?;
    for count in [10, 1_000, 10_000] {
        saves(home, count)?;
        loads(home, count)?;
    }
    lookups(home, &runtime)
}

/// Runs the contenders of a group in turn and prints their rows.
fn compare(group: &str, contenders: &mut [Contender<'_>]) -> Res<()> {
    let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for _ in 0..ROUNDS {
        for ((_, round), times) in contenders.iter_mut().zip(&mut times) {
            let (count, time) = round()?;
            times.push(time / count);
        }
    }
    println!("{group}");
    let names = contenders.iter().map(|(name, _)| *name);
    print_rows(names.zip(times.iter().map(Vec::as_slice)));
    Ok(())
}

/// Times `step`, done `count` times.
fn repeat(count: u32, mut step: impl FnMut() -> Res<()>) -> Res<(u32, Duration)> {
    let started = Instant::now();
    for _ in 0..count {
        step()?;
    }
    Ok((count, started.elapsed()))
}

fn archives(home: &Path, runtime: &Runtime, blob: &Path) -> Res<()> {
    let plain = home.join("layer.tar");
    let status = Command::new("gzip")
        .arg("-dc")
        .arg(blob)
        .stdout(File::create(&plain)?)
        .status()?;
    if !status.success() {
        return Err("unpacking the layer failed: it has to be gzip".into());
    }
    let tar = bytes::Bytes::from(std::fs::read(&plain)?);
    println!(
        "{}: {} MB, {} MB unpacked, {ROUNDS} rounds",
        blob.display(),
        blob.metadata()?.len() / 1_000_000,
        tar.len() / 1_000_000
    );
    let (tree, tar_split) = (home.join("tree"), home.join("tar-split"));
    compare(
        "decode",
        &mut [
            (
                "decode",
                Box::new(|| {
                    repeat(1, || {
                        runtime
                            .block_on(bench::decode(blob))
                            .map_err(Into::into)
                            .map(|_count| ())
                    })
                }),
            ),
            (
                "gzip -dc",
                Box::new(|| repeat(1, || run(Command::new("gzip").arg("-dc").arg(blob)))),
            ),
        ],
    )?;
    compare(
        "read a plain tar, entry by entry",
        &mut [
            (
                "framing, checksums, tar-split",
                Box::new(|| {
                    repeat(1, || {
                        bench::frame(tar.clone(), &tar_split)
                            .map_err(Into::into)
                            .map(|_count| ())
                    })
                }),
            ),
            (
                "tar -tf",
                Box::new(|| repeat(1, || run(Command::new("tar").arg("-tf").arg(&plain)))),
            ),
        ],
    )?;
    let fresh = |unpack: &dyn Fn() -> Res<()>| -> Res<(u32, Duration)> {
        std::fs::create_dir(&tree)?;
        let time = repeat(1, unpack);
        std::fs::remove_dir_all(&tree)?;
        time
    };
    let extract = |blob: &Path| {
        runtime
            .block_on(bench::extract(blob, &tree, None))
            .map_err(Into::into)
            .map(|_count| ())
    };
    let untar = |blob: &Path, flags: &str| {
        run(Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["--xattrs", flags])
            .arg(blob))
    };
    compare(
        "unpack into a directory",
        &mut [
            ("plain, with digests", Box::new(|| fresh(&|| extract(&plain)))),
            ("tar -xpf", Box::new(|| fresh(&|| untar(&plain, "-xpf")))),
            ("gzip, with digests", Box::new(|| fresh(&|| extract(blob)))),
            ("tar -xpzf", Box::new(|| fresh(&|| untar(blob, "-xpzf")))),
        ],
    )?;
    std::fs::create_dir(&tree)?;
    runtime.block_on(bench::extract(blob, &tree, Some(&tar_split)))?;
    compare(
        "give the tar back",
        &mut [
            (
                "replay of tar-split",
                Box::new(|| {
                    repeat(1, || {
                        bench::replay(&tar_split, &tree)
                            .map_err(Into::into)
                            .map(|_count| ())
                    })
                }),
            ),
            ("tar -cf - | cat", Box::new(|| repeat(1, || pack_again(&tree)))),
        ],
    )?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}

/// Into a pipe: to `/dev/null` GNU tar would read no file.
fn pack_again(tree: &Path) -> Res<()> {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(tree)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = tar.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0; 128 * 1024];
    while out.read(&mut buffer)? > 0 {}
    drop(out);
    match tar.wait()?.success() {
        true => Ok(()),
        false => Err("tar failed".into()),
    }
}

fn locks(home: &Path, runtime: &Runtime) -> Res<()> {
    const COUNT: u32 = 20_000;
    const TASKS: u32 = 8;
    let path = home.join("lock");
    let lock = Lock::open(&path)?;
    let plain = File::options().read(true).write(true).open(&path)?;
    let other = home.join("other");
    File::create(&other)?;
    compare(
        "a lock that nobody else wants",
        &mut [
            (
                "exclusive",
                Box::new(|| {
                    runtime.block_on(async {
                        let started = Instant::now();
                        for _ in 0..COUNT {
                            lock.exclusive().await?;
                        }
                        Ok((COUNT, started.elapsed()))
                    })
                }),
            ),
            (
                "shared",
                Box::new(|| {
                    runtime.block_on(async {
                        let started = Instant::now();
                        for _ in 0..COUNT {
                            lock.shared().await?;
                        }
                        Ok((COUNT, started.elapsed()))
                    })
                }),
            ),
            (
                "flock, exclusive",
                Box::new(|| {
                    repeat(COUNT, || {
                        plain.lock()?;
                        Ok(plain.unlock()?)
                    })
                }),
            ),
        ],
    )?;
    compare(
        "a lock that eight tasks or threads want",
        &mut [
            (
                "exclusive, tasks",
                Box::new(|| {
                    runtime.block_on(async {
                        let started = Instant::now();
                        let mut tasks = tokio::task::JoinSet::new();
                        for _ in 0..TASKS {
                            let lock = lock.clone();
                            tasks.spawn(async move {
                                for _ in 0..COUNT / TASKS {
                                    lock.exclusive().await?;
                                }
                                Res::Ok(())
                            });
                        }
                        for result in tasks.join_all().await {
                            result?;
                        }
                        Ok((COUNT, started.elapsed()))
                    })
                }),
            ),
            (
                "flock, threads",
                Box::new(|| {
                    let started = Instant::now();
                    std::thread::scope(|scope| {
                        let threads: Vec<_> = (0..TASKS)
                            .map(|_| {
                                scope.spawn(|| -> io::Result<()> {
                                    let file = File::options().read(true).write(true).open(&other)?;
                                    for _ in 0..COUNT / TASKS {
                                        file.lock()?;
                                        file.unlock()?;
                                    }
                                    Ok(())
                                })
                            })
                            .collect();
                        threads.into_iter().try_for_each(|thread| {
                            thread
                                .join()
                                .map_err(|_panic| "a thread failed")?
                                .map_err(Box::<dyn std::error::Error + Send + Sync>::from)
                        })
                    })?;
                    Ok((COUNT, started.elapsed()))
                }),
            ),
        ],
    )
}

fn saves(home: &Path, count: usize) -> Res<()> {
    let dir = home.join(format!("rows-{count}"));
    let mut rows = Rows::create(&dir, count, false)?;
    let values: serde_json::Value = serde_json::from_slice(&std::fs::read(Rows::file(&dir))?)?;
    let copy = dir.join("copy.json");
    let often = u32::try_from(20_000 / count)?.max(5);
    compare(
        &format!("save {count} records after a change"),
        &mut [
            ("save", Box::new(|| repeat(often, || Ok(rows.save()?)))),
            (
                "serde_json, write, rename",
                Box::new(|| {
                    repeat(often, || {
                        let new = dir.join("copy.new");
                        std::fs::write(&new, serde_json::to_vec(&values)?)?;
                        Ok(std::fs::rename(&new, &copy)?)
                    })
                }),
            ),
        ],
    )
}

fn loads(home: &Path, count: usize) -> Res<()> {
    let dir = home.join(format!("loads-{count}"));
    let mut rows = Rows::create(&dir, count, false)?;
    let other = Rows::open(&dir, false)?;
    let often = u32::try_from(20_000 / count)?.max(5);
    let mut changed = || -> Res<Duration> {
        rows.save()?;
        let started = Instant::now();
        if !other.reload()? {
            return Err("nothing was reloaded".into());
        }
        Ok(started.elapsed())
    };
    changed()?;
    compare(
        &format!("read {count} records"),
        &mut [
            (
                "all",
                Box::new(|| {
                    repeat(often, || {
                        Rows::open(&dir, false)?.reload()?;
                        Ok(())
                    })
                }),
            ),
            (
                "again, after another one has changed one",
                Box::new(|| {
                    let mut time = Duration::ZERO;
                    for _ in 0..often {
                        time += changed()?;
                    }
                    Ok((often, time))
                }),
            ),
            (
                "read, serde_json",
                Box::new(|| {
                    repeat(often, || {
                        let values: serde_json::Value =
                            serde_json::from_slice(&std::fs::read(Rows::file(&dir))?)?;
                        black_box(values);
                        Ok(())
                    })
                }),
            ),
        ],
    )
}

fn lookups(home: &Path, runtime: &Runtime) -> Res<()> {
    const COUNT: usize = 1_000;
    let rows = Rows::create(&home.join("rows"), COUNT, false)?;
    let names: Vec<String> = (0..COUNT).map(Rows::name).collect();
    let map: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
    let count = u32::try_from(COUNT)?;
    compare(
        "look one of 1000 records up by its name",
        &mut [
            (
                "find",
                Box::new(|| {
                    runtime.block_on(async {
                        let started = Instant::now();
                        for name in &names {
                            if !rows.find(name).await? {
                                return Err("a record is missing".into());
                            }
                        }
                        Ok((count, started.elapsed()))
                    })
                }),
            ),
            (
                "map in memory (no other process)",
                Box::new(|| {
                    let started = Instant::now();
                    for name in &names {
                        black_box(map.get(black_box(name.as_str())));
                    }
                    Ok((count, started.elapsed()))
                }),
            ),
        ],
    )
}
