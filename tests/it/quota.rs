//! Limits on containers by the project quotas of XFS and ext4, beside those that Podman and the Go library set.
//!
//! These tests need a kernel with quotas; `tests/vm/run` has one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{Container, ContainerOptions, ErrorKind, LayerOptions, MountOptions, Store};

use crate::support::loop_fs::LoopFs;
use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::{each_set, needs};

const IMAGE: &str = "localhost/quota:1";
const MIB: u64 = 1 << 20;

/// A store on a file system with project quotas. Dropped in this order.
struct Limited {
    root: TestRoot,
    disk: LoopFs,
    _dir: tempfile::TempDir,
}

impl Limited {
    fn new(kind: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, target) = (dir.path().join("image"), dir.path().join("disk"));
        fs::File::create_new(&image).unwrap().set_len(400 * MIB).unwrap();
        let words = match kind {
            "ext4" => "-qF -O project,quota -E quotatype=prjquota",
            _ => "-q",
        };
        Command::new(format!("mkfs.{kind}"))
            .words(words)
            .arg(&image)
            .run();
        let disk = LoopFs::mount_with(options, &image, &target);
        let root = TestRoot::in_dir(disk.path(), "overlay");
        Self {
            root,
            disk,
            _dir: dir,
        }
    }

    fn of(mut self, set: PeerSet) -> Self {
        self.root = self.root.of(set);
        self
    }

    fn home(&self) -> PathBuf {
        self.root.graph().join("overlay")
    }

    /// The project ID of a layer's directory.
    fn project(&self, layer: &str) -> u32 {
        project_of(&self.home().join(layer))
    }

    /// The hard limits of projects that have some: blocks of 1,024 bytes, inodes.
    fn limits(&self) -> BTreeMap<u32, [u64; 2]> {
        let mut limits = BTreeMap::<u32, [u64; 2]>::new();
        for (index, what) in ["-b", "-i"].into_iter().enumerate() {
            let command = format!("report -p -n -N {what}");
            let report = Command::new("xfs_quota")
                .args(["-f", "-x", "-c", &command])
                .arg(self.disk.path())
                .run();
            for line in report.lines() {
                let fields: Vec<&str> = line.split_whitespace().collect();
                if let [id, _used, _soft, hard, ..] = fields[..] {
                    let id = id.strip_prefix('#').unwrap().parse().unwrap();
                    limits.entry(id).or_default()[index] = hard.parse().unwrap();
                }
            }
        }
        limits.retain(|_, limits| *limits != [0, 0]);
        limits
    }
}

fn project_of(dir: &Path) -> u32 {
    let listed = Command::new("lsattr").arg("-pd").arg(dir).run();
    listed.split_whitespace().next().unwrap().parse().unwrap()
}

async fn open(root: &TestRoot, options: &[&str]) -> graphroot::Result<Store> {
    let options = options
        .iter()
        .fold(root.options(), |store, option| store.driver_option(*option));
    Store::open(options).await
}

async fn image(store: &Store) {
    let tar = Tar::new().dir("d/").file("d/file", "x".repeat(100_000)).build();
    let layer = put_bytes(store, None, LayerOptions::default().id("base"), tar)
        .await
        .unwrap();
    OciImage::create(store, &layer, IMAGE).await;
}

async fn create(store: &Store, name: &str, limits: &[(&str, &str)]) -> Container {
    let options = ContainerOptions::default().name(name);
    let options = limits
        .iter()
        .fold(options, |options, (key, value)| options.storage_opt(*key, *value));
    store.create_container(Some(IMAGE), options).await.unwrap()
}

/// Writes up to `size` bytes; returns how many it were, and the error that ended it.
fn fill(path: &Path, size: u64) -> (u64, Option<std::io::ErrorKind>) {
    let mut file = fs::File::create(path).unwrap();
    let chunk = vec![7_u8; 64 << 10];
    let mut written = 0;
    while written < size {
        if let Err(error) = file.write_all(&chunk) {
            return (written, Some(error.kind()));
        }
        written += chunk.len() as u64;
    }
    (written, file.sync_all().err().map(|error| error.kind()))
}

fn is_over(error: Option<std::io::ErrorKind>) -> bool {
    matches!(
        error,
        Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    )
}

