//! The work of child processes of the tests.

use graphroot::oci::{BlobState, Event, ImageRef, Progress, PullOptions, Puller, PushOptions, push};
use graphroot::{Store, StoreOptions};

use crate::support::worker::{assignment, store_location, tell, wait_for_parent};

/// The entry of a child process; see `support/worker.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the entry of child processes"]
async fn entry() {
    let Some((work, images)) = assignment() else {
        return;
    };
    match work.as_str() {
        "pull" => pull(&images, false).await,
        "pull-keeping" => pull(&images, true).await,
        "memory" => {
            let (graph, run, driver) = store_location();
            let options = StoreOptions::new(graph, run).driver(driver);
            crate::memory::pull(options, &images[0]).await;
        }
        "push-layout" => push_layout(&images).await,
        "push-archive" => push_archive(&images).await,
        _ => panic!("no such work: {work}"),
    }
}

/// Two tasks pull all the images, each for itself; tells how many layers they transferred.
async fn pull(images: &[String], keep: bool) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(driver))
        .await
        .unwrap();
    let images: Vec<ImageRef> = images.iter().map(|image| image.parse().unwrap()).collect();
    tell("ready");
    wait_for_parent();
    let task = || {
        let (store, images) = (store.clone(), images.clone());
        tokio::spawn(async move {
            let puller = Puller::new(&store, PullOptions::default().keep_partial(keep));
            let pulled = puller.pull_all(&images).await;
            pulled
                .into_iter()
                .map(|pulled| pulled.unwrap().transferred)
                .sum::<usize>()
        })
    };
    let tasks = [task(), task()];
    let mut transferred = 0;
    for task in tasks {
        transferred += task.await.unwrap();
    }
    tell(&format!("transferred {transferred}"));
}

/// Pushes an image into a layout from several tasks; the arguments are the image, the layout and the process's name.
async fn push_layout(arguments: &[String]) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(driver))
        .await
        .unwrap();
    tell("ready");
    wait_for_parent();
    crate::layouts::push_from_tasks(&store, &arguments[0], &arguments[1], &arguments[2]).await;
}

/// Pushes an image (the first argument) to an archive; stops when the second layer begins, until the parent goes on.
async fn push_archive(arguments: &[String]) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(driver))
        .await
        .unwrap();
    let started = std::sync::atomic::AtomicUsize::new(0);
    let progress = Progress::new(move |event| {
        let is_start = matches!(
            event,
            Event::Blob {
                state: BlobState::Started { .. },
                ..
            }
        );
        if is_start && started.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            tell("ready");
            wait_for_parent();
        }
    });
    let to = arguments[1].parse().unwrap();
    push(
        &store,
        &arguments[0],
        &to,
        PushOptions::default().progress(progress),
    )
    .await
    .unwrap();
}
