//! Calls that change several files, killed before each of the system calls that do, or with each of them failing.
//!
//! What random kills find sooner or later is found here for certain. After some kills a Go program is the next writer:
//! it sees no image and no container without its layer, and what it makes of the records changes nothing for the library.

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::operation::{Blob, Data, NameChange, New, Operation};
use crate::run::{Bench, Setup};
use crate::support::accepted::Age;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs, require_driver};
use crate::worker::{Remote, was_injected};

/// Renames make changes take place, one each. The others come before and after. Of a set, each is counted for itself.
pub(crate) const CALLS: [&str; 3] = [
    "rename,renameat,renameat2",
    "pwrite64",
    "mkdirat,mkdir,unlinkat,unlink,rmdir,symlinkat,symlink,mount,move_mount,umount2",
];

/// Those with a driver that makes layers in other ways too.
pub(crate) fn calls_of(driver: &str) -> impl Iterator<Item = &'static str> {
    let more = (driver == "btrfs").then_some("ioctl");
    CALLS.into_iter().chain(more)
}

pub(crate) fn id(letter: char) -> String {
    String::from(letter).repeat(64)
}

pub(crate) fn new(letter: char, names: &[&str]) -> New {
    New {
        id: id(letter),
        names: names.iter().map(ToString::to_string).collect(),
        items: vec![("manifest".into(), data(1))],
        ..New::default()
    }
}

fn data(fill: u8) -> Data {
    Data { fill, length: 1000 }
}

pub(crate) fn put(letter: char, parent: Option<char>) -> Operation {
    let files = [(format!("file-{letter}"), Some(data(0)))].into();
    Operation::PutLayer {
        parent: parent.map(id),
        new: new(letter, &[]),
        blob: Blob {
            files,
            ..Blob::default()
        },
    }
}

pub(crate) fn put_image_layer(parent: Option<char>) -> Operation {
    Operation::PutImageLayer {
        parent: parent.map(id),
        blob: Blob {
            files: [("file".into(), Some(data(2)))].into(),
            gzip: true,
            ..Blob::default()
        },
    }
}

/// Changes `file-b` of a layer, hides `file-a`, whether the layer or one below has it, and brings a new file.
pub(crate) fn apply(letter: char) -> Operation {
    let files = [
        ("file-a", None),
        ("file-b", Some(data(3))),
        ("file-z", Some(data(4))),
    ];
    let files = files.map(|(name, data)| (name.to_owned(), data)).into();
    Operation::ApplyDiff {
        key: id(letter),
        blob: Blob {
            files,
            gzip: true,
            ..Blob::default()
        },
    }
}

/// Links to `file-b` of a layer, which gets another mode.
fn apply_link(letter: char) -> Operation {
    Operation::ApplyDiff {
        key: id(letter),
        blob: Blob {
            files: [("file-z".into(), Some(data(4)))].into(),
            links: [("file-l".into(), "file-b".into())].into(),
            ..Blob::default()
        },
    }
}

pub(crate) fn image(letter: char, layer: char) -> Operation {
    Operation::CreateImage {
        layer: Some(id(layer)),
        new: new(letter, &["an image"]),
    }
}

/// Makes the file of records large in which something is recorded: the library then writes only what changes in it.
pub(crate) fn enlarge(letter: char) -> Operation {
    Operation::SetMetadata {
        key: id(letter),
        metadata: "large ".repeat(60_000),
    }
}

/// With a layer whose ID is that of the next letter.
pub(crate) fn container(letter: char, image: Option<char>, names: &[&str], volatile: bool) -> Operation {
    let mut new = new(letter, names);
    new.volatile = volatile;
    Operation::CreateContainer {
        image: image.map(id),
        new,
        layer_id: id(char::from_u32(u32::from(letter) + 1).unwrap()),
    }
}

