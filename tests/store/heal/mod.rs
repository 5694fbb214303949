//! Damaged and missing layers of images are made anew in place; what stands on them stays.

mod damages;
mod drivers;
mod left;
mod sources;

pub(crate) use sources::Liar;

use std::path::{Path, PathBuf};

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{ContainerOptions, HealOptions, HealReport, HealSource, Image, ImageBuilder, Store};

use crate::manifest::{Manifest, assert_same, layer_manifest};
use crate::support::{Layout, TestStore, place_of, tree_of, writable};

/// Which of the layers is damaged.
const MIDDLE: usize = 2;

/// Five layers; the one in the middle has something of every kind, and changes what is below it.
fn layers() -> Vec<Vec<u8>> {
    let middle = TarBuilder::new()
        .entry(TarEntry::dir("dir/").mode(0o2750))
        .entry(TarEntry::file("dir/one", "one").xattr("user.note", "kept"))
        .file("dir/two", vec![7; 300_000])
        .file("dir/empty", "")
        .entry(TarEntry::dir("sub/"))
        .entry(TarEntry::dir("sub/deep/"))
        .file("sub/deep/file", "deep")
        .symlink("link", "dir/one")
        .hard_link("hard", "dir/two")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::file("set-id", "x").mode(0o4755))
        .entry(TarEntry::whiteout("gone"))
        .entry(TarEntry::dir("emptied/"))
        .entry(TarEntry::opaque("emptied"))
        .file("emptied/new", "new")
        .build();
    let one = |name: &str| {
        TarBuilder::new()
            .entry(TarEntry::dir("shared/"))
            .file(format!("shared/{name}"), name)
            .build()
    };
    let lowest = TarBuilder::new()
        .file("gone", "hidden by the middle")
        .entry(TarEntry::dir("emptied/"))
        .file("emptied/old", "old")
        .entry(TarEntry::dir("dir/"))
        .file("dir/below", "below")
        .build();
    vec![lowest, one("second"), middle, one("fourth"), one("fifth")]
}

struct Five {
    layers: Vec<String>,
    image: Image,
    /// A container that is mounted, and one that is not.
    containers: [String; 2],
}

async fn put(store: &Store) -> (Vec<String>, Image) {
    let mut ids: Vec<String> = Vec::new();
    for tar in layers() {
        let parent = ids.last().map(String::as_str);
        let layer = store.put_image_layer(parent, std::io::Cursor::new(tar)).await;
        ids.push(layer.unwrap().id().to_owned());
    }
    let image = ImageBuilder::new()
        .top_layer(ids[4].clone())
        .name("localhost/five:1");
    // In every store the same.
    let image = image.created(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000));
    let image = image.build(store).await.unwrap();
    (ids, image)
}

async fn fill(store: &TestStore) -> Five {
    let (layers, image) = put(store).await;
    let mut containers = Vec::new();
    for name in ["mounted", "resting"] {
        let options = ContainerOptions::default().name(name);
        let container = store.create_container(Some(image.id()), options).await.unwrap();
        containers.push(container.id().to_owned());
    }
    Five {
        layers,
        image,
        containers: containers.try_into().unwrap(),
    }
}

/// Another store with the same image.
async fn healthy_like(store: &TestStore) -> TestStore {
    let other = TestStore::open(store.graph_driver_name(), Layout::Plain)
        .await
        .unwrap();
    put(&other).await;
    other
}

/// Everything in a tree; the root of one was made when the layer was.
fn files(tree: &Path) -> Manifest {
    let mut files = layer_manifest(tree);
    for (path, entry) in &mut files {
        // What stands for a deletion has the time at which it was made.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if entry.device == Some((0, 0)) || name.starts_with(".wh.") {
            entry.mtime = (0, 0);
        }
    }
    files
}

/// What there is of an image: trees, and what containers show.
struct State {
    trees: Vec<Manifest>,
    shown: Vec<Manifest>,
    names: Vec<Vec<String>>,
}

fn trees(store: &TestStore, layers: &[String]) -> Vec<Manifest> {
    layers.iter().map(|id| files(&tree_of(store, id))).collect()
}

async fn state(store: &TestStore, five: &Five) -> State {
    let mut shown = Vec::new();
    for container in &five.containers {
        let mount = store.mount_guard(container, Default::default()).await.unwrap();
        shown.push(files(&mount));
        mount.unmount().await.unwrap();
    }
    let names = |container: &graphroot::Container| container.names().to_vec();
    State {
        trees: trees(store, &five.layers),
        shown,
        names: store.containers().await.unwrap().iter().map(names).collect(),
    }
}

#[track_caller]
fn assert_same_trees(name: &str, before: &[Manifest], after: &[Manifest]) {
    assert_eq!(before.len(), after.len(), "{name}");
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        assert_same(
            "before",
            before,
            &format!("{name}: layer {index} afterwards"),
            after,
        );
    }
}

#[track_caller]
fn assert_as_before(name: &str, before: &State, after: &State) {
    assert_same_trees(name, &before.trees, &after.trees);
    for (before, after) in before.shown.iter().zip(&after.shown) {
        assert_same(
            "before",
            before,
            &format!("{name}: a container afterwards"),
            after,
        );
    }
    assert_eq!(before.names, after.names, "{name}");
}

fn overwrite(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

fn tar_split(store: &TestStore, id: &str) -> PathBuf {
    store.records("layers").join(format!("{id}.tar-split.gz"))
}

/// The tree of a layer, in which everybody who runs the tests can change something.
fn open_tree(store: &TestStore, id: &str) -> PathBuf {
    writable(tree_of(store, id))
}

async fn heal(store: &TestStore, source: impl HealSource + 'static) -> HealReport {
    store.heal(HealOptions::default().source(source)).await.unwrap()
}
