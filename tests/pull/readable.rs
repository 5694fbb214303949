//! No image gets into a store that other programs cannot read there: beside Podman's pull of the same image, and Podman
//! lists the store afterwards.

use graphroot::oci::{PullOptions, Puller};
use graphroot::{Digest, ErrorKind};
use serde_json::{Value, json};

use crate::odd_registry::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, OddRegistry, Parts, good_config};
use crate::records::pull;
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::Tar;

fn small_layer() -> Vec<u8> {
    Tar::new().file("file", "content").build()
}

/// A config with one thing changed: a path of keys, and a value.
fn config(path: &str, value: Value) -> Value {
    let mut config = good_config();
    config["history"] = json!([{"created": "2024-05-06T07:08:09Z", "created_by": "x"}]);
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut place = &mut config;
    for key in parent.split('/').filter(|key| !key.is_empty()) {
        place = match key.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_name) => &mut place[key],
        };
    }
    place[name] = value;
    config
}

/// Configs with one odd field, and whether Podman takes them.
fn odd_configs() -> Vec<(&'static str, Value, bool)> {
    vec![
        ("created", json!(""), false),
        ("created", json!("yesterday"), false),
        ("created", json!(1_700_000_000), false),
        ("created", json!("2024-05-06 07:08:09"), false),
        ("created", json!("2024-05-06T07:08:09"), false),
        ("created", json!("2024-05-06T07:08:09+24:00"), false),
        ("created", json!(null), true),
        ("created", json!("0001-01-01T00:00:00Z"), true),
        ("created", json!("2024-05-06T7:08:09,5+02:00"), true),
        ("Created", json!("2024-05-06T07:08:09Z"), false),
        ("author", json!(["me"]), false),
        ("architecture", json!(64), false),
        ("os", json!({}), false),
        ("os.features", json!("x"), false),
        ("os.version", json!(10), false),
        ("variant", json!(8), false),
        ("config", json!([]), false),
        ("config", json!(null), true),
        ("config/Env", json!("A=b"), false),
        ("config/Env", json!({"A": "b"}), false),
        ("config/Env", json!([1]), false),
        ("config/Env", json!(null), true),
        ("config/Env", json!(["A=b", null]), true),
        ("config/Cmd", json!("/bin/sh"), false),
        ("config", json!({"cmd": ["/bin/sh"], "ENV": ["A=b"]}), true),
        ("config/Entrypoint", json!("/bin/sh"), false),
        ("config/User", json!(1000), false),
        ("config/WorkingDir", json!(null), true),
        ("config/Labels", json!(["a=b"]), false),
        ("config/Labels", json!({"a": 1}), false),
        ("config/Labels", json!({"a": null}), true),
        ("config/ExposedPorts", json!(["80/tcp"]), false),
        ("config/ExposedPorts", json!({"80/tcp": 1}), false),
        ("config/ExposedPorts", json!({"80/tcp": null}), true),
        ("config/Volumes", json!({"/data": "x"}), false),
        ("config/StopSignal", json!(9), false),
        ("config/ArgsEscaped", json!("true"), false),
        ("config/Healthcheck", json!({"Test": "x"}), false),
        ("config/Healthcheck", json!({"Interval": "30s"}), false),
        ("config/Healthcheck", json!({"Interval": 1.5}), false),
        (
            "config/Healthcheck",
            json!({"Interval": 30_000_000_000_u64, "Retries": 3}),
            true,
        ),
        ("config/StopTimeout", json!("10"), false),
        ("config/Shell", json!("/bin/sh"), true),
        ("config/Shell", json!(5), false),
        ("config/OnBuild", json!("x"), false),
        ("config/Tty", json!(0), false),
        ("config/Hostname", json!(1), false),
        ("config/Unknown", json!(5), true),
        ("container_config", json!({"Cmd": "x"}), true),
        ("container_config", json!({"Cmd": 1}), false),
        ("container_config", json!("x"), false),
        ("id", json!(1), false),
        ("parent", json!([]), false),
        ("docker_version", json!(28), false),
        ("Size", json!("1"), false),
        ("size", json!(1), true),
        ("comment", json!({}), false),
        ("rootfs", json!({"type": 1}), false),
        ("rootfs", json!(null), true),
        ("rootfs", json!({"type": "layers"}), true),
        ("rootfs", json!({"type": "layers", "diff_ids": [""]}), true),
        (
            "rootfs",
            json!({"type": null, "diff_ids": [Digest::sha256(small_layer())]}),
            true,
        ),
        ("rootfs", json!({"type": "layers", "diff_ids": "x"}), false),
        ("history", json!({}), false),
        ("history", json!(null), true),
        ("history", json!([null]), true),
        ("history/0/created", json!(""), false),
        ("history/0/created", json!(null), true),
        ("history/0/created_by", json!(["x"]), false),
        ("history/0/empty_layer", json!("false"), false),
        ("history/0/comment", json!(1), false),
        ("unknown", json!({"created": ""}), true),
    ]
}

