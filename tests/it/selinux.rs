//! Labels of SELinux, where it is on: those of our containers beside those that Podman and the Go library give, in one store.
//!
//! These tests need a kernel with SELinux and a policy that is loaded; `tests/vm/run` has one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use graphroot::{Container, ContainerOptions, LayerOptions, MountOptions, Store};
use serde_json::Value;

use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::{each_set, json, require_driver};

const IMAGE: &str = "localhost/labels:1";

/// A layer with a file, and an image of it.
async fn image(store: &Store) {
    let tar = Tar::new().dir("d/").file("d/file", "content").build();
    let layer = put_bytes(store, None, LayerOptions::default().id("base"), tar)
        .await
        .unwrap();
    OciImage::create(store, &layer, IMAGE).await;
}

/// The labels in the record of a container: of its processes, of its files.
fn labels(root: &TestRoot, name: &str) -> [String; 2] {
    let rows = json::rows(&root.metadata_dir("containers").join("containers.json"));
    let row = rows
        .iter()
        .find(|row| row["names"] == Value::from(vec![name]))
        .unwrap();
    let labels = ["ProcessLabel", "MountLabel"].map(|flag| row["flags"][flag].as_str().unwrap().to_owned());
    let layer = row["layer"].as_str().unwrap();
    let layer = json::row(&root.metadata_dir("layers").join("layers.json"), layer);
    assert_eq!(
        layer["mountlabel"].as_str().unwrap_or_default(),
        labels[1],
        "{name}"
    );
    labels
}

/// A label, and the level apart.
fn parts(label: &str) -> (String, String) {
    let parts: Vec<&str> = label.splitn(4, ':').collect();
    (
        parts[..3].join(":"),
        parts.get(3).copied().unwrap_or_default().to_owned(),
    )
}

/// The label of a file.
fn label_of(path: &Path) -> String {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).unwrap();
    value.truncate(length);
    String::from_utf8(value)
        .unwrap()
        .trim_end_matches('\0')
        .to_owned()
}

