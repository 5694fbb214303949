//! Saves: what is written in which order, who sees it, and what failures leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::error::ErrorKind;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::names::NameOperation;
use crate::record::tests::sample::{config, file_names, ids, insert, layer, open};
use crate::record::{Location, ReadGuard, ReadOnlyRecords, Records, WriteGuard};

#[test]
fn guards_can_move_into_tasks() {
    fn movable<T: Send + Sync + 'static>() {}
    movable::<ReadGuard<LayerRow>>();
    movable::<WriteGuard<LayerRow>>();
    movable::<Records<LayerRow>>();
    movable::<ReadOnlyRecords<ImageRow>>();
    fn sendable<T: Send>(_: T) {}
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    sendable(records.read());
    sendable(records.write());
}

#[tokio::test]
async fn a_save_is_seen_here_and_by_another_handle() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("vfs-layers");
    let (one, two) = (open(&dir), open(&dir));
    let guard = one.read().await.unwrap();
    assert!(guard.is_empty() && guard.reloaded());
    drop(guard);
    assert_eq!(file_names(&dir), ["layers.lock"], "reading makes no file of rows");
    insert(&one, "a", 0).await.unwrap();
    assert_eq!(file_names(&dir), ["layers.json", "layers.lock"]);
    assert_eq!(fs::read(dir.join("layers.lock")).unwrap().len(), 64);

    let guard = one.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a"], false));
    drop(guard);
    let guard = two.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a"], true));
    drop(guard);
    insert(&two, "b", 1).await.unwrap();
    let guard = one.write().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a", "b"], true));
    assert_eq!(guard.location("b"), Some(1));
    drop(guard);
    // A writer that changed nothing takes nothing away.
    assert!(!one.read().await.unwrap().reloaded());
    let mut guard = one.write_blocking_in_test().await;
    guard.save().unwrap();
    drop(guard);
    assert!(!two.read().await.unwrap().reloaded(), "nothing to save: no token");
}

impl Records<LayerRow> {
    async fn write_blocking_in_test(&self) -> WriteGuard<LayerRow> {
        let records = self.clone();
        bridge::run(move || records.write_blocking()).await.unwrap()
    }
}

#[test]
fn the_blocking_twins_do_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let (one, two) = (open(tmp.path()), open(tmp.path()));
    let mut guard = one.write_blocking().unwrap();
    guard.table_mut().insert(layer("a"), 0).unwrap();
    guard.save().unwrap();
    drop(guard);
    let guard = two.read_blocking().unwrap();
    assert!(guard.reloaded() && guard.get("a").is_some());
    let also = two.read_blocking().unwrap();
    assert!(!also.reloaded(), "readers share");
    drop((guard, also));
    assert!(!one.write_blocking().unwrap().reloaded());
}

#[tokio::test]
async fn what_is_not_saved_is_forgotten() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    let mut guard = records.write().await.unwrap();
    guard.table_mut().remove("a");
    guard.table_mut().insert(layer("b"), 0).unwrap();
    drop(guard);
    assert_eq!(ids(&records.read().await.unwrap()), ["a"]);
    // Also what comes after a save.
    let mut guard = records.write().await.unwrap();
    guard.table_mut().insert(layer("c"), 0).unwrap();
    guard.save().unwrap();
    guard.table_mut().remove("a");
    drop(guard);
    assert_eq!(ids(&records.read().await.unwrap()), ["a", "c"]);
    // What fails changes nothing, and so costs no load.
    let mut guard = records.write().await.unwrap();
    assert!(guard.table_mut().insert(layer("a"), 0).is_err());
    drop(guard);
    assert!(!records.read().await.unwrap().reloaded());
}

