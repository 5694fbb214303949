//! `convert`: a store, or a part of it, in another root with another driver.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{Program, good, ours};
use crate::support::needs;
use crate::support::oci::OciImage;
use crate::support::peers::Run as _;
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
    assert!(temporary(&root).is_empty(), "{:?}", temporary(&root));
}

/// Nobody needs to tell the command of the run root of the other storage tree for what is mounted there to stay.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_in_the_other_tree_stays_mounted() {
    needs!();
    let root = filled().await;
    let to = root.path().join("new");
    let line = format!("convert --to overlay {}", to.display());
    good(&root, &line);
    let mounted = elsewhere(&root, &to, "mount C1", "overlay");
    let hello = Path::new(mounted.trim()).join("hello");
    for line in [line.replace("--to", "--refresh --to"), line] {
        good(&root, &line);
        assert_eq!(fs::read_to_string(&hello).unwrap(), "hello\n", "{line}");
    }
    let shut_down = Program::Ours.run_bare(
        &root,
        &[
            "-g",
            to.to_str().unwrap(),
            "-R",
            root.path().join("run3").to_str().unwrap(),
            "-s",
            "overlay",
            "shutdown",
        ],
    );
    assert_ne!(shut_down.code, 0, "{shut_down:?}");
    assert!(
        shut_down.err.contains("which the run root does not tell of"),
        "{shut_down:?}"
    );
    assert_eq!(fs::read_to_string(&hello).unwrap(), "hello\n");
    elsewhere(&root, &to, "unmount C1", "overlay");
    elsewhere(&root, &to, "shutdown", "overlay");
}

/// What is in the directory for temporary data.
fn temporary(root: &TestRoot) -> Vec<std::ffi::OsString> {
    let listed = fs::read_dir(root.graph().join("vfs-layers/tmp"));
    let names = listed.into_iter().flatten();
    names.map(|entry| entry.unwrap().file_name()).collect()
}

/// Changes the one file of container C1.
fn write_hello(root: &TestRoot, text: &str) {
    let mounted = good(root, "mount C1");
    fs::write(std::path::Path::new(mounted.trim()).join("hello"), text).unwrap();
    good(root, "unmount C1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_has_changed_is_told_and_replaced() {
    let root = filled().await;
    let to = root.path().join("new");
    let line = format!("convert --to vfs {}", to.display());
    good(&root, &line);
    write_hello(&root, "other\n");
    let kept = ours(&root, &line);
    assert_eq!((kept.code, &*kept.out), (0, ""), "{kept:?}");
    assert!(
        kept.err
            .contains("container C1 (web): another /hello: it was there already"),
        "{kept:?}"
    );
    let there = || elsewhere(&root, &to, "mount C1", "vfs");
    let hello = std::path::Path::new(there().trim()).join("hello");
    elsewhere(&root, &to, "unmount C1", "vfs");
    assert_eq!(fs::read_to_string(&hello).unwrap(), "hello\n");
    let json = good(&root, &line.replace("convert", "convert -j"));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["Different"][0]["item"]["id"], "C1", "{json}");
    let replaced = good(&root, &line.replace("convert", "convert --refresh"));
    assert_eq!(replaced, "container C1 (web): replaced\n");
    assert_eq!(fs::read_to_string(&hello).unwrap(), "other\n");
    assert_eq!(good(&root, &line), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_make_one_copy() {
    let root = filled().await;
    let to = root.path().join("new");
    let line = format!("convert --to vfs {}", to.display());
    let outs = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| ours(&root, &line))).collect();
        let answers = runs.into_iter().map(|run| run.join().unwrap());
        answers.collect::<Vec<_>>()
    });
    let mut lines = Vec::new();
    for answer in &outs {
        assert_eq!(answer.code, 0, "{answer:?}");
        lines.extend(answer.out.lines());
    }
    assert_eq!(lines.len(), 4, "each item was copied once: {outs:?}");
    assert_eq!(elsewhere(&root, &to, "check", "vfs"), "");
}

/// A killed one leaves a directory that whoever opens the store next removes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_one_leaves_is_removed() {
    let root = filled().await;
    let to = root.path().join("new");
    good(&root, &format!("convert --to vfs {}", to.display()));
    // Another copy seems to be at work there.
    let busy = to.join("vfs-layers/tmp");
    fs::create_dir_all(&busy).unwrap();
    let busy = fs::File::create(busy.join("copy")).unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "the lock that copies have among each other is one of flock"
    )]
    busy.lock().unwrap();
    let line = format!("convert --to vfs {}", to.display());
    let mut waiting = Program::Ours.on(&root).words(&line);
    let mut waiting = waiting.stdout(std::process::Stdio::null()).spawn().unwrap();
    while temporary(&root).is_empty() {
        assert!(waiting.try_wait().unwrap().is_none(), "it does not wait");
        std::thread::yield_now();
    }
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(!temporary(&root).is_empty());
    good(&root, "layers");
    assert!(temporary(&root).is_empty(), "{:?}", temporary(&root));
    drop(busy);
    good(&root, &format!("convert --to vfs {}", to.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_in_the_store_is_refused_however_it_is_reached() {
    needs!();
    let root = filled().await;
    let mount = root.path().join("bound");
    fs::create_dir(&mount).unwrap();
    let inside = root.graph().join("vfs");
    rustix::mount::mount_bind(&inside, &mount).unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&inside, &link).unwrap();
    let before = fs::read_dir(&inside).unwrap().count();
    let targets = [
        mount.join("new"),
        mount.join("new/deep"),
        link.join("new"),
        inside.join("new"),
        root.run().join("new"),
        root.graph().to_owned(),
        Path::new("/missing/..")
            .join(inside.strip_prefix("/").unwrap())
            .join("new"),
    ];
    for target in targets {
        let answer = ours(&root, &format!("convert --to vfs {}", target.display()));
        assert!(
            answer.code == 1 && answer.err.contains("lies in the storage tree"),
            "{target:?}: {answer:?}"
        );
    }
    assert_eq!(fs::read_dir(&inside).unwrap().count(), before);
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
    // A mount of something else is no part of it.
    let target = root.path().join("new");
    let line = format!(
        "convert --to vfs --no-containers --container web {}",
        target.display()
    );
    let answer = ours(&root, &line);
    assert!(
        answer.code == 1 && answer.err.contains("--no-containers and --container"),
        "{answer:?}"
    );
    assert!(!target.exists());
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
    refused(&format!("--to nonsense {target}"), "nonsense");
    refused(&format!("--to nonsense {target}/deep/er"), "nonsense");
    refused(&format!("--to vfs --image nobody {target}"), "nobody");
    refused(&format!("--to vfs --container nobody {target}"), "nobody");
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
