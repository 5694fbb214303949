//! Records on disk: who sees what when, and what failures leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tempfile::TempDir;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::names::NameOperation;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::{Location, ReadGuard, ReadOnlyRecords, Records, RecordsConfig, WriteGuard};

fn config(dir: &Path) -> RecordsConfig {
    RecordsConfig {
        lock_files: vec![dir.join("layers.lock")],
        locations: vec![
            Location {
                path: dir.join("layers.json"),
                sync: true,
            },
            Location {
                path: dir.join("volatile-layers.json"),
                sync: false,
            },
        ],
        check_mtimes: true,
        lock_timeout: Some(Duration::from_secs(60)),
    }
}

fn open(dir: &Path) -> Records<LayerRow> {
    Records::open(config(dir)).unwrap()
}

fn row(id: &str) -> LayerRow {
    LayerRow {
        id: id.into(),
        ..LayerRow::default()
    }
}

fn ids<R: Record>(table: &Table<R>) -> Vec<String> {
    table.rows().map(|row| row.id().to_owned()).collect()
}

async fn insert(records: &Records<LayerRow>, id: &str, location: usize) -> Result<()> {
    let mut guard = records.write().await?;
    guard.table_mut().insert(row(id), location)?;
    bridge::run(move || guard.save()).await
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

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
    assert_eq!(names(&dir), ["layers.lock"], "reading makes no file of rows");
    insert(&one, "a", 0).await.unwrap();
    assert_eq!(names(&dir), ["layers.json", "layers.lock"]);
    assert_eq!(fs::read(dir.join("layers.lock")).unwrap().len(), 64);

    let guard = one.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a".to_string()], false));
    drop(guard);
    let guard = two.read().await.unwrap();
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["a".to_string()], true));
    drop(guard);
    insert(&two, "b", 1).await.unwrap();
    let guard = one.write().await.unwrap();
    assert_eq!(
        (ids(&guard), guard.reloaded()),
        (vec!["a".to_string(), "b".to_string()], true)
    );
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
    guard.table_mut().insert(row("a"), 0).unwrap();
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
    guard.table_mut().insert(row("b"), 0).unwrap();
    drop(guard);
    assert_eq!(ids(&records.read().await.unwrap()), ["a"]);
    // Also what comes after a save.
    let mut guard = records.write().await.unwrap();
    guard.table_mut().insert(row("c"), 0).unwrap();
    guard.save().unwrap();
    guard.table_mut().remove("a");
    drop(guard);
    assert_eq!(ids(&records.read().await.unwrap()), ["a", "c"]);
    // What fails changes nothing, and so costs no load.
    let mut guard = records.write().await.unwrap();
    assert!(guard.table_mut().insert(row("a"), 0).is_err());
    drop(guard);
    assert!(!records.read().await.unwrap().reloaded());
}

#[tokio::test]
async fn a_reader_waits_for_the_writer_and_then_sees_its_save() {
    let tmp = tempfile::tempdir().unwrap();
    let (one, two) = (open(tmp.path()), open(tmp.path()));
    for reader in [&one, &two] {
        let mut guard = one.write().await.unwrap();
        let mut reading = Box::pin(reader.read());
        assert!(futures::poll!(&mut reading).is_pending());
        let id = format!("row{}", guard.len());
        guard.table_mut().insert(row(&id), 0).unwrap();
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
        names(tmp.path()),
        ["layers.json", "layers.lock", "volatile-layers.json"]
    );
}

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
            "record::records_tests::other_process",
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
        assert_eq!(names(tmp.path()), ["layers.json", "layers.lock"]);
    }
}

