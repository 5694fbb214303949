//! Drivers of which a call goes wrong.

use std::sync::Arc;

use graphroot::{CheckOptions, ErrorKind, Store, TreeDriver};

use crate::tree_drivers::doubles::{Fault, Faulty};
use crate::tree_drivers::{STEPS, options, state, step, trees};

/// No driver is called so often by one step.
const MAX_CALLS: usize = 100;

/// Has each call of each step go wrong once. The step fails, with an error that names the driver, and the store is as it was; or
/// what went wrong is made good by the next opening.
async fn each_call_once(fault: Fault) {
    let healthy = || -> Arc<dyn TreeDriver> { Faulty::after(usize::MAX, Fault::Error) };
    let least = if fault == Fault::Lie { 5 } else { 20 };
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
            let before = state(&store, &graph).await;
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
            match &done {
                Err(error) => {
                    failed += 1;
                    let text = error.chain();
                    assert!(text.contains("\"faulty\""), "{what}: {text}");
                    assert!(fault == Fault::Lie || text.contains("injected"), "{what}: {text}");
                    assert_eq!(error.kind(), ErrorKind::Io, "{what}");
                    assert_eq!(state(&store, &graph).await, before, "{what}");
                }
                Ok(()) => {
                    let has_image = number >= 2 && number < STEPS - 1;
                    assert_eq!(
                        store.images().await.unwrap().len(),
                        usize::from(has_image),
                        "{what}"
                    );
                }
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
    assert!(struck > 30 && failed > least, "{struck} calls, {failed} failures");
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
