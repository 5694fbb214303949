//! What this library puts into a store is used by Podman, Buildah, Skopeo and the Go library's own command.

use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{ContainerOptions, Digest, LayerOptions, Store};
use serde_json::Value;

use crate::support::debian::{self, Form};
use crate::support::manifest::{self, manifest, sha256_of};
use crate::support::oci::{self, OciImage};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::{put_bytes, put_file};
use crate::support::tar::Tar;
use crate::support::{each_set, json};

const NAME: &str = "localhost/debian:12";

/// Puts the Debian layer and a small one on top, and makes an image of both.
async fn debian_image(store: &Store, layer: &Path) -> OciImage {
    let base = put_file(store, None, LayerOptions::default(), layer)
        .await
        .unwrap();
    let tar = Tar::new()
        .dir("opt/ours/")
        .file("opt/ours/file", "from graphroot\n")
        .file(".wh.media", "")
        .build();
    let top = put_bytes(store, Some(base.id()), LayerOptions::default(), tar)
        .await
        .unwrap();
    let image = OciImage::new(&[base, top.clone()]);
    store
        .create_image(Some(top.id()), image.options(NAME))
        .await
        .unwrap();
    image
}

async fn the_debian_image_works_in_podman_buildah_and_skopeo(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Gzip) else {
        return;
    };
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let image = debian_image(&store, &layer).await;

    let listed = root
        .podman()
        .with([
            "images",
            "--no-trunc",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.ID}}",
        ])
        .run();
    assert_eq!(listed, format!("{NAME} sha256:{}", image.id()));
    let inspected = root.podman().with(["image", "inspect", NAME]).run();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["Digest"], image.manifest_digest().to_string());
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    assert_eq!(inspected[0]["RootFS"]["Layers"], config["rootfs"]["diff_ids"]);

    let container = root.buildah().with(["from", NAME]).run();
    let run = |script: &str| {
        root.buildah()
            .with([
                "run",
                "--isolation",
                "chroot",
                &container,
                "--",
                "sh",
                "-c",
                script,
            ])
            .run()
    };
    assert!(run("cat /etc/debian_version").starts_with("12"));
    assert_eq!(
        run("cat /opt/ours/file && test ! -e /media && echo gone"),
        "from graphroot\ngone"
    );
    assert_eq!(
        run("echo changed > /opt/ours/file && cat /opt/ours/file"),
        "changed"
    );
    // What Buildah created is seen by us, and what it removes is gone.
    assert_eq!(store.containers().await.unwrap().len(), 1);
    root.buildah().with(["rm", &container]).run();
    assert_eq!(store.containers().await.unwrap().len(), 0);

    let layout = root.path().join("layout");
    let to = format!("oci:{}:latest", layout.display());
    root.skopeo()
        .with(["copy", "--quiet", &root.image_reference(NAME), &to])
        .run();
    let copied = oci::layout_manifest(&layout);
    let copied_config = oci::layout_json(&layout, copied["config"]["digest"].as_str().unwrap());
    json::assert_same("the copied config", &copied_config, &config);
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), copied["layers"].as_array().unwrap().len());
    for (layer, diff_id) in copied["layers"].as_array().unwrap().iter().zip(diff_ids) {
        let blob = oci::layout_blob_path(&layout, layer["digest"].as_str().unwrap());
        let plain = root.path().join("plain");
        let script = r#"gzip -dc < "$1" > "$2" 2>/dev/null || cp "$1" "$2""#;
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(blob)
            .arg(&plain)
            .run();
        assert_eq!(format!("sha256:{}", sha256_of(&plain)), diff_id.as_str().unwrap());
    }

    root.podman().with(["rmi", NAME]).run();
    assert_eq!(store.images().await.unwrap().len(), 0);
    assert_eq!(
        store.layers().await.unwrap().len(),
        0,
        "podman removed the layers with their last image"
    );
}
each_set!(async the_debian_image_works_in_podman_buildah_and_skopeo: "podman", "buildah", "skopeo", "gzip");

