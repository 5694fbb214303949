//! Processes that are killed in a call of a driver.

use std::process::Command;

use graphroot::{CheckOptions, Store};

use crate::tree_drivers::doubles::{Fault, Faulty};
use crate::tree_drivers::{STEPS, options, sound_states, state, step, trees};

/// Tells the process below what to do: the call, when it is killed, and the directory.
const VARIABLE: &str = "GRAPHROOT_TEST_TREE_DRIVER_KILL";

/// No process makes so many calls.
const MAX_CALLS: usize = 300;

/// Works until it is killed. Does nothing unless the test below has started it.
#[tokio::test]
async fn a_process_that_is_killed() {
    let Ok(order) = std::env::var(VARIABLE) else {
        return;
    };
    let mut order = order.splitn(3, ' ');
    let calls: usize = order.next().unwrap().parse().unwrap();
    let fault = match order.next().unwrap() {
        "before" => Fault::KilledBefore,
        _ => Fault::KilledAfter,
    };
    let dir = std::path::PathBuf::from(order.next().unwrap());
    let driver = Faulty::after(calls, fault);
    let store = Store::open(options(&dir).tree_driver(driver)).await.unwrap();
    for number in 0..STEPS {
        step(&store, number).await.unwrap();
    }
}

#[tokio::test]
async fn the_next_process_finds_the_state_before_or_after() {
    let sound = sound_states().await;
    for when in ["before", "after"] {
        let mut kills = 0;
        for calls in 0..MAX_CALLS {
            let dir = tempfile::tempdir().unwrap();
            let graph = dir.path().join("graph");
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args([
                "--exact",
                "tree_drivers::kills::a_process_that_is_killed",
                "--nocapture",
            ]);
            child.env(VARIABLE, format!("{calls} {when} {}", dir.path().display()));
            let ended = child.output().unwrap();
            let what = format!("call {calls}, {when}: {}", String::from_utf8_lossy(&ended.stderr));
            let killed = match ended.status.code() {
                Some(77) => true,
                Some(0) => false,
                _ => panic!("{what}"),
            };

            let driver = Faulty::after(usize::MAX, Fault::Error);
            let store = Store::open(options(dir.path()).tree_driver(driver))
                .await
                .unwrap();
            let found = state(&store, &graph).await;
            assert!(sound.contains(&found), "{what}: {found:?}");
            let report = store.check(CheckOptions::everything()).await.unwrap();
            assert!(report.is_clean(), "{what}: {report:?}");
            let layers = store.layers().await.unwrap().len();
            assert_eq!(trees(&graph, "faulty"), (layers, 0), "{what}: {found:?}");
            // Whatever is there is whole, and can be used and deleted.
            for container in store.containers().await.unwrap() {
                store.delete_container(container.id()).await.unwrap();
            }
            for image in store.images().await.unwrap() {
                store.delete_image(image.id()).await.unwrap();
            }
            for layer in store.layers().await.unwrap().iter().rev() {
                store.delete_layer(layer.id()).await.unwrap();
            }
            assert_eq!(trees(&graph, "faulty"), (0, 0), "{what}");
            store.free();
            if !killed {
                break;
            }
            kills += 1;
        }
        assert!(kills > 20 && kills < MAX_CALLS, "{kills} kills {when} a call");
    }
}
