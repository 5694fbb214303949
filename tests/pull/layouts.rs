//! OCI layouts that several tasks and processes write to at the same time.

use std::collections::BTreeSet;

use graphroot::oci::{PullOptions, Puller, PushOptions, push};
use serde_json::Value;

use crate::fake_registry::{FakeRegistry, layer};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::worker::Worker;

/// Tasks of each process.
pub(crate) const TASKS: usize = 8;
/// Pushes of each task.
const ROUNDS: usize = 5;

/// Pushes an image under several names from each of several tasks; `process` is part of the names.
pub(crate) async fn push_from_tasks(store: &graphroot::Store, image: &str, layout: &str, process: &str) {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (store, image) = (store.clone(), image.to_owned());
        let to = format!("oci:{layout}:{process}-{task}");
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let to = format!("{to}-{round}").parse().unwrap();
                push(&store, &image, &to, PushOptions::default()).await.unwrap();
            }
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_eight_tasks_in_two_processes_are_all_listed() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let layout = root.path().join("layout").display().to_string();
    let mut workers =
        ["a", "b"].map(|process| Worker::start("push-layout", &root, &[pulled.image.id(), &layout, process]));
    for worker in &mut workers {
        worker.expect_line("ready");
    }
    for worker in &mut workers {
        worker.go_on();
    }
    for worker in workers {
        worker.finish();
    }
    let index: Value =
        serde_json::from_slice(&std::fs::read(format!("{layout}/index.json")).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let names: BTreeSet<&str> = entries
        .iter()
        .map(|entry| {
            entry["annotations"]["org.opencontainers.image.ref.name"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(names.len(), 2 * TASKS * ROUNDS, "{names:?}");
    assert_eq!(entries.len(), names.len());
    let mut files: Vec<String> = std::fs::read_dir(&layout)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["blobs", "index.json", "oci-layout"], "no lock is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_with_an_unreadable_index_is_not_overwritten() {
    needs!();
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", &[layer("file", 1)]);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let layout = root.scratch("layout");
    std::fs::write(layout.join("index.json"), "{").unwrap();
    let to = format!("oci:{}:x", layout.display()).parse().unwrap();
    let error = push(&store, pulled.image.id(), &to, PushOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), graphroot::ErrorKind::InvalidInput);
    assert_eq!(std::fs::read_to_string(layout.join("index.json")).unwrap(), "{");
}
