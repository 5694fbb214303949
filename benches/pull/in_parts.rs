//! Images of zstd:chunked layers: written, pulled as a whole and in parts, and updated, beside Skopeo and Podman of Debian
//! testing.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use graphroot::oci::{ImageRef, PullOptions, Puller, PushOptions, push};
use graphroot::{Compression, Durability, ImageBuilder, Store, StoreOptions};

use crate::programs::Programs;
use crate::registry::Registry;
use crate::slow_link::{ROUND_TRIP, Rate, SlowLink};
use crate::support::{Res, options, print_rows, remove, run, runtime, timed};
use crate::{BASE, ROUNDS, clean};

/// In the update, one of so many files has other content.
const CHANGED: u64 = 10;

/// Of the links that images are pulled over, too.
const RATES: [Rate; 2] = [1000, 100];

/// What is read of the registry for an image.
struct Pulled {
    time: Duration,
    bytes: u64,
}

/// Who pulls.
#[derive(Clone, Copy)]
enum Who<'a> {
    Ours { parts: bool },
    Podman(&'a Programs),
}

pub(crate) fn measure(dir: &Path, registry: &Registry, programs: Option<&Programs>) -> Res<()> {
    let source = tempfile::tempdir_in(dir)?;
    let images = make(source.path())?;
    let names = |address: &str| ["first", "update"].map(|tag| format!("{address}/parts/image:{tag}"));
    for (image, name) in images.iter().zip(&names(&registry.address)) {
        let to: ImageRef = format!("docker://{name}").parse()?;
        runtime()?.block_on(async {
            let store = Store::open(options(source.path(), "overlay")).await?;
            push(&store, image, &to, chunked()).await
        })?;
    }
    compare(dir, registry, programs, "", names(&registry.address))?;
    for rate in RATES {
        let link = SlowLink::start(&registry.address, rate)?;
        let way = format!(" over {rate} Mbit/s and {ROUND_TRIP:?}");
        compare(dir, registry, programs, &way, names(&link.address))?;
    }
    write(dir, source.path(), programs)?;
    clean(&source.path().join("graph"));
    Ok(())
}

/// Times how an image and its update, of these names, are pulled.
fn compare(
    dir: &Path,
    registry: &Registry,
    programs: Option<&Programs>,
    way: &str,
    [first, update]: [String; 2],
) -> Res<()> {
    for (what, before) in [("an image", None), ("its update", Some(&*first))] {
        println!("{what} of zstd:chunked layers{way}, one of {CHANGED} files changed, {ROUNDS} rounds");
        let image = if before.is_some() { &update } else { &first };
        let mut contenders = vec![
            ("graphroot, layers as a whole", Who::Ours { parts: false }),
            ("graphroot, layers in parts", Who::Ours { parts: true }),
        ];
        contenders.extend(programs.map(|programs| ("podman pull, layers in parts", Who::Podman(programs))));
        let mut rows: Vec<(String, Vec<Duration>)> = Vec::new();
        for _ in 0..ROUNDS {
            for (index, (name, who)) in contenders.iter().enumerate() {
                let pulled = pull(dir, registry, *who, before, image)?;
                let megabytes = pulled.bytes / 1_000_000;
                match rows.get_mut(index) {
                    Some((_, times)) => times.push(pulled.time),
                    None => rows.push((format!("{name}, {megabytes} MB"), vec![pulled.time])),
                }
            }
        }
        print_rows(rows.iter().map(|(name, times)| (name.as_str(), times.as_slice())));
    }
    Ok(())
}

fn chunked() -> PushOptions {
    PushOptions::default().compression(Compression::ZstdChunked)
}

/// Makes an image and its update in a store; returns their IDs.
fn make(root: &Path) -> Res<[String; 2]> {
    runtime()?.block_on(async {
        let store = Store::open(options(root, "overlay").durability(Durability::None)).await?;
        let mut ids = Vec::new();
        for is_update in [false, true] {
            let mut top: Option<String> = None;
            for path in BASE.iter().filter(|path| Path::new("/").join(path).is_dir()) {
                let tar = root.join("layer.tar");
                run(Command::new("tar").args(["-C", "/", "-cf"]).arg(&tar).arg(path))?;
                if is_update {
                    change(&tar)?;
                }
                let blob = tokio::fs::File::open(&tar).await?;
                top = Some(store.put_image_layer(top.as_deref(), blob).await?.id().to_owned());
                std::fs::remove_file(tar)?;
            }
            let name = if is_update {
                "localhost/update:v1"
            } else {
                "localhost/first:v1"
            };
            let builder = ImageBuilder::new().top_layer(top.ok_or("no layers")?).name(name);
            ids.push(builder.build(&store).await?.id().to_owned());
        }
        <[String; 2]>::try_from(ids).map_err(|_other| "two images were made".into())
    })
}

