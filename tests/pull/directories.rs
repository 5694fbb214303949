//! Images into directories (`dir:`) and back: as Skopeo and Podman read and write them, and directories that are damaged, hostile
//! or full of something else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use graphroot::oci::{ImageRef, PullOptions, Puller, PushOptions, Pushed, push};
use graphroot::{Digest, ErrorKind, Store};
use serde_json::{Value, json};

use crate::fake_registry::{FakeRegistry, layer};
use crate::library::Library;
use crate::records::{assert_same_trees, podman_pull, skopeo_pull};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

fn reference(dir: &Path) -> ImageRef {
    format!("dir:{}", dir.display()).parse().unwrap()
}

async fn push_to(store: &Store, image: &str, dir: &Path) -> graphroot::Result<Pushed> {
    push(store, image, &reference(dir), PushOptions::default()).await
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A store with images of one layer each, and their IDs.
async fn store_with(root: &TestRoot, layers: &[&str]) -> (Store, Vec<String>) {
    let fake = FakeRegistry::start();
    let store = root.open().await;
    let mut ids = Vec::new();
    for name in layers {
        let image = fake.add(name, &[layer(name, 100)]);
        let puller = Puller::new(&store, PullOptions::default());
        let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
        ids.push(pulled.image.id().to_owned());
    }
    (store, ids)
}

/// What `manifest.json` names, and what is always there.
fn expected_names(dir: &Path) -> BTreeSet<String> {
    let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    let blobs = layers.chain([&manifest["config"]]);
    let digests = blobs.map(|blob| blob["digest"].as_str().unwrap().replace("sha256:", ""));
    digests
        .chain(["version", "manifest.json"].map(str::to_owned))
        .collect()
}

async fn directories_of_ours_are_read_by_others(set: PeerSet) {
    let library = Library::open();
    let root = TestRoot::in_memory().of(set);
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let from: ImageRef = library.docker("app0").parse().unwrap();
    let image = puller.pull(&from).await.unwrap().image;
    let dir = root.path().join("dir");
    let pushed = push_to(&store, image.id(), &dir).await.unwrap();
    assert_eq!(names_in(&dir), expected_names(&dir));
    assert_eq!(
        fs::read_to_string(dir.join("version")).unwrap(),
        "Directory Transport Version: 1.1\n"
    );

    let text = reference(&dir).to_string();
    let inspected = root.skopeo().with(["inspect", &text]).run();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Digest"], pushed.manifest.as_str());
    let theirs = TestRoot::in_memory().of(set);
    skopeo_pull(&theirs, &text, "localhost/back");
    assert_same_trees(&root, &theirs);
    let theirs = TestRoot::in_memory().of(set);
    podman_pull(&theirs, std::slice::from_ref(&text));
    assert_same_trees(&root, &theirs);
    let listed = theirs.podman().words("images --quiet --no-trunc").run();
    assert_eq!(listed, format!("sha256:{}", image.id()));

    let ours = TestRoot::in_memory().of(set);
    let other = ours.open().await;
    let pulled = Puller::new(&other, PullOptions::default());
    let pulled = pulled.pull(&reference(&dir)).await.unwrap();
    assert_eq!(
        (pulled.image.id(), &pulled.digest),
        (image.id(), &pushed.manifest)
    );
    assert_eq!(pulled.image.names(), [""; 0]);
    assert_same_trees(&root, &ours);
}
each_set!(async directories_of_ours_are_read_by_others: "skopeo", "podman", "docker-registry");

async fn directories_of_skopeo_are_read(set: PeerSet) {
    let library = Library::open();
    let root = TestRoot::in_memory().of(set);
    let dir = root.path().join("dir");
    let text = reference(&dir).to_string();
    root.skopeo()
        .words("copy --quiet --src-tls-verify=false")
        .with([&library.docker("app0"), &text])
        .run();
    let theirs = TestRoot::in_memory().of(set);
    podman_pull(&theirs, std::slice::from_ref(&text));
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&reference(&dir)).await.unwrap();
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&manifest));
    assert_same_trees(&root, &theirs);
    let listed = |root: &TestRoot| root.podman().words("images --quiet --no-trunc").run();
    assert_eq!(listed(&root), listed(&theirs));
    // What they have written is replaced by what we write.
    let (_, ids) = store_with(&root, &["x"]).await;
    push_to(&store, &ids[0], &dir).await.unwrap();
    assert_eq!(names_in(&dir), expected_names(&dir));
    // And the reverse.
    root.skopeo()
        .words("copy --quiet --src-tls-verify=false")
        .with([&library.docker("app0"), &text])
        .run();
    assert_eq!(fs::read(dir.join("manifest.json")).unwrap(), manifest);
}
each_set!(async directories_of_skopeo_are_read: "skopeo", "podman", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_index_is_read() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x"]).await;
    let dir = root.path().join("dir");
    push_to(&store, &ids[0], &dir).await.unwrap();
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    let parsed: Value = serde_json::from_slice(&manifest).unwrap();
    let digest = Digest::sha256(&manifest);
    let instance = dir.join(format!("{}.manifest.json", digest.encoded()));
    fs::write(&instance, &manifest).unwrap();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": parsed["mediaType"],
            "digest": digest.as_str(),
            "size": manifest.len(),
            "platform": {"os": "linux", "architecture": arch},
        }],
    });
    fs::write(dir.join("manifest.json"), index.to_string()).unwrap();
    let other = TestRoot::in_memory();
    let other = other.open().await;
    let puller = Puller::new(&other, PullOptions::default());
    let pulled = puller.pull(&reference(&dir)).await.unwrap();
    assert_eq!(pulled.image.id(), ids[0]);

    fs::write(&instance, "{}").unwrap();
    let changed = puller.pull(&reference(&dir)).await.unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::DigestMismatch, "{changed:?}");
    // The manifests of an index go when an image takes its place.
    push_to(&store, &ids[0], &dir).await.unwrap();
    assert_eq!(names_in(&dir), expected_names(&dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_holds_one_image_and_nothing_else_is_touched() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x", "y"]).await;
    let dir = root.path().join("dir");
    for id in [&ids[0], &ids[1], &ids[1], &ids[0]] {
        push_to(&store, id, &dir).await.unwrap();
        fs::write(dir.join("signature-1"), "of this one").unwrap();
        fs::write(dir.join("notes"), "").unwrap();
        fs::write(dir.join(".tmp-manifest.json123"), "").unwrap();
        let puller = Puller::new(&store, PullOptions::default());
        fs::remove_file(dir.join("signature-1")).unwrap();
        let pulled = puller.pull(&reference(&dir)).await.unwrap();
        assert_eq!(pulled.image.id(), id);
    }
    fs::write(dir.join("signature-1"), "of another one").unwrap();
    push_to(&store, &ids[1], &dir).await.unwrap();
    let mut expected = expected_names(&dir);
    expected.insert("notes".into());
    assert_eq!(names_in(&dir), expected);
    let reused = push_to(&store, &ids[1], &dir).await.unwrap();
    assert_eq!((reused.sent, reused.reused), (0, 1));

    // Pushes to one directory wait for each other, so one of the images is there whole.
    let (first, second) = tokio::join!(push_to(&store, &ids[0], &dir), push_to(&store, &ids[1], &dir));
    first.unwrap();
    second.unwrap();
    let mut expected = expected_names(&dir);
    expected.insert("notes".into());
    assert_eq!(names_in(&dir), expected);

    // A directory of something else is not written to.
    let foreign = root.scratch("foreign");
    fs::write(foreign.join("thesis"), "").unwrap();
    let refused = push_to(&store, &ids[0], &foreign).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(
        refused.chain().contains("not a containers image directory"),
        "{refused:?}"
    );
    assert_eq!(names_in(&foreign), BTreeSet::from(["thesis".to_owned()]));
    // Nor one of a newer format.
    fs::write(foreign.join("version"), "Directory Transport Version: 9.0\n").unwrap();
    let refused = push_to(&store, &ids[0], &foreign).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotSupported);
    assert_eq!(names_in(&foreign).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_hostile_directories_are_refused() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x"]).await;
    let whole = root.path().join("whole");
    push_to(&store, &ids[0], &whole).await.unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(whole.join("manifest.json")).unwrap()).unwrap();
    let name = |blob: &Value| blob["digest"].as_str().unwrap().replace("sha256:", "");
    let (layer, config) = (name(&manifest["layers"][0]), name(&manifest["config"]));
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        std::process::Command::new("mkfifo").arg(path).run();
    };
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let write = |name: &str, content: &'static str| -> Damage<'_> {
        let name = name.to_owned();
        Box::new(move |dir| fs::write(dir.join(&name), content).unwrap())
    };
    let remove = |name: &str| -> Damage<'_> {
        let name = name.to_owned();
        Box::new(move |dir| fs::remove_file(dir.join(&name)).unwrap())
    };
    let damages: Vec<(&str, Damage<'_>, ErrorKind)> = vec![
        ("no manifest", remove("manifest.json"), ErrorKind::Io),
        (
            "manifest",
            write("manifest.json", "garbage"),
            ErrorKind::InvalidInput,
        ),
        ("version", write("version", "1.1"), ErrorKind::InvalidInput),
        (
            "newer version",
            write("version", "Directory Transport Version: 1.3\n"),
            ErrorKind::NotSupported,
        ),
        ("no config", remove(&config), ErrorKind::Io),
        ("config", write(&config, "{}"), ErrorKind::DigestMismatch),
        ("no layer", remove(&layer), ErrorKind::Io),
        ("layer", write(&layer, "x"), ErrorKind::DigestMismatch),
        (
            "a pipe as the layer",
            Box::new(|dir| pipe(&dir.join(&layer))),
            ErrorKind::InvalidInput,
        ),
        (
            "a pipe as the manifest",
            Box::new(|dir| pipe(&dir.join("manifest.json"))),
            ErrorKind::InvalidInput,
        ),
    ];
    for (what, damage, kind) in damages {
        let dir = PathBuf::from(format!("{}-damaged", whole.display()));
        fs::create_dir(&dir).unwrap();
        for name in names_in(&whole) {
            fs::copy(whole.join(&name), dir.join(&name)).unwrap();
        }
        damage(&dir);
        let other = TestRoot::in_memory();
        let other = other.open().await;
        let puller = Puller::new(&other, PullOptions::default());
        let refused = puller.pull(&reference(&dir)).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{what}: {refused:?}");
        assert!(other.layers().await.unwrap().is_empty(), "{what}");
        assert!(other.images().await.unwrap().is_empty(), "{what}");
        fs::remove_dir_all(&dir).unwrap();
    }
    // Without the version, as older programs leave it, all is well.
    fs::remove_file(whole.join("version")).unwrap();
    let other = TestRoot::in_memory();
    let other = other.open().await;
    let puller = Puller::new(&other, PullOptions::default());
    puller.pull(&reference(&whole)).await.unwrap();
}

