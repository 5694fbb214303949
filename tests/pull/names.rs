//! What images out of layouts and archives are called, beside Podman's pulls of the same ones.

use std::path::Path;

use graphroot::Digest;
use serde_json::{Value, json};

use crate::odd_registry::{OCI_MANIFEST, Parts, descriptor, good_config};
use crate::records::pull;
use crate::support::each_set;
use crate::support::json::rows;
use crate::support::oci::layout_blob_path;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;

/// The names of one image where it lies: for a layout its name in the index, and containerd's behind it.
type Given = &'static [&'static str];

/// An image somewhere, and what it is called after a pull.
struct Case {
    transport: &'static str,
    /// Images that lie there.
    given: &'static [Given],
    /// What stands behind the path; `DIGEST` stands for that of the first image's manifest.
    which: &'static str,
    /// The names; none at all for what is refused.
    names: Option<&'static [&'static str]>,
    /// Whether Podman does it.
    is_podmans: bool,
}

const fn case(
    transport: &'static str,
    given: &'static [Given],
    which: &'static str,
    names: Option<&'static [&'static str]>,
) -> Case {
    Case {
        transport,
        given,
        which,
        names,
        is_podmans: true,
    }
}

/// What Podman refuses, for no reason that would concern a user.
const fn ours(
    transport: &'static str,
    given: &'static [Given],
    which: &'static str,
    names: &'static [&'static str],
) -> Case {
    Case {
        is_podmans: false,
        ..case(transport, given, which, Some(names))
    }
}

const TWO: &[Given] = &[&["x"], &["y", "h.io/c:1"]];
const TAGGED: &[Given] = &[&["x:1", "h.io/y:1", "localhost/z:1"]];
const SEVERAL: &[Given] = &[&["x:1"], &["y:1", "y:2"], &[]];

const CASES: &[Case] = &[
    case("oci", &[&[]], "", Some(&[])),
    case("oci", &[&["app"]], "", Some(&[])),
    case("oci", &[&["1", "h.io/c:1"]], "", Some(&[])),
    case(
        "oci",
        &[&["1.0"]],
        ":1.0",
        Some(&["docker.io/library/1.0:latest"]),
    ),
    case("oci", &[&["app:1"]], ":app:1", Some(&["docker.io/library/app:1"])),
    case(
        "oci",
        &[&["team/app"]],
        ":team/app",
        Some(&["docker.io/team/app:latest"]),
    ),
    case(
        "oci",
        &[&["localhost/foo:2"]],
        ":localhost/foo:2",
        Some(&["localhost/foo:2"]),
    ),
    case(
        "oci",
        &[&["localhost:5000/x"]],
        ":localhost:5000/x",
        Some(&["localhost:5000/x:latest"]),
    ),
    case(
        "oci",
        &[&["index.docker.io/app"]],
        ":index.docker.io/app",
        Some(&["docker.io/library/app:latest"]),
    ),
    case(
        "oci",
        &[&["h.io/a@DIGEST"]],
        ":h.io/a@DIGEST",
        Some(&["h.io/a@DIGEST"]),
    ),
    case(
        "oci",
        &[&["h.io/a:1@DIGEST"]],
        ":h.io/a:1@DIGEST",
        Some(&["h.io/a:1@DIGEST"]),
    ),
    case("oci", &[&["h.io/a@OTHER"]], ":h.io/a@OTHER", None),
    case("oci", &[&["Upper"]], ":Upper", None),
    case("oci", &[&["v1+x"]], ":v1+x", None),
    case("oci", &[&["h.io/a@0"]], ":h.io/a@0", None),
    case("oci", &[&["app"]], ":other", None),
    case("oci", TWO, "", None),
    case("oci", TWO, ":y", Some(&["docker.io/library/y:latest"])),
    case("oci", TWO, ":@x", None),
    ours("oci", TWO, ":@1", &[]),
    case("oci-archive", &[&[]], "", Some(&[])),
    case("oci-archive", &[&[""]], "", Some(&[])),
    case("oci-archive", &[&["1.0"]], "", Some(&["localhost/1.0:latest"])),
    case(
        "oci-archive",
        &[&["team/app:1"]],
        ":team/app:1",
        Some(&["localhost/team/app:1"]),
    ),
    case(
        "oci-archive",
        &[&["docker.io/app"]],
        "",
        Some(&["docker.io/library/app:latest"]),
    ),
    case("oci-archive", &[&["1", "h.io/c:1"]], ":1", Some(&["h.io/c:1"])),
    case(
        "oci-archive",
        &[&["h.io/a:1@DIGEST"]],
        "",
        Some(&["h.io/a@DIGEST"]),
    ),
    case("oci-archive", &[&["h.io/a:1@OTHER"]], "", None),
    case("oci-archive", &[&["Upper"]], "", None),
    case("oci-archive", TWO, "", None),
    case("oci-archive", TWO, ":x", Some(&["localhost/x:latest"])),
    ours("oci-archive", TWO, ":@1", &["h.io/c:1"]),
    case("docker-archive", &[&[]], "", Some(&[])),
    case(
        "docker-archive",
        TAGGED,
        "",
        Some(&["localhost/z:1", "h.io/y:1", "localhost/x:1"]),
    ),
    case("docker-archive", TAGGED, ":x:1", Some(&["localhost/x:1"])),
    case(
        "docker-archive",
        TAGGED,
        ":docker.io/library/x:1",
        Some(&["localhost/x:1"]),
    ),
    case(
        "docker-archive",
        TAGGED,
        ":localhost/z:1",
        Some(&["localhost/z:1"]),
    ),
    case("docker-archive", TAGGED, ":localhost/x:1", None),
    case("docker-archive", &[&["x:1", "x:1"]], "", Some(&["localhost/x:1"])),
    case("docker-archive", &[&["Upper"]], "", None),
    case("docker-archive", &[&["h.io/a:1@DIGEST"]], "", None),
    ours("docker-archive", &[&["x"]], ":x", &["localhost/x:latest"]),
    case("docker-archive", SEVERAL, "", None),
    case(
        "docker-archive",
        SEVERAL,
        ":@1",
        Some(&["localhost/y:2", "localhost/y:1"]),
    ),
    case("docker-archive", SEVERAL, ":@2", Some(&[])),
    case("docker-archive", SEVERAL, ":@3", None),
    case("docker-archive", SEVERAL, ":y:2", Some(&["localhost/y:2"])),
];