/// What the kernel says of the mount on a directory, without what is each layer's own.
fn mount_options(target: &Path) -> BTreeMap<String, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(4) == target.to_str());
    let line = line.unwrap_or_else(|| panic!("{} is not mounted", target.display()));
    let own = line.split(' ').next_back().unwrap();
    // A label has commas between quotes.
    let mut quoted = false;
    let options = own.split(|letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    });
    options
        .map(|option| option.split_once('=').unwrap_or((option, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .filter(|(key, _)| !key.ends_with("dir") && !key.starts_with("lowerdir"))
        .collect()
}

async fn create(store: &Store, name: &str, labels: &[&str]) -> graphroot::Result<Container> {
    let options = ContainerOptions::default()
        .name(name)
        .label_opts(labels.iter().copied());
    store.create_container(Some(IMAGE), options).await
}

async fn containers_of_both_kinds_share_no_level(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    image(&store).await;
    for number in 0..3 {
        create(&store, &format!("ours{number}"), &[]).await.unwrap();
        let name = format!("theirs{number}");
        root.go().with(["create-container", "--name", &name, IMAGE]).run();
    }
    root.podman()
        .with(["create", "--name", "podman", IMAGE, "/bin/true"])
        .run();
    let [process, files] = labels(&root, "theirs0").map(|label| parts(&label).0);
    let mut levels = BTreeSet::new();
    for kind in ["ours", "theirs"] {
        for number in 0..3 {
            let [of_processes, of_files] = labels(&root, &format!("{kind}{number}"));
            let ((of_processes, level), (of_files, same)) = (parts(&of_processes), parts(&of_files));
            assert_eq!((&of_processes, &of_files), (&process, &files));
            assert_eq!(level, same);
            let [low, high] = [0, 1].map(|item| level.split(",c").nth(item).unwrap());
            let low: u32 = low.strip_prefix("s0:c").unwrap().parse().unwrap();
            assert!(
                low < high.parse().unwrap() && high.parse::<u32>().unwrap() < 1024,
                "{level}"
            );
            assert!(levels.insert(level), "{levels:?}");
        }
    }
    assert!(levels.insert(parts(&labels(&root, "podman")[0]).1));

    // Mounted by either, a container's files have its label, those of the image too, and new ones.
    let mut seen = Vec::new();
    for name in ["ours0", "theirs0", "podman"] {
        let expected = labels(&root, name)[1].clone();
        let ours = store.mount(name, MountOptions::default()).await.unwrap();
        fs::write(ours.join(name), "").unwrap();
        for file in ["", "d/file", name] {
            assert_eq!(label_of(&ours.join(file)), expected, "{name}: {file}");
        }
        let mut options = mount_options(&ours);
        assert_eq!(
            options.insert("context".to_owned(), String::new()).as_deref(),
            Some(&*format!("\"{expected}\""))
        );
        seen.push(options);
        store.unmount(name).await.unwrap();
        let theirs = root.go().with(["mount", name]).run();
        let mut options = mount_options(Path::new(&theirs));
        assert_eq!(
            options.insert("context".to_owned(), String::new()).as_deref(),
            Some(&*format!("\"{expected}\""))
        );
        seen.push(options);
        root.go().with(["unmount", name]).run();
    }
    assert!(seen.iter().all(|options| *options == seen[0]), "{seen:#?}");
    // A label of the caller wins; the layer of an image has none.
    let label = format!("{files}:s0:c9,c8");
    let mounted = store
        .mount("ours1", MountOptions::default().label(&label))
        .await
        .unwrap();
    // The kernel has its own order.
    assert_eq!(label_of(&mounted.join("d")), format!("{files}:s0:c8,c9"));
    store.unmount("ours1").await.unwrap();
    assert_eq!(store.layer("base").await.unwrap().mount_label(), None);
    // A level that has become free may be taken again, but only then.
    for name in ["ours0", "ours1", "ours2"] {
        store.delete_container(name).await.unwrap();
    }
}
each_set!(ignored "needs SELinux: tests/vm/run" async containers_of_both_kinds_share_no_level: "podman", "containers-storage");

async fn options_mean_what_they_mean_to_podman(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    image(&store).await;
    let cases: [&[&str]; 8] = [
        &["disable"],
        &["type:svirt_tcg_t"],
        &["filetype:usr_t"],
        &["user:unconfined_u", "role:unconfined_r"],
        &["level:s0:c5,c6"],
        &["level:s0"],
        &["level:s0:c7,c8", "type:unconfined_t", "filetype:virt_content_t"],
        &["type:unconfined_t", "type:svirt_t"],
    ];
    for (number, options) in cases.into_iter().enumerate() {
        let (ours, theirs) = (format!("ours{number}"), format!("theirs{number}"));
        create(&store, &ours, options).await.unwrap();
        let arguments = options
            .iter()
            .flat_map(|option| ["--security-opt".to_owned(), format!("label={option}")]);
        root.podman()
            .with(["create", "--name", &theirs])
            .with(arguments)
            .with([IMAGE, "/bin/true"])
            .run();
        let level_is_given = options
            .iter()
            .any(|option| option.starts_with("level") || *option == "disable");
        for (ours, theirs) in labels(&root, &ours).iter().zip(labels(&root, &theirs)) {
            if level_is_given {
                assert_eq!(*ours, theirs, "{options:?}");
            } else {
                assert_eq!(parts(ours).0, parts(&theirs).0, "{options:?}");
                assert_ne!(parts(ours).1, parts(&theirs).1, "{options:?}");
            }
        }
    }
    let refused = create(&store, "refused", &["nonsense:x"]).await.unwrap_err();
    let theirs = root
        .podman()
        .with(["create", "--security-opt", "label=nonsense:x", IMAGE, "/bin/true"])
        .output()
        .unwrap();
    let theirs = String::from_utf8_lossy(&theirs.stderr).into_owned();
    assert!(
        refused.chain().contains("bad label option"),
        "{}",
        refused.chain()
    );
    // Of older releases with a capital.
    assert!(theirs.contains("ad label option"), "{theirs}");
    assert_eq!(refused.kind(), graphroot::ErrorKind::InvalidInput);
    assert!(store.container("refused").await.is_err());
}
each_set!(ignored "needs SELinux: tests/vm/run" async options_mean_what_they_mean_to_podman: "podman", "containers-storage");

/// Labels of everything in the copies that vfs makes.
async fn copied_trees_have_the_labels_that_go_gives_them(set: PeerSet) {
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs").of(set);
    let store = root.open().await;
    image(&store).await;
    let tar = Tar::new().dir("d/").file("d/file", "content").build();
    let archive = root.scratch("archive").join("layer.tar");
    fs::write(&archive, tar).unwrap();
    let (go, file) = (|| root.go(), archive.to_str().unwrap());
    let label_of_tree = |id: &str| {
        let tree = root.graph().join("vfs/dir").join(id);
        ["", "d", "d/file"].map(|file| label_of(&tree.join(file)))
    };
    go().with(["import-layer", "--id", "theirs", "--file", file])
        .run();
    assert_eq!(label_of_tree("base"), label_of_tree("theirs"));
    let expected = label_of_tree("base");
    // A child of either, by either, and content in a copy.
    go().with(["import-layer", "--id", "theirs-on-ours", "--file", file, "base"])
        .run();
    let tar = Tar::new().dir("d/").file("d/new", "").file("top", "").build();
    put_bytes(
        &store,
        Some("theirs"),
        LayerOptions::default().id("ours-on-theirs"),
        tar,
    )
    .await
    .unwrap();
    let container = create(&store, "ours", &[]).await.unwrap();
    for id in ["theirs-on-ours", "ours-on-theirs", container.layer_id()] {
        assert_eq!(label_of_tree(id), expected, "{id}");
    }
    let tree = root.graph().join("vfs/dir/ours-on-theirs");
    for file in ["top", "d/new"] {
        assert_eq!(label_of(&tree.join(file)), expected[1], "{file}");
    }
    // No mount has a label.
    assert_ne!(labels(&root, "ours")[1], "");
}
each_set!(ignored "needs SELinux: tests/vm/run" async copied_trees_have_the_labels_that_go_gives_them: "containers-storage");

/// With btrfs there is no mount that could have a label: each file of a container gets it.
async fn files_on_btrfs_have_the_label_of_their_container(set: PeerSet) {
    if !require_driver("btrfs") {
        return;
    }
    let root = TestRoot::of_driver("btrfs").of(set);
    let store = root.open().await;
    image(&store).await;
    create(&store, "ours", &[]).await.unwrap();
    root.go()
        .with(["create-container", "--name", "theirs", IMAGE])
        .run();
    for name in ["ours", "theirs"] {
        let label = labels(&root, name)[1].clone();
        let mounted = store.mount(name, MountOptions::default()).await.unwrap();
        fs::write(mounted.join("d/new"), "").unwrap();
        for file in ["", "d", "d/file"] {
            assert_eq!(label_of(&mounted.join(file)), label, "{name}: {file}");
        }
        // A new file has the type of its directory; its categories are those of the process that makes it.
        let of_no_level = label.split(':').take(4).collect::<Vec<_>>().join(":");
        assert_eq!(label_of(&mounted.join("d/new")), of_no_level, "{name}");
        // That is no change of it.
        let layer = store.container(name).await.unwrap().layer_id().to_owned();
        let changes = store.changes(None, &layer).await.unwrap();
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["C /d", "A /d/new"], "{name}");
        store.unmount(name).await.unwrap();
    }
    assert_ne!(labels(&root, "ours"), labels(&root, "theirs"));
    let tree = root.graph().join("btrfs/subvolumes/base");
    assert!(!label_of(&tree.join("d/file")).contains(":c"));
}
each_set!(ignored "needs SELinux: tests/vm/run" async files_on_btrfs_have_the_label_of_their_container: "containers-storage");
