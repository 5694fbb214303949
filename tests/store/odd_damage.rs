//! Damage that could keep a check or a heal busy for ever: sizes that no file has, and things that are no files.

use std::io::Write as _;
use std::path::PathBuf;

use graphroot::{CheckReport, HealOptions, ItemKind, RepairOptions};

use crate::check::{Ids, check, fill, lines};
use crate::support::{PATIENCE, TestStore, tree_of, writable};

fn tar_split(store: &TestStore, ids: &Ids) -> PathBuf {
    store.records("layers").join(format!("{}.tar-split.gz", ids.base))
}

fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Entries of these sizes, all of the same file.
fn entries(name: &str, sizes: &[u64]) -> String {
    let line = |size: &u64| {
        format!(
            "{{\"type\":1,\"name\":\"{name}\",\"size\":{size},\"payload\":\"AAAAAAAAAAA=\",\"position\":0}}\n"
        )
    };
    sizes.iter().map(line).collect()
}

async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

#[track_caller]
fn assert_found(name: &str, report: &CheckReport, ids: &Ids) {
    let found = lines(report, ItemKind::Layer, &ids.base);
    assert!(!found.is_empty(), "{name}: {report:#?}");
}

each_driver! {
    /// What the tar-split data say of sizes costs no time.
    async fn sizes_that_no_file_has_are_found_at_once(store) {
        const MOST: u64 = i64::MAX as u64;
        let ids = fill(&store).await;
        let path = tar_split(&store, &ids);
        let whole = std::fs::read(&path).unwrap();
        for (name, sizes) in [
            ("nosuch", &[1 << 40][..]),
            ("nosuch", &[MOST]),
            ("nosuch", &[MOST, MOST, MOST]),
            ("dir/one", &[1 << 62]),
            ("dir", &[MOST - 1, 1]),
        ] {
            std::fs::write(&path, compressed(&entries(name, sizes))).unwrap();
            let report = patiently(check(&store)).await;
            assert_found(name, &report, &ids);
            let healed = patiently(store.heal(HealOptions::default())).await.unwrap();
            assert!(!healed.is_success(), "{name}: {healed:#?}");
        }
        std::fs::write(&path, whole).unwrap();
        assert!(check(&store).await.is_clean());
    }

    /// A file may have any size and no content: beyond the size of the layer nothing is read.
    async fn sizes_that_no_layer_has_are_found_at_once(store) {
        const SIZE: u64 = 1 << 40;
        let ids = fill(&store).await;
        let file = writable(tree_of(&store, &ids.base)).join("dir/one");
        std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
        let path = tar_split(&store, &ids);
        std::fs::write(&path, compressed(&entries("dir/one", &[SIZE]))).unwrap();
        let report = patiently(check(&store)).await;
        let found = lines(&report, ItemKind::Layer, &ids.base);
        let size = format!("read {SIZE} bytes instead of ");
        assert!(found.iter().any(|line| line.starts_with(&size)), "{found:#?}");
        let repaired = patiently(store.repair(&report, RepairOptions::default())).await.unwrap();
        assert!(!repaired.removed.is_empty(), "{repaired:#?}");
    }
}
