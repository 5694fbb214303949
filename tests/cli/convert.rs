//! `convert`: a store, or a part of it, in another root with another driver.

use std::fs;

use serde_json::Value;

use crate::program::{Program, good, ours};
use crate::support::needs;
use crate::support::oci::OciImage;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

const NAME: &str = "localhost/app:1";

/// A store with an image of one layer, a container of it, and a layer that nothing uses.
async fn filled() -> TestRoot {
    let root = TestRoot::vfs();
    let store = root.open().await;
    let tar = Tar::new().file("hello", "hello\n").build();
    let options = graphroot::LayerOptions::default().id("L1");
    let layer = put_bytes(&store, None, options, tar).await.unwrap();
    OciImage::create(&store, &layer, NAME).await;
    good(&root, &format!("create-container -i C1 -n web {NAME}"));
    good(&root, "create-layer -i L2");
    root
}

/// The lines of the program on a store elsewhere.
fn elsewhere(root: &TestRoot, graph: &std::path::Path, line: &str, driver: &str) -> String {
    let (graph, run) = (graph.display().to_string(), root.path().join("run2"));
    let run = run.display().to_string();
    let mut args = vec!["-g", &graph, "-R", &run, "-s", driver];
    args.extend(line.split(' '));
    let answer = Program::Ours.run_bare(root, &args);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_gets_another_driver() {
    needs!();
    let root = filled().await;
    let to = root.path().join("new/storage");
    let dry = good(&root, &format!("convert --to overlay --dry-run {}", to.display()));
    assert!(!to.exists(), "a dry run makes nothing");
    let lines: Vec<&str> = dry.lines().collect();
    assert_eq!(lines.len(), 4, "{dry}");
    assert!(
        dry.contains("layer L1\n") && dry.contains(&format!(" ({NAME})\n")),
        "{dry}"
    );
    assert!(dry.ends_with("container C1 (web)\n"), "{dry}");
    let copied = good(&root, &format!("convert --to overlay {}", to.display()));
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&copied), sorted(&dry));
    for line in ["layers -q", "images -q", "containers"] {
        assert_eq!(
            sorted(&elsewhere(&root, &to, line, "overlay")),
            sorted(&good(&root, line)),
            "{line}"
        );
    }
    assert_eq!(elsewhere(&root, &to, "check", "overlay"), "");
    let again = good(&root, &format!("convert -j --to overlay {}", to.display()));
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["Copied"].as_array().unwrap().len(), 0, "{again}");
    assert_eq!(again["Present"].as_array().unwrap().len(), 4, "{again}");
    let left = fs::read_dir(root.run()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().starts_with("convert-")),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_copied_and_mistakes_are_told() {
    let root = filled().await;
    let to = root.path().join("new");
    let convert = |line: &str| ours(&root, &format!("convert {line}"));
    let refused = |line: &str, text: &str| {
        let answer = convert(line);
        assert!(
            answer.code == 1 && answer.err.contains(text),
            "{line}: {answer:?}"
        );
        assert!(!to.exists(), "{line}");
    };
    let target = to.display().to_string();
    refused(&target, "no driver is given");
    let answer = convert(&format!("--to nonsense {target}"));
    assert!(answer.code == 1 && answer.err.contains("nonsense"), "{answer:?}");
    fs::remove_dir_all(&to).ok();
    let inside = root.graph().join("vfs/new");
    refused(
        &format!("--to vfs {}", inside.display()),
        "lies in the storage tree",
    );
    assert!(!inside.exists());
    refused(
        &format!("--to vfs {}", root.graph().display()),
        "lies in the storage tree",
    );
    let answer = convert(&format!("--to vfs --image {NAME} {target}"));
    assert_eq!((answer.code, answer.out.lines().count()), (0, 2), "{answer:?}");
    let answer = convert(&format!("--to vfs --container web {target}"));
    assert_eq!(
        (answer.code, &*answer.out),
        (0, "container C1 (web)\n"),
        "{answer:?}"
    );
    let answer = convert(&format!("--to vfs --image nobody {target}"));
    assert!(answer.code == 1 && answer.err.contains("nobody"), "{answer:?}");
    let answer = convert(&format!("--to overlay {target}"));
    assert!(
        answer.code == 1
            && answer
                .err
                .contains("has layers of the driver vfs, not of overlay"),
        "{answer:?}"
    );
    let answer = convert(&format!("--to vfs --no-containers {target}"));
    assert_eq!((answer.code, &*answer.out), (0, "layer L2\n"), "{answer:?}");
    fs::write(
        to.join("vfs-layers/layers.json"),
        "[{\"id\":\"L1\",\"created\":\"2020-01-01T00:00:00Z\"}]",
    )
    .unwrap();
    let answer = convert(&format!("--to vfs {target}"));
    assert!(
        answer.code == 1 && answer.err.contains("layer \"L1\" of "),
        "{answer:?}"
    );
}