/// Unpacks with GNU tar, as root, everything that the archive says.
fn unpack_with_tar(archive: &Path, to: &Path) {
    Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
        ])
        .args(["--xattrs-include=*", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(to)
        .run();
}

/// Imports with Podman into a store of its own and mounts the image there. Returns the layer's record, too.
fn import_with_podman(root: &TestRoot, archive: &Path) -> (Value, PathBuf) {
    let image = root
        .podman()
        .with(["import", "--quiet"])
        .with([archive])
        .with(["localhost/imported:1"])
        .run();
    let mounted = root.podman().with(["image", "mount", image.trim()]).run();
    let mut rows = json::rows(&root.metadata_dir("layers").join("layers.json"));
    assert_eq!(rows.len(), 1);
    (rows.remove(0), mounted.trim().into())
}

/// Our layer of the archive has the digests and owners that Podman records, and every file is as GNU tar and Podman
/// unpack it.
async fn assert_unpacked_as_by_others(archive: &Path, set: PeerSet) {
    let (ours, theirs) = (TestRoot::new().of(set), TestRoot::new().of(set));
    let store = ours.open().await;
    let layer = put_file(&store, None, LayerOptions::default(), archive)
        .await
        .unwrap();
    let image = OciImage::create(&store, &layer, NAME).await;
    let mounted = store.mount_image(image.id(), Default::default()).await.unwrap();

    let (record, imported) = import_with_podman(&theirs, archive);
    let our_record = json::row(&ours.metadata_dir("layers").join("layers.json"), layer.id());
    let facts = |row: &Value| {
        let keys = [
            "diff-digest",
            "diff-size",
            "compressed-diff-digest",
            "compressed-size",
            "compression",
            "uidset",
            "gidset",
        ];
        Value::Object(
            keys.iter()
                .map(|key| ((*key).to_owned(), row[key].clone()))
                .collect(),
        )
    };
    json::assert_same("our record and Podman's", &facts(&our_record), &facts(&record));
    assert_eq!(
        layer.uncompressed_digest().unwrap().to_string(),
        record["diff-digest"].as_str().unwrap()
    );

    let unpacked = theirs.scratch("unpacked");
    unpack_with_tar(archive, &unpacked);
    let ours_manifest = manifest(&mounted);
    let mut tar_manifest = manifest(&unpacked);
    let mut podman_manifest = manifest(&imported);
    assert!(ours_manifest.len() > 10, "only {} files", ours_manifest.len());
    // The root of a layer is no entry of it: for overlay, `./` is skipped.
    for manifest in [&mut tar_manifest, &mut podman_manifest] {
        manifest.insert(PathBuf::new(), ours_manifest[Path::new("")].clone());
    }
    manifest::assert_same("ours", &ours_manifest, "GNU tar", &tar_manifest);
    let mut with_values = ours_manifest;
    if set == PeerSet::Installed {
        // To old versions of Go a PAX record without a value is none, so attributes without one are lost.
        for entry in with_values.values_mut() {
            entry.xattrs.retain(|_, value| !value.is_empty());
        }
    }
    manifest::assert_same("ours", &with_values, "podman import", &podman_manifest);
    assert_eq!(store.unmount_image(image.id()).await.unwrap(), 0);
}

async fn every_file_of_the_debian_layer_is_as_tar_and_podman_unpack_it(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Plain) else {
        return;
    };
    assert_unpacked_as_by_others(&layer, set).await;
}
each_set!(async every_file_of_the_debian_layer_is_as_tar_and_podman_unpack_it: "podman", "tar");