/// Whether Podman pulls it and reads a store that has it.
fn podman_takes(set: PeerSet, image: &str) -> bool {
    let theirs = TestRoot::in_memory().of(set);
    let pull = theirs
        .podman()
        .words("pull --quiet --tls-verify=false")
        .with([image])
        .output();
    if !pull.unwrap().status.success() {
        return false;
    }
    check_store(&theirs, image, true);
    true
}

/// Podman lists a store, and inspects the image if it has it.
fn check_store(root: &TestRoot, image: &str, is_there: bool) {
    let listed = root.podman().words("images --quiet --no-trunc").run();
    assert_ne!(listed.is_empty(), is_there, "{image}: {listed}");
    if is_there {
        let name = image.trim_start_matches("docker://");
        root.podman().words("image inspect").with([name]).run();
        root.podman().words("history").with([name]).run();
    }
}

/// Pulls an image; Podman then has to read our store.
async fn we_take(set: PeerSet, image: &str, what: &str) -> bool {
    let ours = TestRoot::in_memory().of(set);
    let pulled = pull(&ours, image).await;
    if let Err(error) = &pulled {
        let kinds = [ErrorKind::InvalidInput, ErrorKind::NotSupported];
        assert!(kinds.contains(&error.kind()), "{what}: {}", error.chain());
    }
    check_store(&ours, image, pulled.is_ok());
    pulled.is_ok()
}

