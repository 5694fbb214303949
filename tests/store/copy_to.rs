//! Copies of stores with other drivers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use graphroot::{
    Container, ContainerOptions, CopyEvent, CopyOptions, CopyReport, Digest, ErrorKind, IdMap,
    IdMappingOptions, ImageBuilder, ItemKind, LayerOptions, Store,
};
use serde_json::Value;

use crate::futures::poll_some;
use crate::manifest::{Manifest, assert_same, layer_manifest, manifest};
use crate::support::{
    Layout, TestStore, assert_clean, assert_nothing_temporary, kind, run_over, tar, writable,
};

const APP: &str = "localhost/app:1";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) async fn put(store: &Store, parent: Option<&str>, files: &[(&str, &str)]) -> String {
    let mut blob = Vec::new();
    let mut gzip = async_gzip(tar(files));
    blob.append(&mut gzip);
    let layer = store.put_image_layer(parent, std::io::Cursor::new(blob)).await;
    layer.unwrap().id().to_owned()
}

fn async_gzip(plain: Vec<u8>) -> Vec<u8> {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&plain).unwrap();
    gzip.finish().unwrap()
}

/// Changes what a container shows in most ways.
async fn change(store: &Store, container: &Container) {
    let mounted = writable(store.mount(container.id(), Default::default()).await.unwrap());
    std::fs::write(mounted.join("new"), container.id()).unwrap();
    std::fs::hard_link(mounted.join("new"), mounted.join("again")).unwrap();
    std::fs::remove_file(mounted.join("dir/gone")).unwrap();
    std::fs::remove_dir_all(mounted.join("opaque")).unwrap();
    std::fs::create_dir(mounted.join("opaque")).unwrap();
    std::fs::write(mounted.join("opaque/only"), "only").unwrap();
    std::fs::write(mounted.join("dir/kept"), "changed").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", mounted.join("link")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1751);
    std::fs::set_permissions(&mounted, mode).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&mounted, Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(mounted.join("again"), Some(1000), Some(2000)).unwrap();
        rustix::fs::setxattr(
            mounted.join("opaque/only"),
            "user.test",
            b"value",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    store.unmount(container.id()).await.unwrap();
}

/// Two images that share their base, a layer that nothing uses, and containers.
async fn fill(store: &Store) {
    let large = "large ".repeat(20_000);
    let base = [
        ("dir/", ""),
        ("dir/kept", "kept"),
        ("dir/gone", "gone"),
        ("opaque/", ""),
        ("opaque/below", "below"),
        ("large", &large),
        ("link-to-dir", "-> dir"),
    ];
    let base = put(store, None, &base).await;
    let middle = [
        ("dir/.wh.kept", ""),
        ("opaque/.wh..wh..opq", ""),
        ("opaque/only", "1"),
    ];
    let middle = put(store, Some(&base), &middle).await;
    let top = [("dir/kept", "kept again"), ("dir/gone", "gone again")];
    let top = put(store, Some(&middle), &top).await;
    store.add_names(&base, &["the-base".to_owned()]).await.unwrap();
    store.set_metadata(&base, "of the base").await.unwrap();
    store
        .set_layer_big_data(&base, "item/of it", std::io::Cursor::new(b"data".to_vec()))
        .await
        .unwrap();
    let app = ImageBuilder::new()
        .top_layer(&*top)
        .name(APP)
        .name("localhost/app:old");
    let app = app.build(store).await.unwrap();
    store
        .remove_names(app.id(), &["localhost/app:old".to_owned()])
        .await
        .unwrap();
    let small = ImageBuilder::new().top_layer(&*base).name("localhost/small:1");
    small.build(store).await.unwrap();
    store.create_image(None, Default::default()).await.unwrap();
    let loose = LayerOptions::default().id("loose").name("nobody's");
    let files = std::io::Cursor::new(tar(&[("loose", "loose")]));
    store.put_layer(None, loose.flag("a", true), files).await.unwrap();
    store
        .create_layer(Some("loose"), LayerOptions::default().id("empty"))
        .await
        .unwrap();

    let options = ContainerOptions::default()
        .name("one")
        .metadata("of one")
        .flag("own", "flag")
        .big_data("config", "{}");
    let one = store.create_container(Some(app.id()), options).await.unwrap();
    change(store, &one).await;
    let dir = store.container_directory(one.id()).await.unwrap();
    std::fs::create_dir(dir.join("artifacts")).unwrap();
    std::fs::write(dir.join("artifacts/log"), "log").unwrap();
    let options = ContainerOptions::default().name("two").volatile(true);
    store.create_container(Some(app.id()), options).await.unwrap();
    store
        .create_container(None, ContainerOptions::default().name("of nothing"))
        .await
        .unwrap();
}

/// Adds a container whose owners are mapped, with a file of one of them.
async fn fill_mapped(store: &Store) {
    let maps = vec![IdMap::new(0, 10_000, 5000)];
    let options = ContainerOptions::default()
        .name("mapped")
        .id_mappings(IdMappingOptions::mapped(maps.clone(), maps));
    let mapped = store.create_container(Some(APP), options).await.unwrap();
    let mounted = store.mount(mapped.id(), Default::default()).await.unwrap();
    std::fs::write(mounted.join("of-one"), "one").unwrap();
    std::os::unix::fs::chown(mounted.join("of-one"), Some(10_001), Some(10_002)).unwrap();
    store.unmount(mapped.id()).await.unwrap();
}

/// The records as others see them, by ID.
async fn records(store: &TestStore) -> [BTreeMap<String, Value>; 3] {
    fn by_id<T: serde::Serialize>(items: &[T]) -> BTreeMap<String, Value> {
        let values = items.iter().map(|item| serde_json::to_value(item).unwrap());
        values
            .map(|value| (value["id"].as_str().unwrap().to_owned(), value))
            .collect()
    }
    [
        by_id(&store.own_layers().await),
        by_id(&store.own_images().await),
        by_id(&store.containers().await.unwrap()),
    ]
}

fn shown_files(tree: &Path) -> Manifest {
    let mut files = layer_manifest(tree);
    for entry in files.values_mut().filter(|entry| entry.kind == "directory") {
        // A directory that only marks what is below was made when the layer was.
        entry.mtime = (0, 0);
    }
    files
}

/// What a layer or container shows.
async fn shown(store: &Store, id: &str) -> Manifest {
    let mount = store.mount_guard(id, Default::default()).await.unwrap();
    let files = shown_files(&mount);
    mount.unmount().await.unwrap();
    files
}

async fn diff_id(store: &Store, id: &str) -> Digest {
    let options = graphroot::DiffOptions::uncompressed();
    let diff = store.diff(None, id, options).await.unwrap();
    Digest::sha256(crate::support::read_all(diff).await)
}

/// Asserts that a store is a copy of another one.
async fn assert_copied(from: &TestStore, to: &TestStore, moment: &str) {
    let kept = |mut files: Manifest| {
        if to.graph_driver_name() == "zfs" {
            // zfs-fuse keeps whole seconds of the times that are set.
            files.values_mut().for_each(|file| file.mtime.1 = 0);
        }
        files
    };
    let (ours, mut theirs) = (records(from).await, records(to).await);
    for (id, layer) in &mut theirs[0] {
        // Where mounts map owners, nothing on disk has others.
        let original = &ours[0][id];
        for map in ["uidmap", "gidmap", "uid_map", "gid_map"] {
            if layer
                .get(map)
                .is_none_or(|map| map.as_array().is_none_or(Vec::is_empty))
                && let Some(value) = original.get(map)
            {
                layer[map] = value.clone();
            }
        }
    }
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(
            serde_json::to_string_pretty(ours).unwrap(),
            serde_json::to_string_pretty(theirs).unwrap(),
            "{moment}"
        );
    }
    for layer in from.own_layers().await {
        let id = layer.id();
        let copied = to.layer(id).await.unwrap();
        if layer.uid_map() == copied.uid_map() {
            let (ours, theirs) = (kept(shown(from, id).await), kept(shown(to, id).await));
            assert_same("source", &ours, moment, &theirs);
        }
        if let Some(digest) = layer.uncompressed_digest() {
            assert_eq!(diff_id(to, id).await, digest, "{moment}");
        }
        for key in layer.big_data_names() {
            let [ours, theirs] = [from, to].map(|store| store.layer_big_data(id, key));
            let ours = crate::support::read_all(ours.await.unwrap()).await;
            assert_eq!(
                ours,
                crate::support::read_all(theirs.await.unwrap()).await,
                "{moment}"
            );
        }
    }
    for image in from.own_images().await {
        for key in image.big_data_names() {
            let ours = from.image_big_data(image.id(), key).await.unwrap();
            assert_eq!(
                ours,
                to.image_big_data(image.id(), key).await.unwrap(),
                "{moment}"
            );
        }
    }
    for container in from.containers().await.unwrap() {
        let id = container.id();
        let (ours, theirs) = (kept(shown(from, id).await), kept(shown(to, id).await));
        assert_same("source", &ours, moment, &theirs);
        let [ours, theirs] = [from, to].map(|store| store.records("containers").join(id));
        assert_eq!(ours.exists(), theirs.exists(), "{moment}");
        if ours.exists() {
            assert_same("source", &kept(manifest(&ours)), moment, &kept(manifest(&theirs)));
        }
    }
    assert_clean(to, moment).await;
}