async fn a_container_is_stopped_at_its_limits_and_nothing_else_is(kind: &str) {
    let limited = Limited::new(kind, "prjquota");
    let store = limited.root.open().await;
    image(&store).await;
    assert!(store.graph_driver().capabilities().quota);
    let small = create(&store, "small", &[("size", "8m")]).await;
    let free = create(&store, "free", &[]).await;
    let few = create(&store, "few", &[("inodes", "40"), ("SIZE", "64m")]).await;
    let projects = [&small, &free, &few].map(|container| limited.project(container.layer_id()));
    assert_eq!(
        limited.limits(),
        [(projects[0], [8 << 10, 0]), (projects[2], [64 << 10, 40])].into()
    );
    assert_eq!(limited.project("base"), 0);

    let mounted = store.mount("small", MountOptions::default()).await.unwrap();
    let (written, error) = fill(&mounted.join("big"), 32 * MIB);
    assert!(is_over(error), "{error:?} after {written}");
    assert!((7 * MIB..=8 * MIB).contains(&written), "{written}");
    // What the image has counts when it is copied up.
    assert!(
        fs::OpenOptions::new()
            .append(true)
            .open(mounted.join("d/file"))
            .is_err()
    );
    let other = store.mount("free", MountOptions::default()).await.unwrap();
    assert_eq!(fill(&other.join("big"), 32 * MIB), (32 * MIB, None));
    let third = store.mount("few", MountOptions::default()).await.unwrap();
    let made = (0..100)
        .take_while(|number| fs::create_dir(third.join(format!("{number}"))).is_ok())
        .count();
    assert!((25..40).contains(&made), "{made}");

    // The store goes on: more layers and containers, exports of what is there, the usage.
    let driver = store.graph_driver();
    for (container, sizes, inodes) in [
        (&small, 7 * MIB..=8 * MIB, 3..=12),
        (&free, 32 * MIB..=33 * MIB, 3..=12),
        (&few, 0..=MIB, 40..=40),
    ] {
        let usage = driver.read_write_disk_usage(container.layer_id()).await.unwrap();
        assert!(
            sizes.contains(&usage.size) && inodes.contains(&usage.inodes),
            "{usage:?}"
        );
    }
    let tar = Tar::new().file("new", "").build();
    put_bytes(&store, Some("base"), LayerOptions::default().id("later"), tar)
        .await
        .unwrap();
    let (_digest, size) = crate::support::store::exported(&store, small.layer_id()).await;
    assert!(size > written);
    // The kernel mounts a layer read-only that has no room for overlayfs itself.
    let big = fs::File::options().write(true).open(mounted.join("big")).unwrap();
    big.set_len(6 * MIB).unwrap();
    drop(big);
    for name in ["small", "free", "few"] {
        store.unmount(name).await.unwrap();
    }

    // In another process the same is true, and what is deleted leaves no limit to whoever gets its ID.
    drop((driver, store));
    let store = limited.root.open().await;
    let mounted = store.mount("small", MountOptions::default()).await.unwrap();
    assert!(is_over(fill(&mounted.join("more"), 3 * MIB).1));
    fs::remove_file(mounted.join("big")).unwrap();
    assert_eq!(fill(&mounted.join("more"), 2 * MIB), (2 * MIB, None));
    store.unmount("small").await.unwrap();
    for name in ["small", "free", "few"] {
        store.delete_container(name).await.unwrap();
    }
    assert_eq!(limited.limits(), BTreeMap::new());
    let again = create(&store, "again", &[]).await;
    let mounted = store.mount("again", MountOptions::default()).await.unwrap();
    assert_eq!(fill(&mounted.join("big"), 16 * MIB), (16 * MIB, None));
    assert_ne!(limited.project(again.layer_id()), 0);
    store.unmount("again").await.unwrap();
    let report = store.check(graphroot::CheckOptions::everything()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs quotas: tests/vm/run"]
async fn a_container_is_stopped_on_xfs() {
    needs!("mkfs.xfs", "xfs_quota");
    a_container_is_stopped_at_its_limits_and_nothing_else_is("xfs").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs quotas: tests/vm/run"]
async fn a_container_is_stopped_on_ext4() {
    needs!("mkfs.ext4", "xfs_quota");
    a_container_is_stopped_at_its_limits_and_nothing_else_is("ext4").await;
}

async fn projects_of_both_kinds_do_not_meet(set: PeerSet) {
    let limited = Limited::new("xfs", "prjquota").of(set);
    let root = &limited.root;
    let store = open(root, &["overlay.size=12m", "overlay.inodes=500"])
        .await
        .unwrap();
    image(&store).await;
    let go = || root.go().with(["--storage-opt", "overlay.size=10m"]);
    let mut limits = BTreeMap::new();
    for number in 0..3 {
        let name = format!("theirs{number}");
        go().with(["create-container", "--name", &name, IMAGE]).run();
        let layer = store.container(&name).await.unwrap().layer_id().to_owned();
        limits.insert(limited.project(&layer), [10 << 10, 0]);
        let layer = create(&store, &format!("ours{number}"), &[]).await;
        limits.insert(limited.project(layer.layer_id()), [12 << 10, 500]);
    }
    let layer = create(&store, "other", &[("size", "6m")]).await;
    limits.insert(limited.project(layer.layer_id()), [6 << 10, 500]);
    root.podman()
        .with([
            "create",
            "--name",
            "podman",
            "--storage-opt",
            "size=9m",
            IMAGE,
            "/bin/true",
        ])
        .run();
    let layer = store.container("podman").await.unwrap().layer_id().to_owned();
    limits.insert(limited.project(&layer), [9 << 10, 0]);
    // Eight different IDs, in the range that the Go library gives to this directory.
    assert_eq!(limits.len(), 8);
    assert_eq!(limited.limits(), limits);
    let inode = fs::metadata(limited.home()).unwrap().ino();
    let first = 10_000 + inode * 10_000 % u64::from(u32::MAX - 10_000);
    assert!(
        limits
            .keys()
            .all(|id| (first + 1..first + 10_000).contains(&u64::from(*id))),
        "{first} {limits:?}"
    );
    // Each deletes what the other has made.
    for number in 0..3 {
        store.delete_container(&format!("theirs{number}")).await.unwrap();
        go().with(["delete-container", &format!("ours{number}")]).run();
    }
    // The Go library leaves the limits of deleted containers; here they are gone.
    let left: Vec<[u64; 2]> = limited.limits().into_values().collect();
    assert!(!left.contains(&[10 << 10, 0]), "{left:?}");
    // Whoever gets such an ID has its own limits only.
    drop(store);
    let store = root.open().await;
    for number in 0..8 {
        let name = format!("free{number}");
        let container = create(&store, &name, &[]).await;
        assert_eq!(
            limited.limits().get(&limited.project(container.layer_id())),
            None,
            "{name}"
        );
    }
}
each_set!(ignored "needs quotas: tests/vm/run" async projects_of_both_kinds_do_not_meet:
    "podman", "containers-storage", "mkfs.xfs", "xfs_quota");

async fn without_quotas_limits_are_refused_as_go_refuses_them(set: PeerSet) {
    // Counted but not enforced is no limit.
    for (kind, options) in [("xfs", "defaults"), ("xfs", "pqnoenforce"), ("ext4", "defaults")] {
        let limited = Limited::new(kind, options).of(set);
        let refused = open(&limited.root, &["overlay.size=10m"]).await.unwrap_err();
        let theirs = limited
            .root
            .go()
            .with(["--storage-opt", "overlay.size=10m", "layers"])
            .output()
            .unwrap();
        let theirs = format!("{theirs:?}");
        let text = "storage options overlay.size and overlay.inodes not supported";
        assert!(refused.chain().contains(text), "{}", refused.chain());
        assert_eq!(refused.kind(), ErrorKind::NotSupported);
        match (kind, options) {
            ("xfs", "defaults") => assert!(theirs.contains(text), "{theirs}"),
            ("xfs", _) => {}
            _ => assert!(
                theirs.contains("only supported for backingFS XFS. Found extfs"),
                "{theirs}"
            ),
        }
        let store = limited.root.open().await;
        assert!(!store.graph_driver().capabilities().quota);
        let limit = ContainerOptions::default().storage_opt("size", "10m");
        let refused = store.create_container(None, limit).await.unwrap_err();
        assert!(
            refused
                .chain()
                .contains("--storage-opt is supported only for overlay over xfs with 'pquota'")
        );
        assert_eq!(refused.kind(), ErrorKind::NotSupported);
        store
            .create_container(None, ContainerOptions::default())
            .await
            .unwrap();
    }
}
each_set!(ignored "needs quotas: tests/vm/run" async without_quotas_limits_are_refused_as_go_refuses_them:
    "containers-storage", "mkfs.xfs");