/// Makes the call in a process that is killed before one of the system calls, one after the other, each time on a new
/// store that `before` has been done to. Returns how often.
/// Where `then_go` is given, a Go program of that set is the next writer.
fn kill_before_each(
    driver: &'static str,
    before: &[Operation],
    operation: &Operation,
    then_go: Option<PeerSet>,
) -> u32 {
    let runtime = Runtime::new().unwrap();
    let mut spare: Option<Remote> = None;
    let mut kills = 0;
    for calls in calls_of(driver) {
        for count in 1.. {
            let mut setup = Setup {
                runtime: &runtime,
                driver,
                peers: then_go.unwrap_or(PeerSet::Installed),
                spare: &mut spare,
            };
            let mut bench = Bench::new(&mut setup, false).unwrap();
            let moment = format!("{operation:?}, killed at call {count} of {calls}");
            let mut check = || -> Result<bool, String> {
                for operation in before {
                    bench.whole(operation, true)?;
                }
                let mut traced = Remote::start_killed(&bench.root, calls, count);
                let opened = traced.try_open(&bench.location).transpose()?;
                if opened.is_none() {
                    traced.wait();
                    return Ok(false);
                }
                traced.begin(operation);
                let outcome = traced.end();
                traced.wait();
                if then_go.is_some() && outcome.is_none() {
                    go_writes(&bench.root)?;
                }
                bench.after_kill(operation, outcome.as_ref(), count % 2 == 0)?;
                if let Operation::ApplyDiff { key, .. } = operation {
                    let (key, force) = (key.clone(), false);
                    bench.whole(&Operation::Mount(key.clone()), true)?;
                    bench.whole(&Operation::Unmount { key, force }, true)?;
                }
                bench.end(true)?;
                kills += u32::from(outcome.is_none());
                Ok(outcome.is_some())
            };
            let last = check().unwrap_or_else(|error| panic!("{moment}\n{}", bench.report(&error)));
            spare = Some(bench.into_spare());
            if last {
                break;
            }
        }
    }
    eprintln!("{driver}: killed {kills} times in {operation:?}");
    kills
}

/// One test each.
macro_rules! killed {
    ($($name:ident: $driver:literal, [$($before:expr),* $(,)?], $operation:expr;)*) => {$(
        #[test]
        fn $name() {
            needs!("strace");
            if !require_driver($driver) {
                return;
            }
            let kills = kill_before_each($driver, &[$($before),*], &$operation, None);
            assert!(kills >= 2, "only {kills} moments");
        }
    )*};
}

