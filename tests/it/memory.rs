//! Memory does not grow with the layer.

use std::process::{Command, Stdio};

use tokio::io::AsyncReadExt as _;

use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::worker::Worker;
use crate::worker::LargeTar;

const SIZE: u64 = 1 << 30;
/// Above idle, in KiB.
const LIMIT: u64 = 40 * 1024;

#[test]
fn a_layer_of_one_gibibyte_takes_less_than_40_mebibytes() {
    needs!();
    assert_small_peak("generated", &TestRoot::in_memory());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_layer_of_one_gibibyte_takes_less_than_40_mebibytes() {
    use std::io::Write as _;
    needs!("zstd");
    let root = TestRoot::in_memory();
    let file = root.path().join("large.tar.zst");
    let mut zstd = Command::new("zstd")
        .args(["--quiet", "-1", "-o"])
        .arg(&file)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = zstd.stdin.take().unwrap();
    let (mut tar, mut buffer) = (LargeTar::new(SIZE), vec![0; 64 * 1024]);
    loop {
        let count = tar.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        input.write_all(&buffer[..count]).unwrap();
    }
    drop(input);
    assert!(zstd.wait().unwrap().success());
    assert_small_peak(file.to_str().unwrap(), &root);
}

fn assert_small_peak(source: &str, root: &TestRoot) {
    let lines = Worker::start("memory", root, &[source, &SIZE.to_string()]).finish();
    let figure = |name: &str| -> u64 {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {lines:?}"))
            .trim()
            .parse()
            .unwrap()
    };
    let (idle, peak) = (figure("idle"), figure("peak"));
    let above = peak.saturating_sub(idle);
    eprintln!("1 GiB layer ({source}): {idle} KiB idle, {above} KiB more at the peak");
    assert!(above < LIMIT, "{above} KiB above idle");
}