async fn copy(from: &TestStore, to: &TestStore) -> CopyReport {
    from.copy_to(to, CopyOptions::new()).await.unwrap()
}

/// Copies a full store to an empty one, twice.
async fn copies(from: TestStore, to: TestStore) {
    let moment = format!("{:?} to {:?}", from.store, to.store);
    fill(&from).await;
    if is_root() {
        fill_mapped(&from).await;
    }
    // The driver tries out once what the kernel does.
    from.status().await.unwrap();
    assert_nothing_temporary(&from).await;
    let on_disk = || {
        let mut files = manifest(&from.path().join("graph"));
        // Where zfs-fuse mounts what is looked at.
        files.retain(|path, _| !path.starts_with("zfs/graph"));
        files
    };
    let before = on_disk();
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&events);
    let options = CopyOptions::new().progress(move |event| told.lock().unwrap().push(event));
    let report = from.copy_to(&to, options).await.unwrap();
    assert_same("before", &before, &moment, &on_disk());
    assert!(report.present.is_empty() && report.gone.is_empty() && report.mounted.is_empty());
    let count = |kind| report.copied.iter().filter(|item| item.kind == kind).count();
    let containers = from.containers().await.unwrap().len();
    let layers = from.own_layers().await.len() - containers;
    assert_eq!(
        [ItemKind::Layer, ItemKind::Image, ItemKind::Container].map(count),
        [layers, 3, containers],
        "{moment}: {report:#?}"
    );
    let events = std::mem::take(&mut *events.lock().unwrap());
    let started = CopyEvent::Started {
        layers: layers + containers,
        images: 3,
        containers,
    };
    assert_eq!(events[0], started);
    let copied = events
        .iter()
        .filter(|event| matches!(event, CopyEvent::Copied { .. }));
    assert_eq!(copied.count(), report.copied.len());
    assert_copied(&from, &to, &moment).await;
    assert_nothing_temporary(&to).await;
    let again = copy(&from, &to).await;
    assert!(again.copied.is_empty(), "{again:#?}");
    assert_eq!(again.present.len(), report.copied.len());
    // What is missing is copied again.
    let one = from.container_by_name("one").await.unwrap().unwrap();
    to.delete_container(one.id()).await.unwrap();
    to.delete_layer("empty").await.unwrap();
    let again = copy(&from, &to).await;
    assert_eq!(again.copied.len(), 2, "{again:#?}");
    assert_copied(&from, &to, &moment).await;
}