/// An image that is no other one.
fn image(seed: &str) -> (Parts, Vec<u8>) {
    let mut config = good_config();
    config["author"] = seed.into();
    let layer = Tar::new().file("seed", "the same in all").build();
    let parts = Parts::new(OCI_MANIFEST, config, &[layer]);
    let manifest = parts.manifest.to_string().into_bytes();
    (parts, manifest)
}

/// Writes the images of a case to `path`. Returns the digest of the first manifest.
fn write(case: &Case, number: usize, path: &Path) -> Digest {
    let images: Vec<_> = (0..case.given.len())
        .map(|index| image(&format!("{number}-{index}")))
        .collect();
    let digest = Digest::sha256(&images[0].1);
    let name = |name: &str| named(name, &digest);
    if case.transport == "docker-archive" {
        let mut tar = Tar::new();
        let mut items = Vec::new();
        for ((parts, _), tags) in images.iter().zip(case.given) {
            let config = Digest::sha256(&parts.config);
            tar = tar.file(config.encoded(), &parts.config[..]);
            let tags: Vec<_> = tags.iter().map(|tag| name(tag)).collect();
            items.push(json!({"Config": config.encoded(), "RepoTags": tags, "Layers": ["layer.tar"]}));
        }
        tar = tar.file("layer.tar", &images[0].0.layers[0][..]);
        let archive = tar.file("manifest.json", Value::from(items).to_string()).build();
        std::fs::write(path, archive).unwrap();
        return digest;
    }
    let mut files = vec![(
        "oci-layout".to_owned(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    )];
    let mut entries = Vec::new();
    for ((parts, manifest), names) in images.iter().zip(case.given) {
        for blob in [&parts.config, &parts.layers[0], manifest] {
            let file = layout_blob_path(Path::new(""), Digest::sha256(blob).as_str());
            files.push((file.display().to_string(), blob.clone()));
        }
        let mut entry = descriptor(OCI_MANIFEST, manifest);
        let keys = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
        for (key, given) in keys.iter().zip(*names) {
            entry["annotations"][key] = name(given).into();
        }
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files.sort();
    files.dedup();
    if case.transport == "oci" {
        for (file, bytes) in files {
            let file = path.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, bytes).unwrap();
        }
    } else {
        let tar = files
            .iter()
            .fold(Tar::new(), |tar, (file, bytes)| tar.file(file, &bytes[..]));
        std::fs::write(path, tar.build()).unwrap();
    }
    digest
}

/// A name with what stands in it for digests.
fn named(name: &str, digest: &Digest) -> String {
    let other = Digest::sha256(b"another manifest");
    name.replace("DIGEST", digest.as_str())
        .replace("OTHER", other.as_str())
}

/// The names that Podman gives an image; none at all if it refuses.
fn podmans(root: &TestRoot, reference: &str) -> Option<Vec<String>> {
    let pulled = root
        .podman()
        .with(["pull", "--quiet", reference])
        .output()
        .unwrap();
    let text = String::from_utf8(pulled.stdout).unwrap();
    // Once for each name.
    let id = text.lines().next().filter(|_| pulled.status.success())?;
    let row = rows(&root.metadata_dir("images").join("images.json"));
    let row = row.iter().find(|row| row["id"] == id).unwrap();
    let names = row["names"].as_array();
    Some(
        names
            .into_iter()
            .flatten()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect(),
    )
}

async fn images_are_called_as_by_podman(set: PeerSet) {
    let (root, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
    for (number, case) in CASES.iter().enumerate() {
        let path = root.path().join(format!("image{number}"));
        let digest = write(case, number, &path);
        let reference = format!(
            "{}:{}{}",
            case.transport,
            path.display(),
            named(case.which, &digest)
        );
        let known = case
            .names
            .map(|names| names.iter().map(|name| named(name, &digest)).collect::<Vec<_>>());
        let pulled = pull(&root, &reference).await;
        let ours = pulled.as_ref().ok().map(|pulled| pulled.image.names().to_vec());
        let given = case.given;
        assert_eq!(
            ours,
            known,
            "{given:?} {reference}: {:?}",
            pulled.err().map(|error| error.chain())
        );
        let wanted = if case.is_podmans { known } else { None };
        assert_eq!(podmans(&theirs, &reference), wanted, "{given:?} {reference}");
    }
    root.podman().words("images").run();
}
each_set!(newer async images_are_called_as_by_podman: "podman");
