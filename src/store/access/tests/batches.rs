//! What steps of a batch share, and what one that fails does to the others.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::lock::peer::Peer;
use crate::options::{ImageOptions, StoreOptions};
use crate::store::access::tests::{
    append, change, create_images, metadata, numbered, open, open_with, until_waiting,
};
use crate::store::access::{Batch, Needs};

#[tokio::test]
async fn steps_that_wait_together_share_their_saves() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(20);
    create_images(&store, &ids).await;
    let held = store.inner.images.write().await.unwrap();
    let running = ids
        .iter()
        .map(|id| tokio::spawn(append(store.clone(), id.clone())));
    let running: Vec<_> = running.collect();
    until_waiting(&store, ids.len()).await;
    let before = store.inner.images.saves();
    drop(held);
    for task in running {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.inner.images.saves() - before, 2);
    for id in &ids {
        assert_eq!(metadata(&store, id).await, "ab");
    }
}

#[tokio::test]
async fn a_step_that_fails_undoes_its_own_changes_only() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(3);
    create_images(&store, &ids).await;
    let failing = |id: String, saves: bool| {
        let store = store.clone();
        tokio::spawn(async move {
            let step = async move |batch: Batch| {
                change(&batch, &id, "kept")?;
                if saves {
                    batch.save().await?;
                }
                change(&batch, &id, "lost")?;
                Err::<(), _>(ErrorKind::Cancelled.err("test"))
            };
            store.in_batch(Needs::IMAGES, step).await
        })
    };
    let held = store.inner.images.write().await.unwrap();
    let good = tokio::spawn(append(store.clone(), ids[0].clone()));
    let bad = [failing(ids[1].clone(), false), failing(ids[2].clone(), true)];
    until_waiting(&store, 3).await;
    drop(held);
    good.await.unwrap().unwrap();
    for task in bad {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
    for (id, expected) in ids.iter().zip(["ab", "", "kept"]) {
        assert_eq!(metadata(&store, id).await, expected);
    }
    // The file says the same.
    let other = store.inner.images.clone();
    let text = std::fs::read_to_string(tmp.path().join("graph/vfs-images/images.json")).unwrap();
    assert!(
        text.contains("\"ab\"") && text.contains("\"kept\"") && !text.contains("lost"),
        "{text}"
    );
    drop(other);
}

#[tokio::test]
async fn a_save_that_fails_is_reported_to_all_who_have_changed_the_file() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(2);
    create_images(&store, &ids).await;
    let file = tmp.path().join("graph/vfs-images/images.json");
    let text = std::fs::read(&file).unwrap();
    let held = store.inner.images.write().await.unwrap();
    let bad = ids
        .iter()
        .map(|id| tokio::spawn(append(store.clone(), id.clone())));
    let bad: Vec<_> = bad.collect();
    let reader = store.clone();
    let good = tokio::spawn(async move { reader.step(Needs::IMAGES, |held| Ok(held.images()?.len())).await });
    until_waiting(&store, 3).await;
    // It cannot be replaced by a file.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir_all(file.join("full")).unwrap();
    drop(held);
    for task in bad {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.path(), Some(file.as_path()), "{error:?}");
    }
    assert_eq!(good.await.unwrap().unwrap(), 2);
    std::fs::remove_dir_all(&file).unwrap();
    std::fs::write(&file, text).unwrap();
    assert_eq!(metadata(&store, &ids[0]).await, "");
    append(store.clone(), ids[0].clone()).await.unwrap();
    assert_eq!(metadata(&store, &ids[0]).await, "ab");
}

#[tokio::test]
async fn a_panic_reaches_its_caller_and_the_store_goes_on() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(1);
    create_images(&store, &ids).await;
    let (one, id) = (store.clone(), ids[0].clone());
    let panics = tokio::spawn(async move {
        let step = async move |batch: Batch| {
            change(&batch, &id, "lost")?;
            panic!("on purpose");
        };
        one.in_batch::<(), _>(Needs::IMAGES, step).await
    });
    let payload = panics.await.unwrap_err().into_panic();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
    append(store.clone(), ids[0].clone()).await.unwrap();
    assert_eq!(metadata(&store, &ids[0]).await, "ab");
}

/// A runtime whose pool has one thread only.
fn small_runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.max_blocking_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_busy_pool_delays_no_other_runtime_and_keeps_no_lock() {
    let tmp = tempfile::tempdir().unwrap();
    let (busy, other) = (small_runtime(), small_runtime());
    let store = other.block_on(open(tmp.path()));
    let ids = numbered(2);
    other.block_on(create_images(&store, &ids));
    let (release, wait) = mpsc::channel::<()>();
    let blocked = busy.spawn_blocking(move || wait.recv().ok());
    let mut first = Box::pin(append(store.clone(), ids[0].clone()));
    let pending = busy.block_on(async { futures::poll!(&mut first) });
    assert!(matches!(pending, Poll::Pending));
    let Some(mut peer) = Peer::start() else { return };
    let lock = tmp.path().join("graph/vfs-images/images.lock");
    assert!(peer.try_exclusive(&lock), "nobody holds it");
    peer.unlock(&lock);
    other.block_on(append(store.clone(), ids[1].clone())).unwrap();
    drop(release);
    busy.block_on(first).unwrap();
    busy.block_on(blocked).unwrap();
    for id in &ids {
        assert_eq!(other.block_on(metadata(&store, id)), "ab");
    }
}

