//! Layers that are put together on file systems on which files can share their content.

use std::sync::Arc;

use graphroot::chunked::pack_directory;
use graphroot::{ChunkedDiffer, ConvertingDiffer, DiffOptions, LayerOptions, StagingOptions, Store};
use tokio::io::AsyncReadExt as _;

use crate::support::loop_fs::{LoopFs, format};
use crate::support::needs;
use crate::support::peers::block_on;
use crate::support::root::TestRoot;

/// Bytes of the large file; they do not repeat themselves.
const SIZE: usize = 48 << 20;

fn noise() -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..SIZE / 8).flat_map(|_| next()).collect()
}

fn free(path: &std::path::Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

async fn put(store: &Store, dir: &std::path::Path, id: &str) {
    let packed = pack_directory(dir).await.unwrap();
    let size = packed.blob.size();
    let differ = ChunkedDiffer::open(store, &packed.annotations, size, Arc::new(packed.blob)).await;
    let staged = store
        .prepare_staged_layer(StagingOptions::default(), differ.unwrap())
        .await
        .unwrap();
    let options = LayerOptions::default().id(id);
    store.apply_staged_layer(None, options, staged).await.unwrap();
}

#[test]
fn files_of_other_layers_are_shared_where_that_works() {
    needs!("mkfs.xfs");
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("image");
    format("xfs", &image, 1 << 30);
    let disk = LoopFs::mount(&image, &place.path().join("disk"));
    let root = TestRoot::in_dir(disk.path(), "overlay");
    let dir = place.path().join("content");
    std::fs::create_dir(&dir).unwrap();
    let content = noise();
    std::fs::write(dir.join("large"), &content).unwrap();
    std::fs::write(dir.join("small"), "small").unwrap();
    block_on(async {
        let store = root.open().await;
        put(&store, &dir, "first").await;
        rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        let before = free(disk.path());
        put(&store, &dir, "second").await;
        rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        let taken = before.saturating_sub(free(disk.path()));
        assert!(taken < SIZE as u64 / 4, "{taken} bytes");
        let tree = root.graph().join("overlay/second/diff");
        assert!(std::fs::read(tree.join("large")).unwrap() == content);
        // What comes as a whole, and is given a table of contents, is found to be there.
        let mut tar = Vec::new();
        let mut diff = store
            .diff(None, "first", DiffOptions::uncompressed())
            .await
            .unwrap();
        diff.read_to_end(&mut tar).await.unwrap();
        rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        let before = free(disk.path());
        let differ = ConvertingDiffer::new(&store, std::io::Cursor::new(tar));
        let staged = store
            .prepare_staged_layer(StagingOptions::default(), differ)
            .await
            .unwrap();
        let options = LayerOptions::default().id("converted");
        store.apply_staged_layer(None, options, staged).await.unwrap();
        rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        let taken = before.saturating_sub(free(disk.path()));
        assert!(taken < SIZE as u64 / 4, "{taken} bytes");
        let converted = root.graph().join("overlay/converted/diff/large");
        assert!(std::fs::read(converted).unwrap() == content);
        // Writing to one leaves the other as it is.
        std::fs::write(tree.join("large"), "changed").unwrap();
        let other = root.graph().join("overlay/first/diff/large");
        assert!(std::fs::read(other).unwrap() == content);
    });
}