async fn special_files_are_as_tar_and_podman_unpack_them(set: PeerSet) {
    let scratch = TestRoot::new().of(set);
    let tree = scratch.scratch("tree");
    let script = r#"
        set -e
        umask 022
        mkdir -p a/b/c empty sticky private
        echo one > a/one; printf 'x%.0s' $(seq 100000) > a/b/large; : > a/b/c/nothing
        ln a/one a/b/second; ln a/one third
        ln -s ../one a/b/relative; ln -s /etc/passwd absolute; ln -s missing dangling
        ln -s "$(printf 'long/%.0s' $(seq 60))" longlink
        mkdir -p "$(printf 'deep%.0s/' $(seq 40))"; echo deep > "$(printf 'deep%.0s/' $(seq 40))/file"
        mknod null c 1 3; mknod disk b 259 70000; mkfifo pipe
        printf 'name' > "$(printf 'latin-\351')"; echo u > 'ümlaut'; echo s > ' spaces  and
newline'
        echo setuid > setuid; echo setgid > setgid; mkdir dirgid
        chown 1000:1000 a/one sticky; chown 4000000:4000001 a/b/large; chown -h 7:8 absolute
        chmod 4755 setuid; chmod 2755 setgid; chmod 1777 sticky; chmod 700 private; chmod 2775 dirgid; chmod 0 a/b/c/nothing
        setfattr -n user.one -v value a/one; setfattr -n user.empty a/b/large
        setfattr -n user.binary -v 0x000aff00 a; setfattr -n trusted.note -v t a/b/large
        setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 setuid
        touch -d '2001-02-03 04:05:06.123456789' a/one a/b/large 'ümlaut'
        touch -h -d '1999-12-31 23:59:59.000000001' absolute
        touch -d '2010-10-10 10:10:10.5' a/b a empty null pipe
        tar --create --format=pax --xattrs --xattrs-include='*' --numeric-owner --sort=name --file "$1" .
    "#;
    let archive = scratch.path().join("special.tar");
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&archive)
        .current_dir(&tree)
        .run();
    assert_unpacked_as_by_others(&archive, set).await;
}
each_set!(async special_files_are_as_tar_and_podman_unpack_them: "podman", "tar", "setfattr");

async fn a_container_of_ours_is_mounted_and_deleted_by_go(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let tar = Tar::new().dir("etc/").file("etc/motd", "hello").build();
    let layer = put_bytes(&store, None, LayerOptions::default(), tar)
        .await
        .unwrap();
    let image = OciImage::create(&store, &layer, NAME).await;
    let container = store
        .create_container(Some(image.id()), ContainerOptions::default().name("ours"))
        .await
        .unwrap();
    store
        .set_container_big_data(container.id(), "config/with-odd:name", "some data")
        .await
        .unwrap();

    let data = root
        .go()
        .with(["get-container-data", "ours", "config/with-odd:name"])
        .run();
    assert_eq!(data, "some data");
    let digest = root
        .go()
        .with(["get-container-data-digest", "ours", "config/with-odd:name"])
        .run();
    assert_eq!(digest, Digest::sha256("some data").to_string());

    let mounted = PathBuf::from(root.go().with(["mount", "ours"]).run());
    assert_eq!(
        std::fs::read_to_string(mounted.join("etc/motd")).unwrap(),
        "hello"
    );
    assert_eq!(
        store.mounted(container.id()).await.unwrap(),
        1,
        "a mount by Go counts"
    );
    std::fs::write(mounted.join("etc/new"), "new").unwrap();
    let changes = store.changes(None, container.layer_id()).await.unwrap();
    let ours: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let theirs = root.go().with(["changes", container.layer_id()]).run();
    assert_eq!(ours, ["C /etc", "A /etc/new"]);
    assert_eq!(theirs, "Modify \"/etc\"\nAdd \"/etc/new\"");
    root.go().with(["unmount", "ours"]).run();
    assert_eq!(store.mounted(container.id()).await.unwrap(), 0);

    root.go().with(["delete-container", "ours"]).run();
    assert_eq!(store.containers().await.unwrap().len(), 0);
    assert!(!store.exists(container.layer_id()).await.unwrap());
}
each_set!(async a_container_of_ours_is_mounted_and_deleted_by_go: "containers-storage");

async fn go_exports_our_layers_bit_for_bit(set: PeerSet) {
    let Some(layer) = debian::layer(Form::Zstd) else {
        return;
    };
    let Some(plain) = debian::layer(Form::Plain) else {
        return;
    };
    for driver in ["overlay", "vfs"] {
        let root = TestRoot::in_dir(&std::env::temp_dir(), driver).of(set);
        let store = root.open().await;
        let layer = put_file(&store, None, LayerOptions::default(), &layer)
            .await
            .unwrap();
        let diff = root.path().join("diff.tar");
        root.go()
            .with(["diff", "--uncompressed", "--file"])
            .with([&diff])
            .with([layer.id()])
            .run();
        assert_eq!(sha256_of(&diff), sha256_of(&plain), "{driver}");
    }
}
each_set!(async go_exports_our_layers_bit_for_bit: "containers-storage");