killed! {
    creating_a_container: "overlay", [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    creating_a_container_with_vfs: "vfs", [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    creating_a_container_with_btrfs: "btrfs", [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    creating_a_container_among_large_records: "overlay",
        [put('a', None), enlarge('a'), image('b', 'a')], container('c', Some('b'), &["c"], false);
    deleting_a_container_among_large_records: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false), enlarge('a')],
        Operation::DeleteContainer(id('c'));
    deleting_an_image_with_large_records: "vfs",
        [put('a', None), put('b', Some('a')), put('0', None), image('c', 'b'), enlarge('0')],
        Operation::DeleteImage { key: id('c'), commit: true };
    putting_a_layer: "overlay", [put('a', None)], put('b', Some('a'));
    putting_a_layer_with_vfs: "vfs", [put('a', None)], put('b', Some('a'));
    putting_a_layer_with_btrfs: "btrfs", [put('a', None)], put('b', Some('a'));
    putting_a_layer_of_an_image: "overlay", [put('a', None)], put_image_layer(Some('a'));
    putting_a_layer_of_an_image_with_vfs: "vfs", [put('a', None)], put_image_layer(Some('a'));
    putting_a_layer_of_an_image_with_btrfs: "btrfs", [put('a', None)], put_image_layer(Some('a'));
    creating_an_image: "overlay", [put('a', None)], image('c', 'a');
    deleting_a_mounted_container: "overlay",
        [container('c', None, &[], false), Operation::Mount(id('c')), Operation::Mount(id('c'))],
        Operation::DeleteContainer(id('c'));
    deleting_a_container_with_another_layer: "vfs",
        [container('c', None, &[], false), Operation::Delete("dd".into()), put('d', None)],
        Operation::DeleteContainer(id('c'));
    deleting_an_image_with_its_layers: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b'), Operation::MountImage(id('c'))],
        Operation::DeleteImage { key: id('c'), commit: true };
    deleting_a_container_with_btrfs: "btrfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)],
        Operation::DeleteContainer(id('c'));
    deleting_an_image_with_btrfs: "btrfs",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Operation::DeleteImage { key: id('c'), commit: true };
    deleting_a_mounted_layer: "overlay",
        [put('a', None), Operation::Mount(id('a')), Operation::Mount(id('a'))],
        Operation::DeleteLayer(id('a'));
    deleting_whatever_it_is: "vfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false)],
        Operation::Delete(id('c'));
    mounting: "overlay", [put('a', None)], Operation::Mount(id('a'));
    unmounting: "overlay", [put('a', None), Operation::Mount(id('a'))], Operation::Unmount {
        key: id('a'),
        force: false,
    };
    applying_a_diff: "overlay", [put('a', None), put('b', Some('a'))], apply('b');
    applying_a_link: "overlay", [put('a', None), put('b', Some('a'))], apply_link('b');
    applying_a_link_to_a_whole_tree: "vfs", [put('a', None), put('b', Some('a'))], apply_link('b');
    applying_a_diff_to_an_empty_layer: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false)],
        apply('d');
    applying_a_diff_to_a_whole_tree: "vfs", [put('a', None), put('b', Some('a'))], apply('b');
    applying_a_diff_with_btrfs: "btrfs", [put('a', None), put('b', Some('a'))], apply('b');
    applying_a_link_with_btrfs: "btrfs", [put('a', None), put('b', Some('a'))], apply_link('b');
    wiping_with_btrfs: "btrfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)],
        Operation::Wipe;
    wiping: "overlay",
        [
            put('a', None), put('b', Some('a')), image('c', 'b'), put('9', None),
            container('d', Some('c'), &["d"], false), container('f', Some('c'), &[], true), Operation::Mount(id('d')),
        ],
        Operation::Wipe;
    wiping_whole_trees: "vfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)],
        Operation::Wipe;
    shutting_down: "overlay",
        [
            put('a', None), put('b', Some('a')), image('c', 'b'), container('d', Some('c'), &[], false),
            Operation::Mount(id('a')), Operation::Mount(id('d')), Operation::Mount(id('d')),
        ],
        Operation::Shutdown { force: true };
    replacing_an_image_item: "vfs", [put('a', None), image('b', 'a')], Operation::SetImageData {
        key: id('b'),
        item: "manifest".into(),
        data: data(2),
    };
    replacing_a_container_item: "vfs", [container('a', None, &[], false)], Operation::SetContainerData {
        key: id('a'),
        item: "manifest".into(),
        data: data(2),
    };
    taking_names_from_a_volatile_container: "vfs",
        [container('a', None, &["x", "y"], true), container('c', None, &["old"], false)],
        Operation::Names { key: id('c'), change: NameChange::Set, names: vec!["x".into(), "new".into()] };
    taking_names_for_a_volatile_container: "vfs",
        [container('a', None, &["old"], true), container('c', None, &["x", "y"], false)],
        Operation::Names { key: id('a'), change: NameChange::Set, names: vec!["x".into(), "new".into()] };
}

/// A Go program looks at the store, mounts and unmounts every container, and writes all of the records.
pub(crate) fn go_writes(root: &TestRoot) -> Result<(), String> {
    let list = |kind: &str| -> Vec<Value> {
        let text = root.go().with([kind, "--json"]).run();
        serde_json::from_str::<Option<Vec<Value>>>(&text)
            .unwrap()
            .unwrap_or_default()
    };
    // Owners in a test are those on disk.
    let run = |words: &str| {
        let mut command = root.go().words(words);
        command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes").run()
    };
    let other = id('9');
    run(&format!("create-layer --id {other}"));
    run(&format!("create-image --id {other} {other}"));
    run(&format!("create-container --id {other} {other}"));
    let layers = list("layers");
    let is_there = |layer: &Value| layers.iter().any(|row| row["id"] == *layer);
    for kind in ["images", "containers"] {
        for row in list(kind) {
            let layer = &row["layer"];
            if !layer.is_null() && !is_there(layer) {
                return Err(format!("the Go program finds {kind} without their layer: {row}"));
            }
        }
    }
    run(&format!("delete-container {other}"));
    run(&format!("delete-image {other}"));
    // Debian 12's program does not know the variable, and newer kernels refuse its ID-mapped mounts.
    let mounts_mapped = root.peers().age() != Age::Old;
    for row in list("containers") {
        if !row["uidmap"].is_null() && !mounts_mapped {
            continue;
        }
        let id = row["id"].as_str().unwrap();
        run(&format!("mount {id}"));
        run(&format!("unmount {id}"));
    }
    Ok(())
}

