//! What a pull writes is what Podman writes.

use std::path::Path;
use std::process::Command;

use graphroot::oci::{ImageRef, PullOptions, Pulled, Puller};
use graphroot::{Compression, Digest};
use serde_json::Value;

use crate::fake_registry::{FakeRegistry, layer};
use crate::library::{Library, SMALL_LAYERS};
use crate::support::json;
use crate::support::manifest::{self, layer_manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

/// Pulls into a test's store with the usual options.
pub(crate) async fn pull(root: &TestRoot, image: &str) -> graphroot::Result<Pulled> {
    let store = root.open().await;
    Puller::new(&store, PullOptions::default())
        .pull(&image.parse::<ImageRef>()?)
        .await
}

/// Lets Podman pull.
pub(crate) fn podman_pull(root: &TestRoot, images: &[String]) {
    let command = root.podman().words("pull --quiet --tls-verify=false");
    command.with(images).run();
}

/// Records of one kind without what differs from one pull to the next.
pub(crate) fn records(root: &TestRoot, kind: &str) -> Vec<Value> {
    let mut rows = json::rows(&root.metadata_dir(kind).join(format!("{kind}.json")));
    for row in &mut rows {
        if kind == "layers" {
            row.as_object_mut().unwrap().remove("created");
        } else if root.peers() == PeerSet::Installed {
            without_signatures(row);
        }
    }
    rows.sort_by_key(|row| row["id"].as_str().unwrap().to_owned());
    rows
}

/// Old versions write down that there are no signatures.
fn without_signatures(image: &mut Value) {
    image["metadata"] = "{}".into();
    let is_signature = |name: &str| name.starts_with("signature-");
    let names = image["big-data-names"].as_array_mut().unwrap();
    names.retain(|name| !is_signature(name.as_str().unwrap()));
    for map in ["big-data-sizes", "big-data-digests"] {
        image[map]
            .as_object_mut()
            .unwrap()
            .retain(|name, _| !is_signature(name));
    }
}

/// Compares records, big data and trees of two stores.
pub(crate) fn assert_same_stores(ours: &TestRoot, theirs: &TestRoot) {
    for kind in ["images", "layers"] {
        let (left, right) = (records(ours, kind), records(theirs, kind));
        assert_eq!(left.len(), right.len(), "{kind}: {left:#?}\n{right:#?}");
        for (left, right) in left.iter().zip(&right) {
            json::assert_same(kind, left, right);
        }
    }
    for row in records(theirs, "images") {
        let dir = |root: &TestRoot| root.metadata_dir("images").join(row["id"].as_str().unwrap());
        assert_same_files(&dir(ours), &dir(theirs));
    }
    assert_same_trees(ours, theirs);
}

/// Compares the files of all layers that the second store has.
pub(crate) fn assert_same_trees(ours: &TestRoot, theirs: &TestRoot) {
    for row in records(theirs, "layers") {
        let tree = |root: &TestRoot| {
            let diff = root
                .graph()
                .join("overlay")
                .join(row["id"].as_str().unwrap())
                .join("diff");
            // No entry of the layers is the root itself: it is as old as the pull.
            layer_manifest(&diff)
        };
        manifest::assert_same("ours", &tree(ours), "theirs", &tree(theirs));
    }
}

pub(crate) fn assert_same_files(left: &Path, right: &Path) {
    let content = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    std::fs::read(entry.path()).unwrap(),
                )
            })
            .collect();
        // Among the items that is the one for signatures alone.
        files.retain(|(_, content)| !content.is_empty());
        files.sort();
        files
    };
    assert_eq!(
        content(left),
        content(right),
        "{} {}",
        left.display(),
        right.display()
    );
}

/// Lets Skopeo copy an image into a store, under `name`.
pub(crate) fn skopeo_pull(root: &TestRoot, image: &str, name: &str) {
    let command = root.skopeo().words("copy --quiet --src-tls-verify=false");
    command.with([image.to_owned(), root.image_reference(name)]).run();
}

/// Pulls into a test's store under `name`.
async fn pull_as(root: &TestRoot, image: &str, name: &str) -> Pulled {
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    puller.pull_as(&image.parse().unwrap(), &[name]).await.unwrap()
}

async fn a_layout_is_pulled_as_skopeo_does(set: PeerSet) {
    let library = Library::open();
    for name in ["base", "zstd", "multi"] {
        let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
        skopeo_pull(&theirs, &library.oci(name), "localhost/some/name:tag");
        pull_as(&ours, &library.oci(name), "localhost/some/name:tag").await;
        assert_same_stores(&ours, &theirs);
    }
}
each_set!(async a_layout_is_pulled_as_skopeo_does: "podman", "buildah", "skopeo", "docker-registry");

