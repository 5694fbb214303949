//! What a layer says of the layers below it, and of owners that a mount maps, together with programs of the Go library: those
//! that know `lower-layers` (1.64) and those that do not.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use graphroot::{ContainerOptions, IdMap, ImageOptions, LayerOptions, Store};
use serde_json::Value;

use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::{names_in, put_bytes};
use crate::support::tar::Tar;

/// Whether programs of the set write and read `lower-layers`.
fn knows_lower_layers(set: PeerSet) -> bool {
    set.storage_version() >= (1, 64)
}

/// A layer of theirs with one file, named after it.
fn put_theirs(root: &TestRoot, id: &str, parent: Option<&str>) {
    let archive = root.scratch("archives").join(id);
    fs::write(&archive, Tar::new().file(id, "x").build()).unwrap();
    root.go().args(["create-layer", "--id", id]).args(parent).run();
    root.go().args(["applydiff", "-f"]).arg(&archive).arg(id).run();
}

/// A layer of ours with one file, named after it.
async fn put_ours(store: &Store, id: &str, parent: Option<&str>) {
    let tar = Tar::new().file(id, "x").build();
    put_bytes(store, parent, LayerOptions::default().id(id), tar)
        .await
        .unwrap();
}

/// Both sides' layers, on each other: `ours1 <- theirs2 <- ours3 <- theirs4`, and the other way round.
async fn fill(root: &TestRoot) -> Store {
    let store = root.open().await;
    put_ours(&store, "ours1", None).await;
    put_theirs(root, "theirs2", Some("ours1"));
    put_ours(&store, "ours3", Some("theirs2")).await;
    put_theirs(root, "theirs4", Some("ours3"));
    put_theirs(root, "theirs1", None);
    put_ours(&store, "ours2", Some("theirs1")).await;
    put_theirs(root, "theirs3", Some("ours2"));
    put_ours(&store, "ours4", Some("theirs3")).await;
    store
}

const CHAINS: [[&str; 4]; 2] = [
    ["ours1", "theirs2", "ours3", "theirs4"],
    ["theirs1", "ours2", "theirs3", "ours4"],
];

fn remove_links(root: &TestRoot) {
    let links = root.graph().join("overlay/l");
    fs::remove_dir_all(&links).unwrap();
    fs::create_dir(&links).unwrap();
}

/// Mounts every layer with their program and looks into it.
fn assert_they_see_all(root: &TestRoot) {
    for chain in CHAINS {
        for height in 1..=chain.len() {
            let id = chain[height - 1];
            let out = root.go().args(["mount", id]).run();
            let seen = names_in(Path::new(out.lines().last().unwrap()));
            assert!(
                seen.iter().map(String::as_str).eq(sorted(&chain[..height])),
                "{id}: {seen:?}"
            );
            root.go().args(["unmount", id]).run();
        }
    }
}

/// The same with this library.
async fn assert_we_see_all(store: &Store) {
    for chain in CHAINS {
        for height in 1..=chain.len() {
            let id = chain[height - 1];
            let seen = names_in(&store.mount(id, Default::default()).await.unwrap());
            assert!(
                seen.iter().map(String::as_str).eq(sorted(&chain[..height])),
                "{id}: {seen:?}"
            );
            assert_eq!(store.unmount(id).await.unwrap(), 0);
        }
    }
}

fn sorted<'a>(names: &[&'a str]) -> impl Iterator<Item = &'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.into_iter()
}

async fn layers_on_each_other_are_mounted_by_both_sides(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = fill(&root).await;
    for chain in CHAINS {
        for (height, id) in chain.iter().enumerate() {
            let path = root.graph().join("overlay").join(id).join("lower-layers");
            let expected: Vec<&str> = chain[..height].iter().rev().copied().collect();
            let written = id.starts_with("ours") || knows_lower_layers(set);
            match fs::read_to_string(&path) {
                Ok(text) => assert_eq!(text, expected.join(":"), "{id}"),
                Err(_missing) => assert!(expected.is_empty() || !written, "{id}"),
            }
        }
    }
    assert_they_see_all(&root);
    assert_we_see_all(&store).await;
    remove_links(&root);
    if knows_lower_layers(set) {
        // Their program has no repair: what is missing in our layers would be missing for good.
        assert_they_see_all(&root);
        assert!(names_in(&root.graph().join("overlay/l")).is_empty());
    }
    assert_we_see_all(&store).await;
    if !knows_lower_layers(set) {
        // We have put the links back that the lists of older programs need.
        assert_eq!(names_in(&root.graph().join("overlay/l")).len(), 8);
        assert_they_see_all(&root);
    }
}
each_set!(async layers_on_each_other_are_mounted_by_both_sides: "containers-storage");

/// What disagrees is decided by both sides in the same way.
async fn the_list_of_ids_decides_on_both_sides(set: PeerSet) {
    if !knows_lower_layers(set) {
        return;
    }
    let root = TestRoot::new().of(set);
    let store = fill(&root).await;
    for id in ["theirs4", "ours4"] {
        let path = root.graph().join("overlay").join(id).join("lower-layers");
        fs::write(path, "theirs1").unwrap();
        let ours = names_in(&store.mount(id, Default::default()).await.unwrap());
        assert_eq!(store.unmount(id).await.unwrap(), 0);
        let out = root.go().args(["mount", id]).run();
        let theirs = names_in(Path::new(out.lines().last().unwrap()));
        root.go().args(["unmount", id]).run();
        assert_eq!(ours, theirs);
        assert_eq!(ours.len(), 2);
    }
    // Also for a layer that is made on such a one.
    put_theirs(&root, "theirs5", Some("ours4"));
    put_ours(&store, "ours5", Some("ours4")).await;
    let list =
        |id: &str| fs::read_to_string(root.graph().join("overlay").join(id).join("lower-layers")).unwrap();
    assert_eq!(list("ours5"), "ours4:theirs1");
    assert_eq!(list("theirs5"), list("ours5"));
}
each_set!(newer async the_list_of_ids_decides_on_both_sides: "containers-storage");

