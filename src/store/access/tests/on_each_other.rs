//! Steps of one batch that act on what others of it have made and not saved yet.

use std::sync::mpsc;

use futures::FutureExt as _;
use tokio::task::JoinHandle;

use crate::error::Result;
use crate::options::{ContainerOptions, ImageOptions, LayerOptions};
use crate::store::Store;
use crate::store::access::tests::{create_images, open, until_waiting};
use crate::store::access::{Batch, Held, Needs};
use crate::store::delete::delete_container;

/// What every step here can run beside.
fn all() -> Needs {
    Needs::CONTAINER_ON_IMAGE.union(Needs::ALL)
}

fn container(id: &str, layer: &str) -> ContainerOptions {
    let mut options = ContainerOptions::default().id(id);
    options.layer_id = Some(layer.into());
    options
}

/// A store whose files of records are there.
async fn open_used(root: &std::path::Path) -> Store {
    let store = open(root).await;
    create_images(&store, &["first".to_owned()]).await;
    let first = store
        .create_container(None, ContainerOptions::default().id("first"))
        .await;
    drop(first.unwrap());
    store
}

async fn beside<T: Send + 'static, F>(
    store: &Store,
    before: usize,
    step: impl FnOnce(Batch) -> F + Send + 'static,
) -> JoinHandle<Result<T>>
where
    F: Future<Output = Result<T>> + 'static,
{
    let other = store.clone();
    let running = tokio::spawn(async move { other.in_batch(all(), step).await });
    until_waiting(store, before + 1).await;
    running
}

#[tokio::test]
async fn a_container_on_an_image_that_cannot_be_saved_is_no_success() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open_used(tmp.path()).await;
    let path = tmp.path().join("graph/vfs-images/images.json");
    let held = store.inner.images.write().await.unwrap();
    let broken = beside(&store, 0, async move |batch: Batch| {
        let text = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("full")).unwrap();
        let saved = batch.save().await;
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        saved
    });
    let broken = broken.await;
    let other = store.clone();
    let options = ImageOptions::default().name("image");
    let image = tokio::spawn(async move { other.create_image(None, options).await });
    until_waiting(&store, 2).await;
    let other = store.clone();
    let options = ContainerOptions::default().id("on-it");
    let container = tokio::spawn(async move { other.create_container(Some("image"), options).await });
    until_waiting(&store, 3).await;
    drop(held);
    broken.await.unwrap().unwrap();
    image.await.unwrap().unwrap_err();
    container.await.unwrap().unwrap_err();
    assert!(!store.exists("on-it").await.unwrap());
}

#[tokio::test]
async fn a_container_is_deleted_when_it_is_complete() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open_used(tmp.path()).await;
    let layers = tmp.path().join("graph/vfs-layers/layers.json");
    let containers = tmp.path().join("graph/vfs-containers/containers.json");
    let held = store.inner.images.write().await.unwrap();
    let looks = beside(&store, 0, async move |batch: Batch| {
        let mut seen = Vec::new();
        for _ in 0..12 {
            batch.save().await?;
            let read = |path| std::fs::read_to_string(path).unwrap();
            seen.push((read(&layers), read(&containers)));
        }
        Ok(seen)
    });
    let looks = looks.await;
    let other = store.clone();
    let created =
        tokio::spawn(async move { other.create_container(None, container("new", "its-layer")).await });
    until_waiting(&store, 2).await;
    let dirs = store.inner.dirs.clone();
    let deleted = beside(&store, 2, async move |batch: Batch| {
        // The record of the container is there by then, and not saved.
        batch.save().await?;
        batch.save().await?;
        delete_container(&batch, &dirs, "new").await
    });
    let deleted = deleted.await;
    drop(held);
    let seen = looks.await.unwrap().unwrap();
    drop(created.await.unwrap().unwrap());
    deleted.await.unwrap().unwrap();
    for (layers, containers) in &seen {
        let rows: Vec<serde_json::Value> = serde_json::from_str(layers).unwrap();
        let Some(layer) = rows.iter().find(|row| row["id"] == "its-layer") else {
            continue;
        };
        let marked = layer
            .get("flags")
            .is_some_and(|flags| !flags.as_object().unwrap().is_empty());
        assert!(
            marked || containers.contains("\"new\""),
            "a process that is killed here leaves the layer"
        );
    }
    assert!(!store.exists("its-layer").await.unwrap());
}

#[tokio::test]
async fn no_layer_is_planned_on_that_of_a_container_in_the_making() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open_used(tmp.path()).await;
    // Readers that come while a writer has the tables, so that they do not wait from then on.
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let writer = store.clone();
    let step = tokio::spawn(async move {
        let wait = move |_held: &mut Held| {
            begin.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        };
        writer.step(all(), wait).await
    });
    begun.await.unwrap();
    let mut layers = Box::pin(store.unlocked_layers());
    let mut containers = Box::pin(store.containers());
    assert!(futures::poll!(&mut layers).is_pending());
    assert!(futures::poll!(&mut containers).is_pending());
    release.send(()).unwrap();
    step.await.unwrap().unwrap();
    drop((layers.await.unwrap(), containers.await.unwrap()));

    let held = store.inner.images.write().await.unwrap();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let stops = beside(&store, 0, async move |batch: Batch| {
        batch.save().await?;
        batch.save().await?;
        begin.send(()).unwrap();
        released.recv().unwrap();
        Ok(())
    });
    let stops = stops.await;
    let other = store.clone();
    let created =
        tokio::spawn(async move { other.create_container(None, container("new", "its-layer")).await });
    until_waiting(&store, 2).await;
    drop(held);
    begun.await.unwrap();
    // The layer is complete, and the record of the container is not saved.
    let options = LayerOptions::default();
    let plan = store.plan_layer(Some("its-layer"), &options);
    plan.now_or_never().unwrap().unwrap_err();
    release.send(()).unwrap();
    stops.await.unwrap().unwrap();
    drop(created.await.unwrap().unwrap());
}