/// Runs something with two stores, if both can be had.
pub(crate) fn with<F: Future<Output = ()>>(
    (from, of): (&str, Layout),
    (to, layout): (&str, Layout),
    case: impl Fn(TestStore, TestStore) -> F,
) {
    run_over(&[from, to], async || {
        if let Some(from) = TestStore::open(from, of).await
            && let Some(to) = TestStore::open(to, layout).await
        {
            case(from, to).await;
        }
    });
}

macro_rules! pairs {
    ($($module:ident { $($name:ident: $from:literal $of:ident, $to:literal $layout:ident;)* })*) => {
        $(mod $module {
            use super::*;

            $(#[test]
            fn $name() {
                with(($from, Layout::$of), ($to, Layout::$layout), copies);
            })*
        })*
    };
}

pairs! {
    overlay {
        to_vfs: "overlay" Plain, "vfs" Plain;
        to_overlay: "overlay" Plain, "overlay" Plain;
    }
    vfs {
        to_vfs: "vfs" Plain, "vfs" Plain;
    }
    btrfs {
        to_btrfs: "btrfs" Plain, "btrfs" Plain;
        to_vfs: "btrfs" Plain, "vfs" Plain;
    }
    zfs {
        to_zfs: "zfs" Plain, "zfs" Plain;
        to_vfs: "zfs" Plain, "vfs" Plain;
        to_overlay: "zfs" Plain, "overlay" Plain;
        from_vfs: "vfs" Plain, "zfs" Plain;
        from_overlay: "overlay" Plain, "zfs" Plain;
    }
    others {
        vfs_to_overlay: "vfs" Plain, "overlay" Plain;
        overlay_to_btrfs: "overlay" Plain, "btrfs" Plain;
        btrfs_to_overlay: "btrfs" Plain, "overlay" Plain;
        split_to_one: "overlay" Split, "vfs" Plain;
        one_to_split: "vfs" Plain, "overlay" Split;
        one_to_vfs_split: "overlay" Plain, "vfs" Split;
        program_to_overlay: "overlay" Program, "overlay" Plain;
        vfs_to_program: "vfs" Plain, "overlay" Program;
        beside_an_additional_store: "overlay" Additional, "vfs" Plain;
        to_one_with_an_additional_store: "vfs" Plain, "overlay" Additional;
    }
}

