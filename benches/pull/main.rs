//! Pulls compared with `skopeo copy`, `podman pull` and containerd, from the same registry on this machine into the same kind
//! of store.
//!
//! ```text
//! cargo bench --features pull --bench pull
//! ```
//!
//! A registry in memory (`docker-registry`) gets images with a common base, with gzip and with zstd; one of them, then all eight,
//! are pulled into fresh stores in `$GRAPHROOT_BENCH_DIR`, else `/dev/shm`: first from the registry itself, then over a link of
//! 20 ms and 1 Gbit/s. The tables show medians and ranges, ratios to the first row, and the most memory of all processes of a
//! contender. Skopeo pulls one image per call and containerd by one client per image; all eight are started at the same time.
//! Podman and Skopeo are those of Debian testing where `tests/peers/make` has put them; containerd and `ctr` are looked for in
//! `$GRAPHROOT_BENCH_CONTAINERD` too. Needs root. `-- whole` measures nothing else, `-- whole slow` only what comes over the link.
//!
//! Then images of zstd:chunked layers are written, pulled as a whole and in parts, and updated, beside Skopeo and Podman
//! of Debian testing: with the bytes of blobs that the registry sends for each, also over links of 20 ms and 1 Gbit/s or
//! 100 Mbit/s.
//! `-- parts` measures nothing else.
#![expect(clippy::print_stdout, reason = "it is a program")]

#[expect(dead_code, reason = "not every benchmark uses all of it")]
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/testing.rs"]
mod testing;

mod containerd;
mod in_parts;
mod peak;
mod programs;
mod registry;
mod slow_link;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::oci::{ImageRef, PullOptions, Puller};
use graphroot::{Durability, Store};

use programs::Programs;
use registry::Registry;
use slow_link::SlowLink;
use support::{Res, options, print_rows, remove, run};

/// How often each contender runs.
const ROUNDS: usize = 3;
/// Images in the registry.
const IMAGES: usize = 8;
/// How their layers are compressed.
const COMPRESSIONS: [&str; 2] = ["gzip", "zstd"];
/// Directories of this machine, one layer each: the common base.
const BASE: [&str; 6] = [
    "usr/bin",
    "usr/sbin",
    "etc",
    "usr/share/doc",
    "usr/share/perl",
    "usr/lib/python3",
];

/// Who pulls.
#[derive(Clone, Copy)]
enum Contender {
    Ours(Durability),
    OursKeeping,
    Skopeo,
    Podman,
    Containerd,
}

/// What all pulls have in common.
struct Bench {
    dir: PathBuf,
    programs: Option<Programs>,
    containerd: Option<PathBuf>,
}

/// The time of a pull, and the most memory of all its processes in KiB.
type Sample = (Duration, u64);

fn main() -> Res<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [argument, address, registry, rate, ..] = &arguments[..]
        && argument == slow_link::ARGUMENT
    {
        return slow_link::run(address, registry, rate.parse()?);
    }
    // As the command does.
    graphroot::compat::return_memory_early();
    let is_asked = |what: &str| arguments.iter().any(|argument| argument == what);
    let dir = support::directory()?;
    let registry = Registry::start(dir.path())?;
    let bench = Bench {
        dir: dir.path().to_owned(),
        programs: Programs::find(dir.path())?,
        containerd: containerd::find(),
    };
    if !is_asked("parts") {
        let names = fill(dir.path(), &registry.address)?;
        let link = SlowLink::start(&registry.address, 1000)?;
        let slowly = format!(" over 1 Gbit/s and {:?}", slow_link::ROUND_TRIP);
        let near = (!is_asked("slow")).then_some(("", &registry.address));
        for (way, address) in near.into_iter().chain([(&*slowly, &link.address)]) {
            for compression in COMPRESSIONS {
                let of = |name: &String| format!("{address}/{compression}/{name}:v1");
                let images: Vec<String> = names.iter().map(of).collect();
                for count in [1, IMAGES] {
                    let layers = BASE.len() + 1;
                    println!(
                        "{count} image(s) with {layers} {compression} layers each{way}, {ROUNDS} rounds"
                    );
                    bench.compare(images.get(..count).unwrap_or_default())?;
                }
            }
        }
    }
    match is_asked("whole") {
        true => Ok(()),
        false => in_parts::measure(dir.path(), &registry, bench.programs.as_ref()),
    }
}

