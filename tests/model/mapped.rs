//! Containers with other owners than their image's layer has, where a mount cannot show other owners: a copy of the layer is
//! made for them and noted in the image; and layers on a layer with other owners. The process that makes one is killed before
//! each of its system calls.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use graphroot::Store;
use tokio::runtime::Runtime;

use crate::every_call::{calls_of, go_writes, id, image, new, put};
use crate::operation::Operation;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{each_set, needs, require_driver};
use crate::worker::{Location, Remote};

/// The owner on disk of root's files.
const ROOT: u32 = 100_000;

/// The Go library's variable, which this library obeys too: mounts show the owners on disk.
const NO_MAPPED_MOUNTS: (&str, &str) = ("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes");

/// What is made for other owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Container,
    Layer,
}

impl Made {
    fn operation(self, letter: char) -> Operation {
        let map = (0, ROOT, 65536);
        match self {
            Self::Container => Operation::CreateMapped {
                image: id('c'),
                new: new(letter, &[]),
                map,
            },
            Self::Layer => {
                let Operation::PutLayer { new, blob, .. } = put(letter, None) else {
                    panic!("another operation");
                };
                Operation::PutMapped {
                    parent: id('b'),
                    new,
                    blob,
                    map,
                }
            }
        }
    }

    async fn check(self, root: &TestRoot, store: &Store, made: bool) {
        match self {
            Self::Container => check(root, store, made).await,
            Self::Layer => check_layer(root, store, made).await,
        }
    }
}

/// Where a driver of whole trees has its layers.
fn whole_trees(root: &TestRoot) -> PathBuf {
    let name = match root.driver() {
        "btrfs" => "subvolumes",
        _ => "dir",
    };
    root.graph().join(root.driver()).join(name)
}

/// There is the layer with the owners of all files, or nothing of it.
async fn check_layer(root: &TestRoot, store: &Store, made: bool) {
    store.garbage_collect().await.unwrap();
    let layers = store.layers().await.unwrap();
    let ids: BTreeSet<String> = layers.iter().map(|layer| layer.id().to_owned()).collect();
    let mut expected = BTreeSet::from([id('a'), id('b')]);
    if made || ids.contains(&id('d')) {
        expected.insert(id('d'));
        let layer = store.layer(&id('d')).await.unwrap();
        assert_eq!(layer.uid_map()[0].host_id, ROOT);
        let home = root.graph().join(root.driver());
        let trees = match root.driver() {
            "overlay" => {
                ["diff1/file-a", "diff1/file-b", "diff/file-d"].map(|file| home.join(id('d')).join(file))
            }
            _ => ["file-a", "file-b", "file-d"].map(|file| whole_trees(root).join(id('d')).join(file)),
        };
        for file in trees {
            let stat = file.metadata().unwrap();
            assert_eq!(
                (stat.uid(), stat.gid(), stat.len()),
                (ROOT, ROOT, 1000),
                "{}",
                file.display()
            );
        }
    }
    assert_eq!(ids, expected);
    assert_eq!(root.layer_directories(), expected);
    assert_eq!(root.temporary_files(), Vec::<String>::new());
    assert_eq!(root.half_written_records(), Vec::<String>::new());
}

/// There is the container with all of its layers, or none and nothing of it.
async fn check(root: &TestRoot, store: &Store, created: bool) {
    store.garbage_collect().await.unwrap();
    let image = store.image(&id('c')).await.unwrap();
    let copies: BTreeSet<&str> = image.mapped_top_layers().iter().map(String::as_str).collect();
    assert!(copies.len() <= 1, "{copies:?}");
    let containers = store.containers().await.unwrap();
    assert!(containers.len() <= 1 && (!created || containers.len() == 1));
    let mut expected = BTreeSet::from([id('a'), id('b')]);
    expected.extend(copies.iter().map(ToString::to_string));
    for container in &containers {
        let layer = store.layer(container.layer_id()).await.unwrap();
        assert!(copies.contains(layer.parent().unwrap()), "{layer:?}");
        expected.insert(layer.id().to_owned());
    }
    for copy in &copies {
        let layer = store.layer(copy).await.unwrap();
        assert_eq!(layer.parent(), Some(&*id('a')));
        assert_eq!(layer.uid_map()[0].host_id, ROOT);
        let home = root.graph().join(root.driver());
        let tree = match root.driver() {
            // What it shows with other owners lies in a directory below its own.
            "overlay" => home.join(copy).join("diff1"),
            _ => whole_trees(root).join(copy),
        };
        for name in ["file-a", "file-b"] {
            let stat = tree.join(name).metadata().unwrap();
            assert_eq!((stat.uid(), stat.gid(), stat.len()), (ROOT, ROOT, 1000), "{name}");
        }
    }
    let layers = store.layers().await.unwrap();
    let ids: BTreeSet<String> = layers.iter().map(|layer| layer.id().to_owned()).collect();
    assert_eq!(ids, expected);
    assert_eq!(root.layer_directories(), expected);
    assert_eq!(root.temporary_files(), Vec::<String>::new());
    assert_eq!(root.half_written_records(), Vec::<String>::new());
}

