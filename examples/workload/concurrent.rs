//! The groups in which many tasks, or processes, use one store at the same time.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use graphroot::{ContainerOptions, ImageOptions, MountOptions, Store};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::{Clock, Res, Spent, put_small, small_tar};

/// Tasks of `churn`, and the rounds of each.
const CHURN_TASKS: usize = 32;
const CHURN_ROUNDS: usize = 10;
/// Tasks of `many`, and the layers that each puts.
const MANY_TASKS: usize = 64;
const MANY_ROUNDS: usize = 8;
/// Processes of `procs`, and the tasks and rounds of each.
const PROCESSES: usize = 4;
const PROCESS_TASKS: usize = 8;
const PROCESS_ROUNDS: usize = 10;
/// Tasks of `readers`, of each of the two kinds, and how often each of the readers looks.
const READERS: usize = 8;
const READS: usize = 500;
/// The image on which the containers stand.
const IMAGE: &str = "localhost/workload/concurrent:latest";

/// How long each of several operations has taken.
type Times = Vec<Duration>;

/// Prints one line, as the other groups do, with the 50th and 99th percentile of the time of one operation.
#[expect(clippy::print_stdout, reason = "it is a program")]
fn report(bench: &str, mut times: Times, total: Spent) {
    times.sort_unstable();
    let count = times.len();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let percentile = |percent: usize| {
        let at = (count * percent / 100).min(count.saturating_sub(1));
        micros(times.get(at).copied().unwrap_or_default())
    };
    let each = f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
    println!(
        "{{\"bench\":\"{bench}\",\"n\":{count},\"total_ms\":{:.3},\"per_us\":{:.2},\"cpu_us\":{:.2},\"p50_us\":{:.2},\"p99_us\":{:.2}}}",
        micros(total.wall) / 1e3,
        micros(total.wall) / each,
        micros(total.processors) / each,
        percentile(50),
        percentile(99),
    );
}

async fn timed<T>(times: &mut Times, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let result = work.await;
    times.push(started.elapsed());
    result
}

/// Waits for the tasks and joins what they have measured.
async fn collect(tasks: JoinSet<Res<Times>>) -> Res<Times> {
    let mut all = Times::new();
    for times in tasks.join_all().await {
        all.extend(times?);
    }
    Ok(all)
}

async fn image(store: &Store) -> Res<String> {
    if let Ok(image) = store.image(IMAGE).await {
        return Ok(image.id().to_owned());
    }
    let top = put_small(store, None, small_tar(1_000_000).await?).await?;
    let options = ImageOptions::default().name(IMAGE);
    Ok(store.create_image(Some(&top), options).await?.id().to_owned())
}

/// One task's rounds: create, mount, unmount and delete a container.
async fn container_rounds(store: Store, image: String, rounds: usize) -> Res<Times> {
    let mut times = Times::with_capacity(rounds);
    for _ in 0..rounds {
        let round = async {
            let container = store
                .create_container(Some(&image), ContainerOptions::default())
                .await?;
            store.mount(container.id(), MountOptions::default()).await?;
            store.unmount(container.id()).await?;
            store.delete_container(container.id()).await
        };
        timed(&mut times, round).await?;
    }
    Ok(times)
}

/// 32 tasks, each with ten rounds of a container of one image.
pub(crate) async fn churn(store: &Store) -> Res<()> {
    let image = image(store).await?;
    for (bench, tasks, rounds) in [
        ("churn_alone", 1, CHURN_TASKS * CHURN_ROUNDS),
        ("churn", CHURN_TASKS, CHURN_ROUNDS),
    ] {
        let started = Clock::start();
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            running.spawn(container_rounds(store.clone(), image.clone(), rounds));
        }
        let times = collect(running).await?;
        report(bench, times, started.stop());
    }
    Ok(())
}