async fn odd_configs_are_taken_as_podman_does(set: PeerSet) {
    let registry = OddRegistry::start(|_| None);
    let mut wrong = Vec::new();
    for (number, (path, value, expected)) in odd_configs().into_iter().enumerate() {
        // Two fields of one name: the last counts for Podman.
        let ambiguous = path == "Created";
        // Both formats have one type of config; each has half of the cases.
        let manifest_type = [OCI_MANIFEST, DOCKER_MANIFEST][number % 2];
        let what = format!("{path} = {value} ({manifest_type})");
        let name = format!("odd/config{number}");
        let parts = Parts::new(manifest_type, config(path, value), &[small_layer()]);
        registry.add(&name, &parts);
        let image = registry.image(&name);
        let (ours, theirs) = (we_take(set, &image, &what).await, podman_takes(set, &image));
        if ours != expected || theirs != (expected || ambiguous) {
            wrong.push(format!(
                "{what}: ours {ours}, Podman {theirs}, expected {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
each_set!(newer async odd_configs_are_taken_as_podman_does: "podman");

/// An image with one odd thing in its manifest.
struct OddManifest {
    what: &'static str,
    manifest: Value,
    content_type: &'static str,
    /// Whether we and Podman take it.
    taken: [bool; 2],
}

fn odd_manifests(registry: &OddRegistry) -> Vec<(String, OddManifest)> {
    let oci = Parts::new(OCI_MANIFEST, good_config(), &[small_layer()]);
    let docker = Parts::new(DOCKER_MANIFEST, good_config(), &[small_layer()]);
    let empty = Parts::new(OCI_MANIFEST, json!({"os": "linux", "rootfs": null}), &[]);
    let mut all: Vec<OddManifest> = Vec::new();
    let mut add = |what, parts: &Parts, content_type, taken, change: &dyn Fn(&mut Value)| {
        let mut manifest = parts.manifest.clone();
        change(&mut manifest);
        all.push(OddManifest {
            what,
            manifest,
            content_type,
            taken,
        });
    };
    let (yes, no, only_we) = ([true; 2], [false; 2], [true, false]);
    for config_type in ["application/octet-stream", "text/html", "", "application/json"] {
        let set = |manifest: &mut Value| manifest["config"]["mediaType"] = config_type.into();
        add(
            "another config type of Docker's",
            &docker,
            DOCKER_MANIFEST,
            yes,
            &set,
        );
        add("another config type of OCI's", &oci, OCI_MANIFEST, no, &set);
    }
    add(
        "no config type of Docker's",
        &docker,
        DOCKER_MANIFEST,
        yes,
        &|manifest| {
            manifest["config"].as_object_mut().unwrap().remove("mediaType");
        },
    );
    add(
        "Docker's config in OCI's manifest",
        &oci,
        OCI_MANIFEST,
        no,
        &|manifest| {
            manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        },
    );
    add(
        "OCI's config in Docker's manifest",
        &docker,
        DOCKER_MANIFEST,
        yes,
        &|manifest| {
            manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        },
    );
    add(
        "OCI's layer in Docker's manifest",
        &docker,
        DOCKER_MANIFEST,
        no,
        &|manifest| {
            manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
        },
    );
    add(
        "Docker's layer in OCI's manifest",
        &oci,
        OCI_MANIFEST,
        yes,
        &|manifest| {
            manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
        },
    );
    add("an unknown layer type", &oci, OCI_MANIFEST, yes, &|manifest| {
        manifest["layers"][0]["mediaType"] = "text/plain".into();
    });
    for (parts, media_type, taken) in [(&oci, OCI_MANIFEST, yes), (&docker, DOCKER_MANIFEST, no)] {
        add("no media type", parts, media_type, taken, &|manifest| {
            manifest.as_object_mut().unwrap().remove("mediaType");
        });
        add("no version", parts, media_type, yes, &|manifest| {
            manifest.as_object_mut().unwrap().remove("schemaVersion");
        });
        add("a version of text", parts, media_type, no, &|manifest| {
            manifest["schemaVersion"] = "2".into();
        });
        for field in ["history", "manifests", "fsLayers"] {
            add("a field of another format", parts, media_type, no, &|manifest| {
                manifest[field] = json!([]);
            });
        }
        add("a layer's size as text", parts, media_type, no, &|manifest| {
            manifest["layers"][0]["size"] = "5".into();
        });
        add("URLs that are none", parts, media_type, no, &|manifest| {
            manifest["layers"][0]["urls"] = "x".into();
        });
        add("upper case", parts, media_type, yes, &|manifest| {
            let layers = manifest.as_object_mut().unwrap().remove("layers").unwrap();
            manifest["Layers"] = layers;
        });
        for claimed in ["text/plain", "application/json", "application/octet-stream"] {
            add("a media type that is wrong", parts, claimed, only_we, &|_| ());
        }
    }
    add("annotations of numbers", &oci, OCI_MANIFEST, no, &|manifest| {
        manifest["annotations"] = json!({"a": 1});
    });
    add(
        "annotations that are null",
        &oci,
        OCI_MANIFEST,
        yes,
        &|manifest| {
            manifest["annotations"] = json!({"a": null});
            manifest["layers"][0]["annotations"] = json!(null);
        },
    );
    add("data that is not Base64", &oci, OCI_MANIFEST, no, &|manifest| {
        manifest["config"]["data"] = "x".into();
    });
    add("no layers", &empty, OCI_MANIFEST, yes, &|manifest| {
        manifest["layers"] = json!(null);
    });
    let named = |(number, odd): (usize, OddManifest)| {
        let name = format!("odd/manifest{number}");
        for blob in [&oci.config, &docker.config, &empty.config, &small_layer()] {
            registry.add_blob(&name, blob);
        }
        registry.add_manifest(&name, &odd.manifest, odd.content_type);
        (name, odd)
    };
    all.into_iter().enumerate().map(named).collect()
}

async fn odd_manifests_are_taken_as_podman_does(set: PeerSet) {
    let registry = OddRegistry::start(|_| None);
    let mut wrong = Vec::new();
    for (name, odd) in odd_manifests(&registry) {
        let image = registry.image(&name);
        let taken = [we_take(set, &image, odd.what).await, podman_takes(set, &image)];
        if taken != odd.taken {
            let OddManifest { what, manifest, .. } = odd;
            wrong.push(format!("{what}: {taken:?}, expected {:?}: {manifest}", odd.taken));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
each_set!(newer async odd_manifests_are_taken_as_podman_does: "podman");

async fn odd_indexes_are_taken(set: PeerSet) {
    let registry = OddRegistry::start(|_| None);
    let parts = Parts::new(OCI_MANIFEST, good_config(), &[small_layer()]);
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let entry = |digest: &Digest| json!({"digest": digest, "size": 1, "platform": platform});
    let index = |entries: Value| json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    for (name, taken_by_podman) in [
        ("entries", true),
        ("silent", true),
        ("nested", false),
        ("endless", false),
    ] {
        let image = registry.add(name, &parts);
        let entries = match name {
            "entries" => {
                json!([null, {}, {"platform": {}}, {"digest": "x", "platform": {"os": "plan9"}}, entry(&image)])
            }
            "silent" => json!([{"digest": image, "size": 1}, {"platform": {"os": "x", "architecture": "y"}}]),
            _ => {
                let mut inner = image.clone();
                for _ in 0..if name == "nested" { 1 } else { 9 } {
                    inner = registry.add_manifest(name, &index(json!([entry(&inner)])), OCI_INDEX);
                }
                json!([entry(&inner)])
            }
        };
        registry.add_manifest(name, &index(entries), OCI_INDEX);
        let reference = registry.image(name);
        assert_eq!(we_take(set, &reference, name).await, name != "endless", "{name}");
        assert_eq!(podman_takes(set, &reference), taken_by_podman, "{name}");
    }
}
each_set!(newer async odd_indexes_are_taken: "podman");

/// Without a peer: what is refused leaves nothing, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_field() {
    crate::support::needs!();
    let registry = OddRegistry::start(|_| None);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    for (path, value, good) in odd_configs() {
        let parts = Parts::new(OCI_MANIFEST, config(path, value.clone()), &[small_layer()]);
        registry.add("one/image", &parts);
        let pulled = puller.pull(&registry.image("one/image").parse().unwrap()).await;
        assert_eq!(pulled.is_ok(), good, "{path} = {value}: {pulled:?}");
        let Err(error) = pulled else { continue };
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let name = path.split('/').find(|name| !name.is_empty()).unwrap();
        let says = error.chain().contains(&name.to_lowercase());
        assert!(
            says || error.chain().contains(name),
            "{path} = {value}: {}",
            error.chain()
        );
    }
    for image in store.images().await.unwrap() {
        store.image_config(image.id()).await.unwrap();
    }
}
