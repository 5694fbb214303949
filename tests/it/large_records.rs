//! Large files of records, of which a save writes only what has changed: what is on disk when, and what Go programs make of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, Store, StoreOptions};
use serde_json::Value;

use crate::support::loop_fs::{self, LoopFs};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::names_in;
use crate::support::worker::{Worker, store_location};
use crate::support::{each_set, needs};
use crate::sync_order::{CALLS, descriptor, paths, succeeded, whole_lines};

/// Makes the records of layers large.
async fn enlarge(store: &Store) {
    let options = LayerOptions::default().id("large").metadata("m".repeat(600_000));
    store.create_layer(None, options).await.unwrap();
}

/// In the worker.
pub(crate) async fn write_to_large_records(durability: &str) {
    let (graph, run, driver) = store_location();
    let options = StoreOptions::new(graph, run)
        .driver(driver)
        .durability(durability.parse().unwrap());
    let store = Store::open(options).await.unwrap();
    enlarge(&store).await;
    for number in 0..8 {
        let id = format!("layer{number}");
        store
            .create_layer(None, LayerOptions::default().id(&id))
            .await
            .unwrap();
        store.add_names(&id, [format!("name{number}")]).await.unwrap();
        if number % 2 == 1 {
            store.delete_layer(&id).await.unwrap();
        }
    }
}

/// What is not on disk of the file of records and its reserves, as the system calls of a process show it.
#[derive(Debug, Default)]
struct Versions {
    /// Whether a sync of one file takes the names that were changed before along.
    in_order: bool,
    /// Files with content that is not on disk.
    content: BTreeSet<PathBuf>,
    /// Reserves that a power cut could make the file again.
    unsettled: BTreeSet<PathBuf>,
    exchanges: usize,
    /// Bytes written to reserves since the last exchange, and the smallest sums.
    written: usize,
    small: usize,
    wrong: Vec<String>,
}

fn is_reserve(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(".reserve-layers.json")
}

impl Versions {
    fn replay(&mut self, line: &str) {
        let Some((call, arguments, result)) = succeeded(line) else {
            return;
        };
        let file = || PathBuf::from(descriptor(arguments).unwrap());
        match call {
            "pwrite64" | "ftruncate" if is_reserve(&file()) => {
                let file = file();
                if self.unsettled.contains(&file) {
                    self.wrong
                        .push(format!("after {} exchanges: {line:.200}", self.exchanges));
                }
                self.content.insert(file);
                self.written += result.parse::<usize>().unwrap();
            }
            "rename" | "renameat" | "renameat2" => {
                let moved: Vec<PathBuf> = paths(arguments).into_iter().map(PathBuf::from).collect();
                if arguments.contains("RENAME_EXCHANGE") && is_reserve(&moved[0]) {
                    self.exchanges += 1;
                    self.small += usize::from(std::mem::take(&mut self.written) < 100_000);
                    if self.content.contains(&moved[0]) {
                        self.wrong.push(format!(
                            "exchange {} before the content is on disk",
                            self.exchanges
                        ));
                    }
                    self.unsettled.insert(moved[0].clone());
                } else if is_reserve(&moved[1]) {
                    // The file until just now.
                    self.unsettled.insert(moved[1].clone());
                }
            }
            "fsync" | "syncfs" | "fdatasync" => {
                let file = file();
                self.content.remove(&file);
                let takes_names = call == "fsync" && self.in_order || call == "syncfs";
                self.unsettled
                    .retain(|reserve| !takes_names && reserve.parent() != Some(&file));
            }
            _ => {}
        }
    }
}

fn in_order_on(kind: &str, in_order: bool) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    loop_fs::format(kind, &image, 512 << 20);
    let mounted = LoopFs::mount(&image, &dir.path().join("mounted"));
    for durability in ["none", "default", "full"] {
        let root = TestRoot::in_dir(mounted.path(), "vfs");
        let log = root.path().join("log");
        let tracer = root
            .program("strace")
            .words("--follow-forks --quiet=all --signal=none --decode-fds=path --string-limit=64")
            .with([CALLS])
            .with(["--output".as_ref(), log.as_os_str()]);
        let command = Worker::command_under(tracer, "write-to-large-records", &root, &[durability]);
        Worker::spawn(command).finish();
        let mut versions = Versions {
            in_order,
            ..Versions::default()
        };
        for line in whole_lines(&std::fs::read_to_string(&log).unwrap()) {
            versions.replay(&line);
        }
        let wrong = versions.wrong.join("\n");
        assert!(wrong.is_empty(), "{kind}, {durability}:\n{wrong}");
        let (exchanges, small) = (versions.exchanges, versions.small);
        eprintln!("{kind}, {durability}: {exchanges} exchanges, {small} of them of what has changed");
        assert!(exchanges > 25 && small > exchanges - 6, "{exchanges}, {small}");
    }
}

