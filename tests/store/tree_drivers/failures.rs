//! Drivers of which a call goes wrong.

use std::sync::Arc;

use graphroot::{CheckOptions, ErrorKind, Store, TreeDriver};

use crate::tree_drivers::doubles::{Fault, Faulty};
use crate::tree_drivers::{STEPS, options, sound_states, state, step, trees};

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
