//! Layers that are put together on file systems on which files can share their content.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use graphroot::chunked::pack_directory;
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    CheckOptions, ChunkedDiffer, ConvertingDiffer, DedupHashMethod, DedupOptions, DiffOptions, IdMap,
    IdMappingOptions, ImageOptions, LayerOptions, StagingOptions, Store,
};
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

/// A new file system of a kind, in a directory.
fn disk(kind: &str, place: &std::path::Path) -> LoopFs {
    let image = place.join("image");
    format(kind, &image, 1 << 30);
    LoopFs::mount(&image, &place.join("disk"))
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
    let disk = disk("xfs", place.path());
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

/// A container with other owners is a copy of its image, of which only the owners are its own.
fn copied_with_other_owners(kind: &str) {
    let place = tempfile::tempdir().unwrap();
    let disk = disk(kind, place.path());
    let root = TestRoot::in_dir(disk.path(), "vfs");
    let sync = || rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
    let content = noise();
    block_on(async {
        let store = root.open().await;
        images(&store, &content).await;
        sync();
        let before = free(disk.path());
        let image = store.layer("first").await.unwrap();
        let map = [IdMap::new(0, 100_000, 1000)];
        let options = LayerOptions::default().id_mappings(IdMappingOptions::mapped(map, map));
        let copy = store
            .create_layer(Some(image.id()), options.writeable(true))
            .await
            .unwrap();
        sync();
        let taken = before.saturating_sub(free(disk.path()));
        assert!(taken < SIZE as u64 / 4, "{taken} bytes");
        let tree = root.graph().join("vfs/dir").join(copy.id());
        let large = tree.join("large");
        assert!(std::fs::read(&large).unwrap() == content);
        assert_eq!(std::fs::metadata(&large).unwrap().uid(), 100_000);
        let theirs = root.graph().join("vfs/dir/first/large");
        assert_eq!(std::fs::metadata(&theirs).unwrap().uid(), 0);
    });
}

#[test]
fn copies_with_other_owners_share_the_content_on_xfs() {
    needs!("mkfs.xfs");
    copied_with_other_owners("xfs");
}

#[test]
fn copies_with_other_owners_share_the_content_on_btrfs() {
    needs!("mkfs.btrfs");
    copied_with_other_owners("btrfs");
}

/// Two images whose layers have a large file in common, and one that differs from it in one byte.
async fn images(store: &Store, content: &[u8]) {
    let mut other = content.to_vec();
    other[SIZE / 2] ^= 1;
    for (id, large) in [("first", content), ("second", content), ("third", &other)] {
        let tar = TarBuilder::new()
            .file("large", large)
            .file(format!("only-{id}"), id)
            .build();
        let options = LayerOptions::default().id(id);
        store
            .put_layer(None, options, std::io::Cursor::new(tar))
            .await
            .unwrap();
        store
            .create_image(Some(id), ImageOptions::default())
            .await
            .unwrap();
    }
}

fn deduplicated(kind: &str, driver: &'static str, method: DedupHashMethod) {
    let place = tempfile::tempdir().unwrap();
    let disk = disk(kind, place.path());
    let root = TestRoot::in_dir(disk.path(), driver);
    let sync = || rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
    let content = noise();
    block_on(async {
        let store = root.open().await;
        images(&store, &content).await;
        sync();
        let before = free(disk.path());
        let result = store
            .dedup(DedupOptions::default().hash_method(method))
            .await
            .unwrap();
        sync();
        let works = kind != "ext4";
        assert_eq!(result.unsupported.is_none(), works, "{result:?}");
        assert_eq!(result.deduped, if works { SIZE as u64 } else { 0 }, "{result:?}");
        let won = free(disk.path()).saturating_sub(before);
        assert_eq!(won > SIZE as u64 * 3 / 4, works, "{won} bytes");
        // Nothing has changed, and nothing is changed by writing to one of them.
        let report = store.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        let again = store
            .dedup(DedupOptions::default().hash_method(method))
            .await
            .unwrap();
        assert_eq!(again, result);
    });
}

#[test]
fn files_of_images_share_their_content_after_dedup() {
    needs!("mkfs.xfs", "mkfs.btrfs", "mkfs.ext4");
    for (kind, driver, method) in [
        ("xfs", "overlay", DedupHashMethod::Crc),
        ("xfs", "vfs", DedupHashMethod::FileSize),
        ("btrfs", "vfs", DedupHashMethod::Sha256),
        ("ext4", "overlay", DedupHashMethod::Crc),
    ] {
        deduplicated(kind, driver, method);
    }
}

/// Files of a TiB that are nearly all hole: the holes are not read, by a check neither.
#[test]
fn holes_are_not_read() {
    needs!("mkfs.xfs", "mkfs.btrfs");
    for (kind, method) in [("xfs", DedupHashMethod::Crc), ("btrfs", DedupHashMethod::Sha256)] {
        let place = tempfile::tempdir().unwrap();
        let disk = disk(kind, place.path());
        let root = TestRoot::in_dir(disk.path(), "overlay");
        let content = noise();
        let (size, offset) = (1u64 << 40, 1u64 << 39);
        let map = format!("{offset},{SIZE},{size},0");
        let sparse = TarEntry::file("GNUSparseFile.0/sparse", &content)
            .pax("GNU.sparse.size", size.to_string())
            .pax("GNU.sparse.numblocks", "2")
            .pax("GNU.sparse.map", map)
            .pax("GNU.sparse.name", "sparse");
        let sync = || rustix::fs::syncfs(std::fs::File::open(disk.path()).unwrap()).unwrap();
        block_on(async {
            let store = root.open().await;
            for id in ["first", "second"] {
                let tar = TarBuilder::new().entry(sparse.clone()).file("other", id).build();
                let (layer, image) = (LayerOptions::default().id(id), ImageOptions::default());
                let reader = std::io::Cursor::new(tar);
                store.put_layer(None, layer, reader).await.unwrap();
                store.create_image(Some(id), image).await.unwrap();
            }
            sync();
            let before = free(disk.path());
            let options = DedupOptions::default().hash_method(method);
            let result = store.dedup(options).await.unwrap();
            sync();
            assert_eq!((result.deduped, result.files), (size, 1), "{result:?}");
            let won = free(disk.path()).saturating_sub(before);
            assert!(won > SIZE as u64 * 3 / 4, "{won} bytes");
            let report = store.check(CheckOptions::everything()).await.unwrap();
            assert!(report.is_clean(), "{report:?}");
        });
    }
}