#[test]
fn a_version_is_written_to_only_when_no_power_cut_brings_it_back_ext4() {
    needs!("strace", "mkfs.ext4");
    in_order_on("ext4", true);
}

#[test]
fn a_version_is_written_to_only_when_no_power_cut_brings_it_back_xfs() {
    needs!("strace", "mkfs.xfs");
    in_order_on("xfs", true);
}

#[test]
fn a_version_is_written_to_only_when_no_power_cut_brings_it_back_btrfs() {
    needs!("strace", "mkfs.btrfs");
    in_order_on("btrfs", false);
}

/// A Go program and two handles on the store change the same large records in turn.
async fn take_turns(set: PeerSet) {
    let root = TestRoot::in_dir(Path::new("/dev/shm"), "vfs").of(set);
    let options = || StoreOptions::new(root.graph(), root.run()).driver("vfs");
    let (one, other) = (
        Store::open(options()).await.unwrap(),
        Store::open(options()).await.unwrap(),
    );
    enlarge(&one).await;
    let mut expected: BTreeMap<String, String> = BTreeMap::from([("large".to_owned(), String::new())]);
    for round in 0..6 {
        for (number, store) in [(0, &one), (1, &one), (2, &other), (3, &one)] {
            let (id, name) = (format!("ours-{round}-{number}"), format!("name-{round}-{number}"));
            store
                .create_layer(None, LayerOptions::default().id(&id))
                .await
                .unwrap();
            store.set_names(&id, [&name]).await.unwrap();
            expected.insert(id, name);
        }
        if round % 2 == 1 {
            let id = format!("theirs-{round}");
            root.go().words(&format!("create-layer --id {id}")).run();
            root.go().words(&format!("add-names --name {id}-name {id}")).run();
            expected.insert(id.clone(), format!("{id}-name"));
        }
        if round > 1 {
            for id in [format!("ours-{}-1", round - 2), format!("ours-{}-2", round - 2)] {
                one.delete_layer(&id).await.unwrap();
                expected.remove(&id);
            }
        }
        let theirs = root.go().words("layers --json").run();
        let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
        let theirs = theirs.iter().map(|row| {
            let name = row["names"].get(0).and_then(Value::as_str).unwrap_or_default();
            (row["id"].as_str().unwrap().to_owned(), name.to_owned())
        });
        let theirs: Vec<(String, String)> = theirs.collect();
        let mut order = Vec::new();
        for store in [&one, &other] {
            let layers = store.layers().await.unwrap();
            let ours = layers.iter().map(|layer| {
                let name = layer.names().first().cloned().unwrap_or_default();
                (layer.id().to_owned(), name)
            });
            order.push(ours.collect::<Vec<_>>());
        }
        assert_eq!(theirs, order[0], "round {round}");
        assert_eq!(order[0], order[1], "round {round}");
        assert_eq!(order[0].iter().cloned().collect::<BTreeMap<_, _>>(), expected);
    }
    let image = ImageOptions::default().id("image");
    one.create_image(Some("ours-5-0"), image).await.unwrap();
    let container = ContainerOptions::default().id("container");
    other.create_container(Some("image"), container).await.unwrap();
    root.go().words("delete-container container").run();
    assert!(one.containers().await.unwrap().is_empty());
    let layers = root.metadata_dir("layers");
    let left: Vec<String> = names_in(&layers)
        .into_iter()
        .filter(|name| name.starts_with(".tmp-"))
        .collect();
    assert_eq!(left, [""; 0]);
}

fn writers_take_turns(set: PeerSet) {
    tokio::runtime::Runtime::new().unwrap().block_on(take_turns(set));
}

each_set!(fn writers_take_turns: "containers-storage");
