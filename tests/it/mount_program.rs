//! Stores that fuse-overlayfs mounts, for root: shared with the Go library, and with owners and modes in attributes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, Store};

use crate::support::manifest::{Manifest, assert_same, manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, mounts_below};
use crate::support::store::{exported, put_bytes};
use crate::support::tar::{Header, Tar};
use crate::support::{each_set, missing};

const PROGRAM: &str = "overlay.mount_program=/usr/bin/fuse-overlayfs";

/// Whether there is a device for it.
pub(crate) fn has_device() -> bool {
    let there = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok();
    if !there {
        missing("/dev/fuse cannot be opened");
    }
    there
}

async fn open(root: &TestRoot, options: &[&str]) -> Store {
    let store = root.options();
    let store = options
        .iter()
        .fold(store, |store, option| store.driver_option(*option));
    Store::open(store).await.unwrap()
}

/// Two layers; the upper one deletes and replaces.
fn layers() -> [Vec<u8>; 2] {
    let base = Tar::new()
        .entry(Header::new(b'5', "d/").mode(0o1777).owner(1, 2))
        .entry(
            Header::new(b'0', "d/set-id")
                .mode(0o4755)
                .owner(1000, 1001)
                .size(1)
                .content("x"),
        )
        .entry(Header::new(b'0', "d/secret").mode(0o600).owner(7, 8))
        .entry(
            Header::new(b'1', "d/hard")
                .link("d/set-id")
                .mode(0o4755)
                .owner(1000, 1001),
        )
        .symlink("link", "d/secret")
        .file("gone", "")
        .dir("opaque/")
        .file("opaque/old", "")
        .build();
    let child = Tar::new()
        .file(".wh.gone", "")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .entry(Header::new(b'0', "opaque/new").owner(3, 4).mode(0o640))
        .build();
    [base, child]
}

async fn put(store: &Store) {
    let [base, child] = layers();
    let named = |id: &str| LayerOptions::default().id(id);
    put_bytes(store, None, named("base"), base).await.unwrap();
    put_bytes(store, Some("base"), named("child"), child)
        .await
        .unwrap();
}

/// A tree as a container sees it: what the file system does not promise is left out.
fn seen(path: &Path) -> Manifest {
    let mut manifest = manifest(path);
    for (name, entry) in &mut manifest {
        entry.xattrs = BTreeMap::new();
        // The root's and that of directories that were merged.
        if entry.kind == "directory" || name.as_os_str().is_empty() {
            entry.mtime = (0, 0);
        }
    }
    manifest
}

async fn seen_mounted(store: &Store, layer: &str) -> Manifest {
    let path = store.mount(layer, Default::default()).await.unwrap();
    let seen = seen(&path);
    store.unmount(layer).await.unwrap();
    seen
}

async fn a_store_of_a_program_is_shared_with_go(set: PeerSet) {
    if !has_device() {
        return;
    }
    let (ours, native) = (TestRoot::new().of(set), TestRoot::new().of(set));
    let plain = native.open().await;
    put(&plain).await;
    let expected = seen_mounted(&plain, "child").await;
    let store = open(&ours, &[PROGRAM]).await;
    put(&store).await;
    assert_same(
        "the kernel",
        &expected,
        "the program",
        &seen_mounted(&store, "child").await,
    );
    let go = || ours.go().with(["--storage-opt", PROGRAM]);
    // Theirs on ours, and the other way round.
    let [_, child] = layers();
    let file = ours.scratch("tar").join("child.tar");
    fs::write(&file, child).unwrap();
    go().with(["import-layer", "--id", "theirs", "--readonly", "--file"])
        .with([file.as_os_str(), "base".as_ref()])
        .run();
    assert_same(
        "the kernel",
        &expected,
        "theirs",
        &seen_mounted(&store, "theirs").await,
    );
    assert_eq!(exported(&store, "theirs").await, exported(&store, "child").await);
    let trees = ["child", "theirs"].map(|id| manifest(&ours.graph().join("overlay").join(id).join("diff")));
    let [mut a, mut b] = trees;
    for tree in [&mut a, &mut b] {
        for (name, entry) in tree.iter_mut() {
            // Nobody sees that of a whiteout.
            let whiteout = name
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(b".wh."));
            if whiteout || name.as_os_str().is_empty() {
                entry.mtime = (0, 0);
            }
        }
    }
    assert_same("ours", &a, "theirs", &b);
    // A mount that one makes the other one uses and ends.
    let container = store
        .create_container(None, ContainerOptions::default().id("box"))
        .await
        .unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    fs::write(path.join("file"), "ours").unwrap();
    assert_eq!(go().with(["mount", "box"]).run(), path.to_str().unwrap());
    assert_eq!(store.unmount("box").await.unwrap(), 1);
    assert!(mounts_below(&ours.graph()).contains(&path));
    go().with(["unmount", "box"]).run();
    assert!(!mounts_below(&ours.graph()).contains(&path));
    let changes = go().with(["changes", container.layer_id()]).run();
    assert!(changes.contains("Add \"/file\""), "{changes}");
    // Without being told, either side finds the program by itself.
    store.free();
    let store = open(&ours, &[]).await;
    assert_same(
        "the kernel",
        &expected,
        "later",
        &seen_mounted(&store, "theirs").await,
    );
}
each_set!(async a_store_of_a_program_is_shared_with_go: "fuse-overlayfs", "containers-storage", "podman");

