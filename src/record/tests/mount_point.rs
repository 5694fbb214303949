//! Where layers are mounted, for several writers and readers.

use std::sync::Arc;

use crate::error::ErrorKind;
use crate::record::layer::LayerRow;
use crate::record::mount_point::{MountGuard, MountPointRow, MountPoints, MountTable};
use crate::record::slot::Order;
use crate::record::table::Table;

fn counts(table: &MountTable) -> Vec<(String, String, i64)> {
    let mut counts: Vec<_> = table
        .rows()
        .map(|row| (row.id.clone(), row.path.clone(), row.count))
        .collect();
    counts.sort();
    counts
}

fn one(id: &str, path: &str, count: i64) -> (String, String, i64) {
    (id.into(), path.into(), count)
}

/// An order that no table has.
fn order() -> Order {
    Table::<LayerRow>::default().order()
}

#[test]
fn entries_stand_in_the_order_of_their_layers() {
    let tmp = tempfile::tempdir().unwrap();
    let mounts = MountPoints::open(tmp.path(), None).unwrap();
    let saved = |guard: &mut MountGuard, layers: &Table<LayerRow>| {
        guard.save(layers).unwrap();
        let ids: Vec<String> = guard.rows().map(|row| row.id.clone()).collect();
        let text = std::fs::read(tmp.path().join("mountpoints.json")).unwrap();
        let rows: Vec<MountPointRow> = serde_json::from_slice(&text).unwrap();
        assert!(rows.iter().map(|row| &row.id).eq(&ids));
        assert!(
            ids.iter()
                .all(|id| guard.get(id).is_some_and(|row| row.id == *id))
        );
        ids.concat()
    };
    let mut layers = Table::<LayerRow>::empty(1);
    let row = |id: &str| LayerRow {
        id: id.into(),
        ..LayerRow::default()
    };
    for id in ["a", "b", "c", "d"] {
        layers.insert(row(id), 0).unwrap();
    }
    let mut guard = mounts.lock_blocking().unwrap();
    for (id, expected) in [("c", "c"), ("a", "ac"), ("d", "acd"), ("b", "abcd")] {
        guard.set(id, "/somewhere", 1);
        assert_eq!(saved(&mut guard, &layers), expected);
    }
    guard.set("a", "/somewhere", 2);
    guard.set("c", "", 0);
    guard.set("unknown", "/somewhere", 1);
    assert_eq!(saved(&mut guard, &layers), "abd");
    assert!(guard.get("unknown").is_none());
    guard.set("c", "/somewhere", 1);
    layers.insert(row("e"), 0).unwrap();
    guard.set("e", "/somewhere", 1);
    assert_eq!(saved(&mut guard, &layers), "abcde");
    let order = layers.order();
    layers.remove("b").unwrap();
    assert_ne!(layers.order(), order);
    assert_eq!(saved(&mut guard, &layers), "acde");
    let mut turned = Table::<LayerRow>::empty(1);
    for id in ["e", "d", "a"] {
        turned.insert(row(id), 0).unwrap();
    }
    assert_eq!(saved(&mut guard, &turned), "eda");
}

