//! Images that this library builds and commits, in the hands of Podman, Buildah and Skopeo; and theirs in its own.

use std::io::Cursor;
use std::time::{Duration, UNIX_EPOCH};

use graphroot::{CommitOptions, ContainerOptions, History, Image, ImageBuilder, Store};
use serde_json::Value;

use crate::support::oci;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::exported;
use crate::support::tar::Tar;
use crate::support::{each_set, json};

const BASE: &str = "localhost/base:1";
const APP: &str = "localhost/app:1";

/// An image of two layers with every field of its config set.
async fn build(store: &Store) -> Image {
    let lower = Tar::new()
        .dir("etc/")
        .file("etc/name", "base\n")
        .file("etc/gone", "")
        .build();
    let upper = Tar::new()
        .dir("etc/")
        .file("etc/other", "upper\n")
        .file("etc/.wh.gone", "")
        .build();
    let lower = store.put_image_layer(None, Cursor::new(lower)).await.unwrap();
    let upper = store
        .put_image_layer(Some(lower.id()), Cursor::new(upper))
        .await
        .unwrap();
    ImageBuilder::new()
        .top_layer(upper.id())
        .name(BASE)
        .env("PATH", "/usr/bin:/bin")
        .entrypoint(["/bin/sh", "-c"])
        .cmd(["true"])
        .user("1:2")
        .working_dir("/srv")
        .label("k", "<v>")
        .expose("80/tcp")
        .volume("/data")
        .stop_signal("SIGINT")
        .author("somebody")
        .created(UNIX_EPOCH + Duration::new(1_700_000_000, 123_000_000))
        .history(History::new("COPY lower"))
        .build(store)
        .await
        .unwrap()
}

/// A record of `images.json`, and the config and manifest that belong to it.
fn record(root: &TestRoot, name: &str) -> Value {
    let file = root.metadata_dir("images").join("images.json");
    let records: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let named = |record: &&Value| {
        let names = record["names"].as_array().map(Vec::as_slice).unwrap_or_default();
        names.iter().any(|known| known == name)
    };
    records.as_array().unwrap().iter().find(named).unwrap().clone()
}

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What Podman says about an image.
fn inspected(root: &TestRoot, name: &str) -> Value {
    let text = root.podman().with(["image", "inspect", name]).run();
    let list: Value = serde_json::from_str(&text).unwrap();
    list[0].clone()
}

async fn an_image_built_here_is_inspected_mounted_and_copied(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let image = build(&store).await;
    let manifest = store.image_manifest(image.id()).await.unwrap();
    let config = store.image_config(image.id()).await.unwrap();

    let seen = inspected(&root, BASE);
    assert_eq!(seen["Id"], image.id());
    assert_eq!(seen["Digest"], manifest.digest.as_str());
    assert_eq!(seen["Created"], "2023-11-14T22:13:20.123Z");
    assert_eq!(
        (&seen["Author"], &seen["Architecture"]),
        (&"somebody".into(), &config.architecture.as_str().into())
    );
    let written: Value = serde_json::from_slice(&config.bytes).unwrap();
    json::assert_same("the config", &seen["Config"], &written["config"]);
    assert_eq!(seen["RootFS"]["Layers"], written["rootfs"]["diff_ids"]);
    let history = root
        .podman()
        .with(["history", "--no-trunc", "--format", "{{.CreatedBy}}", BASE])
        .run();
    assert_eq!(
        history.trim().lines().collect::<Vec<_>>().last(),
        Some(&"COPY lower")
    );

    let container = root.buildah().with(["from", BASE]).run();
    let mounted = root.buildah().with(["mount", &container]).run();
    let read = |name: &str| std::fs::read_to_string(format!("{mounted}/etc/{name}"));
    assert_eq!(
        (read("name").unwrap(), read("other").unwrap()),
        ("base\n".into(), "upper\n".into())
    );
    assert!(read("gone").is_err());
    root.buildah().with(["rm", &container]).run();

    // The blobs in a layout that takes them as they are have the digests that the manifest says.
    let layout = root.path().join("layout");
    let to = format!("oci:{}:latest", layout.display());
    root.skopeo()
        .with([
            "copy",
            "--quiet",
            "--preserve-digests",
            &root.image_reference(BASE),
            &to,
        ])
        .run();
    assert_eq!(
        oci::layout_blob(&layout, manifest.digest.as_str()),
        manifest.bytes
    );
    assert_eq!(oci::layout_blob(&layout, config.digest.as_str()), config.bytes);
    for (layer, blob) in store
        .image_layers(BASE)
        .await
        .unwrap()
        .iter()
        .zip(&manifest.layers)
    {
        let bytes = oci::layout_blob(&layout, blob.digest.as_str());
        assert_eq!(
            (blob.digest.clone(), blob.size),
            exported(&store, layer.id()).await
        );
        assert_eq!(bytes.len() as u64, blob.size);
    }
    root.podman().with(["rmi", BASE]).run();
    assert_eq!(
        store.layers().await.unwrap().len(),
        0,
        "podman removed the layers with their image"
    );
}
each_set!(async an_image_built_here_is_inspected_mounted_and_copied: "podman", "buildah", "skopeo");

