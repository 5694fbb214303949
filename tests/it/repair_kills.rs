//! A process that is killed while it rebuilds records, repairs, collects garbage or shares content leaves a store with which
//! the same work comes to the same end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{
    CheckOptions, ContainerOptions, DedupOptions, ImageOptions, ItemKind, LayerOptions, RepairOptions, Store,
    StoreOptions,
};
use serde_json::Value;

use crate::crash::{CALLS, killed_at};
use crate::full_disk::Disk;
use crate::support::needs;
use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, mounts_below};
use crate::support::store::{assert_clean, put_bytes};
use crate::support::tar::Tar;
use crate::support::worker::{run_traced, store_location, tell};

/// In the worker: does the work.
pub(crate) fn work(what: &str) {
    run_traced(|| do_work(what));
}

async fn do_work(what: &str) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(driver))
        .await
        .unwrap();
    match what {
        "collect" => store.garbage_collect().await.unwrap(),
        "dedup" => drop(store.dedup(DedupOptions::default()).await.unwrap()),
        // A check after each repair, as the command does it.
        _ => {
            for _ in 0..4 {
                let report = store.check(CheckOptions::everything()).await.unwrap();
                let repaired = store
                    .repair(&report, RepairOptions::keeping_containers())
                    .await
                    .unwrap();
                assert!(repaired.is_success(), "{repaired:#?}");
            }
        }
    }
    tell("done");
}

async fn fill(store: &Store) {
    let put = async |id: &str, parent: Option<&str>, tar: Vec<u8>| {
        let options = LayerOptions::default().id(id.repeat(64));
        put_bytes(store, parent, options, tar).await.unwrap()
    };
    let file = |name: &str| {
        Tar::new()
            .dir("dir/")
            .file(format!("dir/{name}"), "same ".repeat(30_000))
            .build()
    };
    let base = put("1", None, file("base")).await;
    let top = put("2", Some(base.id()), file("top")).await;
    let other = put("3", Some(base.id()), file("other")).await;
    OciImage::create_of(store, &[base.clone(), top], "one").await;
    OciImage::create_of(store, &[base, other], "two").await;
    let container = ContainerOptions::default()
        .id("c".repeat(64))
        .name("box")
        .big_data("state", "x");
    store.create_container(Some("one"), container).await.unwrap();
}

/// What is wrong with the store that is worked on.
async fn damage(root: &TestRoot, what: &str) {
    let store = root.open().await;
    fill(&store).await;
    let layers = root.metadata_dir("layers");
    match what {
        "rebuild" => {
            let records = layers.join("layers.json");
            let content = std::fs::read(&records).unwrap();
            std::fs::write(&records, &content[..content.len() / 3]).unwrap();
            std::fs::write(root.metadata_dir("images").join("images.json"), "").unwrap();
            std::fs::write(root.metadata_dir("containers").join("containers.json"), "[{}").unwrap();
        }
        "repair" => {
            // An image that nothing can mend, and a layer without a record.
            let image = store.image("two").await.unwrap();
            std::fs::remove_file(root.metadata_dir("images").join(image.id()).join("manifest")).unwrap();
            store
                .graph_driver()
                .create_layer(None, LayerOptions::default().id("9".repeat(64)))
                .await
                .unwrap();
        }
        _ => {
            let stray = "5".repeat(64);
            for dir in ["images", "containers", "layers"] {
                let dir = root.metadata_dir(dir).join(&stray);
                std::fs::create_dir_all(dir.join("deep")).unwrap();
                std::fs::write(dir.join("deep/file"), "x").unwrap();
            }
            std::fs::write(layers.join(format!("{stray}.tar-split.gz")), "").unwrap();
            store
                .graph_driver()
                .create_layer(None, LayerOptions::default().id(stray))
                .await
                .unwrap();
        }
    }
    store.free();
}

fn copy(from: &Path, to: &Path) {
    Command::new("rm").arg("-rf").arg(to).run();
    Command::new("cp").arg("-a").arg(from).arg(to).run();
}

fn values(items: graphroot::Result<Vec<impl serde::Serialize>>) -> Vec<Value> {
    let items = items.unwrap();
    items
        .iter()
        .map(|item| serde_json::to_value(item).unwrap())
        .collect()
}

/// All that a store is in the end.
async fn end_of(root: &TestRoot) -> Vec<Value> {
    let store = root.open().await;
    // Files in the making.
    store.garbage_collect().await.unwrap();
    assert_clean(&store, "the end").await;
    let mut found = values(store.layers().await);
    found.extend(values(store.images().await));
    found.extend(values(store.containers().await));
    found.push(root.layer_directories().into_iter().collect());
    found.push(root.temporary_files().into());
    let mut kept: BTreeMap<String, u32> = BTreeMap::new();
    for kind in ["layers", "images", "containers"] {
        for entry in std::fs::read_dir(root.metadata_dir(kind)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let name = name
                .split_once(".damaged-")
                .map_or(name.as_str(), |(name, _)| name);
            if !name.starts_with(".reserve-") {
                *kept.entry(format!("{kind}/{name}")).or_default() += 1;
            }
        }
    }
    found.push(serde_json::to_value(kept).unwrap());
    store.free();
    found
}

