//! Work that steps of a batch have done beside each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::access::tests::{change, create_images, metadata, numbered, open, until_waiting};
use crate::store::access::{Batch, Needs};

/// Works on a layer that it claims, and appends to an image then.
async fn work(
    store: Store,
    layer: &str,
    image: String,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let layer = layer.to_owned();
    let step = async move |batch: Batch| {
        let (_claim, ()) = batch.claim(|_held| Ok((layer.clone(), ()))).await?;
        batch.work(work).await?;
        change(&batch, &image, "a")?;
        batch.save().await
    };
    store.in_batch(Needs::IMAGES, step).await
}

#[tokio::test]
async fn steps_work_beside_each_other_and_save_once() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(3);
    create_images(&store, &ids).await;
    let held = store.inner.images.write().await.unwrap();
    // None gets on before the others have begun.
    let all = Arc::new(Barrier::new(ids.len()));
    let steps = ids.iter().enumerate().map(|(number, id)| {
        let all = Arc::clone(&all);
        let wait = move || {
            all.wait();
            Ok(())
        };
        let store = store.clone();
        let id = id.clone();
        tokio::spawn(async move { work(store, &format!("layer-{number}"), id, wait).await })
    });
    let steps: Vec<_> = steps.collect();
    until_waiting(&store, ids.len()).await;
    // That is the thread that gets the locks then. Threads of the runtime's pool help it too.
    while !store.writers.has_waiting_thread() {
        tokio::task::yield_now().await;
    }
    let saves = store.inner.images.saves();
    drop(held);
    for step in steps {
        step.await.unwrap().unwrap();
    }
    assert_eq!(store.inner.images.saves(), saves + 1);
    for id in &ids {
        assert_eq!(metadata(&store, id).await, "a");
    }
}

#[tokio::test]
async fn one_step_at_a_time_works_on_a_layer() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(6);
    create_images(&store, &ids).await;
    let held = store.inner.images.write().await.unwrap();
    let (busy, alone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let steps = ids.iter().map(|id| {
        let (busy, alone) = (Arc::clone(&busy), Arc::clone(&alone));
        let check = move || {
            if busy.swap(true, Ordering::SeqCst) {
                alone.store(false, Ordering::SeqCst);
            }
            std::thread::yield_now();
            busy.store(false, Ordering::SeqCst);
            Ok(())
        };
        let (store, id) = (store.clone(), id.clone());
        tokio::spawn(async move { work(store, "layer", id, check).await })
    });
    let steps: Vec<_> = steps.collect();
    until_waiting(&store, ids.len()).await;
    drop(held);
    for step in steps {
        step.await.unwrap().unwrap();
    }
    assert!(alone.load(Ordering::SeqCst));
}

#[tokio::test]
async fn work_that_fails_or_panics_concerns_its_step_and_frees_the_layer() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(1);
    create_images(&store, &ids).await;
    let fail = || Err(ErrorKind::Io.err("refused"));
    let failed = work(store.clone(), "layer", ids[0].clone(), fail).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
    let panics = || panic!("on purpose");
    let panicked = tokio::spawn(work(store.clone(), "layer", ids[0].clone(), panics)).await;
    assert!(panicked.unwrap_err().is_panic());
    work(store.clone(), "layer", ids[0].clone(), || Ok(()))
        .await
        .unwrap();
    assert_eq!(metadata(&store, &ids[0]).await, "a");
}
