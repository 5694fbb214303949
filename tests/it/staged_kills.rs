//! A process that is killed while it prepares a staged layer, applies it or removes it leaves a store that the next program
//! repairs: the layer is whole or absent, and one that was to get other content has the old one or the new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graphroot::chunked::{self, BlobSource as _, FileBlob};
use graphroot::{
    ChunkedDiffer, Differ, DifferOutput, Digest, LayerOptions, Result, StagedContent, StagedLayer,
    StagingArea, StagingOptions, Store, StoreOptions,
};
use tokio::io::AsyncReadExt as _;

use crate::crash::{CALLS, killed_at};
use crate::support::manifest::{Manifest, assert_same, manifest};
use crate::support::needs;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::{exported, layer_ids, names_in, put_bytes};
use crate::support::tar::Tar;
use crate::support::worker::{run_traced, store_location, tell};

/// The layer that is being made, or gets other content.
const VICTIM: &str = "victim";

/// Puts a file where it is told to, and knows nothing of a tar stream.
struct OneFile;

impl Differ for OneFile {
    async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
        std::fs::write(area.path().join("only"), "the only file").unwrap();
        let output = DifferOutput::default()
            .toc_digest(Digest::sha256("a table"))
            .big_data("first", "1")
            .big_data("shared", "new")
            .big_data("third", "3");
        area.finish(output).await
    }
}

async fn chunked_layer(store: &Store, dir: &Path) -> StagedLayer {
    let annotations = std::fs::read(dir.join("annotations")).unwrap();
    let annotations: BTreeMap<String, String> = serde_json::from_slice(&annotations).unwrap();
    let blob = FileBlob::open(dir.join("blob")).await.unwrap();
    let size = blob.size();
    let differ = ChunkedDiffer::open(store, &annotations, size, Arc::new(blob))
        .await
        .unwrap();
    store
        .prepare_staged_layer(StagingOptions::default(), differ)
        .await
        .unwrap()
}

async fn one_file(store: &Store) -> StagedLayer {
    store
        .prepare_staged_layer(StagingOptions::default(), OneFile)
        .await
        .unwrap()
}

async fn apply(store: &Store, staged: StagedLayer) {
    let options = LayerOptions::default().id(VICTIM);
    store.apply_staged_layer(None, options, staged).await.unwrap();
}

/// In the worker: prepares content, of the blob in `dir` or of one file, and applies it or not.
pub(crate) fn work(what: &str, dir: &str) {
    run_traced(|| prepare(what, dir));
}

/// The options of a store in which that is done.
fn with_options(what: &str, options: StoreOptions) -> StoreOptions {
    match what {
        "composefs" => options.driver_option("overlay.use_composefs=true"),
        _ => options,
    }
}

async fn prepare(what: &str, dir: &str) {
    let (graph, run, driver) = store_location();
    let options = with_options(what, StoreOptions::new(graph, run).driver(driver));
    let store = Store::open(options).await.unwrap();
    let staged = match what {
        "one-file" => one_file(&store).await,
        _ => chunked_layer(&store, Path::new(dir)).await,
    };
    match what {
        "cleanup" => store.cleanup_staged_layer(staged).await.unwrap(),
        _ => apply(&store, staged).await,
    }
    tell("done");
}

/// In the worker: makes a layer of prepared content, and gives it other content; each followed by a line.
pub(crate) async fn write_staged_layers(store: &Store) {
    for what in ["a staged layer", "a layer with other content"] {
        apply(store, one_file(store).await).await;
        tell(what);
    }
    store.delete_layer(VICTIM).await.unwrap();
    tell("a deleted layer");
}

/// What a layer is.
#[derive(Debug)]
struct Whole {
    tree: Manifest,
    diff_id: Option<Digest>,
    toc_digest: Option<Digest>,
    size: Option<u64>,
    exported: Digest,
    has_tar_split: bool,
    items: BTreeMap<String, Vec<u8>>,
}

