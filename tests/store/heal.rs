//! Damaged and missing layers of images are made anew in place; what stands on them stays.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    BoxReader, CheckOptions, ContainerOptions, ErrorKind, HealOptions, HealReport, HealSource, HealedHow,
    Image, ImageBuilder, NotHealed, Result, Store, WantedContent, WantedDocument,
};
use serde_json::Value;

use crate::manifest::{Manifest, assert_same, manifest};
use crate::support::{Layout, TestStore, assert_nothing_temporary, tree_of, writable};

/// Which of the layers is damaged.
const MIDDLE: usize = 2;

/// Five layers; the one in the middle has something of every kind, and changes what is below it.
fn layers() -> Vec<Vec<u8>> {
    let middle = TarBuilder::new()
        .entry(TarEntry::dir("dir/").mode(0o2750))
        .entry(TarEntry::file("dir/one", "one").xattr("user.note", "kept"))
        .file("dir/two", vec![7; 300_000])
        .file("dir/empty", "")
        .entry(TarEntry::dir("sub/"))
        .entry(TarEntry::dir("sub/deep/"))
        .file("sub/deep/file", "deep")
        .symlink("link", "dir/one")
        .hard_link("hard", "dir/two")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::file("set-id", "x").mode(0o4755))
        .entry(TarEntry::whiteout("gone"))
        .entry(TarEntry::dir("emptied/"))
        .entry(TarEntry::opaque("emptied"))
        .file("emptied/new", "new")
        .build();
    let one = |name: &str| {
        TarBuilder::new()
            .entry(TarEntry::dir("shared/"))
            .file(format!("shared/{name}"), name)
            .build()
    };
    let lowest = TarBuilder::new()
        .file("gone", "hidden by the middle")
        .entry(TarEntry::dir("emptied/"))
        .file("emptied/old", "old")
        .entry(TarEntry::dir("dir/"))
        .file("dir/below", "below")
        .build();
    vec![lowest, one("second"), middle, one("fourth"), one("fifth")]
}

struct Five {
    layers: Vec<String>,
    image: Image,
    /// A container that is mounted, and one that is not.
    containers: [String; 2],
}

async fn put(store: &Store) -> (Vec<String>, Image) {
    let mut ids: Vec<String> = Vec::new();
    for tar in layers() {
        let parent = ids.last().map(String::as_str);
        let layer = store.put_image_layer(parent, std::io::Cursor::new(tar)).await;
        ids.push(layer.unwrap().id().to_owned());
    }
    let image = ImageBuilder::new()
        .top_layer(ids[4].clone())
        .name("localhost/five:1");
    // In every store the same.
    let image = image.created(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000));
    let image = image.build(store).await.unwrap();
    (ids, image)
}

async fn fill(store: &TestStore) -> Five {
    let (layers, image) = put(store).await;
    let mut containers = Vec::new();
    for name in ["mounted", "resting"] {
        let options = ContainerOptions::default().name(name);
        let container = store.create_container(Some(image.id()), options).await.unwrap();
        containers.push(container.id().to_owned());
    }
    Five {
        layers,
        image,
        containers: containers.try_into().unwrap(),
    }
}

/// Another store with the same image.
async fn healthy_like(store: &TestStore) -> TestStore {
    let other = TestStore::open(store.graph_driver_name(), Layout::Plain)
        .await
        .unwrap();
    put(&other).await;
    other
}

/// Where the driver has a layer: a directory with more than the tree, with overlay.
fn place_of(store: &TestStore, id: &str) -> PathBuf {
    let tree = tree_of(store, id);
    match store.graph_driver_name() {
        "overlay" => tree.parent().unwrap().to_owned(),
        _ => tree,
    }
}

/// Everything in a tree; the root of one was made when the layer was.
fn files(tree: &Path) -> Manifest {
    let mut files = manifest(tree);
    files.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    for (path, entry) in &mut files {
        // What stands for a deletion has the time at which it was made.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if entry.device == Some((0, 0)) || name.starts_with(".wh.") {
            entry.mtime = (0, 0);
        }
    }
    files
}

