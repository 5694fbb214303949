//! Archives as other programs write them: compressed, as a whole or layer by layer, with links, with several images.

use std::process::{Command, Stdio};

use graphroot::oci::{ImageRef, PullOptions, Puller};
use graphroot::{Digest, ErrorKind};
use serde_json::json;

use crate::odd_registry::good_config;
use crate::records::{assert_same_stores, pull};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;
use crate::support::{each_set, needs};

/// Bytes that went through a program.
fn through(program: &str, bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("in");
    std::fs::write(&file, bytes).unwrap();
    let output = Command::new(program)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}

const COMPRESSORS: [&str; 4] = ["gzip", "zstd", "xz", "bzip2"];

fn layers() -> [Vec<u8>; 2] {
    let text = |name: &str| name.repeat(20_000);
    [
        Tar::new().file("a", text("first")).build(),
        Tar::new().file("b", text("second")).build(),
    ]
}

/// A config of these layers, and its name in an archive.
fn config(layers: &[Vec<u8>]) -> (String, Vec<u8>) {
    let mut config = good_config();
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::sha256).collect();
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let bytes = config.to_string().into_bytes();
    (format!("{}.json", Digest::sha256(&bytes).encoded()), bytes)
}

/// An archive as `docker save` wrote it before version 25, of layers that are stored as `stored` says.
fn archive(stored: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let layers = layers();
    let (name, config) = config(&layers);
    let manifest = json!([{
        "Config": name,
        "RepoTags": ["h.io/team/app:v1"],
        "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    Tar::new()
        .file("one/layer.tar", stored(&layers[0]))
        .file("two/layer.tar", stored(&layers[1]))
        .file(&name, config)
        .file("manifest.json", manifest.to_string())
        .build()
}

/// All archives that are odd, with their names and how the image in them is meant, and whether Podman reads it.
fn archives() -> Vec<(String, Vec<u8>, &'static str, bool)> {
    let mut all = Vec::new();
    for program in COMPRESSORS {
        let stored = |layer: &[u8]| through(program, layer);
        all.push((format!("layers-of-{program}"), archive(stored), "", true));
        let whole = through(program, &archive(<[u8]>::to_vec));
        all.push((format!("all-of-it-by-{program}"), whole, "", true));
    }
    let [first, second] = layers();
    let images = [vec![first.clone()], vec![first.clone(), second.clone()]];
    let configs = images.clone().map(|layers| config(&layers));
    // Layers that are there already are links, as `docker save` writes several images.
    let manifest = json!([
        {"Config": configs[0].0, "RepoTags": ["h.io/a:1"], "Layers": ["x/layer.tar"]},
        {"Config": configs[1].0, "RepoTags": ["h.io/b:1", "h.io/b:2"], "Layers": ["y/layer.tar", "z/layer.tar"]},
    ]);
    let several = Tar::new()
        .file("x/layer.tar", &first[..])
        .symlink("y/layer.tar", "../x/layer.tar")
        .file("z/layer.tar", &second[..])
        .file(&configs[0].0, &configs[0].1[..])
        .file(&configs[1].0, &configs[1].1[..])
        .file("manifest.json", manifest.to_string())
        .build();
    // Podman takes a link of which the layer is in another image for an empty file.
    for (which, is_read) in [
        (":h.io/a:1", true),
        (":@0", true),
        (":h.io/b:2", false),
        (":@1", false),
    ] {
        let name = format!("several{}", which.replace([':', '/'], "-"));
        all.push((name, several.clone(), which, is_read));
    }
    // Docker 25 and later: a layout, and `manifest.json` beside its index.
    let (_, bytes) = &configs[1];
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).encoded());
    let listed = [&first, &second].map(|layer| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::sha256(layer),
            "size": layer.len(),
        })
    });
    let oci = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(bytes), "size": bytes.len()},
        "layers": listed,
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::sha256(&oci),
            "size": oci.len(),
            "annotations": {"io.containerd.image.name": "h.io/b:1", "org.opencontainers.image.ref.name": "1"},
        }],
    });
    let manifest = json!([{
        "Config": blob(bytes),
        "RepoTags": ["h.io/b:1"],
        "Layers": [blob(&first), blob(&second)],
        "LayerSources": {},
    }]);
    let modern = Tar::new()
        .dir("blobs/")
        .dir("blobs/sha256/")
        .file(blob(&first), &first[..])
        .file(blob(&second), &second[..])
        .file(blob(bytes), &bytes[..])
        .file(blob(oci.as_bytes()), oci.as_bytes())
        .file("index.json", index.to_string())
        .file("manifest.json", manifest.to_string())
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .build();
    all.push(("docker25".to_owned(), modern, "", true));
    all
}

