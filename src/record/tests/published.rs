//! Readers beside a writer of the same process.

use futures::FutureExt as _;
use proptest::prelude::*;

use crate::record::layer::LayerRow;
use crate::record::names::NameOperation;
use crate::record::tests::sample::{ids, layer, named_layer, open, open_file, strings};
use crate::record::{ReadGuard, Records, WriteGuard};

/// A reader that does not wait.
fn look(records: &Records<LayerRow>) -> Option<ReadGuard<LayerRow>> {
    records.unlocked_snapshot().now_or_never().map(Result::unwrap)
}

fn insert(guard: &mut WriteGuard<LayerRow>, id: &str) {
    drop(guard.table_mut().insert(layer(id), 0).unwrap());
}

#[test]
fn from_the_second_on_a_reader_does_not_wait_for_a_writer() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let mut guard = records.write_blocking().unwrap();
    insert(&mut guard, "a");
    assert!(look(&records).is_none(), "the writer has the only table");
    guard.save().unwrap();
    let first = look(&records).unwrap();
    assert_eq!(ids(&first), ["a"]);
    insert(&mut guard, "b");
    assert_eq!(ids(&look(&records).unwrap()), ["a"], "not saved yet");
    guard.save().unwrap();
    assert_eq!(ids(&look(&records).unwrap()), ["a", "b"]);
    assert_eq!(ids(&first), ["a"], "a reader keeps what it has seen");
    drop(guard);
    assert_eq!(ids(&look(&records).unwrap()), ["a", "b"]);
    let guard = records.write_blocking().unwrap();
    assert_eq!(ids(&look(&records).unwrap()), ["a", "b"], "nothing was changed");
    drop(guard);
}

#[test]
fn what_another_process_has_written_is_seen_beside_the_writer_that_has_loaded_it() {
    let tmp = tempfile::tempdir().unwrap();
    let (records, other) = (open(tmp.path()), open(tmp.path()));
    let guard = records.write_blocking().unwrap();
    assert!(look(&records).is_none());
    drop(guard);
    let mut guard = other.write_blocking().unwrap();
    insert(&mut guard, "b");
    guard.save().unwrap();
    drop(guard);
    let guard = records.write_blocking().unwrap();
    assert_eq!(ids(&look(&records).unwrap()), ["b"]);
    drop(guard);
}

#[test]
fn what_is_being_made_or_deleted_is_not_seen_beside_its_writer() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let mut guard = records.write_blocking().unwrap();
    assert!(look(&records).is_none());
    insert(&mut guard, "abc");
    guard
        .table_mut()
        .update("abc", |row| row.set_incomplete(true))
        .unwrap();
    insert(&mut guard, "abd");
    guard.save().unwrap();
    let seen = look(&records).unwrap();
    assert_eq!(ids(&seen), ["abd"]);
    assert!(seen.get("abc").is_none() && seen.find("abc").is_none());
    assert!(!seen.needs_repair(), "it is under way");
    assert_eq!(ids(&guard), ["abc", "abd"], "the writer sees it");
    drop(guard);
    let left = look(&records).unwrap();
    assert!(left.needs_repair(), "nobody is making it any more");
    let mut guard = records.write_blocking().unwrap();
    assert_eq!(guard.incomplete(), ["abc"]);
    guard
        .table_mut()
        .update("abc", |row| row.set_incomplete(false))
        .unwrap();
    guard.save().unwrap();
    assert_eq!(ids(&look(&records).unwrap()), ["abc", "abd"]);
}

#[test]
fn after_a_failed_save_readers_wait_and_read_the_files() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    let mut guard = records.write_blocking().unwrap();
    assert!(look(&records).is_none());
    insert(&mut guard, "a");
    guard.save().unwrap();
    assert!(look(&records).is_some());
    insert(&mut guard, "b");
    let refuse = |_: &std::path::Path| Err(crate::error::ErrorKind::Io.err("refused"));
    guard.save_with(refuse).unwrap_err();
    assert!(look(&records).is_none(), "it is not known what the files say");
    drop(guard);
    let seen = records.write_blocking().unwrap();
    assert_eq!(ids(&seen), ["a"]);
}