fn kill_before_each(driver: &'static str, peers: PeerSet, go_is_next: bool, made: Made) {
    let runtime = Runtime::new().unwrap();
    let mut kills = 0;
    for calls in calls_of(driver) {
        for count in 1.. {
            let root = TestRoot::of_driver(driver).of(peers);
            let location = Location::of(&root, false);
            let store = runtime.block_on(location.open()).unwrap();
            for operation in [put('a', None), put('b', Some('a')), image('c', 'b')] {
                runtime.block_on(operation.run(&store)).unwrap();
            }
            let mut traced = Remote::start_killed_with(&root, calls, count, &[NO_MAPPED_MOUNTS]);
            let Some(opened) = traced.try_open(&location) else {
                traced.wait();
                continue;
            };
            opened.unwrap();
            traced.begin(&made.operation('d'));
            let outcome = traced.end();
            traced.wait();
            if let Some(outcome) = &outcome {
                outcome.as_ref().unwrap();
            } else if go_is_next {
                go_writes(&root).unwrap();
            }
            let next = runtime.block_on(location.open()).unwrap();
            let (first, second) = if count % 2 == 0 {
                (&store, &next)
            } else {
                (&next, &store)
            };
            runtime.block_on(async {
                made.check(&root, first, outcome.is_some()).await;
                made.check(&root, second, outcome.is_some()).await;
                // All of it can be deleted.
                for container in first.containers().await.unwrap() {
                    first.delete_container(container.id()).await.unwrap();
                }
                if store.exists(&id('d')).await.unwrap() {
                    first.delete_layer(&id('d')).await.unwrap();
                }
                first.delete_image(&id('c')).await.unwrap();
                assert!(first.layers().await.unwrap().is_empty());
                assert_eq!(root.layer_directories(), BTreeSet::new());
            });
            if outcome.is_some() {
                break;
            }
            kills += 1;
        }
    }
    eprintln!("{driver}: killed {kills} times");
    assert!(kills >= 10, "only {kills} moments");
}

#[test]
fn copies_of_whole_trees() {
    needs!("strace");
    kill_before_each("vfs", PeerSet::Installed, false, Made::Container);
}

#[test]
fn copies_above_their_template() {
    needs!("strace");
    kill_before_each("overlay", PeerSet::Installed, false, Made::Container);
}

#[test]
fn whole_trees_on_a_parent_with_other_owners() {
    needs!("strace");
    kill_before_each("vfs", PeerSet::Installed, false, Made::Layer);
}

#[test]
fn layers_on_a_parent_with_other_owners() {
    needs!("strace");
    kill_before_each("overlay", PeerSet::Installed, false, Made::Layer);
}

#[test]
fn snapshots_with_other_owners() {
    needs!("strace");
    if require_driver("btrfs") {
        kill_before_each("btrfs", PeerSet::Installed, false, Made::Layer);
        kill_before_each("btrfs", PeerSet::Installed, false, Made::Container);
    }
}

fn layers_before_go_writes(set: PeerSet) {
    kill_before_each("overlay", set, true, Made::Layer);
}
each_set!(fn layers_before_go_writes: "strace", "containers-storage");

fn copies_before_go_writes(set: PeerSet) {
    kill_before_each("overlay", set, true, Made::Container);
}
each_set!(fn copies_before_go_writes: "strace", "containers-storage");