async fn a_container_committed_here_is_what_buildah_commits(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    build(&store).await;
    let container = root.buildah().with(["from", BASE]).run();
    let mounted = root.buildah().with(["mount", &container]).run();
    std::fs::write(format!("{mounted}/etc/new"), "changed\n").unwrap();
    std::fs::remove_file(format!("{mounted}/etc/other")).unwrap();
    root.buildah().with(["umount", &container]).run();

    let ours = store
        .commit(&container, CommitOptions::new().name(APP))
        .await
        .unwrap();
    let theirs = root
        .buildah()
        .with(["commit", "--quiet", &container, "localhost/theirs:1"])
        .run();
    let theirs = store.image(theirs.trim()).await.unwrap();
    let (our_layers, their_layers) = (
        store.image_layers(APP).await.unwrap(),
        store.image_layers(theirs.id()).await.unwrap(),
    );
    assert_eq!((our_layers.len(), their_layers.len()), (3, 3));
    assert_eq!(our_layers[1].id(), their_layers[1].id());
    // Debian's Buildah repeats the type of a directory in its mode, so the layers' digests differ and nothing else.
    let listed = |layer: &str| {
        let file = root.path().join("layer.tar");
        root.go().words("diff -u -f").arg(&file).arg(layer).run();
        let tar = root
            .program("tar")
            .words("--list --verbose --full-time --numeric-owner --file");
        tar.with([file]).run()
    };
    assert_eq!(listed(our_layers[2].id()), listed(their_layers[2].id()));

    // The records and documents differ in times, names and what Buildah says about itself.
    let (our_record, their_record) = (record(&root, APP), record(&root, "localhost/theirs:1"));
    assert_eq!(keys(&our_record), keys(&their_record));
    let shape = |record: &Value| -> Vec<String> {
        let names = record["big-data-names"].as_array().unwrap();
        let names = names.iter().map(|name| name.as_str().unwrap());
        // Old versions have an item for signatures even if there are none.
        names
            .filter(|name| set != PeerSet::Installed || !name.starts_with("signature-"))
            .map(|name| {
                name.split_once([':', '-'])
                    .map_or(name, |(head, _)| head)
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(shape(&our_record), shape(&their_record));
    assert_eq!(our_record["names-history"], serde_json::json!([APP]));
    let (mut our_config, mut their_config) = (config(&store, &ours).await, config(&store, &theirs).await);
    their_config["config"]["Labels"]
        .as_object_mut()
        .unwrap()
        .remove("io.buildah.version");
    for config in [&mut our_config, &mut their_config] {
        config["created"] = Value::Null;
        *config["rootfs"]["diff_ids"]
            .as_array_mut()
            .unwrap()
            .last_mut()
            .unwrap() = Value::Null;
        let last = config["history"].as_array_mut().unwrap().last_mut().unwrap();
        assert_eq!(last["comment"], format!("FROM {BASE}"));
        *last = Value::Null;
    }
    json::assert_same("the config", &our_config, &their_config);
    let (our_manifest, their_manifest) = (
        store.image_manifest(APP).await.unwrap(),
        store.image_manifest(theirs.id()).await.unwrap(),
    );
    assert_eq!(our_manifest.layers[..2], their_manifest.layers[..2]);
    assert_eq!(
        our_manifest.layers[2].media_type,
        their_manifest.layers[2].media_type
    );
    assert_eq!(
        (&our_manifest.media_type, &our_manifest.config.media_type),
        (&their_manifest.media_type, &their_manifest.config.media_type)
    );
    let (mut our_notes, mut their_notes) = (
        annotations(&our_manifest.bytes),
        annotations(&their_manifest.bytes),
    );
    let at = "org.opencontainers.image.created";
    // Newest Buildah says when; its predecessors repeat what the base says. The two were not made at the same moment.
    let (our_time, their_time) = (take(&mut our_notes, at), take(&mut their_notes, at));
    assert!(our_time.is_some() && their_time.is_some());
    assert_eq!(our_notes, their_notes);

    let seen = inspected(&root, APP);
    assert_eq!(
        (&seen["Id"], &seen["Digest"]),
        (&ours.id().into(), &our_manifest.digest.as_str().into())
    );
    let again = root.buildah().with(["from", APP]).run();
    let mounted = root.buildah().with(["mount", &again]).run();
    assert_eq!(
        std::fs::read_to_string(format!("{mounted}/etc/new")).unwrap(),
        "changed\n"
    );
    assert!(!std::path::Path::new(&format!("{mounted}/etc/other")).exists());
    root.buildah().with(["rm", "--all"]).run();
    let layout = root.path().join("layout");
    let to = format!("oci:{}:latest", layout.display());
    root.skopeo()
        .with([
            "copy",
            "--quiet",
            "--preserve-digests",
            &root.image_reference(APP),
            &to,
        ])
        .run();
    assert_eq!(
        oci::layout_blob(&layout, our_manifest.digest.as_str()),
        our_manifest.bytes
    );
}
each_set!(async a_container_committed_here_is_what_buildah_commits: "podman", "buildah", "skopeo", "containers-storage", "tar");

async fn config(store: &Store, image: &Image) -> Value {
    serde_json::from_slice(&store.image_config(image.id()).await.unwrap().bytes).unwrap()
}

fn annotations(manifest: &[u8]) -> Value {
    serde_json::from_slice::<Value>(manifest).unwrap()["annotations"].clone()
}

fn take(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut().and_then(|object| object.remove(key))
}

async fn what_buildah_and_podman_commit_is_read_and_built_upon(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let container = root.buildah().with(["from", "scratch"]).run();
    let mounted = root.buildah().with(["mount", &container]).run();
    std::fs::write(format!("{mounted}/file"), "theirs\n").unwrap();
    root.buildah()
        .words("config --env A=b --cmd run --user 3 --port 80 --label l=v --volume /v")
        .with([&container])
        .run();
    for (format, name) in [("oci", "localhost/oci:1"), ("docker", "localhost/docker:1")] {
        let id = root
            .buildah()
            .words("commit --quiet --format")
            .with([format, &container, name])
            .run();
        let manifest = store.image_manifest(name).await.unwrap();
        assert!(manifest.media_type.contains(format), "{}", manifest.media_type);
        assert_eq!(inspected(&root, name)["Digest"], manifest.digest.as_str());
        assert_eq!(store.image_manifest_uncompressed(name).await.unwrap(), manifest);
        let config = store.image_config(name).await.unwrap();
        assert_eq!(config.digest.encoded(), id.trim());
        assert_eq!(
            (config.run.env.join(" "), config.run.command().join(" ")),
            ("A=b".into(), "run".into())
        );
        assert_eq!((config.run.user.as_str(), config.history.len()), ("3", 1));
        assert!(config.run.exposed_ports.contains("80") && config.run.volumes.contains("/v"));
        assert_eq!(store.image_layers(name).await.unwrap().len(), 1);
        let ours = ImageBuilder::new()
            .base(name)
            .env("C", "d")
            .name(APP)
            .build(&store)
            .await
            .unwrap();
        let seen = inspected(&root, APP);
        assert_eq!(seen["Id"], ours.id());
        assert_eq!(seen["Config"]["Env"], serde_json::json!(["A=b", "C=d"]));
    }
    // A container of Podman's, committed by both.
    root.podman()
        .words("create --name c")
        .with(["localhost/oci:1", "run"])
        .run();
    let ours = store.commit("c", CommitOptions::new()).await.unwrap();
    let theirs = root.podman().words("commit --quiet c localhost/podman:1").run();
    let theirs = store.image(theirs.trim()).await.unwrap();
    assert_eq!(ours.top_layer(), theirs.top_layer());
    // And one of ours.
    store
        .create_container(Some("localhost/podman:1"), ContainerOptions::default().name("d"))
        .await
        .unwrap();
    let ours = store.commit("d", CommitOptions::new().name(APP)).await.unwrap();
    assert_eq!(inspected(&root, APP)["Id"], ours.id());
}
each_set!(async what_buildah_and_podman_commit_is_read_and_built_upon: "podman", "buildah");
