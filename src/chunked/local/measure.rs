//! How fast contents are found in many layers, and what caches cost. Run by hand, optimised:
//! `cargo test --release --lib chunked::local::measure -- --ignored --nocapture`, with `TMPDIR` on the file system in question.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use super::tests::{Trees, digest, sum};
use super::{Layers, LocalContent, LocalLayer};
use crate::chunked::cache::{CacheWriter, LayerFormat};

const LAYERS: u32 = 16;
const FILES: u32 = 100_000;

fn memory(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn name(layer: u32, file: u32) -> String {
    format!("usr/share/some/directory/of/layer-{layer}/file-{file}")
}

#[test]
#[ignore = "a measurement"]
fn many_files_in_many_layers() {
    let tmp = tempfile::tempdir().unwrap();
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let path = tmp.path().join("table");
        let mut table = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        write!(table, "{{\"version\":1,\"entries\":[").unwrap();
        for file in 0..FILES {
            let (name, comma) = (name(layer, file), if file == 0 { "" } else { "," });
            let digest = digest(&name);
            write!(
                table,
                "{comma}{{\"type\":\"reg\",\"name\":\"{name}\",\"mode\":420,\"size\":{},\"modtime\":\"2024-01-01T00:00:00Z\",\"digest\":\"{digest}\",\"offset\":{},\"endOffset\":{}}}",
                name.len(),
                100 + file * 100,
                180 + file * 100,
            )
            .unwrap();
        }
        write!(table, "]}}").unwrap();
        drop(table);
        let (table, start) = (std::fs::File::open(&path).unwrap(), Instant::now());
        let mut cache = tempfile::tempfile_in(tmp.path()).unwrap();
        let names = tempfile::tempfile_in(tmp.path()).unwrap();
        CacheWriter::write_for(&table, LayerFormat::Tree, names, &mut cache).unwrap();
        let size = cache.metadata().unwrap().len();
        if layer < 2 {
            let table = table.metadata().unwrap().len();
            eprintln!(
                "{:.3?} for a cache of {size} bytes from a table of {table}, {}",
                start.elapsed(),
                memory("VmHWM")
            );
        }
        let mut loaded =
            LocalLayer::with_temporary(&layer.to_string(), cache.try_clone().unwrap(), size).unwrap();
        loaded.load_filter(&cache).unwrap();
        layers.push(Arc::new(loaded));
    }
    // Of one layer the files are there.
    let dir = tmp.path().join("3/usr/share/some/directory/of/layer-3");
    std::fs::create_dir_all(&dir).unwrap();
    for file in 0..FILES {
        std::fs::write(dir.join(format!("file-{file}")), name(3, file)).unwrap();
    }
    let trees = Box::new(Trees(tmp.path().into()));
    let content = LocalContent::new(Arc::new(Layers::new(layers, trees)), &[]);
    let measured = |what: &str, layer: u32| {
        let sums: Vec<_> = (0..FILES)
            .map(|file| name(layer, file))
            .map(|name| (sum(&name), name.len() as u64))
            .collect();
        let start = Instant::now();
        let found: Vec<_> = sums
            .iter()
            .filter_map(|(sum, size)| content.find(sum, *size).map(|place| (place, *size)))
            .collect();
        let time = start.elapsed();
        eprintln!(
            "{what}: {} of {FILES} found, {:.2?} each, {}",
            found.len(),
            time / FILES,
            memory("VmRSS")
        );
        let start = Instant::now();
        let opened = found
            .iter()
            .filter(|(place, size)| content.open(*place, *size).is_some())
            .count();
        if opened > 0 {
            eprintln!("{what}: opened, {:.2?} each", start.elapsed() / FILES);
        }
    };
    measured("files that are there", 3);
    measured("files of another image", LAYERS);
    measured("files that are gone", 5);
}