#[tokio::test]
async fn a_lock_that_another_process_holds_delays_only_those_who_need_it() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let soon = |options: StoreOptions| options.lock_timeout(Duration::from_millis(200));
    let store = open_with(tmp.path(), soon).await;
    let ids = numbered(1);
    create_images(&store, &ids).await;
    let lock = tmp.path().join("graph/vfs-images/images.lock");
    assert!(peer.try_exclusive(&lock));
    let mut waits = Box::pin(append(store.clone(), ids[0].clone()));
    assert!(futures::poll!(&mut waits).is_pending());
    let number = store
        .step(Needs::CONTAINERS, |held| Ok(held.containers()?.len()))
        .await;
    assert_eq!(number.unwrap(), 0);
    store
        .step(Needs::LAYERS, |held| held.layers().map(drop))
        .await
        .unwrap();
    let error = waits.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout, "{error:?}");
    let mut waits = Box::pin(append(store.clone(), ids[0].clone()));
    assert!(futures::poll!(&mut waits).is_pending());
    peer.unlock(&lock);
    waits.await.unwrap();
    assert_eq!(metadata(&store, &ids[0]).await, "ab");
}

#[tokio::test]
async fn a_step_that_is_dropped_before_it_begins_never_does() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let held = store.inner.images.write().await.unwrap();
    let begun = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&begun);
    let mut dropped = Box::pin(store.step(Needs::IMAGES, move |_held| {
        seen.store(true, Ordering::Relaxed);
        Ok(())
    }));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    assert_eq!(store.writers.waiting(), 0);
    drop(held);
    store.step(Needs::IMAGES, |_held| Ok(())).await.unwrap();
    assert!(!begun.load(Ordering::Relaxed));
}

/// A process that waits for a lock gets it although tasks of this one want it all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_waits_gets_its_turn() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(8);
    create_images(&store, &ids).await;
    let stop = Arc::new(AtomicBool::new(false));
    let busy = ids.iter().map(|id| {
        let (store, id, stop) = (store.clone(), id.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                append(store.clone(), id.clone()).await.unwrap();
            }
        })
    });
    let busy: Vec<_> = busy.collect();
    let lock = tmp.path().join("graph/vfs-images/images.lock");
    for _ in 0..20 {
        let before = store.inner.images.saves();
        // Its answer comes when it has had the lock.
        let answer = peer.eval(&format!("(lock({lock:?}, fcntl.LOCK_EX), unlock({lock:?}))"));
        assert_eq!(answer, "('locked', 'unlocked')");
        let saves = store.inner.images.saves() - before;
        assert!(saves < 1000, "{saves} saves came before it");
    }
    stop.store(true, Ordering::Relaxed);
    for task in busy {
        task.await.unwrap();
    }
}

fn break_file(file: &Path) -> Vec<u8> {
    let text = std::fs::read(file).unwrap();
    std::fs::remove_file(file).unwrap();
    std::fs::create_dir_all(file.join("full")).unwrap();
    text
}

fn mend_file(file: &Path, text: &[u8]) {
    std::fs::remove_dir_all(file).unwrap();
    std::fs::write(file, text).unwrap();
}

#[tokio::test]
async fn a_failed_save_in_the_middle_of_a_step_is_no_success_for_others() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(2);
    create_images(&store, &ids).await;
    let file = tmp.path().join("graph/vfs-images/images.json");
    let held = store.inner.images.write().await.unwrap();
    let good = tokio::spawn(append(store.clone(), ids[0].clone()));
    until_waiting(&store, 1).await;
    let (other, id, path) = (store.clone(), ids[1].clone(), file.clone());
    let bad = tokio::spawn(async move {
        other
            .step(Needs::IMAGES, move |held| {
                let images = held.images()?;
                images.table_mut().update(&id, |row| row.metadata.push('x'))?;
                let text = break_file(&path);
                let saved = images.save();
                mend_file(&path, &text);
                saved
            })
            .await
    });
    until_waiting(&store, 2).await;
    drop(held);
    let good = good.await.unwrap();
    assert!(bad.await.unwrap().is_err());
    let text = metadata(&store, &ids[0]).await;
    assert!(good.is_err() || text == "ab", "{good:?} {text:?}");
}

#[tokio::test]
async fn what_another_step_has_saved_is_there_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let ids = numbered(2);
    create_images(&store, &ids).await;
    let file = tmp.path().join("graph/vfs-images/images.json");
    let kept: Arc<std::sync::Mutex<Vec<u8>>> = Arc::default();
    let held = store.inner.images.write().await.unwrap();
    let (one, path, text) = (store.clone(), file.clone(), Arc::clone(&kept));
    let mender = tokio::spawn(async move {
        let step = async move |batch: Batch| {
            batch.save().await?;
            mend_file(&path, &text.lock().unwrap());
            Ok(())
        };
        one.in_batch(Needs::IMAGES, step).await
    });
    until_waiting(&store, 1).await;
    let two = store.clone();
    let created = tokio::spawn(async move {
        let options = ImageOptions::default()
            .name("fresh")
            .big_data("item", b"data".to_vec());
        two.create_image(None, options).await
    });
    until_waiting(&store, 2).await;
    let (three, id, path, text) = (store.clone(), ids[1].clone(), file.clone(), Arc::clone(&kept));
    let bad = tokio::spawn(async move {
        three
            .step(Needs::IMAGES, move |held| {
                let images = held.images()?;
                images.table_mut().update(&id, |row| row.metadata.push('x'))?;
                images.save()?;
                images.table_mut().update(&id, |row| row.metadata.push('y'))?;
                *text.lock().unwrap() = break_file(&path);
                Ok(())
            })
            .await
    });
    until_waiting(&store, 3).await;
    drop(held);
    drop(mender.await.unwrap());
    assert!(bad.await.unwrap().is_err());
    let created = created.await.unwrap();
    let found = store.image("fresh").await;
    let data = store.image_big_data("fresh", "item").await;
    assert!(
        found.is_err() || data.is_ok(),
        "created {:?}, found {:?}, data {data:?}",
        created.is_ok(),
        found.is_ok()
    );
}