/// Files with digests for names, at any depth.
fn blobs_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let length = path.file_name().unwrap().len();
        match path.is_dir() {
            true => found.extend(blobs_in(&path)),
            false if length == 64 => found.push(path),
            false => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_at_the_destination_are_written_anew() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x"]).await;
    for (number, suffix) in ["", ":x"].into_iter().enumerate() {
        let dir = root.path().join(format!("there-{number}"));
        let transport = ["dir", "oci"][number];
        let to: ImageRef = format!("{transport}:{}{suffix}", dir.display()).parse().unwrap();
        let push = async || push(&store, &ids[0], &to, PushOptions::default()).await;
        push().await.unwrap();
        let count = blobs_in(&dir).len();
        assert!(count >= 2, "{count}");
        for index in 0..count {
            let path = blobs_in(&dir).remove(index);
            let content = fs::read(&path).unwrap();
            let is_document = content.starts_with(b"{");
            let mut damages = vec![content[..content.len() / 2].to_vec(), Vec::new()];
            if is_document {
                damages.push(content.to_ascii_uppercase());
            }
            for damage in damages {
                fs::write(&path, damage).unwrap();
                push().await.unwrap();
                let other = TestRoot::in_memory();
                let other = other.open().await;
                let puller = Puller::new(&other, PullOptions::default());
                let pulled = puller.pull_as(&to, &[]).await;
                assert!(pulled.is_ok(), "{transport} {}: {pulled:?}", path.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_the_name_of_a_blob_stays() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x"]).await;
    let dir = root.path().join("dir");
    push_to(&store, &ids[0], &dir).await.unwrap();
    let odd = dir.join("a".repeat(64));
    fs::create_dir(&odd).unwrap();
    push_to(&store, &ids[0], &dir).await.unwrap();
    assert!(odd.is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_have_no_names_before_they_are_whole() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    needs!();
    let root = TestRoot::in_memory();
    let (store, ids) = store_with(&root, &["x", "y"]).await;
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    for (transport, suffix, blobs) in [("dir", "", "."), ("oci", ":x", "blobs/sha256")] {
        let dir = root.path().join(transport);
        let to: ImageRef = format!("{transport}:{}{suffix}", dir.display()).parse().unwrap();
        let push = async |id: &str| push(&store, id, &to, PushOptions::default()).await;
        push(&ids[0]).await.unwrap();
        let flags = WatchFlags::MODIFY | WatchFlags::MOVED_TO;
        for watched in [dir.clone(), dir.join(blobs)] {
            inotify::add_watch(&watch, &watched, flags).unwrap();
        }
        push(&ids[1]).await.unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 65536];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        let (mut written, mut moved) = (Vec::new(), 0);
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            match event.events().contains(ReadFlags::MODIFY) {
                true => written.extend(name.filter(|name| name.starts_with(".tmp-"))),
                false => moved += 1,
            }
        }
        // Those that are written under a name would stay if the process were killed.
        assert_eq!(written, [""; 0], "{transport}");
        assert!(moved >= 3, "{transport}: {moved}");
    }
}