async fn a_registry_is_pulled_from_as_podman_does(set: PeerSet) {
    let library = Library::open();
    let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
    // Several images in one store, an image under several names, by digest and by index.
    let names = ["app0", "multi", "base", "zstd"].map(|name| library.name(name));
    podman_pull(&theirs, &names);
    for name in &names {
        pull(&ours, name).await.unwrap();
    }
    let digest = json::rows(&theirs.metadata_dir("images").join("images.json"))[0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let pinned = format!("{}/team/app0@{digest}", library.registry.address());
    podman_pull(&theirs, std::slice::from_ref(&pinned));
    let pulled = pull(&ours, &pinned).await.unwrap();
    assert_eq!((pulled.transferred, pulled.digest.as_str()), (0, &*digest));
    assert_same_stores(&ours, &theirs);

    for arguments in [
        vec![
            "images",
            "--format",
            "{{.ID}} {{.Digest}} {{.Repository}} {{.Tag}} {{.Size}} {{.CreatedAt}}",
        ],
        vec!["image", "inspect", &names[0], &names[1]],
    ] {
        let shown = |root: &TestRoot| root.podman().with(&arguments).run();
        let at = |root: &TestRoot, text: String| text.replace(root.path().to_str().unwrap(), "ROOT");
        assert_eq!(at(&ours, shown(&ours)), at(&theirs, shown(&theirs)));
    }
    let inspect = |root: &TestRoot| {
        root.skopeo()
            .with(["inspect", &root.image_reference(&names[1])])
            .run()
    };
    assert_eq!(inspect(&ours), inspect(&theirs));
}
each_set!(async a_registry_is_pulled_from_as_podman_does: "podman", "buildah", "skopeo", "docker-registry");

async fn either_side_reuses_the_layers_of_the_other(set: PeerSet) {
    let library = Library::open();
    let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
    let registry = library.own_registry(&ours);
    podman_pull(&theirs, &[registry.image("base")]);
    let pulled = pull(&theirs, &registry.image("app0")).await.unwrap();
    assert_eq!((pulled.transferred, pulled.reused), (1, SMALL_LAYERS + 1));
    assert_eq!(
        pull(&theirs, &registry.image("base")).await.unwrap().transferred,
        0
    );

    pull(&ours, &registry.image("base")).await.unwrap();
    let before = registry.requests().len();
    podman_pull(&ours, &[registry.image("app0")]);
    registry.settle("podman-reuses");
    let sent = registry.blobs_sent(before);
    assert!(sent.len() >= 2, "Podman needs the config and a layer");
    assert_same_stores(&ours, &theirs);
    let layers = json::rows(&ours.metadata_dir("layers").join("layers.json"));
    let reused = |digest: &String| {
        layers[..=SMALL_LAYERS]
            .iter()
            .any(|row| row["compressed-diff-digest"] == **digest)
    };
    assert!(!sent.keys().any(reused), "Podman fetched what we had: {sent:?}");
}
each_set!(async either_side_reuses_the_layers_of_the_other: "podman", "buildah", "skopeo", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_is_chosen_from_an_index() {
    needs!("podman", "buildah", "skopeo", "docker-registry");
    let library = Library::open();
    let root = TestRoot::in_memory();
    let store = root.open().await;
    for source in [library.docker("multi"), library.oci("multi")] {
        let options = |platform: &str| PullOptions::default().platform(platform.parse().unwrap());
        let reference: ImageRef = source.parse().unwrap();
        let arm = Puller::new(&store, options("linux/arm64"));
        let arm = arm.pull_as(&reference, &["localhost/arm"]).await.unwrap();
        let amd = Puller::new(&store, options("linux/amd64"));
        let amd = amd.pull_as(&reference, &["localhost/amd"]).await.unwrap();
        assert_eq!(arm.digest, amd.digest);
        assert_ne!(arm.manifest, amd.manifest);
        let (arm, amd) = (arm.image.top_layer().unwrap(), amd.image.top_layer().unwrap());
        assert!(store.layer(arm).await.unwrap().parent().is_none());
        assert!(store.layer(amd).await.unwrap().parent().is_some());
        let other = Puller::new(&store, options("linux/s390x"));
        let error = other.pull_as(&reference, &[]).await.unwrap_err();
        assert_eq!(error.kind(), graphroot::ErrorKind::NotFound);
        assert!(error.chain().contains("linux/s390x"), "{error:?}");
    }
}

/// The streams of `pzstd` begin with a frame that tells a size and has no content.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_pzstd_are_pulled() {
    needs!("pzstd");
    let root = TestRoot::in_memory();
    let file = root.path().join("layer");
    let layer = layer("file", 2);
    std::fs::write(&file, &layer).unwrap();
    let blob = Command::new("pzstd")
        .words("-q -c -p 2")
        .arg(&file)
        .output()
        .unwrap();
    assert!(blob.stdout.starts_with(b"\x50\x2a\x4d\x18"), "{blob:?}");
    let fake = FakeRegistry::start();
    let digest = Digest::sha256(&layer);
    let image = fake.add_blobs("some/image", &[layer], &[blob.stdout], "tar+zstd");
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
    let layer = store.layer(pulled.image.top_layer().unwrap()).await.unwrap();
    assert_eq!(layer.uncompressed_digest(), Some(digest));
    assert_eq!(layer.compression(), Compression::Zstd);
}

async fn archives_are_pulled_as_podman_does(set: PeerSet) {
    let library = Library::open();
    let files = TestRoot::in_memory().of(set);
    let file = |name: &str| files.path().join(name).display().to_string();
    for archive in [
        format!("docker-archive:{}:some/name:tag", file("docker.tar")),
        format!("docker-archive:{}", file("nameless.tar")),
        format!("oci-archive:{}:short", file("oci.tar")),
        format!("oci-archive:{}:h.io/full/name:tag", file("full.tar")),
        format!("oci-archive:{}", file("plain.tar")),
    ] {
        let source = if archive.contains("docker") {
            "base"
        } else {
            "zstd"
        };
        let copy = files.skopeo().words("copy --quiet --src-tls-verify=false");
        copy.with([library.docker(source), archive.clone()]).run();
        let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
        podman_pull(&theirs, std::slice::from_ref(&archive));
        pull(&ours, &archive).await.unwrap();
        assert_same_stores(&ours, &theirs);
    }
}
each_set!(async archives_are_pulled_as_podman_does: "podman", "buildah", "skopeo", "docker-registry");