/// Kills the work at every call, and lets it be done once more.
async fn killed_everywhere(root: &TestRoot, what: &str, calls: &[&str]) -> u32 {
    root.program("strace").words("--output=/dev/null true").run();
    let template: Vec<(PathBuf, PathBuf)> = [root.graph(), root.run()]
        .into_iter()
        .zip(["graph", "run"].map(|name| root.scratch("template").join(name)))
        .collect();
    for (place, kept) in &template {
        copy(place, kept);
    }
    let restore = || template.iter().for_each(|(place, kept)| copy(kept, place));
    let work = |call: &str, count: u32| killed_at(root, "repair", &[what], call, count);
    assert!(!work("none", 1));
    let expected = end_of(root).await;
    let mut total = 0;
    for call in calls {
        for count in 1.. {
            restore();
            if !work(call, count) {
                break;
            }
            total += 1;
            assert!(!work("none", 1));
            assert_eq!(
                end_of(root).await,
                expected,
                "{what} killed at call {count} of {call}"
            );
        }
    }
    eprintln!("{what} killed at {total} calls");
    total
}

async fn killed(what: &str) {
    let root = TestRoot::in_memory();
    damage(&root, what).await;
    let mut calls = CALLS.to_vec();
    calls.push("linkat,link");
    let total = killed_everywhere(&root, what, &calls).await;
    assert!(total >= 10, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_comes_to_the_same_end() {
    needs!("strace");
    killed("rebuild").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_comes_to_the_same_end() {
    needs!("strace");
    killed("repair").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_killed_comes_to_the_same_end() {
    needs!("strace");
    killed("collect").await;
}

/// Sharing content changes neither records nor what is in files, wherever it ends.
#[tokio::test(flavor = "multi_thread")]
async fn sharing_content_that_is_killed_comes_to_the_same_end() {
    needs!("strace", "mkfs.xfs");
    let disk = Disk::xfs();
    let root = TestRoot::in_dir(disk.path(), "overlay");
    let store = root.open().await;
    fill(&store).await;
    store.free();
    let total = killed_everywhere(&root, "dedup", &["ioctl", "pwrite64"]).await;
    assert!(total >= 1, "nothing was shared");
}

/// What was rebuilt is used by other programs.
async fn podman_uses_rebuilt_records(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    fill(&store).await;
    let images = store.images().await.unwrap();
    let one = store.image("one").await.unwrap().id().to_owned();
    store.free();
    let created = root
        .podman()
        .words("create --network none --name theirs")
        .with([one.as_str(), "/none"])
        .run();
    let theirs = created.trim();
    for (kind, name) in [
        ("layers", "layers.json"),
        ("images", "images.json"),
        ("containers", "containers.json"),
    ] {
        std::fs::write(root.metadata_dir(kind).join(name), "[{\"id\":").unwrap();
    }
    let store = root.open().await;
    let report = store.check(CheckOptions::everything()).await.unwrap();
    assert_eq!(report.store_problems.len(), 3, "{report:#?}");
    let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
    assert!(
        repaired.replaced_files.len() == 3 && repaired.is_success(),
        "{repaired:#?}"
    );
    store.free();
    let listed = root.podman().words("images --all --no-trunc --quiet").run();
    for image in &images {
        assert!(listed.contains(image.id()), "{listed}");
        let history = root
            .podman()
            .with([
                "image",
                "inspect",
                "--format",
                "{{len .RootFS.Layers}}",
                image.id(),
            ])
            .run();
        assert_eq!(history.trim(), "2");
        let mounted = root.podman().with(["image", "mount", image.id()]).run();
        assert!(Path::new(mounted.trim()).join("dir/base").exists(), "{mounted}");
        root.podman().with(["image", "unmount", image.id()]).run();
    }
    let containers = root
        .podman()
        .words("ps --all --external --no-trunc --quiet")
        .run();
    assert!(containers.contains(&"c".repeat(64)), "{containers}");
    // Both containers have layers of their own again, and Podman what it needs of its one.
    let mounted = root.podman().with(["mount", theirs]).run();
    assert!(Path::new(mounted.trim()).join("dir/top").exists(), "{mounted}");
    root.podman().with(["unmount", theirs]).run();
    if set == PeerSet::Forky {
        root.go().words("check").run();
    }
    root.podman().with(["rm", theirs]).run();
    let store = root.open().await;
    let report = store.check(CheckOptions::everything()).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert!(report.damaged(ItemKind::Layer, false).is_empty());
}
crate::support::each_set!(async podman_uses_rebuilt_records: "podman", "containers-storage");

/// A repair, and a rebuild, of a store on a full disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_needs_no_space() {
    needs!("mkfs.ext4");
    for (disk, driver) in [
        (Disk::tmpfs(), "overlay"),
        (Disk::ext4(), "overlay"),
        (Disk::ext4(), "vfs"),
    ] {
        let root = TestRoot::in_dir(disk.path(), driver);
        let store = root.open().await;
        fill(&store).await;
        store
            .create_image(
                None,
                ImageOptions::default().name("three").big_data("manifest", "x"),
            )
            .await
            .unwrap();
        let (two, three) = (
            store.image("two").await.unwrap(),
            store.image("three").await.unwrap(),
        );
        let images = root.metadata_dir("images");
        std::fs::remove_file(images.join(two.id()).join("manifest")).unwrap();
        std::fs::remove_file(images.join(three.id()).join("manifest")).unwrap();
        store.free();
        disk.fill();
        let store = root.open().await;
        let report = store.check(CheckOptions::everything()).await.unwrap();
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        let is_image = |item: &&graphroot::CheckedItem| item.kind == graphroot::ItemKind::Image;
        assert!(
            repaired.is_success() && repaired.removed.iter().filter(is_image).count() == 2,
            "{driver}: {repaired:#?}"
        );
        let report = store.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{driver}: {report:#?}");
        store.free();
        disk.fill_up();
        // A row too many: the list has to be written anew, and there is no block and no inode for it.
        let records = root.metadata_dir("containers").join("containers.json");
        let file = std::fs::OpenOptions::new().write(true).open(&records).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"{", 0).unwrap();
        let store = root.open().await;
        let report = store.check(CheckOptions::everything()).await.unwrap();
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert_eq!(repaired.replaced_files.len(), 1, "{driver}: {repaired:#?}");
        let report = store.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{driver}: {report:#?}");
        assert!(store.exists("box").await.unwrap());
        store.free();
    }
}

/// Why a layer's directory is not removed as others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Its flag forbids it; it is cleared.
    Immutable,
    /// Something is mounted on it: it cannot be moved.
    MountedOn,
    /// Something is mounted in it, which is detached.
    MountedIn,
}

/// A layer whose directory cannot be removed goes from the records, and the store stays usable.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_left_behind() {
    needs!("mkfs.ext4", "chattr");
    let obstacles = [Obstacle::Immutable, Obstacle::MountedOn, Obstacle::MountedIn];
    for (driver, obstacle) in ["overlay", "vfs"]
        .into_iter()
        .flat_map(|driver| obstacles.map(|obstacle| (driver, obstacle)))
    {
        let what = format!("{driver}, {obstacle:?}");
        let disk = Disk::ext4();
        let root = TestRoot::in_dir(disk.path(), driver);
        let store = root.open().await;
        fill(&store).await;
        let two = store.image("two").await.unwrap();
        let layer = two.top_layer().unwrap().to_owned();
        std::fs::remove_file(root.metadata_dir("images").join(two.id()).join("manifest")).unwrap();
        let (dir, inside) = match driver {
            "overlay" => (root.graph().join("overlay").join(&layer), "diff/dir"),
            _ => (root.graph().join("vfs/dir").join(&layer), "dir"),
        };
        let report = store.check(CheckOptions::everything()).await.unwrap();
        let mount = |at: &Path| {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "in-the-way"]).arg(at).run();
        };
        match obstacle {
            Obstacle::Immutable => drop(Command::new("chattr").arg("+i").arg(&dir).run()),
            Obstacle::MountedOn => mount(&dir),
            Obstacle::MountedIn => mount(&dir.join(inside)),
        }
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success(), "{what}: {repaired:#?}");
        let is_left = obstacle == Obstacle::MountedOn;
        assert_eq!(!repaired.left_behind.is_empty(), is_left, "{what}: {repaired:#?}");
        store.free();
        let again = root.open().await;
        assert!(
            !again.exists(&layer).await.unwrap() && !again.exists("two").await.unwrap(),
            "{what}"
        );
        assert!(
            again.exists("box").await.unwrap() && again.exists("one").await.unwrap(),
            "{what}"
        );
        // It is told of, and keeps nobody from anything.
        let report = again.check(CheckOptions::everything()).await.unwrap();
        let damaged = report.damaged(ItemKind::Layer, false);
        assert_eq!(
            damaged.contains_key(layer.as_str()),
            is_left,
            "{what}: {report:#?}"
        );
        // With what belongs to it.
        let belongs = |path: &Path| is_left && path.to_string_lossy().contains(&layer);
        assert!(
            report.strays.iter().all(|stray| belongs(&stray.path)),
            "{what}: {report:#?}"
        );
        put_bytes(
            &again,
            None,
            LayerOptions::default(),
            Tar::new().file("x", "1").build(),
        )
        .await
        .unwrap();
        again.garbage_collect().await.ok();
        for mount in mounts_below(&root.graph()) {
            rustix::mount::unmount(mount, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        again.garbage_collect().await.unwrap();
        assert_clean(&again, &what).await;
        again.free();
    }
}