async fn odd_archives_are_pulled_as_podman_does(set: PeerSet) {
    if COMPRESSORS
        .iter()
        .any(|program| crate::support::require(program).is_none())
    {
        return;
    }
    let files = TestRoot::in_memory().of(set);
    for (name, bytes, which, is_read) in archives() {
        let file = files.path().join(&name);
        std::fs::write(&file, bytes).unwrap();
        let reference = format!("docker-archive:{}{which}", file.display());
        let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
        if let Err(error) = pull(&ours, &reference).await {
            panic!("{name}: {}", error.chain());
        }
        ours.podman().words("images").run();
        let theirs_pull = theirs
            .podman()
            .words("pull --quiet")
            .with([&reference])
            .output()
            .unwrap();
        assert_eq!(theirs_pull.status.success(), is_read, "{name}: {theirs_pull:?}");
        if is_read {
            assert_same_stores(&ours, &theirs);
        }
    }
}
each_set!(newer async odd_archives_are_pulled_as_podman_does: "podman");

/// A layout in a compressed archive, as Docker 25 and `oci-archive:` know it.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_archives_leave_no_temporary_files() {
    needs!("gzip", "zstd", "xz", "bzip2");
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let mut ids = Vec::new();
    for (name, bytes, which, _) in archives() {
        let file = root.path().join(&name);
        std::fs::write(&file, &bytes).unwrap();
        let reference: ImageRef = format!("docker-archive:{}{which}", file.display())
            .parse()
            .unwrap();
        ids.push(puller.pull(&reference).await.unwrap().image.id().to_owned());
        if name == "docker25" {
            let packed = root.path().join("packed");
            std::fs::write(&packed, through("gzip", &bytes)).unwrap();
            let reference: ImageRef = format!("oci-archive:{}", packed.display()).parse().unwrap();
            let pulled = puller.pull_as(&reference, &["localhost/x"]).await.unwrap();
            assert_eq!(Some(pulled.image.id()), ids.last().map(String::as_str));
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2, "two images in all ways");
    assert!(root.temporary_files().is_empty(), "{:?}", root.temporary_files());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_archive_is_said() {
    needs!("gzip");
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let (_, several, ..) = archives()
        .into_iter()
        .find(|(name, ..)| name.starts_with("several"))
        .unwrap();
    let whole = archive(|layer| through("gzip", layer));
    let cut = archive(|layer| {
        let bytes = through("gzip", layer);
        bytes[..bytes.len() / 2].to_vec()
    });
    let packed = through("gzip", &whole);
    let other = archive(|_| through("gzip", b"something else"));
    for (bytes, which, kind, why) in [
        (
            &several,
            "",
            ErrorKind::InvalidInput,
            "expected 1 item, got 2: choose one of h.io/a:1, h.io/b:1",
        ),
        (
            &several,
            ":@2",
            ErrorKind::NotFound,
            "source index @2, only 2 images",
        ),
        (
            &several,
            ":@x",
            ErrorKind::NotFound,
            "source index @x, only 2 images",
        ),
        (&cut, "", ErrorKind::InvalidArchive, "one/layer.tar"),
        (
            &packed[..packed.len() / 2].to_vec(),
            "",
            ErrorKind::InvalidArchive,
            "reading archive",
        ),
        (&other, "", ErrorKind::InvalidArchive, ""),
    ] {
        let file = root.path().join("odd.tar");
        std::fs::write(&file, bytes).unwrap();
        let reference: ImageRef = format!("docker-archive:{}{which}", file.display())
            .parse()
            .unwrap();
        let error = puller.pull(&reference).await.unwrap_err();
        let kinds = [kind, ErrorKind::DigestMismatch];
        assert!(kinds.contains(&error.kind()), "{which}: {}", error.chain());
        assert!(error.chain().contains(why), "{which}: {}", error.chain());
    }
    assert!(store.images().await.unwrap().is_empty());
}