/// What there is of an image: trees, and what containers show.
struct State {
    trees: Vec<Manifest>,
    shown: Vec<Manifest>,
    names: Vec<Vec<String>>,
}

fn trees(store: &TestStore, five: &Five) -> Vec<Manifest> {
    five.layers.iter().map(|id| files(&tree_of(store, id))).collect()
}

async fn state(store: &TestStore, five: &Five) -> State {
    let mut shown = Vec::new();
    for container in &five.containers {
        let mount = store.mount_guard(container, Default::default()).await.unwrap();
        shown.push(files(&mount));
        mount.unmount().await.unwrap();
    }
    let names = |container: &graphroot::Container| container.names().to_vec();
    State {
        trees: trees(store, five),
        shown,
        names: store.containers().await.unwrap().iter().map(names).collect(),
    }
}

#[track_caller]
fn assert_as_before(name: &str, before: &State, after: &State) {
    for (index, (before, after)) in before.trees.iter().zip(&after.trees).enumerate() {
        assert_same(
            "before",
            before,
            &format!("{name}: layer {index} afterwards"),
            after,
        );
    }
    for (before, after) in before.shown.iter().zip(&after.shown) {
        assert_same(
            "before",
            before,
            &format!("{name}: a container afterwards"),
            after,
        );
    }
    assert_eq!(before.names, after.names, "{name}");
}

fn overwrite(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

fn tar_split(store: &TestStore, id: &str) -> PathBuf {
    store.records("layers").join(format!("{id}.tar-split.gz"))
}

type Damage = (&'static str, fn(&TestStore, &str));

/// The tree of a layer, in which everybody who runs the tests can change something.
fn open_tree(store: &TestStore, id: &str) -> PathBuf {
    writable(tree_of(store, id))
}

fn damages() -> Vec<Damage> {
    vec![
        ("a file is missing", |store, id| {
            std::fs::remove_file(open_tree(store, id).join("dir/one")).unwrap();
        }),
        ("changed content of the same size", |store, id| {
            overwrite(&open_tree(store, id).join("dir/one"), b"eno");
        }),
        ("a truncated file", |store, id| {
            let file = std::fs::File::options()
                .write(true)
                .open(open_tree(store, id).join("dir/two"));
            file.unwrap().set_len(1000).unwrap();
        }),
        ("an added file", |store, id| {
            overwrite(&open_tree(store, id).join("dir/added"), b"x");
        }),
        ("another mode", |store, id| {
            let mode = PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(open_tree(store, id).join("dir/two"), mode).unwrap();
        }),
        ("another owner", |store, id| {
            // An ordinary user can give nothing away.
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(tree_of(store, id).join("dir/one"), Some(12), Some(34)).unwrap();
            } else {
                overwrite(&open_tree(store, id).join("dir/one"), b"two");
            }
        }),
        ("another attribute", |store, id| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(open_tree(store, id).join("dir/one"), "user.note", b"lost", flags).unwrap();
        }),
        ("a link that leads elsewhere", |store, id| {
            let link = open_tree(store, id).join("link");
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", link).unwrap();
        }),
        ("a missing directory", |store, id| {
            std::fs::remove_dir_all(open_tree(store, id).join("sub")).unwrap();
        }),
        ("a hard link that is a file of its own", |store, id| {
            let tree = open_tree(store, id);
            std::fs::remove_file(tree.join("hard")).unwrap();
            overwrite(&tree.join("hard"), b"other");
        }),
        ("the tree is gone", |store, id| {
            std::fs::remove_dir_all(open_tree(store, id)).unwrap();
        }),
        ("the layer's directory is gone", |store, id| {
            std::fs::remove_dir_all(writable(place_of(store, id))).unwrap();
        }),
        ("the tar-split file is gone", |store, id| {
            std::fs::remove_file(tar_split(store, id)).unwrap();
        }),
        ("the tar-split file is cut off", |store, id| {
            let file = std::fs::File::options()
                .write(true)
                .open(tar_split(store, id))
                .unwrap();
            file.set_len(100).unwrap();
        }),
        ("the tar-split file is another one", |store, id| {
            overwrite(&tar_split(store, id), b"no gzip");
        }),
        ("everything is gone", |store, id| {
            std::fs::remove_dir_all(writable(place_of(store, id))).unwrap();
            std::fs::remove_file(tar_split(store, id)).unwrap();
        }),
    ]
}