#[test]
fn mounts_are_shared_by_all_handles() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("vfs-layers");
    let (here, there) = (
        MountPoints::open(&dir, None).unwrap(),
        MountPoints::open(&dir, None).unwrap(),
    );
    assert!(here.read_blocking().unwrap().rows().next().is_none());
    let mut guard = here.lock_blocking().unwrap();
    for (id, path, count) in [
        ("b", "/b", 2),
        ("a", "/a", 1),
        ("gone", "/g", 1),
        ("none", "/n", 0),
        ("x", "", 1),
    ] {
        guard.set(id, path, count);
    }
    guard
        .save_in(order(), |id| {
            ["a", "unmounted", "b", "none"]
                .iter()
                .zip(0..)
                .find(|(name, _)| **name == id)
                .map(|(_, at)| at)
        })
        .unwrap();
    drop(guard);
    let expected = r#"[{"id":"a","path":"/a","count":1},{"id":"b","path":"/b","count":2}]"#;
    assert_eq!(
        std::fs::read_to_string(dir.join("mountpoints.json")).unwrap(),
        expected
    );
    for handle in [&here, &there] {
        let table = handle.read_blocking().unwrap();
        assert_eq!(counts(&table), [one("a", "/a", 1), one("b", "/b", 2)]);
        assert_eq!(table.by_path("/b").unwrap().id, "b");
        assert!(
            Arc::ptr_eq(&table, &handle.read_blocking().unwrap()),
            "unchanged: not loaded again"
        );
        assert!(Arc::ptr_eq(&table, &handle.try_read().unwrap().unwrap()));
    }
    let mut guard = there.lock_blocking().unwrap();
    guard.set("b", "", 0);
    guard.set("a", "/a", 3);
    guard.save_in(order(), |_| Some(7)).unwrap();
    drop(guard);
    assert!(here.try_read().unwrap().is_none(), "changed: this needs the file");
    assert_eq!(counts(&here.read_blocking().unwrap()), [one("a", "/a", 3)]);
    let guard = there.lock_blocking().unwrap();
    assert!(
        here.try_read().unwrap().is_some(),
        "locked, but nothing has changed"
    );
    drop(guard);
    let mut guard = here.lock_blocking().unwrap();
    guard.set("a", "/a", 4);
    assert!(
        here.try_read().unwrap().is_none(),
        "being changed here: this needs waiting"
    );
    drop(guard);
}

#[test]
fn what_is_not_saved_or_cannot_be_saved_is_forgotten() {
    let tmp = tempfile::tempdir().unwrap();
    let mounts = MountPoints::open(tmp.path(), None).unwrap();
    let path = tmp.path().join("mountpoints.json");
    std::fs::write(
        &path,
        r#"[{"id":"a","path":"/a","count":1,"new":1},{"id":"b","path":"","count":4},{"id":"c","path":"/c"}]"#,
    )
    .unwrap();
    assert_eq!(counts(&mounts.read_blocking().unwrap()), [one("a", "/a", 1)]);
    let mut guard = mounts.lock_blocking().unwrap();
    guard.set("a", "/a", 9);
    drop(guard);
    assert_eq!(counts(&mounts.read_blocking().unwrap()), [one("a", "/a", 1)]);
    let mut guard = mounts.lock_blocking().unwrap();
    guard.set("a", "/a", 2);
    guard.save_in(order(), |_| Some(0)).unwrap();
    drop(guard);
    let expected = r#"[{"id":"a","path":"/a","count":2,"new":1}]"#;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("full")).unwrap();
    let mut guard = mounts.lock_blocking().unwrap();
    guard.set("a", "/a", 3);
    assert_eq!(
        guard.save_in(order(), |_| Some(0)).unwrap_err().kind(),
        ErrorKind::Io
    );
    drop(guard);
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "[").unwrap();
    let error = mounts.read_blocking().unwrap_err();
    assert_eq!(
        (error.kind(), error.path()),
        (ErrorKind::CorruptMetadata, Some(path.as_path()))
    );
}

#[test]
fn a_reader_beside_a_writer_sees_what_was_saved() {
    let tmp = tempfile::tempdir().unwrap();
    let mounts = MountPoints::open(tmp.path(), None).unwrap();
    let mut guard = mounts.lock_blocking().unwrap();
    assert!(
        mounts.try_read().unwrap().is_none(),
        "the writer has the only table"
    );
    guard.set("a", "/a", 1);
    guard.save_all().unwrap();
    drop(guard);
    for count in 2..5 {
        let mut guard = mounts.lock_blocking().unwrap();
        guard.set("a", "/a", count);
        let seen = mounts.try_read().unwrap().unwrap();
        assert_eq!(counts(&seen), [one("a", "/a", count - 1)]);
        guard.save_all().unwrap();
        drop(guard);
        assert_eq!(
            counts(&mounts.try_read().unwrap().unwrap()),
            [one("a", "/a", count)]
        );
    }
}
