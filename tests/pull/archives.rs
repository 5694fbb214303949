//! Images into archives and back, and archives that are damaged or hostile.

use std::path::Path;

use graphroot::oci::{BlobState, Event, ImageRef, Progress, PullOptions, Puller, PushOptions, Pushed, push};
use graphroot::{Compression, ErrorKind, Store};
use serde_json::{Value, json};

use crate::fake_registry::{FakeRegistry, layer};
use crate::library::Library;
use crate::records::{assert_same_trees, podman_pull, skopeo_pull};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;
use crate::support::worker::Worker;
use crate::support::{each_set, needs};

async fn push_to(store: &Store, image: &str, to: &str) -> graphroot::Result<Pushed> {
    push(store, image, &to.parse()?, PushOptions::default()).await
}

/// A store with an image of these layers; returns the image's ID.
async fn store_with(root: &TestRoot, layers: &[Vec<u8>]) -> (Store, String) {
    let fake = FakeRegistry::start();
    let image = fake.add("some/image", layers);
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let id = pulled.image.id().to_owned();
    (store, id)
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_and_layouts_have_the_mode_that_skopeo_gives_them() {
    use std::os::unix::fs::PermissionsExt as _;
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = store_with(&root, &[layer("a", 1)]).await;
    let path = |name: &str| root.path().join(name);
    let mode = |name: &str| path(name).metadata().unwrap().permissions().mode() & 0o7777;
    let set = |name: &str, mode| {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    drop(std::fs::File::create(path("plain")).unwrap());
    let plain = mode("plain");
    for (transport, new) in [("oci-archive", plain), ("docker-archive", plain & 0o644)] {
        let to = format!("{transport}:{}:localhost/a:1", path(transport).display());
        push_to(&store, &id, &to).await.unwrap();
        assert_eq!(mode(transport), new, "{transport}");
        for kept in [0o600, 0o640] {
            set(transport, kept);
            push_to(&store, &id, &to).await.unwrap();
            assert_eq!(mode(transport), kept, "{transport}");
        }
    }
    let to = format!("oci:{}", path("layout").display());
    push_to(&store, &id, &to).await.unwrap();
    assert_eq!(mode("layout/index.json"), plain & 0o644);
    set("layout/index.json", 0o600);
    push_to(&store, &id, &to).await.unwrap();
    assert_eq!(mode("layout/index.json"), 0o600);
}

async fn archives_that_we_write_are_read_by_others(set: PeerSet) {
    let library = Library::open();
    let root = TestRoot::in_memory().of(set);
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let image = puller
        .pull(&library.docker("app0").parse().unwrap())
        .await
        .unwrap()
        .image;
    let file = |name: &str| root.path().join(name).display().to_string();
    for (to, names) in [
        (
            format!("docker-archive:{}:h.io/team/app:v1", file("docker.tar")),
            true,
        ),
        (format!("docker-archive:{}", file("nameless.tar")), false),
        (format!("oci-archive:{}:h.io/team/app:v1", file("oci.tar")), true),
        (format!("oci-archive:{}", file("plain.tar")), false),
    ] {
        let pushed = push_to(&store, image.id(), &to).await.unwrap();

        let inspected = root.skopeo().with(["inspect", &to]).run();
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["Digest"], pushed.manifest.as_str(), "{to}");
        let theirs = TestRoot::in_memory().of(set);
        skopeo_pull(&theirs, &to, "localhost/back");
        assert_same_trees(&root, &theirs);

        let theirs = TestRoot::in_memory().of(set);
        podman_pull(&theirs, std::slice::from_ref(&to));
        assert_same_trees(&root, &theirs);
        let listed = theirs.podman().words("images --quiet --no-trunc").run();
        assert_eq!(listed, format!("sha256:{}", image.id()));
        if names {
            let listed = theirs
                .podman()
                .words("images --format {{.Repository}}:{{.Tag}}")
                .run();
            assert_eq!(listed, "h.io/team/app:v1");
        }
        let theirs = TestRoot::in_memory().of(set);
        let archive = to.split(':').nth(1).unwrap();
        theirs
            .podman()
            .with(["load", "--quiet", "--input", archive])
            .run();
        assert_same_trees(&root, &theirs);

        let ours = TestRoot::in_memory().of(set);
        let other = ours.open().await;
        let puller = Puller::new(&other, PullOptions::default());
        let reference: ImageRef = to.parse().unwrap();
        let pulled = puller.pull_as(&reference, &["localhost/back"]).await.unwrap();
        assert_eq!(
            (pulled.image.id(), &pulled.digest),
            (image.id(), &pushed.manifest)
        );
        assert_same_trees(&root, &ours);
    }
}
each_set!(async archives_that_we_write_are_read_by_others: "podman", "buildah", "skopeo", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_replaced_as_a_whole_and_is_the_same_each_time() {
    needs!();
    let root = TestRoot::in_memory();
    // The same layer twice is one member.
    let (store, id) = store_with(&root, &[layer("a", 1), layer("bb", 1), layer("a", 1)]).await;
    let dir = root.scratch("out");
    for kind in ["docker-archive", "oci-archive"] {
        let file = dir.join("image.tar");
        let to = format!("{kind}:{}:localhost/x:y", file.display());
        std::fs::write(&file, "something else").unwrap();
        let first = push_to(&store, &id, &to).await.unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let second = push_to(&store, &id, &to).await.unwrap();
        assert_eq!(first.manifest, second.manifest);
        assert!(bytes == std::fs::read(&file).unwrap(), "{kind} is deterministic");
        assert_eq!(names_in(&dir), ["image.tar"]);
        if kind == "docker-archive" {
            assert!(bytes.len() < 3 << 20, "{} bytes", bytes.len());
        }
        let other = TestRoot::in_memory();
        let pulled = Puller::new(&other.open().await, PullOptions::default())
            .pull(&to.parse().unwrap())
            .await
            .unwrap();
        assert_eq!((pulled.image.id(), pulled.digest), (&*id, first.manifest));
        assert_eq!(pulled.image.names(), ["localhost/x:y"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_dropped_or_fails_leaves_no_archive() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = store_with(&root, &[layer("a", 4), layer("bb", 4)]).await;
    let dir = root.scratch("out");
    let file = dir.join("image.tar");
    for kind in ["docker-archive", "oci-archive"] {
        let to: ImageRef = format!("{kind}:{}", file.display()).parse().unwrap();
        let (sender, mut started) = tokio::sync::mpsc::unbounded_channel();
        let progress = Progress::new(move |event| {
            if matches!(
                event,
                Event::Blob {
                    state: BlobState::Started { .. },
                    ..
                }
            ) {
                sender.send(()).ok();
            }
        });
        let options = PushOptions::default()
            .compression(Compression::None)
            .progress(progress);
        let (store, id) = (store.clone(), id.clone());
        let pushing = tokio::spawn(async move { push(&store, &id, &to, options).await.map(drop) });
        started.recv().await.unwrap();
        pushing.abort();
        // It may have been complete a moment before.
        if pushing.await.is_err() {
            assert_eq!(names_in(&dir), [""; 0], "{kind}");
        }
        std::fs::remove_file(&file).ok();
    }
    let refused = |to: String| {
        let store = &store;
        let id = &id;
        async move { push_to(store, id, &to).await.unwrap_err().kind() }
    };
    std::os::unix::fs::symlink("elsewhere", dir.join("link")).unwrap();
    for path in [
        "/dev/null".to_owned(),
        dir.display().to_string(),
        format!("{}/link", dir.display()),
    ] {
        let kind = refused(format!("oci-archive:{path}")).await;
        assert_eq!(kind, ErrorKind::NotSupported, "{path}");
    }
    let missing = refused(format!("oci-archive:{}/missing/a.tar", dir.display())).await;
    assert_eq!(missing, ErrorKind::Io);
    let digest = format!("docker-archive:{}:x@sha256:{}", file.display(), "0".repeat(64));
    assert_eq!(refused(digest).await, ErrorKind::InvalidInput);
    assert_eq!(names_in(&dir), ["link"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_push_leaves_no_archive() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = store_with(&root, &[layer("a", 2), layer("bb", 2)]).await;
    drop(store);
    let dir = root.scratch("out");
    for kind in ["docker-archive", "oci-archive"] {
        let to = format!("{kind}:{}", dir.join("image.tar").display());
        let mut worker = Worker::start("push-archive", &root, &[&id, &to]);
        worker.expect_line("ready");
        assert!(worker.kill());
        assert_eq!(names_in(&dir), [""; 0], "{kind}");
    }
    let store = root.open().await;
    assert!(root.temporary_files().is_empty(), "{:?}", root.temporary_files());
    let to = format!("oci-archive:{}", dir.join("image.tar").display());
    push_to(&store, &id, &to).await.unwrap();
}

/// Names and contents.
type Members = Vec<(String, Vec<u8>)>;

/// The members of an archive, in order.
fn members(file: &Path) -> Members {
    let tar = std::fs::read(file).unwrap();
    let (mut at, mut members) = (0, Vec::new());
    while tar[at] != 0 {
        let header = &tar[at..at + 512];
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8(field[..end].to_vec()).unwrap()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        at += 512;
        if header[156] != b'5' {
            members.push((text(0..100), tar[at..at + size].to_vec()));
        }
        at += size.next_multiple_of(512);
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = store_with(&root, &[layer("a", 1), layer("bb", 1)]).await;
    let dir = root.scratch("out");
    for kind in ["docker-archive", "oci-archive"] {
        let whole = dir.join("whole.tar");
        push_to(&store, &id, &format!("{kind}:{}", whole.display()))
            .await
            .unwrap();
        let members = members(&whole);
        let write = |change: &dyn Fn(&mut Members)| {
            let mut members = members.clone();
            change(&mut members);
            let tar = members
                .into_iter()
                .fold(Tar::new(), |tar, (name, content)| tar.file(name, content));
            tar.build()
        };
        let manifest = match kind {
            "oci-archive" => "index.json",
            _ => "manifest.json",
        };
        let tar = std::fs::read(&whole).unwrap();
        let layer_at = members
            .iter()
            .position(|(_, content)| content.len() > 1 << 19)
            .unwrap();
        let kept = write(&|_| {});
        let mut wrong: Vec<(&str, Vec<u8>)> = vec![
            ("half of it", tar[..tar.len() / 2].to_vec()),
            ("its first header", tar[..512].to_vec()),
            ("no tar", vec![b'x'; 4096]),
            ("nothing", Vec::new()),
            (
                "a second manifest",
                write(&|members| {
                    let second = members.iter().find(|(name, _)| name == manifest).unwrap().clone();
                    members.push(second);
                }),
            ),
            (
                "a second layer",
                write(&|members| members.push(members[layer_at].clone())),
            ),
            (
                "a changed layer",
                write(&|members| {
                    let content = &mut members[layer_at].1;
                    let middle = content.len() / 2;
                    content[middle] ^= 1;
                }),
            ),
            (
                "a shorter layer",
                write(&|members| members[layer_at].1.truncate(1 << 19)),
            ),
            ("no layer", write(&|members| drop(members.remove(layer_at)))),
            (
                "a huge manifest",
                write(&|members| {
                    let found = members.iter_mut().find(|(name, _)| name == manifest).unwrap();
                    found.1.resize(5 << 20, b' ');
                }),
            ),
        ];
        if kind == "docker-archive" {
            for layers in [json!(["../../etc/passwd"]), json!(vec!["x"; 50_000]), json!("x")] {
                let item = json!([{"Config": members[0].0, "RepoTags": null, "Layers": layers}]);
                wrong.push((
                    "other layers",
                    write(&|members| {
                        let found = members.iter_mut().find(|(name, _)| name == manifest).unwrap();
                        found.1 = serde_json::to_vec(&item).unwrap();
                    }),
                ));
            }
        }
        let file = dir.join("hostile.tar");
        let other = TestRoot::in_memory();
        let empty = other.open().await;
        let puller = Puller::new(&empty, PullOptions::default());
        let reference: ImageRef = format!("{kind}:{}", file.display()).parse().unwrap();
        for (what, bytes) in wrong {
            std::fs::write(&file, bytes).unwrap();
            let error = puller.pull_as(&reference, &["localhost/x"]).await.unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::InvalidArchive
                        | ErrorKind::InvalidInput
                        | ErrorKind::NotFound
                        | ErrorKind::DigestMismatch
                ),
                "{kind}, {what}: {error:?}"
            );
            assert!(empty.images().await.unwrap().is_empty(), "{what}");
        }
        std::fs::write(&file, kept).unwrap();
        let pulled = puller.pull_as(&reference, &["localhost/x"]).await.unwrap();
        assert_eq!(pulled.image.id(), id);
    }
}