async fn heal(store: &TestStore, source: impl HealSource + 'static) -> HealReport {
    store.heal(HealOptions::default().source(source)).await.unwrap()
}

async fn assert_clean(store: &TestStore, name: &str) {
    let report = store.check(CheckOptions::everything()).await.unwrap();
    assert!(
        report.is_clean() && report.strays.is_empty(),
        "{name}: {report:#?}"
    );
}

fn rows(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Gives this stream, whatever it is asked for.
#[derive(Debug)]
struct Liar(Vec<u8>);

impl HealSource for Liar {
    fn name(&self) -> String {
        "a liar".into()
    }

    fn layer_stream<'a>(
        &'a self,
        _wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        let stream = std::io::Cursor::new(self.0.clone());
        std::future::ready(Ok((attempt == 0).then(|| Box::pin(stream) as BoxReader))).boxed()
    }

    fn document<'a>(&'a self, _wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        std::future::ready(Ok(Some(Bytes::from_static(b"{}")))).boxed()
    }
}

/// Writes to the store that is being healed before it gives what another one has.
#[derive(Debug)]
struct Writing {
    healed: Store,
    source: Store,
}

impl HealSource for Writing {
    fn name(&self) -> String {
        "one that writes".into()
    }

    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        async move {
            self.healed.create_layer(None, Default::default()).await?;
            self.source.layer_stream(wanted, attempt).await
        }
        .boxed()
    }

    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        self.source.document(wanted)
    }
}

/// A stream that never goes on.
#[derive(Debug)]
struct Stuck(Arc<tokio::sync::Notify>);

impl HealSource for Stuck {
    fn name(&self) -> String {
        "one that is stuck".into()
    }

    fn layer_stream<'a>(
        &'a self,
        _wanted: &'a WantedContent,
        _attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        let (sender, receiver) = tokio::io::duplex(64);
        // As long as it is there the stream does not end.
        std::mem::forget(sender);
        self.0.notify_one();
        std::future::ready(Ok(Some(Box::pin(receiver) as BoxReader))).boxed()
    }

    fn document<'a>(&'a self, _wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        std::future::ready(Ok(None)).boxed()
    }
}

/// Takes the row of a layer out of the records.
async fn lose_record(store: &TestStore, id: &str) {
    let directories = [store.records("layers"), images_records(store)];
    for directory in directories {
        let path = directory.join("layers.json");
        if path.exists() {
            let mut rows = rows(&path);
            rows.retain(|row| row["id"] != id);
            std::fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
        }
    }
    assert!(!store.exists(id).await.unwrap(), "the record of {id}");
}