/// What an image of the upper layer shows.
async fn seen_image(store: &Store) -> Manifest {
    let image = ImageOptions::default().name("image");
    store.create_image(Some("child"), image).await.unwrap();
    let path = store.mount_image("image", Default::default()).await.unwrap();
    let seen = seen(&path);
    store.unmount_image("image").await.unwrap();
    seen
}

async fn forced_modes_hide_owners_that_a_program_shows(set: PeerSet) {
    if !has_device() {
        return;
    }
    let (masked, native) = (TestRoot::new().of(set), TestRoot::new().of(set));
    let plain = native.open().await;
    put(&plain).await;
    let expected = seen_image(&plain).await;
    let options = [PROGRAM, "overlay.force_mask=700"];
    let store = open(&masked, &options).await;
    put(&store).await;
    for (id, names) in [
        ("base", &["", "d", "d/set-id", "opaque"][..]),
        ("child", &["", "opaque/new"]),
    ] {
        for name in names {
            let meta = fs::metadata(masked.graph().join("overlay").join(id).join("diff").join(name)).unwrap();
            assert_eq!(
                (meta.mode() & 0o7777, meta.uid(), meta.gid()),
                (0o700, 0, 0),
                "{id} {name}"
            );
        }
    }
    let root_mode = |mut manifest: Manifest| {
        // Of an archive that says nothing of its root, the Go library and this one say 0755 here.
        manifest.get_mut(Path::new("")).unwrap().mode = 0o755;
        manifest
    };
    let ours = seen_image(&store).await;
    assert_same("unmasked", &root_mode(expected), "masked", &ours);
    // A container's own files are hidden too, and come out as they are seen.
    let container = store
        .create_container(Some("image"), ContainerOptions::default().id("box"))
        .await
        .unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert_same("the image", &ours, "a container", &seen(&path));
    fs::write(path.join("file"), "x").unwrap();
    std::os::unix::fs::chown(path.join("file"), Some(5), Some(6)).unwrap();
    store.unmount("box").await.unwrap();
    let file = masked
        .graph()
        .join("overlay")
        .join(container.layer_id())
        .join("diff/file");
    assert_eq!(fs::metadata(&file).unwrap().uid(), 0);
    let mut tar = Vec::new();
    let mut diff = store
        .diff(None, container.layer_id(), graphroot::DiffOptions::uncompressed())
        .await
        .unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut diff, &mut tar)
        .await
        .unwrap();
    assert!(
        tar.windows(12).any(|field| field == b"0000005\x000000"),
        "the owner is in the stream"
    );
    assert!(!tar.windows(13).any(|name| name == b"override_stat"));
    // The Go library sees the same.
    let mut go = masked.go();
    for option in options {
        go.args(["--storage-opt", option]);
    }
    let path = go.with(["mount", "box"]).run();
    let mut theirs = seen(Path::new(&path));
    let file = theirs.remove(Path::new("file")).unwrap();
    assert_eq!((file.uid, file.gid), (5, 6));
    assert_same("ours", &ours, "theirs", &theirs);
    store.unmount_all("box").await.unwrap();
    // Without a program containers cannot be written to.
    store.free();
    let other = TestRoot::new().of(set);
    let store = open(&other, &["overlay.force_mask=shared"]).await;
    put(&store).await;
    let error = store
        .create_container(None, ContainerOptions::default())
        .await
        .unwrap_err();
    assert!(error.chain().contains("mount_program"), "{}", error.chain());
}
each_set!(async forced_modes_hide_owners_that_a_program_shows: "fuse-overlayfs", "containers-storage");
