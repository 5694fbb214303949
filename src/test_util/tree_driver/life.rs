//! The life of layers in a store.

use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;

use crate::archive::diff::changes::{Change, ChangeKind};
use crate::bridge;
use crate::compression::Compression;
use crate::error::Result;
use crate::idmap::{IdMap, IdMappings};
use crate::options::{
    CheckOptions, ContainerOptions, DiffOptions, Durability, ImageOptions, MountOptions, StoreOptions,
};
use crate::store::Store;
use crate::sys::privilege;
use crate::test_util::tar::{TarBuilder, TarEntry};
use crate::test_util::tree_driver::bed::{Fault, ensure, write};
use crate::tree_driver::TreeDriver;

/// The second of the drivers is that of another process.
pub(super) async fn life_of_a_layer(
    drivers: [Arc<dyn TreeDriver>; 2],
    directory: &Path,
) -> Result<(), Fault> {
    let [driver, other] = drivers;
    let options = |driver| {
        let options = StoreOptions::new(directory.join("graph"), directory.join("run"));
        let options = options.tree_driver(driver).durability(Durability::None);
        match privilege::is_root() {
            true => options,
            false => options.id_mappings(mine()),
        }
    };
    let store = Store::open(options(driver)).await?;
    let base = TarBuilder::new()
        .entry(TarEntry::dir("d").mode(0o755))
        .file("d/changed", "base")
        .file("d/deleted", "base")
        .file("kept", "base")
        .build();
    let base = store.put_image_layer(None, std::io::Cursor::new(base)).await?;
    let tar = TarBuilder::new()
        .file("d/changed", "child")
        .file("d/.wh.deleted", "")
        .build();
    let child = store
        .put_image_layer(Some(base.id()), std::io::Cursor::new(tar.clone()))
        .await?;
    let mut diff = Vec::new();
    let uncompressed = DiffOptions::default().compression(Compression::None);
    let mut stream = store.diff(None, child.id(), uncompressed).await?;
    stream.read_to_end(&mut diff).await?;
    drop(stream);
    ensure(diff == tar, || {
        "a layer's diff is not the stream that was put".to_owned()
    })?;

    let image = store
        .create_image(Some(child.id()), ImageOptions::default())
        .await?;
    let container = store
        .create_container(Some(image.id()), ContainerOptions::default())
        .await?;
    let root = store.mount(container.id(), MountOptions::default()).await?;
    let used = move || {
        let read = std::fs::read_to_string(root.join("d/changed"));
        let is_there = root.join("d/deleted").exists();
        let written = write(&root, "d/new", "container");
        Ok((read, is_there, written))
    };
    let (read, is_there, written) = bridge::run(used).await?;
    ensure(
        read.as_ref().is_ok_and(|read| read == "child") && !is_there,
        || {
            format!(
                "a container sees {read:?} where the image has \"child\"; a deleted file is there: {is_there}"
            )
        },
    )?;
    written?;
    let changes = store.changes(None, container.layer_id()).await?;
    let is_new = |change: &Change| change.kind == ChangeKind::Add && change.path.ends_with("d/new");
    ensure(changes.iter().any(is_new), || {
        format!("the changes of a container are {changes:?}")
    })?;
    store.unmount(container.id()).await?;

    // As another process finds it.
    store.free();
    let store = Store::open(options(other)).await?;
    let report = store.check(CheckOptions::everything()).await?;
    ensure(report.is_clean(), || format!("check finds {report:?}"))?;
    store.delete_container(container.id()).await?;
    store.delete_image(image.id()).await?;
    ensure(store.layers().await?.is_empty(), || "layers are left".to_owned())?;
    store.shutdown().await?;
    let trees = directory.join("graph").join(store.graph_driver_name());
    store.free();
    let left = bridge::run(move || {
        let count = |name: &str| std::fs::read_dir(trees.join(name)).map_or(0, Iterator::count);
        Ok(count("dir") + count("tempdirs"))
    });
    let left = left.await?;
    ensure(left == 0, || format!("{left} entries are left of deleted layers"))
}

/// Maps container root to this user.
fn mine() -> IdMappings {
    let me = privilege::effective_owner();
    IdMappings {
        uids: vec![IdMap::new(0, me.uid, 1)],
        gids: vec![IdMap::new(0, me.gid, 1)],
    }
}