/// One test for each set of peers.
macro_rules! killed_before_go_writes {
    ($($name:ident: $driver:literal, [$($before:expr),* $(,)?], $operation:expr;)*) => {$(
        fn $name(set: PeerSet) {
            // The btrfs driver of Debian 12 cannot delete a layer that has only an incomplete record.
            if !require_driver($driver) || $driver == "btrfs" && set == PeerSet::Installed {
                return;
            }
            let kills = kill_before_each($driver, &[$($before),*], &$operation, Some(set));
            assert!(kills >= 2, "only {kills} moments");
        }
        each_set!(fn $name: "strace", "containers-storage");
    )*};
}

killed_before_go_writes! {
    creating_a_container_before_go_writes: "overlay",
        [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    deleting_a_container_before_go_writes: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)],
        Operation::DeleteContainer(id('c'));
    deleting_a_container_among_large_records_before_go_writes: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false), enlarge('a')],
        Operation::DeleteContainer(id('c'));
    deleting_an_image_before_go_writes: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Operation::DeleteImage { key: id('c'), commit: true };
    applying_a_diff_before_go_writes: "overlay", [put('a', None), put('b', Some('a'))], apply('b');
    applying_a_diff_to_a_whole_tree_before_go_writes: "vfs", [put('a', None), put('b', Some('a'))], apply('b');
    creating_a_container_with_btrfs_before_go_writes: "btrfs",
        [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    deleting_an_image_with_btrfs_before_go_writes: "btrfs",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Operation::DeleteImage { key: id('c'), commit: true };
    wiping_before_go_writes: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b'), container('d', Some('c'), &["d"], false)],
        Operation::Wipe;
    shutting_down_before_go_writes: "overlay",
        [put('a', None), container('c', None, &[], false), Operation::Mount(id('a')), Operation::Mount(id('c'))],
        Operation::Shutdown { force: true };
    mounting_before_go_writes: "overlay", [container('c', None, &[], false)], Operation::Mount(id('c'));
    unmounting_before_go_writes: "overlay",
        [container('c', None, &[], false), Operation::Mount(id('c'))],
        Operation::Unmount { key: id('c'), force: false };
    putting_a_layer_of_an_image_before_go_writes: "overlay", [put('a', None)], put_image_layer(Some('a'));
    replacing_an_image_item_before_go_writes: "vfs",
        [put('a', None), image('b', 'a')], Operation::SetImageData {
            key: id('b'),
            item: "manifest".into(),
            data: data(2),
        };
}