/// Where the records of images' layers are if they lie apart.
fn images_records(store: &TestStore) -> PathBuf {
    let name = format!("{}-layers", store.graph_driver_name());
    store.path().join("images").join(name)
}
each_driver! {
    /// Every kind of damage to one layer of five, with one container that is mounted and one that is not.
    async fn every_damage_is_healed(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        let mounted = store.mount(&five.containers[0], Default::default()).await.unwrap();
        for (name, damage) in damages() {
            let whole_trees = store.graph_driver_name() == "vfs";
            for index in [MIDDLE, 0] {
                let is_of_middle = !matches!(name, "the tree is gone" | "the layer's directory is gone"
                    | "the tar-split file is gone" | "the tar-split file is cut off" | "everything is gone");
                if index == 0 && is_of_middle {
                    continue;
                }
                let id = &five.layers[index];
                damage(&store, id);
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success(), "{name}, {index}: {healed:#?}");
                let layers: Vec<&str> = healed.healed.iter().map(|healed| healed.item.id.as_str()).collect();
                assert_eq!(layers, [id.as_str()], "{name}: {healed:#?}");
                let by_files = matches!(healed.healed[0].how, HealedHow::Files { .. });
                let is_of_files = !whole_trees && index == MIDDLE && is_of_middle;
                let is_told = store.layout() == Layout::Program || name.starts_with("a hard link") || name.starts_with("the tar-split");
                assert!(is_told || by_files == is_of_files, "{name}: {healed:#?}");
                assert_clean(&store, name).await;
                let now = trees(&store, &five);
                for (index, (before, now)) in before.trees.iter().zip(&now).enumerate() {
                    assert_same("before", before, &format!("{name}: layer {index} afterwards"), now);
                }
                // The mount shows it.
                assert_eq!(place_of(&store, id).join("replaced0").exists(), !whole_trees, "{name}");
            }
        }
        assert!(mounted.is_dir());
        store.unmount(&five.containers[0]).await.unwrap();
        let after = state(&store, &five).await;
        assert_as_before("all", &before, &after);
        // What the mount showed goes with the next collection.
        store.garbage_collect().await.unwrap();
        for id in &five.layers {
            assert!(!place_of(&store, id).join("replaced0").exists());
        }
        assert_clean(&store, "all").await;
        assert_eq!(state(&store, &five).await.names, before.names);
        assert_nothing_temporary(&store).await;
    }

    /// What a source gives is compared with the record before anything changes.
    async fn a_source_that_lies_changes_nothing(store) {
        let five = fill(&store).await;
        let id = &five.layers[MIDDLE];
        overwrite(&tree_of(&store, id).join("dir/one"), b"eno");
        std::fs::remove_file(tree_of(&store, id).join("dir/empty")).unwrap();
        let manifest_file = store.records("images").join(five.image.id()).join("manifest");
        std::fs::remove_file(&manifest_file).unwrap();
        let before = files(&tree_of(&store, id));
        let found = store.check(CheckOptions::everything()).await.unwrap();
        let right = layers()[MIDDLE].clone();
        let mut longer = right.clone();
        longer.extend([0; 512]);
        let lies = [
            ("another layer", layers()[1].clone()),
            ("nothing", Vec::new()),
            ("no archive", vec![b'x'; 2000]),
            ("one that is cut off", right[..right.len() / 2].to_vec()),
            ("one that is cut off between entries", right[..1024].to_vec()),
            ("one that goes on", longer),
        ];
        for (name, stream) in lies {
            let healed = heal(&store, Liar(stream)).await;
            assert!(healed.healed.iter().all(|healed| healed.item.id != *id), "{name}: {healed:#?}");
            let failure = healed.failures.iter().find(|failure| failure.item.id == *id).unwrap();
            let NotHealed::NoSource { failed } = &failure.reason else {
                panic!("{name}: {failure}");
            };
            assert_eq!(failed.len(), 1, "{name}: {failure}");
            assert_same("before", &before, name, &files(&tree_of(&store, id)));
            assert_nothing_temporary(&store).await;
        }
        // The manifest was taken from where the image has it once more.
        assert!(manifest_file.exists());
        let now = store.check(CheckOptions::everything()).await.unwrap();
        let of_layers = |report: &graphroot::CheckReport| {
            let findings = report.findings.iter().filter(|finding| finding.item.id == *id);
            findings.cloned().collect::<Vec<_>>()
        };
        assert_eq!(of_layers(&now), of_layers(&found));
        let healed = heal(&store, Liar(right)).await;
        assert!(healed.is_success(), "{healed:#?}");
        assert_clean(&store, "healed").await;
    }

    /// The record of a layer is made by the config of the image; its content is what is there, or comes from elsewhere.
    async fn lost_records_are_made_anew(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        for index in [0, MIDDLE, 4] {
            let id = &five.layers[index];
            let layer = store.layer(id).await.unwrap();
            for is_gone in [false, true] {
                if is_gone {
                    store.delete(id).await.unwrap();
                } else {
                    lose_record(&store, id).await;
                }
                let options = HealOptions::default().item("localhost/five:1").source(source.store.clone());
                let healed = store.heal(options).await.unwrap();
                let name = format!("{index}, {is_gone}");
                assert!(healed.is_success(), "{name}: {healed:#?}");
                let parent = layer.parent().map(str::to_owned);
                assert_eq!(healed.healed[0].how, HealedHow::Record { parent: parent.clone() }, "{name}");
                assert_eq!(healed.healed.len(), 1 + usize::from(is_gone), "{name}: {healed:#?}");
                let again = store.layer(id).await.unwrap();
                assert_eq!(again.parent().map(str::to_owned), parent);
                assert_eq!(again.uncompressed_digest(), layer.uncompressed_digest());
                assert_clean(&store, &name).await;
                assert_as_before(&name, &before, &state(&store, &five).await);
            }
        }
        // Two at once.
        store.delete(&five.layers[1]).await.unwrap();
        store.delete(&five.layers[2]).await.unwrap();
        let healed = heal(&store, source.store.clone()).await;
        assert!(healed.is_success() && healed.healed.len() == 4, "{healed:#?}");
        assert_as_before("two", &before, &state(&store, &five).await);
        assert_clean(&store, "two").await;
    }

    async fn manifests_and_configs_are_healed(store) {
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let dir = store.records("images").join(five.image.id());
        let names = || std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let before: Vec<(PathBuf, Vec<u8>)> =
            names().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        assert!(before.len() >= 2, "{before:?}");
        for is_gone in [true, false] {
            for (path, content) in &before {
                if is_gone {
                    std::fs::remove_file(path).unwrap();
                } else {
                    overwrite(path, &vec![b' '; content.len()]);
                }
            }
            let healed = heal(&store, source.store.clone()).await;
            assert!(healed.is_success(), "{healed:#?}");
            let is_data = |healed: &graphroot::Healed| matches!(healed.how, HealedHow::Data { .. });
            assert!(healed.healed.iter().all(is_data), "{healed:#?}");
            for (path, content) in &before {
                assert!(std::fs::read(path).unwrap() == *content, "{}", path.display());
            }
            assert_clean(&store, "data").await;
        }
    }

    /// What is asked for is healed and nothing else; the store itself is a source.
    async fn what_was_asked_for_is_healed(store) {
        let five = fill(&store).await;
        let (one, two) = (&five.layers[1], &five.layers[MIDDLE]);
        for id in [one, two] {
            std::fs::remove_dir_all(open_tree(&store, id).join(if id == one { "shared" } else { "sub" })).unwrap();
        }
        let unknown = store.heal(HealOptions::default().item("nosuch")).await;
        assert_eq!(unknown.unwrap_err().kind(), ErrorKind::LayerUnknown);
        let nothing = store.heal(HealOptions::default().item(&five.layers[0])).await.unwrap();
        assert!(nothing.is_success() && nothing.healed.is_empty(), "{nothing:#?}");
        let without = store.heal(HealOptions::default().item(one)).await.unwrap();
        assert!(!without.is_success() && without.failures.len() == 1, "{without:#?}");
        assert!(!without.left.is_empty() && without.left.iter().all(|left| left.item.id == *one));
        assert_eq!(without.failures[0].to_string(), format!("layer {one}: no source has it"));
        // The same content on another layer.
        let again = store.put_image_layer(None, std::io::Cursor::new(layers()[1].clone())).await.unwrap();
        store.create_image(Some(again.id()), Default::default()).await.unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let options = HealOptions::default().item(one).progress(move |event| told.lock().unwrap().push(event));
        let healed = store.heal(options).await.unwrap();
        assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
        let (HealedHow::Layer { source, .. } | HealedHow::Files { source, .. }) = &healed.healed[0].how else {
            panic!("{healed:#?}");
        };
        assert!(source.contains(again.id()), "{healed:#?}");
        let events = std::mem::take(&mut *events.lock().unwrap());
        let is_read = |event: &graphroot::HealEvent| match event {
            graphroot::HealEvent::Read { layer, bytes } if layer == one => *bytes,
            _ => 0,
        };
        let size = layers()[1].len() as u64;
        assert_eq!(events.iter().map(is_read).sum::<u64>(), size, "{events:?}");
        assert!(events.contains(&graphroot::HealEvent::Healed { layer: one.clone() }), "{events:?}");
        let left = store.check(CheckOptions::everything()).await.unwrap();
        assert!(left.findings.iter().any(|finding| finding.item.id == *two), "{left:#?}");
        // What a check has found is enough to go by.
        let options = HealOptions::default().found(left).source(Liar(layers()[MIDDLE].clone()));
        let healed = store.heal(options).await.unwrap();
        assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
        assert_clean(&store, "all").await;
        let none = store.heal(HealOptions::default()).await.unwrap();
        assert!(none.is_success() && none.healed.is_empty(), "{none:#?}");
    }

    /// Nothing is locked while a source is read, and a call that is dropped leaves what there was.
    async fn sources_are_read_without_a_lock(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        let id = &five.layers[MIDDLE];
        std::fs::remove_dir_all(writable(place_of(&store, id))).unwrap();
        let is_read = Arc::new(tokio::sync::Notify::new());
        let options = HealOptions::default().source(Stuck(Arc::clone(&is_read)));
        tokio::select! {
            healed = store.heal(options) => panic!("{healed:?}"),
            () = is_read.notified() => {}
        }
        assert!(!place_of(&store, id).exists());
        assert_nothing_temporary(&store).await;
        let writing = Writing { healed: store.store.clone(), source: source.store.clone() };
        let healed = tokio::time::timeout(crate::support::PATIENCE, heal(&store, writing)).await.unwrap();
        assert!(healed.is_success(), "{healed:#?}");
        assert_as_before("written to", &before, &state(&store, &five).await);
    }

    /// A container's own layer has what nobody else has.
    async fn layers_of_containers_are_left(store) {
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let layer = store.container("resting").await.unwrap().layer_id().to_owned();
        let place = match store.layout() {
            Layout::Split => PathBuf::from(
                place_of(&store, &layer).display().to_string().replace("/images/", "/graph/"),
            ),
            _ => place_of(&store, &layer),
        };
        std::fs::remove_dir_all(writable(place.clone())).unwrap();
        let healed = heal(&store, source.store.clone()).await;
        let of_layer: Vec<&NotHealed> = healed
            .failures
            .iter()
            .filter(|failure| failure.item.id == layer)
            .map(|failure| &failure.reason)
            .collect();
        assert!(matches!(of_layer[..], [NotHealed::OfContainer]), "{healed:#?}");
        assert!(healed.healed.is_empty() && !place.exists());
        drop(five);
    }
}