/// 64 tasks that put small layers, tag them, look them up and delete them.
pub(crate) async fn many(store: &Store) -> Res<()> {
    let mut tars = Vec::new();
    for number in 0..MANY_TASKS * MANY_ROUNDS {
        tars.push(small_tar(number).await?);
    }
    let tars = Arc::new(tars);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Clock::start();
    let mut tasks = JoinSet::new();
    for _ in 0..MANY_TASKS {
        let (store, tars, next) = (store.clone(), Arc::clone(&tars), Arc::clone(&next));
        tasks.spawn(async move {
            let mut times = Times::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(tar) = tars.get(number) else {
                    return Ok(times);
                };
                let round = async {
                    let name = format!("localhost/workload/many-{number}");
                    let layer = put_small(&store, None, tar.clone()).await?;
                    store.add_names(&layer, [&name]).await?;
                    if store.lookup(&name).await? != layer {
                        return Err("another layer has the name".into());
                    }
                    store.delete_layer(&layer).await?;
                    Res::Ok(())
                };
                timed(&mut times, round).await?;
            }
        });
    }
    let times = collect(tasks).await?;
    report("many", times, started.stop());
    Ok(())
}

/// Eight tasks look items up and list them, first alone, then while eight others put layers.
pub(crate) async fn readers(store: &Store) -> Res<()> {
    let image = image(store).await?;
    let look = async |bench: &str| {
        let started = Clock::start();
        let mut tasks = JoinSet::new();
        for _ in 0..READERS {
            let (store, image) = (store.clone(), image.clone());
            tasks.spawn(async move {
                let mut times = Times::with_capacity(READS);
                for _ in 0..READS {
                    let look = async {
                        let found = store.image(&image).await?;
                        let top = found.top_layer().unwrap_or_default().to_owned();
                        store.layer(&top).await?;
                        store.layers().await.map(drop)
                    };
                    timed(&mut times, look).await?;
                    tokio::task::yield_now().await;
                }
                Ok(times)
            });
        }
        let times = collect(tasks).await?;
        report(bench, times, started.stop());
        Res::Ok(())
    };
    look("readers_alone").await?;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..READERS {
        let (store, done) = (store.clone(), Arc::clone(&done));
        let tar = small_tar(writer).await?;
        writers.spawn(async move {
            let mut times = Times::new();
            while !done.load(Ordering::Relaxed) {
                let round = async {
                    let layer = put_small(&store, None, tar.clone()).await?;
                    store.delete_layer(&layer).await?;
                    Res::Ok(())
                };
                timed(&mut times, round).await?;
            }
            Ok(times)
        });
    }
    look("readers_beside_writers").await?;
    let started = Clock::start();
    done.store(true, Ordering::Relaxed);
    let times = collect(writers).await?;
    report("writers_beside_readers", times, started.stop());
    Ok(())
}

/// Four processes with eight tasks each, which do what those of `churn` do.
pub(crate) async fn processes(store: &Store) -> Res<()> {
    image(store).await?;
    let mut children = Vec::new();
    for _ in 0..PROCESSES {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args().skip(1))
            .arg("--process")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process without its pipes".into());
        };
        children.push((child, input, BufReader::new(output).lines()));
    }
    for (_, _, lines) in &mut children {
        // It has opened the store.
        lines.next_line().await?.ok_or("a process has ended early")?;
    }
    let started = Instant::now();
    for (_, input, _) in &mut children {
        input.write_all(b"go\n").await?;
    }
    let (mut times, mut processors) = (Times::new(), Duration::ZERO);
    for (_, _, lines) in &mut children {
        while let Some(line) = lines.next_line().await? {
            match line.strip_prefix("cpu ") {
                Some(micros) => processors += Duration::from_micros(micros.parse()?),
                None => times.push(Duration::from_micros(line.parse()?)),
            }
        }
    }
    let wall = started.elapsed();
    for (child, _, _) in &mut children {
        ended(child).await?;
    }
    report("procs", times, Spent { wall, processors });
    Ok(())
}

async fn ended(child: &mut Child) -> Res<()> {
    match child.wait().await?.success() {
        true => Ok(()),
        false => Err("a process has failed".into()),
    }
}

/// What one of the processes does: waits for a line, runs, and prints the microseconds of each round.
#[expect(clippy::print_stdout, reason = "it is a program")]
pub(crate) async fn process(store: &Store) -> Res<()> {
    let image = image(store).await?;
    println!("ready");
    // Nothing else runs yet.
    std::io::stdin().read_line(&mut String::new())?;
    let started = Clock::start();
    let mut tasks = JoinSet::new();
    for _ in 0..PROCESS_TASKS {
        tasks.spawn(container_rounds(store.clone(), image.clone(), PROCESS_ROUNDS));
    }
    let times = collect(tasks).await?;
    for time in times {
        println!("{}", time.as_micros());
    }
    println!("cpu {}", started.stop().processors.as_micros());
    Ok(())
}
