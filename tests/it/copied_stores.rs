//! Copies of stores with other drivers: the Go library's programs find in them what they find in the source, and a process
//! that is killed while it copies is continued by the next one.

use std::collections::BTreeSet;
use std::path::Path;

use graphroot::{
    CheckOptions, ContainerOptions, CopyOptions, ImageBuilder, Store, StoreOptions, Stray, StrayKind,
};
use serde_json::Value;

use crate::crash::{CALLS, killed_at};
use crate::support::btrfs;
use crate::support::debian::{self, Form};
use crate::support::needs;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::exported;
use crate::support::tar::Tar;
use crate::support::worker::{run_traced, store_location, tell};

/// In the worker: copies the store below `source`, which has another driver.
pub(crate) fn work(source: &str, driver: &str) {
    run_traced(|| copy_from(source, driver));
}

async fn copy_from(source: &str, of: &str) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(driver))
        .await
        .unwrap();
    let source = Path::new(source);
    let options = StoreOptions::new(source.join("graph"), source.join("run")).driver(of);
    let source = Store::open(options).await.unwrap();
    source.copy_to(&store, CopyOptions::new()).await.unwrap();
    tell("done");
}

/// Two layers, an image with two names, and a container with changes.
async fn fill(store: &Store) {
    let lower = Tar::new()
        .dir("dir/")
        .file("dir/one", "one")
        .file("gone", "gone")
        .build();
    let lower = store
        .put_image_layer(None, std::io::Cursor::new(lower))
        .await
        .unwrap();
    let upper = Tar::new().file(".wh.gone", "").file("dir/two", "two").build();
    let upper = store.put_image_layer(Some(lower.id()), std::io::Cursor::new(upper));
    let image = ImageBuilder::new()
        .top_layer(upper.await.unwrap().id())
        .name("localhost/two:1");
    let image = image.build(store).await.unwrap();
    add_container(store, image.id()).await;
}

async fn add_container(store: &Store, image: &str) {
    let options = ContainerOptions::default()
        .name("changed")
        .metadata("{\"a\": 1}")
        .big_data("config", "data");
    let container = store.create_container(Some(image), options).await.unwrap();
    let mounted = store.mount(container.id(), Default::default()).await.unwrap();
    std::fs::write(mounted.join("new"), "new").unwrap();
    store.unmount(container.id()).await.unwrap();
    let dir = store.container_directory(container.id()).await.unwrap();
    std::fs::write(dir.join("log"), "log").unwrap();
}

/// What a killed writer of records leaves, for garbage collection to remove; and of an image, which is removed when it is
/// made again.
const LEFT: [StrayKind; 3] = [
    StrayKind::RecordsInTheMaking,
    StrayKind::ImageData,
    StrayKind::DataInTheMaking,
];

/// Nothing that is half-done is there, whatever is there.
async fn assert_sound(root: &TestRoot, moment: &str, allowed: &[StrayKind]) {
    let store = root.open().await;
    let report = store.check(CheckOptions::everything()).await.unwrap();
    // Layers come before their images.
    let is_wrong = |finding: &graphroot::Finding| finding.problem != graphroot::Problem::Unreferenced;
    let is_more = |stray: &Stray| !allowed.contains(&stray.kind);
    assert!(
        !report.findings.iter().any(is_wrong) && !report.strays.iter().any(is_more),
        "{moment}: {report:#?}"
    );
}

async fn records(store: &Store) -> [BTreeSet<String>; 3] {
    fn texts<T: serde::Serialize>(items: &[T]) -> BTreeSet<String> {
        items
            .iter()
            .map(|item| serde_json::to_string(item).unwrap())
            .collect()
    }
    [
        texts(&store.layers().await.unwrap()),
        texts(&store.images().await.unwrap()),
        texts(&store.containers().await.unwrap()),
    ]
}

async fn kill_at_every_call(from: TestRoot, make: fn() -> TestRoot) {
    let source = from.open().await;
    fill(&source).await;
    let expected = records(&source).await;
    from.program("strace").words("--output=/dev/null true").run();
    let arguments = [from.path().to_str().unwrap(), from.driver()];
    let mut total = 0;
    for call in CALLS {
        let mut root = make();
        for count in 1.. {
            let moment = format!("killed at call {count} of {call}");
            let killed = killed_at(&root, "copy-to", &arguments, call, count);
            if killed {
                assert_sound(&root, &moment, &LEFT).await;
                total += 1;
            }
            // Every second one is left to the next process that is killed.
            if !killed || count % 2 == 0 {
                let store = root.open().await;
                source.copy_to(&store, CopyOptions::new()).await.unwrap();
                assert_eq!(records(&store).await, expected, "{moment}");
                assert_sound(&root, &moment, &LEFT[..1]).await;
                let again = source.copy_to(&store, CopyOptions::new()).await.unwrap();
                assert!(again.copied.is_empty(), "{moment}: {again:?}");
                assert_eq!(root.temporary_files(), Vec::<String>::new(), "{moment}");
                store.free();
                root = make();
            }
            if !killed {
                break;
            }
        }
    }
    assert_eq!(records(&source).await, expected);
    eprintln!("killed at {total} calls");
    assert!(total >= 30, "only {total} moments");
}

