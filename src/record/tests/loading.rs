//! Loading: damaged, edited, large and read-only files.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::ErrorKind;
use crate::record::layer::LayerRow;
use crate::record::tests::sample::{config, ids, insert, layer, open};
use crate::record::{ReadOnlyRecords, Records, RecordsConfig};

#[tokio::test(flavor = "multi_thread")]
async fn large_records_are_prefetched() {
    let tmp = tempfile::tempdir().unwrap();
    let (here, there) = (tmp.path().join("here"), tmp.path().join("there"));
    for dir in [&here, &there] {
        let mut guard = open(dir).write().await.unwrap();
        let big = LayerRow {
            metadata: "m".repeat(70_000),
            ..layer("big")
        };
        guard.table_mut().insert(big, 0).unwrap();
        guard.save().unwrap();
    }
    let handles = || {
        let (one, other) = (open(&here), open(&there));
        one.prefetch(&other);
        (one, other)
    };
    let (one, other) = handles();
    assert!(one.read().await.unwrap().reloaded());
    let loaded = async {
        while !other.is_cached() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), loaded)
        .await
        .unwrap();
    let guard = other.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["big"], false));
    drop(guard);

    // A handle that was dropped is not waited for, and an error is reported to the reader of those records only.
    let (one, other) = handles();
    drop(other);
    assert_eq!(ids(&one.read().await.unwrap()), ["big"]);
    fs::write(there.join("layers.json"), vec![b'['; 70_000]).unwrap();
    let (one, other) = handles();
    assert_eq!(ids(&one.read().await.unwrap()), ["big"]);
    assert_eq!(other.read().await.unwrap_err().kind(), ErrorKind::CorruptMetadata);
}

#[tokio::test]
async fn a_file_that_cannot_be_parsed_is_named_with_the_place() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.json");
    let records = open(tmp.path());
    for (content, place) in [
        ("[{\"id\":\"a\"},\n {\"id\":7}]", "line 2 column 8"),
        ("[{\"id\":\"a\"", "line 1 column 10"),
        (
            "[{\"id\":\"a\",\"created\":\"\"}]",
            "\"\" is not a time as in RFC 3339 at line 1 column 23",
        ),
        ("{}", "line 1 column 0"),
    ] {
        fs::write(&path, content).unwrap();
        for error in [
            records.read().await.unwrap_err(),
            records.write().await.unwrap_err(),
        ] {
            assert_eq!(
                (error.kind(), error.path()),
                (ErrorKind::CorruptMetadata, Some(path.as_path()))
            );
            assert!(error.chain().contains(place), "{}", error.chain());
        }
    }
    fs::write(&path, "[{\"id\":\"b\"}]").unwrap();
    assert_eq!(
        ids(&records.write().await.unwrap()),
        ["b"],
        "no lock stayed behind"
    );
}

#[tokio::test]
async fn a_file_edited_by_hand_is_seen_where_times_are_checked() {
    for check_mtimes in [true, false] {
        let tmp = tempfile::tempdir().unwrap();
        let records: Records<LayerRow> = Records::open(RecordsConfig {
            check_mtimes,
            ..config(tmp.path())
        })
        .unwrap();
        insert(&records, "a", 0).await.unwrap();
        for (number, name) in ["layers.json", "volatile-layers.json"].into_iter().enumerate() {
            let path = tmp.path().join(name);
            fs::write(&path, format!("[{{\"id\":\"edited-{number}\"}}]")).unwrap();
            // The kernel's clock for files is coarse; the edit shall have a time of its own.
            let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 1);
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(time)
                .unwrap();
            let guard = records.read().await.unwrap();
            assert_eq!(guard.reloaded(), check_mtimes);
            assert_eq!(guard.get(&format!("edited-{number}")).is_some(), check_mtimes);
        }
    }
}

#[tokio::test]
async fn what_a_load_resolved_waits_for_a_writer() {
    let tmp = tempfile::tempdir().unwrap();
    let file = r#"[{"id":"a","names":["n"]},{"id":"b","names":["n"],"flags":{"incomplete":true}}]"#;
    fs::write(tmp.path().join("layers.json"), file).unwrap();
    let records = open(tmp.path());
    let guard = records.read().await.unwrap();
    assert_eq!(
        (guard.needs_save(), guard.incomplete()),
        (true, vec!["b".to_string()])
    );
    assert_eq!(guard.by_name("n").unwrap().id, "b");
    drop(guard);
    assert_eq!(fs::read_to_string(tmp.path().join("layers.json")).unwrap(), file);
    // A writer that does nothing about it changes nothing.
    drop(records.write().await.unwrap());
    assert!(records.read().await.unwrap().needs_save());
    let mut guard = records.write().await.unwrap();
    guard.table_mut().remove("b").unwrap();
    guard.save().unwrap();
    drop(guard);
    let guard = records.read().await.unwrap();
    assert!(!guard.needs_save() && guard.incomplete().is_empty() && !guard.reloaded());
    let expected = r#"[{"id":"a","created":"0001-01-01T00:00:00Z"}]"#;
    assert_eq!(
        fs::read_to_string(tmp.path().join("layers.json")).unwrap(),
        expected
    );
}

#[tokio::test]
async fn a_read_only_store_is_read_and_never_repaired() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.json");
    let records: ReadOnlyRecords<LayerRow> = ReadOnlyRecords::open(config(tmp.path())).unwrap();
    assert!(records.read().await.unwrap().is_empty());
    insert(&open(tmp.path()), "a", 0).await.unwrap();
    assert_eq!(ids(&records.read().await.unwrap()), ["a"]);
    assert!(!records.clone().read().await.unwrap().reloaded());
    fs::write(&path, r#"[{"id":"a","names":["n"]},{"id":"b","names":["n"]}]"#).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 1);
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(
        records.read().await.unwrap_err().kind(),
        ErrorKind::DuplicateLayerNames
    );
}

/// A tmpfs that goes away at the end.
struct Mounted(TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let result = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        assert!(result.is_ok() || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_read_only_file_system_needs_no_lock_files() {
    use rustix::mount::{MountFlags, mount, mount_remount};
    let target = tempfile::tempdir().unwrap();
    if let Err(error) = mount("none", target.path(), "tmpfs", MountFlags::empty(), None) {
        return crate::skip::skip(&format!("cannot mount a tmpfs: {error}"));
    }
    let mounted = Mounted(target);
    let dir = mounted.0.path().join("vfs-layers");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("layers.json"), r#"[{"id":"a"}]"#).unwrap();
    mount_remount(mounted.0.path(), MountFlags::RDONLY, "").unwrap();
    for dir in [dir.clone(), mounted.0.path().join("missing")] {
        let records: ReadOnlyRecords<LayerRow> = ReadOnlyRecords::open(config(&dir)).unwrap();
        for round in 0..2 {
            let guard = records.read().await.unwrap();
            assert_eq!(
                (guard.get("a").is_some(), guard.reloaded()),
                (!dir.ends_with("missing"), round == 0)
            );
        }
        assert!(Records::<LayerRow>::open(config(&dir)).is_err());
    }
    // With a lock file in place the lock is taken.
    mount_remount(mounted.0.path(), MountFlags::empty(), "").unwrap();
    fs::write(dir.join("layers.lock"), "").unwrap();
    mount_remount(mounted.0.path(), MountFlags::RDONLY, "").unwrap();
    let records: ReadOnlyRecords<LayerRow> = ReadOnlyRecords::open(config(&dir)).unwrap();
    assert!(records.read().await.unwrap().get("a").is_some());
}
