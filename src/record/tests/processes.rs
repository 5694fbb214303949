//! Two processes on the same records.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::record::tests::sample::{file_names, ids, insert, open, open_file};

/// The other process of the next two tests; does nothing on its own.
#[tokio::test]
#[ignore = "is started by other tests"]
async fn other_process() {
    let Some(dir) = std::env::var_os("GRAPHROOT_TEST_RECORDS_DIR") else {
        return;
    };
    let count = std::env::var("GRAPHROOT_TEST_RECORDS_COUNT")
        .unwrap()
        .parse::<u32>()
        .unwrap();
    let records = open(Path::new(&dir));
    assert!(records.read().await.unwrap().get("parent-0").is_some());
    for number in 0..count {
        insert(&records, &format!("child-{number}"), 0).await.unwrap();
    }
}

fn start_other_process(dir: &Path, count: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "record::tests::processes::other_process",
            "--ignored",
            "--nocapture",
        ])
        .env("GRAPHROOT_TEST_RECORDS_DIR", dir)
        .env("GRAPHROOT_TEST_RECORDS_COUNT", count.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn count(table: &Table<LayerRow>, who: &str) -> usize {
    table.rows().filter(|row| row.id.starts_with(who)).count()
}

#[tokio::test]
async fn two_processes_see_each_other() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "parent-0", 0).await.unwrap();
    let mut child = start_other_process(tmp.path(), 30);
    for number in 1..30 {
        insert(&records, &format!("parent-{number}"), 0).await.unwrap();
    }
    assert!(child.wait().unwrap().success());
    let guard = records.read().await.unwrap();
    assert_eq!((count(&guard, "parent-"), count(&guard, "child-")), (30, 30));
}

#[tokio::test]
async fn a_killed_writer_leaves_a_whole_store_and_no_lock() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "parent-0", 0).await.unwrap();
    for round in 0..5 {
        let mut child = start_other_process(tmp.path(), u32::MAX);
        while count(&records.read().await.unwrap(), "child-") < 10 + round {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut guard = records.write().await.unwrap();
        let rows = count(&guard, "child-");
        assert!((0..rows).all(|number| guard.get(&format!("child-{number}")).is_some()));
        assert_eq!(ids(&guard), ids(&open_file(&tmp.path().join("layers.json"))));
        assert!(guard.remove_stale().unwrap() <= 1);
        for number in 0..rows {
            guard.table_mut().remove(&format!("child-{number}")).unwrap();
        }
        guard.save().unwrap();
        drop(guard);
        assert_eq!(file_names(tmp.path()), ["layers.json", "layers.lock"]);
    }
}