/// Of a transient store the records are in the run root: a copy keeps them.
#[test]
fn containers_of_a_transient_store_stay() {
    with(
        ("vfs", Layout::Transient),
        ("vfs", Layout::Plain),
        |from, to| async move {
            fill(&from).await;
            copy(&from, &to).await;
            assert_copied(&from, &to, "transient").await;
            let again = TestStore::open("vfs", Layout::Transient).await.unwrap();
            copy(&to, &again).await;
            let names = again.containers().await.unwrap();
            assert!(names.len() == 3 && names.iter().all(Container::volatile));
            assert_eq!(
                shown(&again, "one").await,
                shown(&from, "one").await,
                "what a container has"
            );
        },
    );
}

#[test]
fn a_part_of_a_store_is_copied_with_what_it_needs() {
    with(
        ("overlay", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            fill(&from).await;
            let options = CopyOptions::new().image("localhost/small:1");
            let dry = from.copy_to(&to, options.clone().dry_run(true)).await.unwrap();
            assert!(to.layers().await.unwrap().is_empty());
            let report = from.copy_to(&to, options).await.unwrap();
            assert_eq!((report.copied.len(), &report), (2, &dry));
            assert_eq!(
                report.copied[1].to_string(),
                format!("image {} (localhost/small:1)", report.copied[1].id)
            );
            assert_clean(&to, "an image").await;
            assert!(to.layer("the-base").await.is_ok() && to.image(APP).await.is_err());

            let options = CopyOptions::new().containers(["one"]);
            let report = from.copy_to(&to, options).await.unwrap();
            assert_eq!((report.copied.len(), report.present.len()), (4, 1), "{report:#?}");
            assert_eq!(shown(&from, "one").await, shown(&to, "one").await);
            assert!(to.image(APP).await.is_ok() && to.layer("loose").await.is_err());

            let options = CopyOptions::new().without_containers(true);
            from.copy_to(&to, options).await.unwrap();
            assert_eq!(to.containers().await.unwrap().len(), 1);
            assert!(to.layer("empty").await.is_ok());
            let nobody = from.copy_to(&to, CopyOptions::new().images(["nobody"])).await;
            assert_eq!(kind(nobody), ErrorKind::ImageUnknown);
            let nobody = from.copy_to(&to, CopyOptions::new().container("nobody")).await;
            assert_eq!(kind(nobody), ErrorKind::ContainerUnknown);
        },
    );
}

/// An image of an additional store is copied if it is named, and layers of it if something stands on them.
#[test]
fn what_stands_on_an_additional_store_is_whole() {
    with(
        ("overlay", Layout::Additional),
        ("vfs", Layout::Plain),
        |from, to| async move {
            let container = from
                .create_container(Some("additional-image"), ContainerOptions::default().name("c"))
                .await
                .unwrap();
            from.put(Some("additional-layer"), "on-it", &[("on-it", "1")])
                .await;
            let report = copy(&from, &to).await;
            assert_eq!(report.copied.len(), 4, "{report:#?}");
            assert_eq!(
                shown(&from, container.id()).await,
                shown(&to, container.id()).await
            );
            assert_eq!(shown(&from, "on-it").await, shown(&to, "on-it").await);
            assert!(to.image("additional-image").await.is_ok());
            let item = to.layer_big_data("additional-layer", "item").await.unwrap();
            assert_eq!(crate::support::read_all(item).await, b"data");
            assert_clean(&to, "all").await;
        },
    );
}