fn tar_split(root: &TestRoot) -> PathBuf {
    root.metadata_dir("layers").join(format!("{VICTIM}.tar-split.gz"))
}

impl Whole {
    async fn of(root: &TestRoot, store: &Store) -> Self {
        let layer = store.layer(VICTIM).await.unwrap();
        let mut items = BTreeMap::new();
        for key in store.list_layer_big_data(VICTIM).await.unwrap() {
            let mut bytes = Vec::new();
            let mut reader = store.layer_big_data(VICTIM, &key).await.unwrap();
            reader.read_to_end(&mut bytes).await.unwrap();
            items.insert(key, bytes);
        }
        let mut tree = manifest(&root.graph().join("overlay").join(VICTIM).join("diff"));
        for entry in tree.values_mut() {
            // Without an entry in a stream files have the time at which they were made.
            if layer.uncompressed_digest().is_none() || entry.link_target.is_none() {
                entry.mtime = (0, 0);
            }
        }
        Self {
            tree,
            diff_id: layer.uncompressed_digest(),
            toc_digest: layer.toc_digest(),
            size: layer.uncompressed_size(),
            exported: match layer.uncompressed_digest() {
                Some(_) => exported(store, VICTIM).await.0,
                // The times of the files are in it.
                None => Digest::sha256(""),
            },
            has_tar_split: tar_split(root).exists(),
            items,
        }
    }

    #[track_caller]
    fn assert_is(&self, other: &Self, moment: &str) {
        assert_same(moment, &self.tree, "the whole layer", &other.tree);
        let said = |whole: &Self| {
            let (diff_id, toc) = (whole.diff_id.clone(), whole.toc_digest.clone());
            let keys: Vec<_> = whole.items.keys().cloned().collect();
            (
                diff_id,
                toc,
                whole.size,
                whole.exported.clone(),
                whole.has_tar_split,
                keys,
            )
        };
        assert_eq!(said(self), said(other), "{moment}");
        assert!(self.items == other.items, "{moment}: items");
    }
}

