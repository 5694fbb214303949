//! Layers made of zstd:chunked blobs, with right digests of wrong tables and tar-split data: either a layer comes out whose
//! stream has the digest that is said, or none.
//!
//! An input is: a byte of flags, the lengths of the table and of the tar-split data (two bytes each), both texts, and what the
//! blob has before them. `@TAR-SPLIT@` in the table stands for the digest of the tar-split data.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use futures::future::{BoxFuture, FutureExt as _};
use graphroot::chunked::BlobSource;
use graphroot::test_util::TempStore;
use graphroot::{BoxReader, ChunkedDiffer, DiffOptions, Digest, LayerOptions, Result, StagingOptions};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

const PLACEHOLDER: &[u8] = b"@TAR-SPLIT@";

/// A blob in memory.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl BlobSource for Memory {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        let mut bytes = Vec::new();
        let mut end = 0;
        for range in ranges {
            assert!(
                end <= range.start && range.start < range.end,
                "ranges ascend and are not empty"
            );
            end = range.end;
            let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let found = self.0.get(index(range.start)..index(range.end));
            bytes.extend_from_slice(found.expect("a range of the blob"));
        }
        async move { Ok(Box::pin(std::io::Cursor::new(bytes)) as BoxReader) }.boxed()
    }
}

struct Fixture {
    runtime: Runtime,
    store: TempStore,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let insecure = "insecure_allow_unpredictable_image_contents";
    let store = runtime
        .block_on(TempStore::with(|options| options.pull_option(insecure, "true")))
        .expect("a store");
    Fixture { runtime, store }
});

/// The blob of an input, and what a manifest says of it.
fn blob(data: &[u8]) -> Option<(Vec<u8>, BTreeMap<String, String>)> {
    let ([flags, a, b, c, d], rest) = data.split_first_chunk()?;
    let (table, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([*a, *b])))?;
    let (tar_split, content) = rest.split_at_checked(usize::from(u16::from_le_bytes([*c, *d])))?;
    let tar_split_size = tar_split.len();
    let tar_split = zstd::encode_all(tar_split, 1).ok()?;
    let mut table = table.to_vec();
    if let Some(at) = table
        .windows(PLACEHOLDER.len())
        .position(|window| window == PLACEHOLDER)
    {
        let digest = Digest::sha256(&tar_split).to_string().into_bytes();
        table.splice(at..at + PLACEHOLDER.len(), digest);
    }
    let compressed = zstd::encode_all(&table[..], 1).ok()?;
    let mut blob = content.to_vec();
    let mut append = |part: &[u8]| {
        blob.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
        blob.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        blob.extend_from_slice(part);
        blob.len() - part.len()
    };
    let (table_at, tar_split_at) = (append(&compressed), append(&tar_split));
    append(&[0; 64]);
    let key = |name: &str| format!("io.github.containers.zstd-chunked.{name}");
    let mut annotations = BTreeMap::from([
        (key("manifest-checksum"), Digest::sha256(&compressed).to_string()),
        (
            key("manifest-position"),
            format!("{table_at}:{}:{}:1", compressed.len(), table.len()),
        ),
    ]);
    if flags & 1 == 0 {
        let position = format!("{tar_split_at}:{}:{tar_split_size}", tar_split.len());
        annotations.insert(key("tarsplit-position"), position);
    }
    Some((blob, annotations))
}

async fn make_layer(store: &TempStore, blob: Vec<u8>, annotations: &BTreeMap<String, String>) -> Result<()> {
    let size = blob.len() as u64;
    let differ = ChunkedDiffer::open(store, annotations, size, Arc::new(Memory(blob))).await?;
    let staged = store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await?;
    let layer = store
        .apply_staged_layer(None, LayerOptions::default(), staged)
        .await?;
    if let Some(expected) = layer.uncompressed_digest() {
        let mut stream = store.diff(None, layer.id(), DiffOptions::uncompressed()).await?;
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .await
            .expect("the layer is read back");
        assert_eq!(
            Digest::sha256(&bytes),
            expected,
            "the stream is the one that is recorded"
        );
    }
    store.delete_layer(layer.id()).await
}

/// Makes a layer of an input.
pub(crate) fn run(data: &[u8]) {
    let Some((blob, annotations)) = blob(data) else {
        return;
    };
    let fixture = &*FIXTURE;
    let made = fixture
        .runtime
        .block_on(make_layer(&fixture.store, blob, &annotations));
    // Whatever is refused: nothing of it is there.
    if made.is_err() {
        let layers = fixture
            .runtime
            .block_on(fixture.store.layers())
            .expect("the layers");
        assert!(layers.is_empty(), "{layers:?}");
    }
}