#[test]
fn other_content_under_the_same_id_is_refused() {
    with(
        ("vfs", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            let put = async |store: &Store, id: &str, name: &str, content: &str| {
                let options = LayerOptions::default().id(id).name(name);
                let files = std::io::Cursor::new(tar(&[("file", content)]));
                store.put_layer(None, options, files).await.unwrap();
            };
            put(&from, "L", "ours", "one").await;
            let refused = async |expected: ErrorKind, texts: &[&str]| {
                let before = manifest(&to.path().join("graph"));
                let error = from.copy_to(&to, CopyOptions::new()).await.unwrap_err();
                let text = error.chain();
                assert_eq!(error.kind(), expected, "{text}");
                for part in texts {
                    assert!(text.contains(part), "{part}: {text}");
                }
                assert_same("before", &before, &text, &manifest(&to.path().join("graph")));
            };
            let roots = [&from, &to].map(|store| store.graph_root().display().to_string());
            let [one, two] =
                ["one", "two"].map(|content| Digest::sha256(tar(&[("file", content)])).to_string());
            put(&to, "L", "theirs", "two").await;
            refused(
                ErrorKind::DuplicateId,
                &[&roots[0], &roots[1], &one, &two, "layer \"L\""],
            )
            .await;
            to.delete_layer("L").await.unwrap();
            put(&to, "M", "ours", "one").await;
            refused(
                ErrorKind::DuplicateName,
                &["\"ours\"", "\"L\"", "\"M\"", &roots[0]],
            )
            .await;
            to.delete_layer("M").await.unwrap();
            let [ours, theirs] = [("L", "a"), ("M", "b")].map(|(layer, data)| {
                let options = graphroot::ImageOptions::default()
                    .id("I")
                    .big_data("manifest", data);
                (layer, options)
            });
            from.create_image(Some(ours.0), ours.1).await.unwrap();
            put(&to, "M", "theirs", "two").await;
            to.create_image(Some(theirs.0), theirs.1).await.unwrap();
            refused(ErrorKind::DuplicateId, &["image \"I\""]).await;
            to.delete_image("I").await.unwrap();
            let container = || ContainerOptions::default().id("C").layer_id("CL");
            from.create_container(Some("I"), container()).await.unwrap();
            to.create_container(None, container()).await.unwrap();
            refused(ErrorKind::DuplicateId, &["container \"C\""]).await;
            to.delete_container("C").await.unwrap();
            to.create_layer(Some("L"), LayerOptions::default().id("CL"))
                .await
                .unwrap_err();
            copy(&from, &to).await;
            assert_clean(&to, "at the end").await;
        },
    );
}

#[test]
fn a_store_is_not_copied_into_itself() {
    with(
        ("vfs", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, _| async move {
            let itself = from.copy_to(&from, CopyOptions::new()).await;
            assert_eq!(kind(itself), ErrorKind::InvalidInput);
            let inside = from.path().join("graph/vfs/dir/other");
            let options = graphroot::StoreOptions::new(&inside, from.path().join("run2")).driver("vfs");
            let inside = Store::open(options).await.unwrap();
            let error = from.copy_to(&inside, CopyOptions::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.chain().contains("lies in the store"), "{}", error.chain());
            inside.free();
        },
    );
}

/// A stream that has not the recorded digest is not taken for the layer.
#[test]
fn a_damaged_layer_is_refused() {
    with(
        ("vfs", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            let layer = from.put(None, "damaged", &[("file", "good")]).await;
            let file = crate::support::tree_of(&from, layer.id()).join("file");
            std::fs::write(file, "evil").unwrap();
            let error = from.copy_to(&to, CopyOptions::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LayerContentModified, "{}", error.chain());
            assert!(error.chain().contains(layer.id()), "{}", error.chain());
            assert!(to.layers().await.unwrap().is_empty());
            assert_nothing_temporary(&to).await;
        },
    );
}

/// What a program that uses the source deletes meanwhile is left out.
#[test]
fn what_is_deleted_meanwhile_is_left_out() {
    with(
        ("overlay", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            fill(&from).await;
            let source = from.store.clone();
            let options = CopyOptions::new().progress(move |event| {
                if matches!(event, CopyEvent::Started { .. }) {
                    let source = source.clone();
                    let deleted = std::thread::spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                        runtime.unwrap().block_on(async {
                            for container in source.containers().await.unwrap() {
                                source.delete_container(container.id()).await.unwrap();
                            }
                            source.delete_image(APP).await.unwrap();
                            source.delete_layer("empty").await.unwrap();
                        });
                    });
                    deleted.join().unwrap();
                }
            });
            let report = from.copy_to(&to, options).await.unwrap();
            let kinds = |kind| report.gone.iter().filter(|item| item.kind == kind).count();
            assert_eq!(
                [ItemKind::Layer, ItemKind::Image, ItemKind::Container].map(kinds),
                [3, 1, 3],
                "{report:#?}"
            );
            assert_copied(&from, &to, "what is left").await;
        },
    );
}