mod overlay_only {
    use super::*;
    use crate::support::over;

    /// Of a layer with a few damaged files the others stay, as what they are.
    #[test]
    fn only_damaged_files_are_replaced() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let tree = tree_of(&store, &five.layers[MIDDLE]);
                let inode = |name: &str| {
                    let metadata = std::fs::symlink_metadata(tree.join(name)).unwrap();
                    std::os::unix::fs::MetadataExt::ino(&metadata)
                };
                let names = ["dir/one", "dir/two", "hard", "sub/deep/file", "set-id"];
                let inodes = names.map(inode);
                overwrite(&tree.join("dir/one"), b"eno");
                std::fs::remove_file(tree.join("dir/empty")).unwrap();
                std::fs::create_dir_all(tree.join("sub/new/deep")).unwrap();
                std::os::unix::fs::symlink("/etc", tree.join("dir/new")).unwrap();
                let source = Liar(layers()[MIDDLE].clone());
                let healed = heal(&store, source).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                let HealedHow::Files { paths, .. } = &healed.healed[0].how else {
                    panic!("{healed:#?}");
                };
                for name in ["dir/one", "dir/empty", "dir/new", "sub/new"] {
                    assert!(paths.contains(&PathBuf::from(name)), "{name}: {healed:#?}");
                }
                let now = names.map(inode);
                assert!(
                    now[0] != inodes[0] && now[1..] == inodes[1..],
                    "{inodes:?} {now:?}"
                );
                assert_as_before("files", &before, &state(&store, &five).await);
                // Under both of its names.
                overwrite(&tree.join("hard"), b"x");
                let healed = heal(&store, Liar(layers()[MIDDLE].clone())).await;
                let by_files = matches!(healed.healed[0].how, HealedHow::Files { .. });
                assert!(healed.is_success() && by_files, "{healed:#?}");
                assert_as_before("names", &before, &state(&store, &five).await);
                assert_clean(&store, "all").await;
                assert_nothing_temporary(&store).await;
            })
        });
    }

    /// The driver's files are made anew without a source.
    #[test]
    fn files_of_the_driver_are_healed() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let id = &five.layers[MIDDLE];
                for (file, content) in [("lower-layers", "wrong"), ("lower", "l/WRONG"), ("link", "")] {
                    overwrite(&place_of(&store, id).join(file), content.as_bytes());
                    let healed = store.heal(HealOptions::default()).await.unwrap();
                    assert!(healed.is_success(), "{file}: {healed:#?}");
                    let is_it = |healed: &graphroot::Healed| healed.how == HealedHow::DriverData;
                    assert!(
                        !healed.healed.is_empty() && healed.healed.iter().all(is_it),
                        "{healed:#?}"
                    );
                    assert_clean(&store, file).await;
                    assert_as_before(file, &before, &state(&store, &five).await);
                }
            })
        });
    }

    /// A mounted container shows the old tree until it is mounted again, with all that it has.
    #[test]
    fn a_mount_keeps_what_it_shows() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let source = healthy_like(&store).await;
                let mounted = store
                    .mount(&five.containers[0], Default::default())
                    .await
                    .unwrap();
                std::fs::write(mounted.join("own"), "own").unwrap();
                let id = &five.layers[MIDDLE];
                overwrite(&tree_of(&store, id).join("dir/one"), b"eno");
                for round in 0..2 {
                    std::fs::remove_file(tree_of(&store, id).join("dir/empty")).unwrap();
                    let healed = heal(&store, source.store.clone()).await;
                    assert!(healed.is_success(), "{healed:#?}");
                    assert!(place_of(&store, id).join(format!("replaced{round}")).exists());
                    store.garbage_collect().await.unwrap();
                    assert!(place_of(&store, id).join(format!("replaced{round}")).exists());
                    assert_eq!(std::fs::read(mounted.join("dir/one")).unwrap(), b"eno");
                    assert_eq!(std::fs::read(mounted.join("sub/deep/file")).unwrap(), b"deep");
                    std::fs::write(mounted.join("sub/more"), "more").unwrap();
                }
                store.unmount(&five.containers[0]).await.unwrap();
                let again = store
                    .mount(&five.containers[0], Default::default())
                    .await
                    .unwrap();
                assert_eq!(std::fs::read(again.join("dir/one")).unwrap(), b"one");
                assert_eq!(std::fs::read(again.join("own")).unwrap(), b"own");
                assert_eq!(std::fs::read(again.join("sub/more")).unwrap(), b"more");
                assert_eq!(std::fs::read(again.join("sub/deep/file")).unwrap(), b"deep");
                store.unmount(&five.containers[0]).await.unwrap();
                let none = store.heal(HealOptions::default()).await.unwrap();
                assert!(none.is_success() && none.healed.is_empty(), "{none:#?}");
                assert!(!place_of(&store, id).join("replaced0").exists());
                let after = state(&store, &five).await;
                assert_as_before(
                    "all",
                    &before,
                    &State {
                        shown: Vec::new(),
                        ..after
                    },
                );
                assert_clean(&store, "all").await;
            })
        });
    }

    /// In an additional store that is not mounted may be what is missing.
    #[test]
    fn what_may_be_in_a_missing_store_is_not_made() {
        over("overlay", Layout::Additional, |store| {
            Box::pin(async move {
                let tar = std::io::Cursor::new(layers()[1].clone());
                let above = store
                    .put_image_layer(Some("additional-layer"), tar)
                    .await
                    .unwrap();
                let image = ImageBuilder::new()
                    .top_layer(above.id())
                    .name("localhost/above:1");
                image.build(&store).await.unwrap();
                let (there, away) = (store.path().join("additional"), store.path().join("away"));
                std::fs::rename(&there, &away).unwrap();
                std::fs::create_dir(&there).unwrap();
                let again = store.reopen().await;
                let below = above.parent().unwrap();
                let healed = again
                    .heal(HealOptions::default().source(Liar(layers()[1].clone())))
                    .await
                    .unwrap();
                let is_kept = |failure: &graphroot::HealFailure| {
                    failure.item.id == below && matches!(failure.reason, NotHealed::MayBeWhole)
                };
                assert!(
                    healed.failures.iter().any(is_kept) && healed.healed.is_empty(),
                    "{healed:#?}"
                );
                again.free();
                std::fs::remove_dir_all(&there).unwrap();
                std::fs::rename(&away, &there).unwrap();
            })
        });
    }
}