const MAPPED: &str = "0:100000:65536";

async fn owners_mapped_by_a_mount_are_recorded_as_they_do(set: PeerSet) {
    if !knows_lower_layers(set) {
        return;
    }
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    put_ours(&store, "base", None).await;
    store
        .create_image(Some("base"), ImageOptions::default().name("image"))
        .await
        .unwrap();
    root.go()
        .args([
            "create-container",
            "--id",
            "theirs",
            "--uidmap",
            MAPPED,
            "--gidmap",
            MAPPED,
            "image",
        ])
        .run();
    let mut options = ContainerOptions::default().id("ours");
    options.id_mappings.uid_map = vec![IdMap::new(0, 100_000, 65_536)];
    options.id_mappings.gid_map = vec![IdMap::new(0, 100_000, 65_536)];
    store.create_container(Some("image"), options).await.unwrap();

    let read = |what: &str| -> Vec<Value> {
        let path = root.metadata_dir(what).join(format!("{what}.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let (layers, containers) = (read("layers"), read("containers"));
    let find = |rows: &[Value], id: &str| rows.iter().find(|row| row["id"] == id).unwrap().clone();
    let [ours, theirs] = ["ours", "theirs"].map(|id| {
        let container = find(&containers, id);
        let layer = find(&layers, container["layer"].as_str().unwrap());
        (container, layer)
    });
    for field in ["uidmap", "gidmap"] {
        assert!(ours.1[field].is_array(), "{field}");
        assert_eq!(ours.0[field], theirs.0[field], "containers' {field}");
        assert_eq!(ours.1[field], theirs.1[field], "layers' {field}");
    }
    assert_eq!(layers.len(), 3, "no copies with other owners");

    let owner = |path: &Path| {
        let meta = path.metadata().unwrap();
        (meta.uid(), meta.gid())
    };
    for id in ["ours", "theirs"] {
        let ours = store.mount(id, Default::default()).await.unwrap();
        assert_eq!(owner(&ours.join("base")), (100_000, 100_000));
        fs::write(ours.join("new"), id).unwrap();
        std::os::unix::fs::chown(ours.join("new"), Some(100_005), Some(100_006)).unwrap();
        store.unmount(id).await.unwrap();
        let out = root.go().args(["mount", id]).run();
        let theirs = Path::new(out.lines().last().unwrap()).to_owned();
        assert_eq!(owner(&theirs.join("base")), (100_000, 100_000));
        assert_eq!(owner(&theirs.join("new")), (100_005, 100_006));
        root.go().args(["unmount", id]).run();
        // The diff of either side has the container's owners.
        let layer = store.container(id).await.unwrap().layer_id().to_owned();
        let archive = root.scratch("diffs").join(id);
        root.go().args(["diff", "-f"]).arg(&archive).arg(&layer).run();
        let mut stream = store.diff(None, &layer, Default::default()).await.unwrap();
        let ours = root.scratch("diffs").join(format!("{id}-ours"));
        let mut file = tokio::fs::File::create(&ours).await.unwrap();
        tokio::io::copy(&mut stream, &mut file).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut file).await.unwrap();
        let list = |path: &Path| {
            Command::new("tar")
                .args(["--numeric-owner", "-tvf"])
                .arg(path)
                .run()
        };
        assert_eq!(list(&ours), list(&archive));
        assert!(list(&ours).contains("5/6"), "{}", list(&ours));
    }
}
each_set!(newer async owners_mapped_by_a_mount_are_recorded_as_they_do: "containers-storage");

async fn containers_of_older_programs_have_their_mappings_in_their_own_record(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    put_ours(&store, "base", None).await;
    let image = ImageOptions::default().name("image");
    store.create_image(Some("base"), image).await.unwrap();
    root.go()
        .with(["create-container", "--id", "theirs", "--uidmap", MAPPED])
        .with(["--gidmap", MAPPED, "image"])
        .run();
    let container = store.container("theirs").await.unwrap();
    assert_eq!(container.uid_map(), [IdMap::new(0, 100_000, 65_536)]);
    let layer = store.layer(container.layer_id()).await.unwrap();
    assert_eq!(layer.uid_map().is_empty(), !knows_lower_layers(set));
    let path = store.mount("theirs", Default::default()).await.unwrap();
    fs::write(path.join("new"), "x").unwrap();
    std::os::unix::fs::chown(path.join("new"), Some(100_005), Some(100_006)).unwrap();
    let owners = store.container_parent_owners("theirs").await.unwrap();
    assert_eq!((owners.uids, owners.gids), (vec![0], vec![0]));
    store.unmount("theirs").await.unwrap();
    let file = root.scratch("diffs").join("theirs");
    let mut stream = store.diff(None, layer.id(), Default::default()).await.unwrap();
    let mut tar = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut tar)
        .await
        .unwrap();
    fs::write(&file, tar).unwrap();
    let listed = Command::new("tar")
        .args(["--numeric-owner", "-tvf"])
        .arg(&file)
        .run();
    assert!(listed.contains(" 5/6 "), "{listed}");
}
each_set!(async containers_of_older_programs_have_their_mappings_in_their_own_record: "containers-storage");
