//! A process that is killed while it heals leaves a store that is healed the next time, with the same end; and the Go
//! library's check finds nothing afterwards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graphroot::{CheckOptions, HealOptions, ImageBuilder, Store, StoreOptions, Stray, StrayKind};

use crate::crash::{CALLS, killed_at};
use crate::support::manifest::{Manifest, assert_same, layer_manifest};
use crate::support::needs;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;
use crate::support::worker::{run_traced, store_location, tell};

/// In the worker: heals the store of what the one below `source` has.
pub(crate) fn work(source: &str) {
    run_traced(|| heal_of(source));
}

async fn heal_of(source: &str) {
    let (graph, run, driver) = store_location();
    let store = Store::open(StoreOptions::new(graph, run).driver(&driver))
        .await
        .unwrap();
    let source = Path::new(source);
    let options = StoreOptions::new(source.join("graph"), source.join("run")).driver(&driver);
    heal(&store, &Store::open(options).await.unwrap()).await;
    tell("done");
}

async fn heal(store: &Store, source: &Store) {
    let options = HealOptions::default().source(source.clone());
    let healed = store.heal(options).await.unwrap();
    assert!(healed.is_success(), "{healed:#?}");
}

async fn fill(store: &Store) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for name in ["lower", "middle", "upper"] {
        let tar = Tar::new()
            .dir("dir/")
            .file(format!("dir/{name}"), name)
            .file("changed", name)
            .build();
        let parent = ids.last().map(String::as_str);
        let layer = store.put_image_layer(parent, std::io::Cursor::new(tar)).await;
        ids.push(layer.unwrap().id().to_owned());
    }
    let image = ImageBuilder::new().top_layer(&*ids[2]).name("localhost/three:1");
    let image = image.build(store).await.unwrap();
    store
        .create_container(Some(image.id()), Default::default())
        .await
        .unwrap();
    ids
}

struct Case {
    root: TestRoot,
    source: TestRoot,
    ids: Vec<String>,
    trees: Vec<Manifest>,
    records: BTreeSet<String>,
}

fn tree(root: &TestRoot, id: &str) -> PathBuf {
    let home = root.graph().join(root.driver());
    match root.driver() {
        "vfs" => home.join("dir").join(id),
        _ => home.join(id).join("diff"),
    }
}

fn files(root: &TestRoot, id: &str) -> Manifest {
    layer_manifest(&tree(root, id))
}

impl Case {
    async fn new(make: fn() -> TestRoot) -> Self {
        let (root, source) = (make(), make());
        let ids = fill(&root.open().await).await;
        assert_eq!(fill(&source.open().await).await, ids);
        let trees = ids.iter().map(|id| files(&root, id)).collect();
        let records = crate::support::store::layer_ids(&root.open().await).await;
        Self {
            root,
            source,
            ids,
            trees,
            records,
        }
    }

    /// The store is as it was, and nothing else is there.
    async fn assert_whole(&self, moment: &str) {
        let store = self.root.open().await;
        for (id, tree) in self.ids.iter().zip(&self.trees) {
            assert_same("before", tree, moment, &files(&self.root, id));
        }
        assert_eq!(
            crate::support::store::layer_ids(&store).await,
            self.records,
            "{moment}"
        );
        let report = store.check(CheckOptions::everything()).await.unwrap();
        // What a killed writer of records has left is for garbage collection.
        let is_more = |stray: &Stray| stray.kind != StrayKind::RecordsInTheMaking;
        assert!(
            report.is_clean() && !report.strays.iter().any(is_more),
            "{moment}: {report:#?}"
        );
        assert_eq!(self.root.temporary_files(), Vec::<String>::new(), "{moment}");
        if self.root.driver() == "overlay" {
            assert_eq!(self.root.layer_directories(), self.records, "{moment}");
            let tree = tree(&self.root, &self.ids[1]);
            assert!(!tree.parent().unwrap().join("replaced0").exists(), "{moment}");
        }
    }