mod vfs_only {
    use super::*;
    use crate::support::over;

    /// Whoever uses a mounted layer has its directory; damage that was there when a layer was copied is in both.
    #[test]
    fn whole_trees_are_healed_from_below() {
        over("vfs", Layout::Plain, |store| {
            Box::pin(async move {
                let (ids, image) = put(&store).await;
                let before: Vec<Manifest> = ids.iter().map(|id| files(&tree_of(&store, id))).collect();
                let source = healthy_like(&store).await;
                for id in &ids {
                    overwrite(&tree_of(&store, id).join("dir/below"), b"other");
                    std::fs::write(tree_of(&store, id).join("added"), "x").unwrap();
                }
                let top = store.mount_image(image.id(), Default::default()).await.unwrap();
                let healed = heal(&store, source.store.clone()).await;
                let busy = |failure: &graphroot::HealFailure| match &failure.reason {
                    NotHealed::Failed(error) => error.is_busy() && failure.item.id == ids[4],
                    _ => false,
                };
                assert!(
                    healed.failures.len() == 1 && busy(&healed.failures[0]),
                    "{healed:#?}"
                );
                assert!(top.join("added").exists());
                store.unmount_image(image.id()).await.unwrap();
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                for (id, before) in ids.iter().zip(&before) {
                    assert_same("before", before, "healed", &files(&tree_of(&store, id)));
                }
                assert_clean(&store, "all").await;
            })
        });
    }