#[test]
fn a_mounted_container_is_told_of() {
    with(
        ("overlay", Layout::Plain),
        ("vfs", Layout::Plain),
        |from, to| async move {
            fill(&from).await;
            let one = from.container_by_name("one").await.unwrap().unwrap();
            let mount = from.mount_guard(one.id(), Default::default()).await.unwrap();
            // What is mounted in its directory is not its data.
            let dir = from.container_directory(one.id()).await.unwrap();
            std::fs::create_dir(dir.join("shm")).unwrap();
            let other = from.path().join("other");
            std::fs::create_dir_all(other.join("below")).unwrap();
            rustix::mount::mount_bind(&other, dir.join("shm")).unwrap();
            let report = copy(&from, &to).await;
            assert_eq!(report.mounted.len(), 1, "{report:#?}");
            assert_eq!(report.mounted[0].names, ["one"]);
            let copied = to.container_directory(one.id()).await.unwrap().join("shm");
            assert_eq!(std::fs::read_dir(copied).unwrap().count(), 0);
            rustix::mount::unmount(dir.join("shm"), rustix::mount::UnmountFlags::DETACH).unwrap();
            mount.unmount().await.unwrap();
            assert_eq!(shown(&from, one.id()).await, shown(&to, one.id()).await);
        },
    );
}

/// A copy that is dropped at any moment is continued by the next one.
#[test]
fn a_copy_that_is_dropped_is_continued() {
    with(
        ("vfs", Layout::Plain),
        ("overlay", Layout::Plain),
        |from, to| async move {
            fill(&from).await;
            let mut polls = 1;
            loop {
                let ended = poll_some(from.copy_to(&to, CopyOptions::new()), polls).await;
                match ended {
                    Some(report) => {
                        report.unwrap();
                        break;
                    }
                    None => polls += 1,
                }
            }
            assert!(polls > 5, "{polls}");
            assert_copied(&from, &to, "continued").await;
            assert_nothing_temporary(&to).await;
        },
    );
}

/// On one file system that can share content a copy of a large file takes no space.
#[test]
fn contents_are_shared_where_the_file_system_can() {
    with(
        ("btrfs", Layout::Plain),
        ("btrfs", Layout::Plain),
        |from, to| async move {
            let content = "0123456789abcdef".repeat(1 << 16);
            let layer = from
                .put(None, "large", &[("small", "s"), ("large", &content)])
                .await;
            copy(&from, &to).await;
            let extents = |store: &TestStore| {
                let file = crate::support::tree_of(store, layer.id()).join("large");
                assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
                let listed = std::process::Command::new("filefrag")
                    .arg("-v")
                    .arg(&file)
                    .output();
                String::from_utf8(listed.unwrap().stdout).unwrap()
            };
            let (ours, theirs) = (extents(&from), extents(&to));
            let place = |text: &str| {
                text.lines()
                    .nth(3)
                    .map(|line| line.replace("last,", "").replace("shared,", ""))
            };
            let is_shared = theirs.contains("shared");
            assert!(is_shared, "{ours}\n{theirs}: {:?}", place(&theirs));
        },
    );
}
