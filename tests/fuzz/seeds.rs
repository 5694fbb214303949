//! Inputs to begin with, made by the library's writers.

use std::path::Path;
use std::sync::Arc;

use graphroot::chunked::{FileBlob, TocLocation};
use graphroot::test_util::{TarBuilder, TarEntry, TempStore};
use graphroot::{ChunkedDiffer, Compression, DiffOptions, Digest, LayerOptions, StagingOptions};
use tokio::io::AsyncReadExt as _;

type Res<T> = Result<T, Box<dyn std::error::Error>>;

/// Content that does not repeat.
fn text(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"0123456789abcdef"[(state >> 28) as usize]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Layers with everything that layers have.
fn tars() -> Vec<Vec<u8>> {
    let plain = TarBuilder::new()
        .dir("d/")
        .file("d/empty", "")
        .file("d/small", "small")
        .file("long", text(2000))
        .symlink("link", "d/small")
        .hard_link("hard", "d/small")
        .whiteout("gone")
        .opaque("d")
        .build();
    let odd = TarBuilder::new()
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::char_device("char", 5, 1))
        .entry(
            TarEntry::file("owned", "x")
                .owner(1000, 1_000_001)
                .mode(0o104_755)
                .pax("mtime", "1700000000.123456789")
                .pax("atime", "1600000000.5")
                .xattr("user.b", b"\xff\0"),
        )
        .file(b"odd/\xff\xfe", "a name that is no text")
        .entry(TarEntry::file("old", "y").gnu().mtime(0))
        .entry(TarEntry::file("long/".repeat(30) + "name", "a long name").gnu())
        .file("./a//b/c", [text(100), vec![0; 3000], text(50)].concat())
        .build();
    let sparse = TarBuilder::new()
        .entry(
            TarEntry::file("sparse", "1\n0\n5\n")
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.name", "sparse")
                .pax("GNU.sparse.realsize", "5000"),
        )
        .build();
    let unfinished = TarBuilder::new().file("a", "b").unfinished();
    vec![plain, odd, sparse, unfinished]
}

/// Where the inputs of one target go.
struct Out<'a> {
    dir: &'a Path,
    target: &'a str,
}

impl Out<'_> {
    fn put(&self, target: &str, number: usize, bytes: &[u8]) -> Res<()> {
        if target == self.target {
            std::fs::write(self.dir.join(format!("seed{number}")), bytes)?;
        }
        Ok(())
    }
}

/// Writes the inputs of a target into a directory.
pub(crate) fn write(dir: &Path, target: &str) -> Res<()> {
    std::fs::create_dir_all(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(write_all(&Out { dir, target }))
}

async fn write_all(out: &Out<'_>) -> Res<()> {
    let store = TempStore::new().await?;
    for (number, tar) in tars().iter().enumerate() {
        out.put("tar", number, &[&[200], &tar[..]].concat())?;
        let id = format!("layer{number}");
        let options = LayerOptions::default().id(&id);
        if store.put_layer(None, options, &tar[..]).await.is_err() {
            continue;
        }
        let mut diff = store
            .diff(None, &id, DiffOptions::compressed(Compression::ZstdChunked))
            .await?;
        let mut blob = Vec::new();
        diff.read_to_end(&mut blob).await?;
        let annotations = diff.annotations();
        store.delete_layer(&id).await?;
        let Some(location) = TocLocation::from_annotations(&annotations, blob.len() as u64)? else {
            continue;
        };
        let range = location.toc_range().ok_or("no table")?;
        let part = |start: u64, end: u64| -> Res<&[u8]> {
            Ok(blob
                .get(usize::try_from(start)?..usize::try_from(end)?)
                .ok_or("not in the blob")?)
        };
        let table = zstd::decode_all(part(range.start, range.end)?)?;
        let position = annotations
            .get("io.github.containers.zstd-chunked.tarsplit-position")
            .ok_or("no tar-split")?;
        let numbers: Vec<u64> = position.split(':').map(str::parse).collect::<Result<_, _>>()?;
        let [start, length, _] = numbers[..] else {
            return Err("not three numbers".into());
        };
        let compressed = part(start, start + length)?;
        let tar_split = zstd::decode_all(compressed)?;
        out.put("table", number, &table)?;
        out.put("tar_split", number, &tar_split)?;
        let digest = Digest::sha256(compressed).to_string();
        let named = String::from_utf8_lossy(&table)
            .replace(&digest, "@TAR-SPLIT@")
            .into_bytes();
        let content = part(0, range.start.min(start) - 8)?;
        for flags in [0_u8, 1] {
            let table = match flags {
                0 => named.clone(),
                _ => String::from_utf8_lossy(&named)
                    .replace("@TAR-SPLIT@", "")
                    .replace(",\"tarSplitDigest\":\"\"", "")
                    .into_bytes(),
            };
            let head = [
                &[flags][..],
                &u16::try_from(table.len())?.to_le_bytes(),
                &u16::try_from(tar_split.len())?.to_le_bytes(),
            ];
            let input = [&head.concat()[..], &table, &tar_split, content].concat();
            out.put("blob", 2 * number + usize::from(flags), &input)?;
        }
        // The cache file is made when the next layer looks for content.
        let file = store.path().join("blob");
        std::fs::write(&file, &blob)?;
        for round in ["first", "second"] {
            let source = Arc::new(FileBlob::open(&file).await?);
            let differ = ChunkedDiffer::open(&store, &annotations, blob.len() as u64, source).await?;
            let staged = store
                .prepare_staged_layer(StagingOptions::default(), differ)
                .await?;
            store
                .apply_staged_layer(None, LayerOptions::default().id(round), staged)
                .await?;
        }
        std::fs::remove_file(file)?;
        let mut cache = Vec::new();
        store
            .layer_big_data("first", "chunked-manifest-cache")
            .await?
            .read_to_end(&mut cache)
            .await?;
        let sum = Digest::sha256(text(2000));
        let sum = (0..32).map(|at| u8::from_str_radix(&sum.encoded()[2 * at..2 * at + 2], 16));
        let sum: Vec<u8> = sum.collect::<Result<_, _>>()?;
        out.put("cache", number, &[&sum[..], &cache].concat())?;
        for round in ["first", "second"] {
            store.delete_layer(round).await?;
        }
    }
    store.close().await?;
    Ok(())
}