    async fn kill_at_every_call(&self, name: &str, damage: impl AsyncFn(&Self)) {
        // Where tracing is forbidden every count would look like the last.
        self.root.program("strace").words("--output=/dev/null true").run();
        let arguments = [self.source.path().to_str().unwrap()];
        let mut total = 0;
        for call in CALLS {
            for count in 1.. {
                let moment = format!("{name}, killed at call {count} of {call}");
                damage(self).await;
                let killed = killed_at(&self.root, "heal", &arguments, call, count);
                if killed && count % 8 == 3 && self.root.peers() == PeerSet::Forky {
                    // The Go library's command is the next one that takes the lock.
                    self.root.go().words("create-layer --id of-go").run();
                    self.root.go().words("delete-layer of-go").run();
                }
                heal(&self.root.open().await, &self.source.open().await).await;
                self.assert_whole(&moment).await;
                if !killed {
                    break;
                }
                total += 1;
            }
        }
        eprintln!("{name}: killed at {total} calls");
        assert!(total >= 15, "only {total} moments");
        if self.root.peers() == PeerSet::Forky {
            let checked = self.root.go().words("check").run();
            assert_eq!(checked, "", "the Go library's check");
        }
    }
}

async fn change_a_file(case: &Case) {
    let tree = tree(&case.root, &case.ids[1]);
    std::fs::write(tree.join("changed"), "elddim").unwrap();
}

async fn lose_the_layer(case: &Case) {
    let tree = tree(&case.root, &case.ids[1]);
    let dir = match case.root.driver() {
        "vfs" => &*tree,
        _ => tree.parent().unwrap(),
    };
    std::fs::remove_dir_all(dir).unwrap();
}

async fn lose_everything(case: &Case) {
    case.root.open().await.delete(&case.ids[1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_layer_is_made_anew() {
    needs!("strace");
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let case = Case::new(|| TestRoot::in_memory().of(PeerSet::Forky)).await;
    case.kill_at_every_call("a changed file", change_a_file).await;
    case.kill_at_every_call("a lost layer", lose_the_layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_lost_record_is_made_anew() {
    needs!("strace");
    let case = Case::new(TestRoot::in_memory).await;
    case.kill_at_every_call("a lost record", lose_everything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_whole_tree_is_made_anew() {
    needs!("strace");
    let case = Case::new(|| TestRoot::in_dir(Path::new("/dev/shm"), "vfs")).await;
    case.kill_at_every_call("a changed file", change_a_file).await;
}

/// Damage to the layer in the middle; then the Go library's check tells of nothing, and it exports the same stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_go_library_finds_nothing_in_what_was_healed() {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let make = match driver {
            "vfs" => || TestRoot::in_dir(Path::new("/dev/shm"), "vfs").of(PeerSet::Forky),
            _ => || TestRoot::in_memory().of(PeerSet::Forky),
        };
        let case = Case::new(make).await;
        let id = case.ids[1].as_str();
        let export = || {
            let file = case.root.path().join("go-diff");
            case.root
                .go()
                .words("diff --uncompressed --file")
                .with([file.as_os_str(), id.as_ref()])
                .run();
            graphroot::Digest::sha256(std::fs::read(file).unwrap())
        };
        let before = export();
        let of_tree = |name: &str| tree(&case.root, id).join(name);
        let tar_split = case
            .root
            .metadata_dir("layers")
            .join(format!("{id}.tar-split.gz"));
        let damages: [(&str, &dyn Fn()); 6] = [
            ("a changed file", &|| {
                std::fs::write(of_tree("changed"), "elddim").unwrap();
            }),
            ("a missing file", &|| {
                std::fs::remove_file(of_tree("changed")).unwrap();
            }),
            ("an added file", &|| {
                std::fs::write(of_tree("added"), "x").unwrap();
            }),
            ("a missing directory", &|| {
                std::fs::remove_dir_all(of_tree("dir")).unwrap();
            }),
            ("a missing tar-split", &|| {
                std::fs::remove_file(&tar_split).unwrap();
            }),
            ("a wrong tar-split", &|| std::fs::write(&tar_split, "x").unwrap()),
        ];
        let healed = async |name: &str| {
            heal(&case.root.open().await, &case.source.open().await).await;
            let moment = format!("{name} of {driver}");
            case.assert_whole(&moment).await;
            let checked = case.root.go().words("check").run();
            assert_eq!(checked, "", "{moment}: the Go library's check");
            assert_eq!(export(), before, "{moment}: the Go library's stream");
            case.assert_whole(&moment).await;
        };
        for (name, damage) in damages {
            damage();
            healed(name).await;
        }
        lose_the_layer(&case).await;
        healed("a lost layer").await;
        lose_everything(&case).await;
        healed("a lost record").await;
    }
}