fn open_file(path: &Path) -> Table<LayerRow> {
    let rows = crate::json::parse_array_into(&fs::read(path).unwrap().into(), Arc::new).unwrap();
    Table::load(vec![rows], false).unwrap()
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
    guard.table_mut().insert(row("b"), 0).unwrap();
    guard.table_mut().insert(row("c"), 1).unwrap();
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
    assert_eq!(
        (ids(&guard), guard.reloaded()),
        (vec!["a".to_string(), "b".to_string()], true)
    );
    drop(guard);

    // A second attempt under the same guard is as good as a first one.
    let mut guard = records.write().await.unwrap();
    guard.table_mut().insert(row("c"), 1).unwrap();
    guard.save_with(refuse).unwrap_err();
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

#[tokio::test(flavor = "multi_thread")]
async fn large_records_are_loaded_beside_others() {
    let tmp = tempfile::tempdir().unwrap();
    let (here, there) = (tmp.path().join("here"), tmp.path().join("there"));
    for dir in [&here, &there] {
        let mut guard = open(dir).write().await.unwrap();
        let big = LayerRow {
            metadata: "m".repeat(70_000),
            ..row("big")
        };
        guard.table_mut().insert(big, 0).unwrap();
        guard.save().unwrap();
    }
    let beside = || {
        let (one, other) = (open(&here), open(&there));
        one.prefetch(&other);
        (one, other)
    };
    let (one, other) = beside();
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
    assert_eq!((ids(&guard), guard.reloaded()), (vec!["big".to_string()], false));
    drop(guard);

    // What has gone is not waited for, and what is wrong is reported to whoever asks for it.
    let (one, other) = beside();
    drop(other);
    assert_eq!(ids(&one.read().await.unwrap()), ["big"]);
    fs::write(there.join("layers.json"), vec![b'['; 70_000]).unwrap();
    let (one, other) = beside();
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

#[tokio::test]
async fn litter_of_killed_writers_can_be_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let records = open(tmp.path());
    insert(&records, "a", 0).await.unwrap();
    for name in [".tmp-layers.json12", ".tmp-volatile-layers.json3", ".tmp-other1"] {
        fs::write(tmp.path().join(name), "half").unwrap();
    }
    assert_eq!(records.write().await.unwrap().remove_stale().unwrap(), 2);
    assert_eq!(names(tmp.path()), [".tmp-other1", "layers.json", "layers.lock"]);
}

/// A row as of a pulled layer.
fn typical(number: usize) -> LayerRow {
    let digest = crate::digest::Digest::sha256(number.to_le_bytes());
    LayerRow {
        id: digest.encoded().into(),
        names: vec![format!("layer-{number}")],
        parent: digest.encoded().into(),
        created: crate::time::Time::now(),
        compressed_digest: crate::digest::Digest::sha256(digest.encoded()).into(),
        compressed_size: 30_000_000,
        diff_digest: digest.into(),
        diff_size: 80_000_000,
        compression: 2,
        uids: vec![0, 101],
        gids: vec![0, 42, 101],
        ..LayerRow::default()
    }
}

fn measure(rounds: u32, mut step: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..rounds).for_each(|_| step());
    start.elapsed() / rounds
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    for count in [10, 1_000, 10_000] {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        config.locations[0].sync = false;
        let records: Records<LayerRow> = Records::open(config.clone()).unwrap();
        let mut guard = records.write_blocking().unwrap();
        for number in 0..count {
            guard.table_mut().insert(typical(number), 0).unwrap();
        }
        let first = measure(1, || guard.save().unwrap());
        let id = typical(count / 2).id;
        let mut number = 0;
        let save = measure(50, || {
            number += 1;
            guard
                .table_mut()
                .update(&id, |row| row.metadata = number.to_string())
                .unwrap();
            guard.save().unwrap();
        });
        drop(guard);
        let load = measure(5, || {
            let records = Records::<LayerRow>::open(config.clone()).unwrap();
            assert_eq!(records.read_blocking().unwrap().len(), count);
        });
        let size = fs::metadata(tmp.path().join("layers.json")).unwrap().len();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let fresh = runtime.block_on(async {
            drop(records.read().await.unwrap());
            measure(10_000, || drop(records.read().now_or_never().unwrap().unwrap()))
        });
        let write = measure(1_000, || drop(records.write().now_or_never().unwrap().unwrap()));
        println!(
            "{count} rows, {size} bytes: first save {first:?}, save after one change {save:?}, load {load:?}, \
             fresh read {fresh:?}, fresh write {write:?}"
        );
    }
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
