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

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use graphroot::{Digest, Durability, LayerOptions, Store};

use support::{Res, is_there, options, print_rows, remove, runtime, timed};

/// How often each contender runs.
const ROUNDS: usize = 5;

fn main() -> Res<()> {
    let dir = support::directory()?;
    let dir = dir.path();
    let blob = support::layer(dir, "usr/share")?;
    println!(
        "{} ({} MB), {ROUNDS} rounds each",
        blob.display(),
        blob.metadata()?.len() / 1_000_000
    );
    let command = is_there("containers-storage", "version");
    let layout = match is_there("skopeo", "--version") {
        true => Some(layout(dir, &blob)?),
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
        rows[0].1.push(put_layer(dir, &blob, Durability::None)?);
        rows[1].1.push(put_layer(dir, &blob, Durability::Default)?);
        rows[2].1.push(tar(dir, &blob)?);
        if command {
            rows[3].1.push(import_layer(dir, &blob)?);
        }
        if let Some(layout) = &layout {
            rows[4].1.push(skopeo(dir, layout)?);
        }
    }
    print_rows(rows.iter().map(|(name, times)| (*name, times.as_slice())));
    Ok(())
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
    runtime()?.block_on(async {
        let store = Store::open(options(root.path(), "overlay").durability(durability)).await?;
        let started = Instant::now();
        store
            .put_layer(None, LayerOptions::default(), tokio::fs::File::open(blob).await?)
            .await?;
        let time = started.elapsed();
        remove(&store).await?;
        Ok(time)
    })
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

/// Empties the store of another program.
fn empty(root: &Path) -> Res<()> {
    runtime()?.block_on(async { remove(&Store::open(options(root, "overlay")).await?).await })
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