#[derive(Clone, Debug)]
enum Action {
    Insert(String, Vec<String>),
    Remove(String),
    Names(String, Vec<String>),
    Mark(String, bool),
    RollBack,
    Save,
    /// The writer ends, and another begins.
    NextWriter,
    /// Another process inserts.
    Elsewhere(String),
    /// A reader comes and stays.
    Read,
    /// The oldest reader goes.
    Gone,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let id = || "[ab]{1,3}";
    let names = || prop::collection::vec("[xyz]{1}", 0..3);
    let one = prop_oneof![
        4 => (id(), names()).prop_map(|(id, names)| Action::Insert(id, names)),
        2 => id().prop_map(Action::Remove),
        2 => (id(), names()).prop_map(|(id, names)| Action::Names(id, names)),
        2 => (id(), any::<bool>()).prop_map(|(id, marked)| Action::Mark(id, marked)),
        1 => Just(Action::RollBack),
        5 => Just(Action::Save),
        2 => Just(Action::NextWriter),
        1 => id().prop_map(Action::Elsewhere),
        3 => Just(Action::Read),
        3 => Just(Action::Gone),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn readers_see_what_the_files_say(actions in actions()) {
        let tmp = tempfile::tempdir().unwrap();
        let (records, other) = (open(tmp.path()), open(tmp.path()));
        let mut guard = records.write_blocking().unwrap();
        prop_assert!(look(&records).is_none());
        let mut readers: Vec<(ReadGuard<LayerRow>, Vec<String>)> = Vec::new();
        guard.save().unwrap();
        insert(&mut guard, "base");
        guard.save().unwrap();
        // Whether another process has left something that a writer repairs before readers see anything.
        let mut unrepaired = false;
        for action in actions {
            let table = guard.table_mut();
            match action {
                Action::Insert(id, names) => {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    drop(table.insert(named_layer(&id, &names), 0));
                }
                Action::Remove(id) => drop(table.remove(&id)),
                Action::Names(id, names) => drop(table.apply_names(&id, NameOperation::Set, &names)),
                Action::Mark(id, marked) => {
                    table.update(&id, |row| row.set_incomplete(marked)).unwrap();
                }
                Action::RollBack => {
                    let before = guard.savepoint();
                    drop(guard.table_mut().remove("base"));
                    guard.roll_back(before);
                }
                Action::Save => {
                    guard.save().unwrap();
                    unrepaired = false;
                }
                Action::NextWriter => {
                    guard.save().unwrap();
                    unrepaired = false;
                    drop(guard);
                    guard = records.write_blocking().unwrap();
                }
                Action::Elsewhere(id) => {
                    guard.save().unwrap();
                    drop(guard);
                    let mut elsewhere = other.write_blocking().unwrap();
                    let written = elsewhere.table_mut().insert(layer(&id), 0).is_ok();
                    elsewhere.save().unwrap();
                    unrepaired = written && elsewhere.has_incomplete();
                    drop(elsewhere);
                    guard = records.write_blocking().unwrap();
                }
                Action::Read if unrepaired => {}
                Action::Read => {
                    let seen = look(&records).unwrap();
                    let shown = strings(&ids(&seen));
                    readers.push((seen, shown));
                }
                Action::Gone => if !readers.is_empty() {
                    drop(readers.remove(0));
                },
            }
            if unrepaired {
                prop_assert!(look(&records).is_none());
                continue;
            }
            let saved = open_file(&tmp.path().join("layers.json"));
            let seen = look(&records).unwrap();
            let complete: Vec<&str> = saved.rows().filter(|row| !row.is_incomplete()).map(|row| row.id.as_str()).collect();
            prop_assert_eq!(ids(&seen), complete);
            for key in ["a", "b", "aa", "ab", "ba", "bb", "aab", "x", "y", "z", "base"] {
                let expected = saved.find(key).filter(|row| !row.is_incomplete());
                prop_assert_eq!(seen.find(key), expected, "{:?}", key);
            }
            for (reader, shown) in &readers {
                prop_assert_eq!(&strings(&ids(reader)), shown);
            }
        }
    }
}
