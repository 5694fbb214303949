//! Readers and writers that wait for each other.

use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt as _;

use crate::bridge;
use crate::error::ErrorKind;
use crate::record::layer::LayerRow;
use crate::record::tests::sample::{config, file_names, ids, insert, layer, open};
use crate::record::{Records, RecordsConfig};

#[tokio::test]
async fn a_reader_waits_for_the_writer_and_then_sees_its_save() {
    let tmp = tempfile::tempdir().unwrap();
    let (one, two) = (open(tmp.path()), open(tmp.path()));
    for reader in [&one, &two] {
        let mut guard = one.write().await.unwrap();
        let mut reading = Box::pin(reader.read());
        assert!(futures::poll!(&mut reading).is_pending());
        let id = format!("row{}", guard.len());
        guard.table_mut().insert(layer(&id), 0).unwrap();
        guard.save().unwrap();
        assert!(futures::poll!(&mut reading).is_pending());
        drop(guard);
        assert!(reading.await.unwrap().get(&id).is_some());
    }
    let guard = two.read().await.unwrap();
    let mut writing = Box::pin(one.write());
    assert!(futures::poll!(&mut writing).is_pending());
    drop(guard);
    writing.await.unwrap();
}

#[tokio::test]
async fn waiting_ends_with_the_time_out() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let hurried: Records<LayerRow> = Records::open(RecordsConfig {
        lock_timeout: Some(Duration::from_millis(20)),
        ..config(tmp.path())
    })
    .unwrap();
    let guard = records.read().await.unwrap();
    assert_eq!(hurried.write().await.unwrap_err().kind(), ErrorKind::LockTimeout);
    drop(guard);
    hurried.write().await.unwrap();
}

#[test]
fn a_dropped_call_leaves_no_lock() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        // Both calls have to load; they are dropped while the only blocking thread is busy with something else.
        for write in [false, true] {
            let (release, busy) = mpsc::channel::<()>();
            bridge::spawn_detached(move || {
                let _closed = busy.recv();
            });
            if write {
                assert!(Box::pin(records.write()).now_or_never().is_none());
            } else {
                assert!(Box::pin(records.read()).now_or_never().is_none());
            }
            drop(release);
            insert(&open(tmp.path()), &format!("{write}"), 0).await.unwrap();
        }
        // Dropped while it waits for the lock.
        let guard = records.read().await.unwrap();
        assert!(Box::pin(records.write()).now_or_never().is_none());
        drop(guard);
        assert_eq!(ids(&records.write().await.unwrap()), ["false", "true"]);
    });
}

#[tokio::test]
async fn a_fresh_read_does_not_leave_its_thread() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    // More often than a task may poll before it has to yield.
    for _ in 0..500 {
        let guard = records.read().now_or_never().expect("ready at once").unwrap();
        assert!(guard.get("a").is_some());
        drop(guard);
        drop(records.write().now_or_never().expect("ready at once").unwrap());
    }
}

#[tokio::test]
async fn many_readers_of_a_changed_store_load_it_once() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let guards = futures::future::try_join_all((0..20).map(|_| records.read()))
        .await
        .unwrap();
    assert_eq!(guards.iter().filter(|guard| guard.reloaded()).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_insert_is_lost() {
    let tmp = tempfile::tempdir().unwrap();
    let handles = [open(tmp.path()), open(tmp.path())];
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let records = handles[task % 2].clone();
            tokio::spawn(async move {
                for number in 0..50 {
                    insert(&records, &format!("{task}-{number}"), number % 2)
                        .await
                        .unwrap();
                    let guard = records.read().await.unwrap();
                    assert!(guard.get(&format!("{task}-{number}")).is_some());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for records in [&handles[0], &handles[1], &open(tmp.path())] {
        assert_eq!(records.read().await.unwrap().len(), 400);
    }
    assert_eq!(
        file_names(tmp.path()),
        ["layers.json", "layers.lock", "volatile-layers.json"]
    );
}
