//! Large files of rows: what changes is written to an earlier version of the file.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::record::layer::LayerRow;
use crate::record::tests::sample::{config, ids, layer, open, open_file};
use crate::record::{Records, WriteGuard};
use crate::sys::reserve;

/// Rows of the records with which a test begins.
const ROWS: usize = 900;

/// A layer with this ID and a text of this length.
fn long_layer(id: &str, length: usize) -> LayerRow {
    LayerRow {
        metadata: "m".repeat(length),
        ..layer(id)
    }
}

fn name(number: usize) -> String {
    format!("layer-{number}")
}

/// Records in `dir` with many rows.
fn filled(dir: &Path) -> Records<LayerRow> {
    let records = open(dir);
    let mut guard = records.write_blocking().unwrap();
    for number in 0..ROWS {
        guard
            .table_mut()
            .insert(long_layer(&name(number), 300), 0)
            .unwrap();
    }
    guard.save().unwrap();
    drop(guard);
    records
}

fn path(dir: &Path) -> PathBuf {
    dir.join("layers.json")
}

/// The file says what the table does.
fn check(dir: &Path, guard: &WriteGuard<LayerRow>) {
    let file = open_file(&path(dir));
    assert!(guard.rows().eq(file.rows()));
}

/// A change as a writer makes it, and its save.
fn change(records: &Records<LayerRow>, dir: &Path, number: usize, length: usize) {
    let mut guard = records.write_blocking().unwrap();
    let id = name(number);
    match guard.get(&id).is_some() {
        true if length == 0 => drop(guard.table_mut().remove(&id).unwrap()),
        true => {
            let changed = guard
                .table_mut()
                .update(&id, |row| row.metadata = "c".repeat(length));
            assert!(changed.unwrap());
        }
        false => drop(guard.table_mut().insert(long_layer(&id, length), 0).unwrap()),
    }
    guard.save().unwrap();
    check(dir, &guard);
}

/// The inodes of the file and of its reserves.
fn inodes(dir: &Path) -> Vec<u64> {
    let file = path(dir);
    let paths = std::iter::once(file.clone()).chain(reserve::paths(&file));
    let mut inodes: Vec<u64> = paths.map(|path| fs::metadata(path).unwrap().ino()).collect();
    inodes.sort_unstable();
    inodes
}

#[test]
fn a_large_file_and_its_reserves_take_turns() {
    for parent in ["/dev/shm", "/var/tmp"] {
        let tmp = tempfile::tempdir_in(parent).unwrap();
        let dir = tmp.path();
        let records = filled(dir);
        // On a disk two new files are made, until both reserves are versions of the file.
        for length in 310..314 {
            change(&records, dir, 0, length);
        }
        let before = inodes(dir);
        let mut times = Vec::new();
        for round in 0..12 {
            // Longer, shorter, gone, new.
            change(&records, dir, round * 70, 500);
            change(&records, dir, round * 70, 20);
            change(&records, dir, round * 70 + 1, 0);
            change(&records, dir, ROWS + round, 200);
            let time = fs::metadata(path(dir)).unwrap().modified().unwrap();
            assert!(!times.contains(&time));
            times.push(time);
        }
        assert_eq!(inodes(dir), before, "{parent}: no file was made or removed");
        assert_eq!(fs::metadata(path(dir)).unwrap().mode() & 0o7777, 0o600);
    }
}

/// What a save writes to files, in bytes.
#[test]
fn a_save_costs_what_changed() {
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = tmp.path();
    let records = filled(dir);
    let written = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.unwrap().parse::<u64>().unwrap()
    };
    for number in 0..30 {
        let before = written();
        change(&records, dir, 10 * number, 350);
        let bytes = written() - before;
        assert_eq!(bytes < 40_000, number >= 1, "save {number} writes {bytes} bytes");
    }
}

#[test]
fn who_has_opened_the_file_reads_one_version_of_it() {
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = tmp.path();
    let records = filled(dir);
    let mut opened: Vec<(File, Vec<u8>)> = Vec::new();
    for round in 0..12 {
        change(&records, dir, round, 310 + round);
        if round % 4 == 3 {
            opened.push((File::open(path(dir)).unwrap(), fs::read(path(dir)).unwrap()));
        }
        if round == 8 {
            opened.remove(0);
        }
    }
    for (mut file, content) in opened {
        let mut now = Vec::new();
        file.read_to_end(&mut now).unwrap();
        assert!(now == content, "the file has changed while it was open");
    }
}

