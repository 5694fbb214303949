//! Drivers of which a call goes wrong.

use std::sync::Arc;

use graphroot::{CheckOptions, ContainerOptions, ErrorKind, Store, TreeDriver};
use rustix::io::Errno;

use crate::tree_drivers::doubles::{Bombs, Fault, Faulty, Linking, Stuck};
use crate::tree_drivers::{STEPS, options, sound_states, state, step, tar, trees};

/// The first step that deletes something.
const DELETIONS: usize = 8;

/// No driver is called so often by one step.
const MAX_CALLS: usize = 100;

/// Has each call of each step go wrong once. The step fails, with an error that names the driver, and the store is as it was; or
/// what went wrong is made good by the next opening.
async fn each_call_once(fault: Fault) {
    let sound = sound_states().await;
    let healthy = || -> Arc<dyn TreeDriver> { Faulty::after(usize::MAX, Fault::Error) };
    let least = if fault == Fault::Lie { 3 } else { 12 };
    let (mut failed, mut struck) = (0, 0);
    for number in 0..STEPS {
        for calls in 0..MAX_CALLS {
            let dir = tempfile::tempdir().unwrap();
            let graph = dir.path().join("graph");
            let store = Store::open(options(dir.path()).tree_driver(healthy()))
                .await
                .unwrap();
            for number in 0..number {
                step(&store, number).await.unwrap();
            }
            store.free();

            let driver = Faulty::after(calls, fault);
            let bad = options(dir.path()).tree_driver(Arc::clone(&driver) as Arc<dyn TreeDriver>);
            let store = Store::open(bad).await.unwrap();
            let done = step(&store, number).await;
            let what = format!("step {number}, call {calls}, {fault:?}: {done:?}");
            store.free();
            drop(store);

            let store = Store::open(options(dir.path()).tree_driver(healthy()))
                .await
                .unwrap();
            let found = state(&store, &graph).await;
            match &done {
                Err(error) => {
                    failed += 1;
                    let text = error.chain();
                    assert!(text.contains("\"faulty\""), "{what}: {text}");
                    assert!(fault == Fault::Lie || text.contains("injected"), "{what}: {text}");
                    assert_eq!(error.kind(), ErrorKind::Io, "{what}");
                    // A deletion that fails goes on with the next user of the store.
                    let is_after = number >= DELETIONS && found == sound[number + 1];
                    assert!(is_after || found == sound[number], "{what}: {found:?}");
                }
                Ok(()) => assert_eq!(found, sound[number + 1], "{what}"),
            }
            let report = store.check(CheckOptions::everything()).await.unwrap();
            assert!(report.is_clean(), "{what}: {report:?}");
            let layers = store.layers().await.unwrap().len();
            assert_eq!(trees(&graph, "faulty"), (layers, 0), "{what}");
            store.free();
            if !driver.has_struck() {
                break;
            }
            struck += 1;
            assert!(calls + 1 < MAX_CALLS, "{what}");
        }
    }
    assert!(struck > 25 && failed > least, "{struck} calls, {failed} failures");
}

#[tokio::test]
async fn an_error_of_any_call_leaves_the_store_as_it_was() {
    each_call_once(Fault::Error).await;
}

#[tokio::test]
async fn a_panic_of_any_call_leaves_the_store_as_it_was() {
    each_call_once(Fault::Panic).await;
}

#[tokio::test]
async fn half_of_any_call_leaves_the_store_as_it_was() {
    each_call_once(Fault::Half).await;
}

#[tokio::test]
async fn a_call_that_does_nothing_leaves_the_store_as_it_was() {
    each_call_once(Fault::Lie).await;
}

/// A tree that cannot be detached keeps nobody from the others, whatever the driver says of it: also an error that would be one of
/// a full disk if it were of the store's own.
#[tokio::test]
async fn a_tree_that_cannot_be_detached_is_left_behind() {
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::IO, Errno::BUSY] {
        let (dir, driver) = (tempfile::tempdir().unwrap(), Arc::new(Stuck::default()));
        let graph = dir.path().join("graph");
        let store = Store::open(options(dir.path()).tree_driver(Arc::clone(&driver) as _))
            .await
            .unwrap();
        for number in 0..4 {
            step(&store, number).await.unwrap();
        }
        let layer = store.container("box").await.unwrap().layer_id().to_owned();
        *driver.tree.lock().unwrap() = Some((layer.clone(), errno));
        let error = store.delete_container("box").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{errno}: {error:?}");
        assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error:?}");
        let text = error.chain();
        assert!(text.contains("\"stuck\": detaching"), "{text}");

        let used = store.put_image_layer(None, tar(&[("file", "other")])).await;
        let other = used.unwrap_or_else(|error| panic!("{errno}: {error:?}"));
        assert!(store.exists(other.id()).await.unwrap());
        let made = ContainerOptions::default().name("second");
        store.create_container(Some("image"), made).await.unwrap();
        store.delete_container("second").await.unwrap();
        assert!(!store.exists(&layer).await.unwrap());
        let report = store.check(CheckOptions::everything()).await.unwrap();
        assert!(!report.is_clean(), "the tree is there without a record");

        *driver.tree.lock().unwrap() = None;
        store.garbage_collect().await.unwrap();
        let report = store.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{errno}: {report:?}");
        assert_eq!(trees(&graph, "stuck"), (3, 0));
    }
}

#[tokio::test]
async fn a_link_that_a_driver_leaves_is_not_followed() {
    let (dir, driver) = (tempfile::tempdir().unwrap(), Arc::new(Linking::default()));
    let store = Store::open(options(dir.path()).tree_driver(Arc::clone(&driver) as _))
        .await
        .unwrap();
    for number in 0..STEPS {
        step(&store, number).await.unwrap();
    }
    let touched = driver.touched.lock().unwrap();
    assert!(touched.is_empty(), "{touched:?}");
    assert_eq!(trees(&dir.path().join("graph"), "linking"), (0, 0));
}

#[tokio::test]
async fn what_a_panic_carries_may_panic_too() {
    let dir = tempfile::tempdir().unwrap();
    let bombs = |has_name| options(dir.path()).tree_driver(Arc::new(Bombs { has_name }));
    let error = Store::open(bombs(false)).await.unwrap_err();
    let text = error.chain();
    assert!(text.contains("its name: the driver panicked"), "{text}");

    let store = Store::open(bombs(true)).await.unwrap();
    step(&store, 0).await.unwrap();
    let error = step(&store, 1).await.unwrap_err();
    let text = error.chain();
    assert!(text.contains("\"bombs\": cloning"), "{text}");
    assert_eq!(store.layers().await.unwrap().len(), 1);
}