impl Bench {
    /// Prints the rows of all contenders for these images.
    fn compare(&self, images: &[String]) -> Res<()> {
        let mut rows = vec![
            (
                "graphroot, durable",
                Contender::Ours(Durability::Default),
                Vec::new(),
            ),
            (
                "graphroot, content not synced",
                Contender::Ours(Durability::None),
                Vec::new(),
            ),
            (
                "graphroot, partial blobs kept",
                Contender::OursKeeping,
                Vec::new(),
            ),
            ("skopeo copy", Contender::Skopeo, Vec::new()),
            ("podman pull", Contender::Podman, Vec::new()),
        ];
        if self.containerd.is_some() {
            rows.push(("containerd", Contender::Containerd, Vec::new()));
        }
        for _ in 0..ROUNDS {
            for (_, contender, samples) in &mut rows {
                samples.push(self.pull(*contender, images)?);
            }
        }
        let mut printed = Vec::new();
        for (name, _, samples) in rows {
            let most = samples.iter().map(|(_, memory)| memory / 1024).max().unwrap_or(0);
            let times: Vec<Duration> = samples.iter().map(|(time, _)| *time).collect();
            printed.push((format!("{name}, {most} MiB"), times));
        }
        print_rows(
            printed
                .iter()
                .map(|(name, times)| (name.as_str(), times.as_slice())),
        );
        Ok(())
    }

    fn pull(&self, contender: Contender, images: &[String]) -> Res<Sample> {
        match contender {
            Contender::Ours(durability) => ours(&self.dir, images, durability, false),
            Contender::OursKeeping => ours(&self.dir, images, Durability::Default, true),
            Contender::Skopeo => self.skopeo(images),
            Contender::Podman => self.podman(images),
            Contender::Containerd => match &self.containerd {
                Some(bin) => containerd::pull(bin, &self.dir, images),
                None => Err("containerd is not installed".into()),
            },
        }
    }

    /// A program with a store in `root`.
    fn command(&self, program: &str, root: &Path) -> Res<Command> {
        match &self.programs {
            Some(programs) => programs.command(program, root),
            None => Ok(Command::new(program)),
        }
    }

    fn skopeo(&self, images: &[String]) -> Res<Sample> {
        let root = tempfile::tempdir_in(&self.dir)?;
        let store = format!("overlay@{0}/graph+{0}/run", root.path().display());
        let commands = images.iter().map(|image| {
            let mut command = self.command("skopeo", root.path())?;
            command.args(["copy", "--quiet", "--src-tls-verify=false"]);
            command.args([
                format!("docker://{image}"),
                format!("containers-storage:[{store}]{image}"),
            ]);
            Ok(command)
        });
        let sample = together(commands.collect::<Res<_>>()?)?;
        clean(&root.path().join("graph"));
        Ok(sample)
    }

    fn podman(&self, images: &[String]) -> Res<Sample> {
        let root = tempfile::tempdir_in(&self.dir)?;
        let mut command = self.command("podman", root.path())?;
        command.arg("--root").arg(root.path().join("graph"));
        command.arg("--runroot").arg(root.path().join("run"));
        command.args([
            "--storage-driver",
            "overlay",
            "pull",
            "--quiet",
            "--tls-verify=false",
        ]);
        command.args(images);
        let sample = together(vec![command])?;
        clean(&root.path().join("graph"));
        Ok(sample)
    }
}

/// Runs commands at the same time.
fn together(commands: Vec<Command>) -> Res<Sample> {
    let started = Instant::now();
    let mut running = Vec::new();
    for mut command in commands {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        running.push(command.spawn()?);
    }
    match peak::wait(running)? {
        (true, memory) => Ok((started.elapsed(), memory)),
        (false, _) => Err("a pull failed".into()),
    }
}

/// Builds the images by Buildah and pushes them by Skopeo, in a directory for each compression; returns their names there.
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
        let tag = format!("app{index}");
        bud(&tag, context.path())?;
        let stored = format!(
            "containers-storage:[overlay@{}+{}]localhost/{tag}",
            graph.display(),
            runtime.display()
        );
        for compression in COMPRESSIONS {
            let mut copy = Command::new("skopeo");
            copy.args([
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--dest-compress-format",
            ]);
            copy.args([compression, &stored]);
            run(copy.arg(format!("docker://{address}/{compression}/{tag}:v1")))?;
        }
        names.push(tag);
    }
    clean(&graph);
    Ok(names)
}

fn ours(dir: &Path, images: &[String], durability: Durability, keep: bool) -> Res<Sample> {
    let root = tempfile::tempdir_in(dir)?;
    let images = images
        .iter()
        .map(|image| image.parse())
        .collect::<Result<Vec<ImageRef>, _>>()?;
    peak::forget_own()?;
    support::runtime()?.block_on(async {
        // The other programs open their store too, so opening is timed.
        let started = Instant::now();
        let store = Store::open(options(root.path(), "overlay").durability(durability)).await?;
        let puller = Puller::new(&store, PullOptions::default().keep_partial(keep));
        for pulled in puller.pull_all(&images).await {
            pulled?;
        }
        let sample = (started.elapsed(), peak::of("self").unwrap_or(0));
        remove(&store).await?;
        Ok(sample)
    })
}

/// What is mounted below a store of another program goes before its files do.
fn clean(graph: &Path) {
    let home = graph.join("overlay");
    Command::new("umount").arg("--quiet").arg(home).status().ok();
}