/// Packs a directory of `count` files to a blob; returns where that and its annotations are.
async fn pack(root: &TestRoot, name: &str, count: usize) -> PathBuf {
    let (from, to) = (root.scratch(&format!("{name}-files")), root.scratch(name));
    std::fs::create_dir(from.join("dir")).unwrap();
    for index in 0..count {
        std::fs::write(
            from.join(format!("dir/file{index}")),
            format!("{name} {index}").repeat(100),
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("dir/file0", from.join("link")).unwrap();
    let packed = chunked::pack_directory(&from).await.unwrap();
    let mut bytes = Vec::new();
    let all = 0..packed.blob.size();
    let mut reader = packed.blob.read(vec![all]).await.unwrap();
    reader.read_to_end(&mut bytes).await.unwrap();
    std::fs::write(to.join("blob"), bytes).unwrap();
    std::fs::write(
        to.join("annotations"),
        serde_json::to_vec(&packed.annotations).unwrap(),
    )
    .unwrap();
    to
}

/// Nothing is there but the layers.
fn assert_clean(root: &TestRoot, layers: usize, moment: &str) {
    assert_eq!(root.layer_directories().len(), layers, "{moment}: directories");
    assert_eq!(root.short_links().len(), layers, "{moment}: short links");
    assert_eq!(root.temporary_files(), Vec::<String>::new(), "{moment}");
}

/// The Go library's command lists the layers, reads the victim and finds nothing wrong.
fn go_reads(root: &TestRoot, is_there: bool, diff_id: Option<&Digest>, moment: &str) {
    let layers = root.go().words("layers --json").run();
    assert_eq!(layers.contains(VICTIM), is_there, "{moment}: {layers}");
    if root.peers() == PeerSet::Forky {
        // Older ones take the directory of temporary directories for a layer.
        root.go().words("check").run();
    }
    if is_there {
        let file = root.path().join("go-diff");
        root.go()
            .words("diff --uncompressed --file")
            .with([file.as_os_str(), VICTIM.as_ref()])
            .run();
        if let Some(expected) = diff_id {
            let found = Digest::sha256(std::fs::read(&file).unwrap());
            assert_eq!(&found, expected, "{moment}: the diff of the Go library");
        }
    }
}

struct Case {
    root: TestRoot,
    /// What the victim was before, and how it is made so again.
    old: Option<(PathBuf, Whole)>,
    /// What it is if the work has ended.
    new: Option<Whole>,
}

impl Case {
    /// A store with another layer.
    async fn new(set: PeerSet) -> Self {
        let root = TestRoot::in_memory().of(set);
        let tar = Tar::new().file("file", "content").build();
        put_bytes(
            &root.open().await,
            None,
            LayerOptions::default().id("before"),
            tar,
        )
        .await
        .unwrap();
        let (old, new) = (None, None);
        Self { root, old, new }
    }

    /// Makes the victim what it was.
    async fn reset(&self, store: &Store) {
        if store.exists(VICTIM).await.unwrap() {
            store.delete_layer(VICTIM).await.unwrap();
        }
        if let Some((dir, _)) = &self.old {
            let staged = chunked_layer(store, dir).await;
            apply(store, staged).await;
            store
                .set_layer_big_data(VICTIM, "shared", &b"old"[..])
                .await
                .unwrap();
            store
                .set_layer_big_data(VICTIM, "own", &b"own"[..])
                .await
                .unwrap();
            // Whoever looks for content makes the cache file.
            drop(chunked_layer(store, dir).await);
        }
    }

    /// Remembers what the victim is before and after.
    async fn learn(&mut self, old: Option<PathBuf>, what: &str, dir: &Path) {
        // Opened once more, it would be the same.
        self.root.open().await.free();
        let options = with_options(what, self.root.options());
        let store = Store::open(options).await.unwrap();
        if let Some(dir) = old {
            let empty = Whole::of_nothing();
            self.old = Some((dir.clone(), empty));
            self.reset(&store).await;
            self.old = Some((dir, Whole::of(&self.root, &store).await));
        }
        if what != "cleanup" {
            let staged = match what {
                "one-file" => one_file(&store).await,
                _ => chunked_layer(&store, dir).await,
            };
            apply(&store, staged).await;
            self.new = Some(Whole::of(&self.root, &store).await);
        }
        self.reset(&store).await;
    }

    /// Whether the victim has the new content.
    async fn check(&self, moment: &str, go_reads_it: bool) -> bool {
        let store = self.root.open().await;
        let mut ids = layer_ids(&store).await;
        let is_there = ids.remove(VICTIM);
        assert_eq!(ids.into_iter().collect::<Vec<_>>(), ["before"], "{moment}");
        assert_clean(&self.root, 1 + usize::from(is_there), moment);
        store.garbage_collect().await.unwrap();
        assert_eq!(self.root.half_written_records(), Vec::<String>::new(), "{moment}");
        let files = names_in(&self.root.metadata_dir("layers").join(VICTIM));
        if !is_there {
            assert!(self.old.is_none(), "{moment}: the layer is gone");
            assert!(
                !tar_split(&self.root).exists() && files.is_empty(),
                "{moment}: {files:?}"
            );
            if go_reads_it {
                go_reads(&self.root, false, None, moment);
            }
            return false;
        }
        let found = Whole::of(&self.root, &store).await;
        assert_eq!(files.len(), found.items.len(), "{moment}: {files:?}");
        let new = self.new.as_ref();
        let is_new = new.is_some_and(|new| new.toc_digest == found.toc_digest);
        let expected = match is_new {
            true => new,
            false => self.old.as_ref().map(|(_, old)| old),
        };
        found.assert_is(expected.unwrap(), moment);
        if go_reads_it {
            go_reads(&self.root, true, found.diff_id.as_ref(), moment);
        }
        is_new
    }

    /// Kills the work at one call after the other, until there are no more. Returns how often.
    async fn kill_at_every_call(&self, calls: &[&str], what: &str, dir: &Path) -> u32 {
        self.root.program("strace").words("--output=/dev/null true").run();
        let (mut total, mut became_new) = (0, 0);
        for call in calls {
            for count in 1.. {
                let moment = format!("{what} killed at call {count} of {call}");
                let arguments = [what, dir.to_str().unwrap()];
                let killed = killed_at(&self.root, "staged-layer", &arguments, call, count);
                if killed && self.old.is_none() && count % 8 == 3 {
                    // The Go library's command is the next writer.
                    self.root.go().words("create-layer --id of-go").run();
                    self.root.go().words("delete-layer of-go").run();
                }
                let is_new = self.check(&moment, count % 8 == 1 || !killed).await;
                became_new += u32::from(is_new);
                if !killed {
                    assert_eq!(is_new, self.new.is_some(), "{moment}");
                }
                if is_new {
                    self.reset(&self.root.open().await).await;
                }
                if !killed {
                    break;
                }
                total += 1;
            }
        }
        eprintln!("{what}: killed at {total} calls; {became_new} times the layer was new");
        total
    }
}

impl Whole {
    fn of_nothing() -> Self {
        Self {
            tree: Manifest::new(),
            diff_id: None,
            toc_digest: None,
            size: None,
            exported: Digest::sha256(""),
            has_tar_split: false,
            items: BTreeMap::new(),
        }
    }
}

fn is_ready(set: PeerSet) -> bool {
    set.is_ready(&["containers-storage"])
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_a_staged_layer() {
    needs!("strace");
    if !is_ready(PeerSet::Forky) {
        return;
    }
    let mut case = Case::new(PeerSet::Forky).await;
    let dir = pack(&case.root, "new", 3).await;
    case.learn(None, "chunked", &dir).await;
    let total = case.kill_at_every_call(&CALLS, "chunked", &dir).await;
    assert!(total >= 20, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_layer_gets_an_image() {
    needs!("strace");
    if !is_ready(PeerSet::Forky) {
        return;
    }
    let mut case = Case::new(PeerSet::Forky).await;
    let dir = pack(&case.root, "new", 3).await;
    case.learn(None, "composefs", &dir).await;
    let image = case
        .root
        .graph()
        .join("overlay")
        .join(VICTIM)
        .join("composefs-data/composefs.blob");
    assert!(!image.exists());
    let total = case.kill_at_every_call(&CALLS, "composefs", &dir).await;
    assert!(total >= 40, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_a_cleanup() {
    needs!("strace");
    if !is_ready(PeerSet::Trixie) {
        return;
    }
    let mut case = Case::new(PeerSet::Trixie).await;
    let dir = pack(&case.root, "new", 3).await;
    case.learn(None, "cleanup", &dir).await;
    let total = case.kill_at_every_call(&CALLS[1..2], "cleanup", &dir).await;
    assert!(total >= 4, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_layer_gets_other_content() {
    needs!("strace");
    if !is_ready(PeerSet::Forky) {
        return;
    }
    let mut case = Case::new(PeerSet::Forky).await;
    let (old, new) = (pack(&case.root, "old", 2).await, pack(&case.root, "new", 3).await);
    case.learn(Some(old), "chunked", &new).await;
    let total = case.kill_at_every_call(&CALLS[..2], "chunked", &new).await;
    assert!(total >= 8, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_layer_gets_other_content_without_tar_split() {
    needs!("strace");
    if !is_ready(PeerSet::Trixie) {
        return;
    }
    let mut case = Case::new(PeerSet::Trixie).await;
    let old = pack(&case.root, "old", 2).await;
    case.learn(Some(old.clone()), "one-file", &old).await;
    let total = case.kill_at_every_call(&CALLS, "one-file", &old).await;
    assert!(total >= 12, "only {total} moments");
}
