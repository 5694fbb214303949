//! Layers with more hard links to one file than the file system allows.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;

use graphroot::{DiffOptions, Digest, LayerOptions};
use tokio::io::AsyncReadExt as _;

use crate::support::loop_fs::{LoopFs, format};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::tar::Tar;

/// What ext4 allows.
const MAX_NAMES: usize = 65_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_more_names_than_ext4_allows_is_copied() {
    needs!("mkfs.ext4");
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("image");
    format("ext4", &image, 1 << 30);
    let disk = LoopFs::mount(&image, &place.path().join("disk"));
    let root = TestRoot::in_dir(disk.path(), "overlay");
    let store = root.open().await;
    let mut tar = Tar::new().file("file", "content");
    for number in 1..=MAX_NAMES {
        tar = tar.hard_link(format!("{}/{number}", number % 100), "file");
    }
    let tar = tar.build();
    let put = store
        .put_layer(None, LayerOptions::default(), Cursor::new(tar.clone()))
        .await
        .unwrap();
    let mut names = BTreeMap::new();
    let mut todo = vec![root.graph().join("overlay").join(put.layer.id()).join("diff")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let stat = entry.metadata().unwrap();
            if stat.is_dir() {
                todo.push(entry.path());
            } else {
                assert_eq!(stat.len(), 7);
                *names.entry((stat.ino(), stat.nlink())).or_insert(0) += 1;
            }
        }
    }
    let counts: Vec<usize> = names.values().copied().collect();
    assert_eq!(counts.iter().sum::<usize>(), MAX_NAMES + 1);
    assert_eq!(counts.len(), 2, "one copy: {names:?}");
    assert_eq!(counts.iter().max(), Some(&MAX_NAMES));
    let mut diff = store
        .diff(None, put.layer.id(), DiffOptions::uncompressed())
        .await
        .unwrap();
    let mut bytes = Vec::new();
    diff.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(Digest::sha256(&bytes), Digest::sha256(&tar));
}