/// Changes the content of some of the files of a tar stream.
fn change(tar: &Path) -> Res<()> {
    let file = File::options().read(true).write(true).open(tar)?;
    let mut header = [0; 512];
    let (mut at, mut number) = (0, 0_u64);
    while file.read_exact_at(&mut header, at).is_ok() {
        at += 512;
        let size = header.get(124..135).unwrap_or_default();
        let size =
            u64::from_str_radix(std::str::from_utf8(size)?.trim_end_matches(['\0', ' ']), 8).unwrap_or(0);
        if matches!(header.get(156), Some(b'0' | 0)) && size > 0 {
            number += 1;
            if number.is_multiple_of(CHANGED) {
                let mut content = vec![0; usize::try_from(size)?];
                file.read_exact_at(&mut content, at)?;
                content.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x5a);
                file.write_all_at(&content, at)?;
            }
        }
        at += size.next_multiple_of(512);
    }
    Ok(())
}

/// Times how an image is written as zstd:chunked.
fn write(dir: &Path, source: &Path, programs: Option<&Programs>) -> Res<()> {
    println!("an image written to a directory as zstd:chunked, {ROUNDS} rounds");
    let mut rows: [(&str, Vec<Duration>, u64); 2] =
        [("graphroot, push", Vec::new(), 0), ("skopeo copy", Vec::new(), 0)];
    for _ in 0..ROUNDS {
        let out = tempfile::tempdir_in(dir)?;
        let to: ImageRef = format!("oci:{}", out.path().display()).parse()?;
        let time = runtime()?.block_on(async {
            let started = Instant::now();
            let store = Store::open(options(source, "overlay")).await?;
            push(&store, "localhost/first:v1", &to, chunked()).await?;
            Ok::<_, graphroot::Error>(started.elapsed())
        })?;
        rows[0].1.push(time);
        rows[0].2 = size(out.path())?;
        let Some(programs) = programs else { continue };
        let out = tempfile::tempdir_in(dir)?;
        let mut command = programs.command("skopeo", source)?;
        command.args(["copy", "--quiet", "--dest-compress-format", "zstd:chunked"]);
        let store = format!("overlay@{0}/graph+{0}/run", source.display());
        command.arg(format!("containers-storage:[{store}]localhost/first:v1"));
        command.arg(format!("oci:{}", out.path().display()));
        rows[1].1.push(timed(&mut command)?);
        rows[1].2 = size(out.path())?;
        clean(&source.join("graph"));
    }
    let rows = rows.map(|(name, times, size)| (format!("{name}, {:.1} MB", megabytes(size)), times));
    print_rows(rows.iter().map(|(name, times)| (name.as_str(), times.as_slice())));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "it is for reading")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Bytes of the blobs of a layout.
fn size(layout: &Path) -> Res<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(layout.join("blobs/sha256"))? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// Pulls an image into a fresh store, after another one if there is one.
fn pull(dir: &Path, registry: &Registry, who: Who<'_>, before: Option<&str>, image: &str) -> Res<Pulled> {
    let root = tempfile::tempdir_in(dir)?;
    let mut sent = 0;
    let mut time = Duration::ZERO;
    for image in before.into_iter().chain([image]) {
        sent = registry.sent()?;
        time = match who {
            Who::Ours { parts } => {
                let options = options(root.path(), "overlay").durability(Durability::None);
                runtime()?.block_on(ours(
                    options.pull_option("enable_partial_images", parts.to_string()),
                    image,
                ))?
            }
            Who::Podman(programs) => {
                let mut command = programs.command("podman", root.path())?;
                command.args(["pull", "--quiet", "--tls-verify=false", image]);
                timed(&mut command)?
            }
        };
    }
    let bytes = registry.sent()? - sent;
    if let Who::Ours { .. } = who {
        let options = options(root.path(), "overlay");
        runtime()?.block_on(async { remove(&Store::open(options).await?).await })?;
    }
    clean(&root.path().join("graph"));
    Ok(Pulled { time, bytes })
}

async fn ours(options: StoreOptions, image: &str) -> Res<Duration> {
    let image: ImageRef = format!("docker://{image}").parse()?;
    let started = Instant::now();
    let store = Store::open(options).await?;
    Puller::new(&store, PullOptions::default()).pull(&image).await?;
    Ok(started.elapsed())
}