    /// A copy of a layer with other owners stays as it is; nobody else has its content.
    #[test]
    fn copies_with_other_owners_are_left() {
        over("vfs", Layout::Plain, |store| {
            Box::pin(async move {
                let (ids, image) = put(&store).await;
                let mapped = vec![graphroot::IdMap::new(0, 10_000, 1_000)];
                let mut options = ContainerOptions::default().name("mapped");
                options.id_mappings.uid_map.clone_from(&mapped);
                options.id_mappings.gid_map.clone_from(&mapped);
                store.create_container(Some(image.id()), options).await.unwrap();
                let image = store.image(image.id()).await.unwrap();
                let [copy] = image.mapped_top_layers() else {
                    panic!("{image:?}");
                };
                let trees = |ids: &[String]| -> Vec<Manifest> {
                    ids.iter().map(|id| files(&tree_of(&store, id))).collect()
                };
                let all: Vec<String> = ids.iter().chain([copy]).cloned().collect();
                let before = trees(&all);
                let source = healthy_like(&store).await;
                overwrite(&tree_of(&store, &ids[4]).join("shared/fifth"), b"x");
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                for (before, now) in before.iter().zip(trees(&all)) {
                    assert_same("before", before, "afterwards", &now);
                }
                overwrite(&tree_of(&store, copy).join("shared/fifth"), b"x");
                let damaged = trees(&all);
                let healed = heal(&store, source.store.clone()).await;
                let of_copy = |failure: &graphroot::HealFailure| {
                    failure.item.id == *copy && matches!(failure.reason, NotHealed::Copy)
                };
                let only = healed.failures.iter().all(of_copy) && healed.failures.len() == 1;
                assert!(
                    only && healed.healed.is_empty() && !healed.left.is_empty(),
                    "{healed:#?}"
                );
                for (before, now) in damaged.iter().zip(trees(&all)) {
                    assert_same("before", before, "left", &now);
                }
            })
        });
    }
}
