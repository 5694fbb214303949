//! How fast a layer is unpacked. Run by hand, optimised:
//! `GRAPHROOT_MEASURE=layer.tar.gz cargo test --release --lib measure -- --ignored --nocapture`,
//! with `TMPDIR` on the file system in question.

use super::*;

#[test]
#[ignore = "a measurement"]
fn unpack_speed() {
    let Some(path) = std::env::var_os("GRAPHROOT_MEASURE") else {
        eprintln!("SKIPPED: GRAPHROOT_MEASURE names no layer");
        return;
    };
    let sync = std::env::var_os("GRAPHROOT_MEASURE_SYNC").is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..5 {
        let mut layer = Layer::new(OVERLAY);
        layer.sync = sync;
        let split = std::fs::File::create(layer.split_path()).unwrap();
        let options = ApplyOptions {
            tar_split: Some(split),
            sync,
            ..ApplyOptions::default()
        };
        let start = std::time::Instant::now();
        let (applied, ()) = runtime.block_on(async {
            let source = Box::pin(tokio::fs::File::open(&path).await.unwrap());
            apply(source, layer.target(), options, ()).await.unwrap()
        });
        let time = start.elapsed();
        let size = std::fs::metadata(layer.split_path()).unwrap().len();
        eprintln!(
            "{time:.3?} for {} entries, {} bytes sent, {} unpacked; tar-split {size}",
            applied.entries, applied.compressed_size, applied.diff_size
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    eprintln!(
        "{}",
        status.lines().find(|line| line.starts_with("VmHWM")).unwrap()
    );
}
