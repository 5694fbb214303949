//! Pulls compared with `skopeo copy` and `podman pull`, from the same registry on this machine into the same kind of
//! store.
//!
//! ```text
//! cargo bench --features pull --bench pull
//! ```
//!
//! A registry in memory (`docker-registry`) gets images with a common base; one of them, then all eight, are pulled
//! into fresh stores in `$GRAPHROOT_BENCH_DIR`, else `/dev/shm`. The table shows medians and ranges, and ratios to the
//! first row. Skopeo pulls one image per call; all eight are started at the same time. Needs root.
//!
//! Then images of zstd:chunked layers are written, pulled as a whole and in parts, and updated, beside Skopeo and Podman
//! of Debian testing where `tests/peers/make` has put them: with the bytes of blobs that the registry sends for each.
//! `-- parts` measures nothing else.
#![expect(clippy::print_stdout, reason = "it is a program")]

#[expect(dead_code, reason = "not every benchmark uses all of it")]
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/testing.rs"]
mod testing;

mod in_parts;
mod registry;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::oci::{ImageRef, PullOptions, Puller};
use graphroot::{Durability, Store};

use registry::Registry;
use support::{Res, options, print_rows, remove, run, timed};

/// How often each contender runs.
const ROUNDS: usize = 3;
/// Images in the registry.
const IMAGES: usize = 8;
/// Directories of this machine, one layer each: the common base.
const BASE: [&str; 6] = [
    "usr/bin",
    "usr/sbin",
    "etc",
    "usr/share/doc",
    "usr/share/perl",
    "usr/lib/python3",
];

fn main() -> Res<()> {
    let dir = support::directory()?;
    let registry = Registry::start(dir.path())?;
    if std::env::args().any(|argument| argument == "parts") {
        return in_parts::measure(dir.path(), &registry);
    }
    let names = fill(dir.path(), &registry.address)?;
    for count in [1, IMAGES] {
        let images = names.get(..count).unwrap_or_default();
        println!(
            "{count} image(s) with {} layers each, {ROUNDS} rounds",
            BASE.len() + 1
        );
        let mut rows = [
            ("graphroot, content not synced", Vec::new()),
            ("graphroot, durable", Vec::new()),
            ("graphroot, partial blobs kept", Vec::new()),
            ("skopeo copy", Vec::new()),
            ("podman pull", Vec::new()),
        ];
        for _ in 0..ROUNDS {
            rows[0].1.push(ours(dir.path(), images, Durability::None, false)?);
            rows[1]
                .1
                .push(ours(dir.path(), images, Durability::Default, false)?);
            rows[2]
                .1
                .push(ours(dir.path(), images, Durability::Default, true)?);
            rows[3].1.push(skopeo(dir.path(), images)?);
            rows[4].1.push(podman(dir.path(), images)?);
        }
        print_rows(rows.iter().map(|(name, times)| (*name, times.as_slice())));
    }
    in_parts::measure(dir.path(), &registry)
}

/// Builds the images by Buildah and pushes them by Skopeo; returns their names.
fn fill(dir: &Path, address: &str) -> Res<Vec<String>> {
    let (graph, runtime) = (dir.join("build"), dir.join("build-run"));
    let file = dir.join("Dockerfile");
    let context = tempfile::tempdir_in(dir)?;
    let bud = |tag: &str, context: &Path| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(&graph).arg("--runroot").arg(&runtime);
        command.args([
            "--storage-driver",
            "overlay",
            "bud",
            "--quiet",
            "--layers",
            "--tag",
            tag,
            "--file",
        ]);
        run(command.arg(&file).arg(context))
    };
    let present = BASE.iter().filter(|path| Path::new("/").join(path).is_dir());
    let copies: String = present.map(|path| format!("COPY {path} /{path}\n")).collect();
    std::fs::write(&file, format!("FROM scratch\n{copies}"))?;
    // An ignore file keeps the rest of the machine out of the context.
    bud("base", Path::new("/"))?;
    let mut names = Vec::new();
    for index in 0..IMAGES {
        std::fs::write(context.path().join("own"), vec![b'x'; index * 1000])?;
        std::fs::write(&file, "FROM localhost/base\nCOPY own /own\n")?;
        let (tag, name) = (format!("app{index}"), format!("{address}/bench/app{index}:v1"));
        bud(&tag, context.path())?;
        let stored = format!(
            "containers-storage:[overlay@{}+{}]localhost/{tag}",
            graph.display(),
            runtime.display()
        );
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(stored);
        run(copy.arg(format!("docker://{name}")))?;
        names.push(name);
    }
    clean(&graph);
    Ok(names)
}

fn ours(dir: &Path, images: &[String], durability: Durability, keep: bool) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let images = images
        .iter()
        .map(|image| image.parse())
        .collect::<Result<Vec<ImageRef>, _>>()?;
    support::runtime()?.block_on(async {
        // The other programs open their store too, so opening is timed.
        let started = Instant::now();
        let store = Store::open(options(root.path(), "overlay").durability(durability)).await?;
        let puller = Puller::new(&store, PullOptions::default().keep_partial(keep));
        for pulled in puller.pull_all(&images).await {
            pulled?;
        }
        let time = started.elapsed();
        remove(&store).await?;
        Ok(time)
    })
}

/// What is mounted below a store of another program goes before its files do.
fn clean(graph: &Path) {
    let home = graph.join("overlay");
    Command::new("umount").arg("--quiet").arg(home).status().ok();
}

fn skopeo(dir: &Path, images: &[String]) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let store = format!("overlay@{0}/graph+{0}/run", root.path().display());
    let started = Instant::now();
    let mut running = Vec::new();
    for image in images {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--src-tls-verify=false"]);
        command.args([
            format!("docker://{image}"),
            format!("containers-storage:[{store}]{image}"),
        ]);
        running.push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    }
    for mut child in running {
        if !child.wait()?.success() {
            return Err("skopeo copy failed".into());
        }
    }
    let time = started.elapsed();
    clean(&root.path().join("graph"));
    Ok(time)
}

fn podman(dir: &Path, images: &[String]) -> Res<Duration> {
    let root = tempfile::tempdir_in(dir)?;
    let mut command = Command::new("podman");
    command
        .arg("--root")
        .arg(root.path().join("graph"))
        .arg("--runroot")
        .arg(root.path().join("run"));
    command
        .args([
            "--storage-driver",
            "overlay",
            "pull",
            "--quiet",
            "--tls-verify=false",
        ])
        .args(images);
    let time = timed(&mut command)?;
    clean(&root.path().join("graph"));
    Ok(time)
}