#[test]
fn reserves_that_others_have_touched_are_not_trusted() {
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = tmp.path();
    let records = filled(dir);
    for round in 0..4 {
        change(&records, dir, round, 400);
    }
    let touches: [fn(&Path); 5] = [
        |reserve| {
            let file = File::options().write(true).open(reserve).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            file.write_all_at(b"garbage", middle).unwrap();
        },
        |reserve| fs::remove_file(reserve).unwrap(),
        |reserve| {
            let content = fs::read(reserve).unwrap();
            fs::remove_file(reserve).unwrap();
            fs::write(reserve, &content[..content.len() / 2]).unwrap();
        },
        |reserve| fs::hard_link(reserve, reserve.with_extension("link")).unwrap(),
        |reserve| {
            fs::remove_file(reserve).unwrap();
            std::os::unix::fs::symlink("/dev/null", reserve).unwrap();
        },
    ];
    for (round, touch) in touches.into_iter().enumerate() {
        reserve::paths(&path(dir)).for_each(|reserve| {
            if reserve.symlink_metadata().is_ok_and(|status| status.is_file()) {
                touch(&reserve);
            }
        });
        for number in 0..5 {
            change(&records, dir, round * 100 + number, 450);
        }
    }
    // The file itself replaced by someone who knows nothing of tokens: what is saved next replaces that.
    let content = fs::read(path(dir)).unwrap();
    for number in 0..4 {
        let guard = records.write_blocking().unwrap();
        fs::write(dir.join("other"), &content).unwrap();
        fs::rename(dir.join("other"), path(dir)).unwrap();
        let mut guard = guard;
        guard
            .table_mut()
            .update(&name(500), |row| row.metadata = name(number))
            .unwrap();
        guard.save().unwrap();
        check(dir, &guard);
    }
}

/// A save that fails leaves the next one a file of which nothing is known.
#[test]
fn a_failed_save_is_made_good_by_the_next() {
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = tmp.path();
    let records = filled(dir);
    for round in 0..20 {
        let mut guard = records.write_blocking().unwrap();
        guard
            .table_mut()
            .update(&name(round), |row| row.metadata = "f".repeat(333))
            .unwrap();
        if round % 5 == 4 {
            let error = guard.save_with(|path| Err(crate::error::ErrorKind::Io.err("before").at(path)));
            assert!(error.is_err());
            check(dir, &guard);
            guard.table_mut().remove(&name(round + 30)).unwrap();
        }
        guard.save().unwrap();
        check(dir, &guard);
    }
}

/// What others do to the same records.
#[derive(Clone, Debug)]
enum Other {
    /// A second handle, as another process has one.
    Handle,
    /// A Go program: the whole file, without blanks, under a new token.
    Go,
    /// A table that was changed and not saved.
    Forgotten,
}

fn other() -> impl Strategy<Value = Option<Other>> {
    prop_oneof![
        8 => Just(None),
        2 => Just(Some(Other::Handle)),
        1 => Just(Some(Other::Go)),
        1 => Just(Some(Other::Forgotten)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn several_writers_take_turns(
        steps in prop::collection::vec((0..ROWS + 50, 0..700usize, other()), 1..25),
    ) {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = tmp.path();
        let here = filled(dir);
        let there: Records<LayerRow> = Records::open(config(dir)).unwrap();
        for (turn, (number, length, other)) in steps.into_iter().enumerate() {
            match other {
                None => change(&here, dir, number, length),
                Some(Other::Handle) => change(&there, dir, number, length),
                Some(Other::Go) => {
                    let mut guard = there.write_blocking().unwrap();
                    let id = format!("go-{turn}");
                    guard.table_mut().insert(layer(&id), 0).unwrap();
                    let rows: Vec<_> = guard.rows().map(|row| serde_json::to_value(&**row).unwrap()).collect();
                    crate::sys::atomic::write_file(&path(dir), serde_json::to_string(&rows).unwrap().as_bytes(), 0o600, false)
                        .unwrap();
                    drop(guard);
                    fs::write(dir.join("layers.lock"), format!("{:064}", number * 1000 + length)).unwrap();
                }
                Some(Other::Forgotten) => {
                    let mut guard = here.write_blocking().unwrap();
                    guard.table_mut().insert(layer("forgotten"), 0).unwrap();
                    drop(guard);
                    prop_assert!(here.write_blocking().unwrap().get("forgotten").is_none());
                }
            }
            let (one, two) = (here.read_blocking().unwrap(), there.read_blocking().unwrap());
            prop_assert_eq!(ids(&one), ids(&two));
        }
    }
}
