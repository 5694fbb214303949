//! Drivers that a program brings.

mod choice;
mod doubles;
mod failures;
mod kills;
mod promises;

use std::io::Cursor;
use std::path::Path;

use graphroot::test_util::TarBuilder;
use graphroot::{ContainerOptions, Durability, ImageOptions, MountOptions, Result, Store, StoreOptions};

fn options(root: &Path) -> StoreOptions {
    StoreOptions::new(root.join("graph"), root.join("run")).durability(Durability::None)
}

fn tar(files: &[(&str, &str)]) -> Cursor<Vec<u8>> {
    let mut tar = TarBuilder::new();
    for (name, content) in files {
        tar = tar.file(name, content);
    }
    Cursor::new(tar.build())
}

/// What a program does with a store, one call after the other.
const STEPS: usize = 11;

/// One of its steps. What an earlier one was to make may be missing.
async fn step(store: &Store, number: usize) -> Result<()> {
    let named = |name: &str| graphroot::LayerOptions::default().name(name);
    match number {
        0 => drop(
            store
                .put_layer(None, named("base"), tar(&[("file", "base"), ("old", "base")]))
                .await?,
        ),
        1 => {
            let child = tar(&[("file", "child"), (".wh.old", "")]);
            drop(store.put_layer(Some("base"), named("child"), child).await?);
        }
        2 => drop(
            store
                .create_image(Some("child"), ImageOptions::default().name("image"))
                .await?,
        ),
        3 => drop(
            store
                .create_container(Some("image"), ContainerOptions::default().name("box"))
                .await?,
        ),
        4 => {
            let root = store.mount("box", MountOptions::default()).await?;
            std::fs::write(root.join("written"), "container").unwrap();
            store.unmount("box").await?;
        }
        5 => drop(
            store
                .changes(None, store.container("box").await?.layer_id())
                .await?,
        ),
        6 => drop(store.create_layer(None, named("other")).await?),
        7 => drop(store.apply_diff("other", tar(&[("applied", "1")])).await?),
        8 => store.delete_container("box").await?,
        9 => drop(store.delete_image("image").await?),
        _ => store.delete_layer("other").await?,
    }
    Ok(())
}

/// Names of what is in a store, with the files that layers show.
async fn state(store: &Store, graph: &Path) -> Vec<String> {
    let mut state = Vec::new();
    for layer in store.layers().await.unwrap() {
        let tree = graph.join(store.graph_driver_name()).join("dir").join(layer.id());
        let mut files: Vec<String> = std::fs::read_dir(tree)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let content = std::fs::read_to_string(entry.path()).unwrap();
                format!("{:?} {content}", entry.file_name())
            })
            .collect();
        files.sort();
        state.push(format!("layer {:?} {files:?}", layer.names()));
    }
    for image in store.images().await.unwrap() {
        state.push(format!("image {:?}", image.names()));
    }
    for container in store.containers().await.unwrap() {
        state.push(format!("container {:?}", container.names()));
    }
    state
}

/// How many trees there are, and how many temporary directories.
fn trees(graph: &Path, driver: &str) -> (usize, usize) {
    let count = |name: &str| {
        let dir = graph.join(driver).join(name);
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    (count("dir"), count("tempdirs"))
}

/// The states between the steps, where no driver fails.
async fn sound_states() -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let driver = doubles::Faulty::after(usize::MAX, doubles::Fault::Error);
    let store = Store::open(options(dir.path()).tree_driver(driver))
        .await
        .unwrap();
    let mut states = vec![Vec::new()];
    for number in 0..STEPS {
        step(&store, number).await.unwrap();
        states.push(state(&store, &dir.path().join("graph")).await);
    }
    assert_eq!(states[STEPS], [""; 0]);
    states
}