/// Makes the call in a process in which one of the system calls fails, one after the other, or all from one on, each time on
/// a new store that `before` has been done to. The call has happened or it has not, and what it returns tells which if it
/// succeeds. Returns how many calls failed.
fn fail_each(driver: &'static str, before: &[Operation], operation: &Operation) -> u32 {
    const CALLS: [&str; 3] = [
        "rename,renameat,renameat2",
        "mkdirat,mkdir,unlinkat,unlink,rmdir",
        "fdatasync,fsync,pwrite64",
    ];
    let runtime = Runtime::new().unwrap();
    let mut spare: Option<Remote> = None;
    let mut failed = 0;
    for (calls, error, more) in [
        (CALLS[0], "EIO", ""),
        (CALLS[0], "ENOSPC", "+"),
        (CALLS[1], "EIO", ""),
        (CALLS[1], "ENOSPC", "+"),
        (CALLS[2], "EIO", ""),
        // Asked before a directory is synced, after a file was renamed to its place.
        ("fstatfs", "EIO", ""),
    ] {
        for count in 1.. {
            let mut setup = Setup {
                runtime: &runtime,
                driver,
                peers: PeerSet::Installed,
                spare: &mut spare,
            };
            let mut bench = Bench::new(&mut setup, false).unwrap();
            let moment = format!("{operation:?} with {error} at call {count}{more} of {calls}");
            let mut check = || -> Result<bool, String> {
                for operation in before {
                    bench.whole(operation, true)?;
                }
                let trace = bench.root.path().join("trace");
                let when = format!("{count}{more}");
                let mut traced = Remote::start_failing(&bench.root, calls, error, &when, &trace);
                if let Some(Err(_opening_failed)) = traced.try_open(&bench.location.synced()) {
                    traced.kill();
                    return Ok(false);
                }
                traced.begin(operation);
                let outcome = traced.end();
                traced.kill();
                let succeeded = outcome.as_ref().filter(|outcome| outcome.is_ok());
                bench.after_kill(operation, succeeded, count % 2 == 0)?;
                bench.end(true)?;
                let injected = was_injected(&trace);
                failed += u32::from(injected);
                Ok(!injected)
            };
            let last = check().unwrap_or_else(|error| panic!("{moment}\n{}", bench.report(&error)));
            spare = Some(bench.into_spare());
            if last {
                break;
            }
        }
    }
    eprintln!("{driver}: {failed} calls failed in {operation:?}");
    failed
}

/// One test each, with the function that has calls fail and returns how many did.
macro_rules! failing {
    ($fail:ident; $($name:ident: $driver:literal, [$($before:expr),* $(,)?], $operation:expr;)*) => {$(
        #[test]
        fn $name() {
            needs!("strace");
            if !require_driver($driver) {
                return;
            }
            let failed = $fail($driver, &[$($before),*], &$operation);
            assert!(failed >= 4, "only {failed} calls");
        }
    )*};
}
pub(crate) use failing;

failing! {
    fail_each;
    errors_in_deleting_an_image: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Operation::DeleteImage { key: id('c'), commit: true };
    errors_in_deleting_a_mounted_container: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false), Operation::Mount(id('c'))],
        Operation::DeleteContainer(id('c'));
    errors_in_applying_a_diff: "overlay", [put('a', None), put('b', Some('a'))], apply('b');
    errors_in_applying_a_diff_to_a_whole_tree: "vfs", [put('a', None), put('b', Some('a'))], apply('b');
    errors_in_applying_a_diff_with_btrfs: "btrfs", [put('a', None), put('b', Some('a'))], apply('b');
    errors_in_creating_a_container_with_btrfs: "btrfs",
        [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    errors_in_deleting_an_image_with_btrfs: "btrfs",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Operation::DeleteImage { key: id('c'), commit: true };
    errors_in_deleting_a_layer: "vfs", [put('a', None)], Operation::DeleteLayer(id('a'));
    errors_in_deleting_whatever_it_is: "vfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false)],
        Operation::Delete(id('c'));
    errors_in_creating_a_container: "vfs",
        [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    errors_in_creating_a_container_among_large_records: "vfs",
        [put('a', None), enlarge('a'), image('b', 'a')], container('c', Some('b'), &["c"], false);
    errors_in_deleting_a_container_among_large_records: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false), enlarge('a')],
        Operation::DeleteContainer(id('c'));
    errors_in_putting_a_layer: "overlay", [put('a', None)], put('b', Some('a'));
    errors_in_putting_a_layer_of_an_image: "vfs", [put('a', None)], put_image_layer(Some('a'));
    errors_in_creating_an_image: "overlay", [put('a', None)], image('c', 'a');
    errors_in_replacing_an_image_item: "vfs", [put('a', None), image('b', 'a')], Operation::SetImageData {
        key: id('b'),
        item: "manifest".into(),
        data: data(2),
    };
}