fn vfs() -> TestRoot {
    TestRoot::in_dir(Path::new("/dev/shm"), "vfs")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_store_is_copied_to_overlay() {
    needs!("strace");
    kill_at_every_call(vfs(), TestRoot::in_memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_store_is_copied_to_vfs() {
    needs!("strace");
    kill_at_every_call(TestRoot::in_memory(), vfs).await;
}

/// What `containers-storage` and Podman say of a store, and the streams that they make of its layers.
fn seen_by_go(root: &TestRoot, layers: &[String], containers: &[String]) -> Vec<String> {
    let mut seen = vec![
        root.go().words("images --json").run(),
        root.go().words("containers --json").run(),
        root.go().words("layers --json").run(),
        root.podman()
            .with([
                "images",
                "--digests",
                "--no-trunc",
                "--format",
                "{{.ID}} {{.Digest}} {{.Names}} {{.CreatedAt}}",
            ])
            .run(),
        root.podman()
            .with([
                "ps",
                "--all",
                "--external",
                "--no-trunc",
                "--format",
                "{{.ID}} {{.Image}} {{.Names}}",
            ])
            .run(),
    ];
    for layer in layers {
        let file = root.path().join("diff");
        let diff = root
            .go()
            .words("diff --uncompressed --file")
            .with([file.as_os_str(), layer.as_ref()])
            .run();
        assert_eq!(diff, "");
        seen.push(graphroot::Digest::sha256(std::fs::read(file).unwrap()).to_string());
    }
    for container in containers {
        let metadata = root.go().words("metadata").with([container]).run();
        let data = root
            .go()
            .words("get-container-data")
            .with([container, "config"])
            .run();
        let mounted = root.go().words("mount").with([container]).run();
        let new = std::fs::read_to_string(Path::new(mounted.trim()).join("new")).unwrap();
        root.go().words("unmount").with([container]).run();
        seen.extend([metadata, data, new]);
    }
    assert_eq!(root.go().words("check").run(), "", "the Go library's check");
    seen
}

/// Copies a Debian image and a container, and compares what the Go library says of both stores.
async fn go_finds_the_same(from: TestRoot, to: TestRoot) {
    let Some(layer) = debian::layer(Form::Gzip) else {
        return;
    };
    let source = from.open().await;
    let blob = tokio::fs::File::open(layer).await.unwrap();
    let base = source.put_image_layer(None, blob).await.unwrap();
    let top = Tar::new()
        .file("etc/debian_version", "x\n")
        .file(".wh.media", "")
        .build();
    let top = source
        .put_image_layer(Some(base.id()), std::io::Cursor::new(top))
        .await
        .unwrap();
    let image = ImageBuilder::new()
        .top_layer(top.id())
        .name("localhost/debian:12");
    let image = image.build(&source).await.unwrap();
    add_container(&source, image.id()).await;

    let store = to.open().await;
    source.copy_to(&store, CopyOptions::new()).await.unwrap();
    for layer in [&base, &top] {
        let digest = layer.uncompressed_digest().unwrap();
        assert_eq!(exported(&store, layer.id()).await.0, digest);
    }
    let layers = [base.id().to_owned(), top.id().to_owned()];
    let containers = source.containers().await.unwrap();
    let containers: Vec<String> = containers.iter().map(|one| one.id().to_owned()).collect();
    let theirs = seen_by_go(&to, &layers, &containers);
    assert_eq!(seen_by_go(&from, &layers, &containers), theirs);
    // A new container of the copied image runs, and the image can be removed.
    let inspected = to
        .podman()
        .with(["image", "inspect", "localhost/debian:12"])
        .run();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(
        inspected[0]["RootFS"]["Layers"][1],
        top.uncompressed_digest().unwrap().to_string()
    );
    to.podman().with(["rm", "--force", "changed"]).run();
    to.podman().with(["rmi", "localhost/debian:12"]).run();
    assert!(store.layers().await.unwrap().is_empty() && store.containers().await.unwrap().is_empty());
    assert_eq!(source.images().await.unwrap().len(), 1);
}

fn is_ready() -> bool {
    PeerSet::Forky.is_ready(&["podman", "containers-storage"])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_library_finds_a_vfs_store_in_overlay() {
    if is_ready() {
        let temp = std::env::temp_dir();
        let from = TestRoot::in_dir(&temp, "vfs").of(PeerSet::Forky);
        go_finds_the_same(from, TestRoot::new().of(PeerSet::Forky)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_library_finds_an_overlay_store_in_btrfs() {
    if !is_ready() {
        return;
    }
    match btrfs::shared() {
        Ok(dir) => {
            let to = TestRoot::in_dir(dir, "btrfs").of(PeerSet::Forky);
            go_finds_the_same(TestRoot::new().of(PeerSet::Forky), to).await;
        }
        Err(why) => crate::support::missing(why),
    }
}