#[tokio::test]
async fn a_save_writes_the_token_first_and_only_what_changed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let mut config = config(dir);
    config.lock_files.push(dir.join("second/layers.lock"));
    config.locations.push(Location {
        path: dir.join("second/deep/layers.json"),
        sync: true,
        items: None,
    });
    let records: Records<LayerRow> = Records::open(config.clone()).unwrap();
    for (location, id) in ["a", "b", "c"].into_iter().enumerate() {
        insert(&records, id, location).await.unwrap();
    }
    let tokens = || {
        config
            .lock_files
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect::<Vec<_>>()
    };
    let content = || {
        config
            .locations
            .iter()
            .map(|file| fs::read_to_string(&file.path).unwrap())
            .collect::<Vec<_>>()
    };
    let inodes = || {
        use std::os::unix::fs::MetadataExt as _;
        config
            .locations
            .iter()
            .map(|file| fs::metadata(&file.path).unwrap().ino())
            .collect::<Vec<_>>()
    };
    let (old_tokens, old_content, old_inodes) = (tokens(), content(), inodes());

    let mut guard = records.write().await.unwrap();
    guard
        .table_mut()
        .apply_names("b", NameOperation::Set, &["n".to_string()])
        .unwrap();
    let mut called = Vec::new();
    let mut new_tokens = Vec::new();
    guard
        .save_with(|path| {
            called.push(path.to_owned());
            new_tokens = tokens();
            assert_eq!(content(), old_content);
            Ok(())
        })
        .unwrap();
    assert_eq!(called, std::slice::from_ref(&config.locations[1].path));
    assert!(
        new_tokens
            .iter()
            .zip(&old_tokens)
            .all(|(new, old)| new != old && new.len() == 64)
    );
    assert_eq!(tokens(), new_tokens);
    let changed: Vec<bool> = inodes()
        .iter()
        .zip(&old_inodes)
        .map(|(new, old)| new != old)
        .collect();
    assert_eq!(changed, [false, true, false]);
    drop(guard);

    // A name taken from a row in another file changes that file too.
    let mut guard = records.write().await.unwrap();
    assert!(!guard.reloaded());
    guard
        .table_mut()
        .apply_names("c", NameOperation::Set, &["n".to_string()])
        .unwrap();
    guard.save().unwrap();
    drop(guard);
    let zero = r#""created":"0001-01-01T00:00:00Z""#;
    let expected = [
        format!(r#"[{{"id":"a",{zero}}}]"#),
        format!(r#"[{{"id":"b",{zero}}}]"#),
    ];
    assert_eq!(content()[..2], expected);
    assert_eq!(content()[2], format!(r#"[{{"id":"c","names":["n"],{zero}}}]"#));
    let mode =
        |path: PathBuf| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
    assert_eq!(mode(dir.join("second/deep")) & 0o7777, 0o700);
    assert_eq!(mode(dir.join("layers.json")) & 0o7777, 0o600);
}

#[tokio::test]
async fn after_a_failed_save_the_disk_is_what_counts() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let other = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    let volatile = tmp.path().join("volatile-layers.json");

    let mut guard = records.write().await.unwrap();
    guard.table_mut().insert(layer("b"), 0).unwrap();
    guard.table_mut().insert(layer("c"), 1).unwrap();
    let refuse = |path: &Path| {
        if *path == volatile {
            Err(ErrorKind::Cancelled.err("test"))
        } else {
            Ok(())
        }
    };
    assert_eq!(guard.save_with(refuse).unwrap_err().kind(), ErrorKind::Cancelled);
    drop(guard);
    let guard = records.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a", "b"], true));
    drop(guard);

    // A second attempt under the same guard is as good as a first one; of the first nothing is left.
    let mut guard = records.write().await.unwrap();
    guard.table_mut().insert(layer("d"), 0).unwrap();
    guard.table_mut().insert(layer("c"), 1).unwrap();
    guard.save_with(refuse).unwrap_err();
    assert_eq!(ids(&guard), ["a", "b"]);
    guard.table_mut().insert(layer("c"), 1).unwrap();
    guard.save().unwrap();
    drop(guard);
    let guard = records.read().await.unwrap();
    assert_eq!(
        (ids(&guard), guard.reloaded()),
        (ids(&other.read().await.unwrap()), false)
    );
    assert_eq!(guard.len(), 3);
    drop(guard);

    // A file that cannot be replaced.
    fs::remove_file(&volatile).unwrap();
    fs::create_dir_all(volatile.join("full")).unwrap();
    let mut guard = records.write().await.unwrap_err();
    assert_eq!(
        (guard.kind(), guard.path()),
        (ErrorKind::Io, Some(volatile.as_path()))
    );
    guard = other.read().await.unwrap_err();
    assert_eq!(guard.kind(), ErrorKind::Io);
    fs::remove_dir_all(&volatile).unwrap();
    assert_eq!(
        records.read().await.unwrap().len(),
        3,
        "a vanished file does not count"
    );
}

#[tokio::test]
async fn stale_temporary_files_can_be_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    for name in [".tmp-layers.json12", ".tmp-volatile-layers.json3", ".tmp-other1"] {
        fs::write(tmp.path().join(name), "half").unwrap();
    }
    assert_eq!(records.write().await.unwrap().remove_stale().unwrap(), 2);
    assert_eq!(
        file_names(tmp.path()),
        [".tmp-other1", "layers.json", "layers.lock"]
    );
}

/// By the first one that may write, without being asked.
#[tokio::test]
async fn the_first_writer_removes_stale_temporary_files() {
    let tmp = tempfile::tempdir().unwrap();
    for name in [".tmp-layers.json12", ".tmp-volatile-layers.json3", ".tmp-other1"] {
        fs::write(tmp.path().join(name), "half").unwrap();
    }
    let records = open(tmp.path());
    drop(records.read().await.unwrap());
    // A reader does not know whether somebody is writing.
    assert!(tmp.path().join(".tmp-layers.json12").exists());
    drop(records.write_blocking().unwrap());
    assert_eq!(file_names(tmp.path()), [".tmp-other1", "layers.lock"]);
}

#[tokio::test]
async fn a_row_kept_beyond_its_guard_stays_as_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    let kept = Arc::clone(records.read().await.unwrap().get("a").unwrap());
    let mut guard = records.write().await.unwrap();
    guard
        .table_mut()
        .update("a", |row| row.metadata = "new".into())
        .unwrap();
    guard.save().unwrap();
    drop(guard);
    assert_eq!(kept.metadata, "");
    assert_eq!(records.read().await.unwrap().get("a").unwrap().metadata, "new");
}
