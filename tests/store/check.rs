//! What a check finds, and what a repair does about it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    CheckOptions, CheckReport, ContainerOptions, ErrorKind, ImageOptions, ItemKind, LayerOptions,
    RepairOptions, StoreProblem,
};

use crate::support::{TestStore, tree_of};

/// A layer with something of every kind.
fn base() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::dir("dir/").mode(0o2750))
        .file("dir/one", "one")
        .file("dir/two", "two")
        .file("dir/empty", "")
        .file("hidden", "hidden")
        .entry(TarEntry::dir("emptied/"))
        .file("emptied/inside", "inside")
        .symlink("link", "dir/one")
        .hard_link("hard", "dir/two")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::file("set-id", "x").mode(0o4755))
        .file("deep/in/a/tree/without/entries", "x")
        .build()
}

/// One that deletes, replaces and adds.
fn top() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::whiteout("hidden"))
        .entry(TarEntry::dir("emptied/"))
        .entry(TarEntry::opaque("emptied"))
        .file("emptied/new", "new")
        .entry(TarEntry::dir("dir/").mode(0o750))
        .file("dir/one", "another one")
        .build()
}

struct Ids {
    base: String,
    top: String,
    image: String,
    container: String,
}

/// An image of two layers with a container, and another image of the lower one.
async fn fill(store: &TestStore) -> Ids {
    let put = async |parent: Option<&str>, tar: Vec<u8>| {
        let put = store
            .put_layer(parent, LayerOptions::default(), std::io::Cursor::new(tar))
            .await;
        put.unwrap().layer.id().to_owned()
    };
    let base = put(None, base()).await;
    let top = put(Some(&base), top()).await;
    let options = ImageOptions::default()
        .name("image")
        .big_data("manifest", "{\"a\":1}")
        .big_data("config", "{}");
    let image = store.create_image(Some(&top), options).await.unwrap();
    store
        .create_image(Some(&base), ImageOptions::default().name("healthy"))
        .await
        .unwrap();
    let data = ContainerOptions::default()
        .name("box")
        .big_data("state", "running");
    let container = store.create_container(Some("image"), data).await.unwrap();
    Ids {
        base,
        top,
        image: image.id().to_owned(),
        container: container.id().to_owned(),
    }
}

async fn check(store: &TestStore) -> CheckReport {
    store.check(CheckOptions::everything()).await.unwrap()
}

/// The lines about an item, without the item itself.
fn lines(report: &CheckReport, kind: ItemKind, id: &str) -> Vec<String> {
    let damaged = report.damaged(kind, false);
    let findings = damaged.get(id).map(Vec::as_slice).unwrap_or_default();
    let text = |finding: &&graphroot::Finding| {
        let text = finding.to_string();
        let prefix = format!("{}: ", finding.item);
        text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
    };
    findings.iter().map(text).collect()
}

fn set_mtime(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// Changes the content of a file and nothing else.
fn overwrite(path: &Path, content: &str) {
    let before = std::fs::metadata(path).unwrap();
    std::fs::write(path, content).unwrap();
    set_mtime(path, std::os::unix::fs::MetadataExt::mtime(&before));
}

/// A way to damage the tree of a layer, and the lines that tell of it. `whole` where the driver keeps complete trees.
struct Damage {
    name: &'static str,
    /// In the layer above the other one.
    in_top: bool,
    damage: fn(&Path),
    expected: &'static [&'static str],
}

fn damages() -> Vec<Damage> {
    let of = |name, damage, expected| Damage {
        name,
        in_top: false,
        damage,
        expected,
    };
    vec![
        of(
            "a file is missing",
            |root| std::fs::remove_file(root.join("dir/one")).unwrap(),
            &[
                "restoring entry \"dir/one\": it is missing",
                "-/dir/one, layer content modified",
            ],
        ),
        of(
            "an empty file is missing",
            |root| std::fs::remove_file(root.join("dir/empty")).unwrap(),
            &["-/dir/empty, layer content modified"],
        ),
        of(
            "a directory is missing",
            |root| std::fs::remove_dir_all(root.join("emptied")).unwrap(),
            &[
                "restoring entry \"emptied/inside\": it is missing",
                "-/emptied/, layer content modified",
                "-/emptied/inside, layer content modified",
            ],
        ),
        of(
            "a file is longer",
            |root| overwrite(&root.join("dir/one"), "one more"),
            &[
                "restoring entry \"dir/one\": it has 8 bytes, 3 were recorded",
                "/dir/one(size:3\u{ffeb}8), layer content modified",
            ],
        ),
        of(
            "a file has other content of the same size",
            |root| overwrite(&root.join("dir/one"), "eno"),
            &["file integrity checksum failed for \"dir/one\""],
        ),
        of(
            "a file was added",
            |root| std::fs::write(root.join("dir/new"), "x").unwrap(),
            &["+/dir/new, layer content modified"],
        ),
        of(
            "a directory was added",
            |root| std::fs::create_dir_all(root.join("new/sub")).unwrap(),
            &[
                "+/new/, layer content modified",
                "+/new/sub/, layer content modified",
            ],
        ),
        of(
            "a file has another mode",
            |root| std::fs::set_permissions(root.join("dir/one"), PermissionsExt::from_mode(0o600)).unwrap(),
            &["/dir/one(mode:0644\u{ffeb}0600), layer content modified"],
        ),
        of(
            "a set-ID bit is gone",
            |root| std::fs::set_permissions(root.join("set-id"), PermissionsExt::from_mode(0o755)).unwrap(),
            &["/set-id(mode:4755\u{ffeb}0755), layer content modified"],
        ),
        of(
            "a directory has another mode",
            |root| std::fs::set_permissions(root.join("dir"), PermissionsExt::from_mode(0o700)).unwrap(),
            &["/dir(mode:2750\u{ffeb}0700), layer content modified"],
        ),
        of(
            "a file has another time",
            |root| set_mtime(&root.join("dir/one"), 255),
            &["/dir/one(mtime:0x6553f100\u{ffeb}0xff), layer content modified"],
        ),
        of(
            "a link leads elsewhere",
            |root| {
                std::fs::remove_file(root.join("link")).unwrap();
                std::os::unix::fs::symlink("dir/two", root.join("link")).unwrap();
                set_mtime(&root.join("link"), 1_700_000_000);
            },
            &["/link(link target), layer content modified"],
        ),
        of(
            "a file is a directory",
            |root| {
                std::fs::remove_file(root.join("set-id")).unwrap();
                std::fs::create_dir(root.join("set-id")).unwrap();
            },
            &[
                "restoring entry \"set-id\": it is not a regular file",
                "/set-id(filetype:48\u{ffeb}53), layer content modified",
            ],
        ),
        of(
            "a file is a link",
            |root| {
                std::fs::remove_file(root.join("set-id")).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", root.join("set-id")).unwrap();
            },
            &[
                "restoring entry \"set-id\": it is not a regular file",
                "/set-id(filetype:48\u{ffeb}50), layer content modified",
            ],
        ),
        Damage {
            name: "what was replaced is another one",
            in_top: true,
            damage: |root| overwrite(&root.join("dir/one"), "another 0ne"),
            expected: &["file integrity checksum failed for \"dir/one\""],
        },
    ]
}

/// Replaces a text in the records of containers.
fn rewrite(store: &TestStore, from: &str, to: &str) {
    let dirs = [
        store.records("containers"),
        store
            .path()
            .join("run")
            .join(format!("{}-containers", store.graph_driver_name())),
    ];
    for dir in dirs {
        for name in ["containers.json", "volatile-containers.json"] {
            if let Ok(text) = std::fs::read_to_string(dir.join(name)) {
                std::fs::write(dir.join(name), text.replace(from, to)).unwrap();
            }
        }
    }
}

fn matches(found: &[String], expected: &[&str]) -> bool {
    let is = |(line, part): (&String, &&str)| line.contains(*part);
    found.len() == expected.len() && found.iter().zip(expected).all(is)
}

fn uses_program(store: &TestStore) -> bool {
    store.layout() == crate::support::Layout::Program
}

each_driver! {
    /// Nothing is found in a store in which nothing is wrong, mounted or not, however often it is asked.
    async fn a_healthy_store_has_no_findings(store) {
        let ids = fill(&store).await;
        store.mount(&ids.container, graphroot::MountOptions::default()).await.unwrap();
        for options in [CheckOptions::everything(), CheckOptions::most(), CheckOptions::records()] {
            let report = store.check(options).await.unwrap();
            assert!(report.is_clean() && report.strays.is_empty(), "{report:#?}");
        }
        assert!(store.unmount(&ids.container).await.is_ok());
        let again = store.reopen().await;
        assert!(again.check(CheckOptions::default()).await.unwrap().is_clean());
    }

    /// Every change of a layer's tree is found once, in the layer, in its images, and in their containers; the repair
    /// leaves everything else.
    async fn damaged_trees_are_found_and_told_of(store) {
        for case in damages() {
            let ids = fill(&store).await;
            let layer = if case.in_top { &ids.top } else { &ids.base };
            (case.damage)(&tree_of(&store, layer));
            let report = check(&store).await;
            let found = lines(&report, ItemKind::Layer, layer);
            let whole = format!("{}: {report:#?}", case.name);
            // A mount program shows no times of its own for what was changed below it.
            if !uses_program(&store) {
                assert!(matches(&found, case.expected), "{}: {found:#?}", case.name);
            }
            assert!(!found.is_empty(), "{whole}");
            for (kind, id) in [(ItemKind::Image, &ids.image), (ItemKind::Container, &ids.container)] {
                assert_eq!(lines(&report, kind, id).len(), found.len(), "{whole}");
            }
            let healthy = store.image("healthy").await.unwrap().id().to_owned();
            assert_eq!(lines(&report, ItemKind::Image, &healthy).is_empty(), case.in_top, "{whole}");
            let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
            assert!(repaired.is_success(), "{}: {repaired:#?}", case.name);
            assert_eq!(store.exists("healthy").await.unwrap(), case.in_top, "{whole}");
            assert!(!store.exists("image").await.unwrap() && !store.exists("box").await.unwrap());
            let after = check(&store).await;
            assert!(after.is_clean(), "{}: {after:#?}", case.name);
            for image in store.own_images().await {
                store.delete_image(image.id()).await.unwrap();
            }
            assert!(store.own_layers().await.is_empty());
        }
    }

    /// A repair that keeps containers keeps all that they stand on, and one that only looks changes nothing.
    async fn containers_stay_unless_they_are_asked_for(store) {
        let ids = fill(&store).await;
        overwrite(&tree_of(&store, &ids.base).join("dir/one"), "eno");
        let report = check(&store).await;
        let looked = store.repair(&report, RepairOptions::everything().dry_run(true)).await.unwrap();
        assert!(looked.is_success() && looked.removed.len() >= 4, "{looked:#?}");
        assert_eq!(check(&store).await, report);
        let repaired = store.repair(&report, RepairOptions::keeping_containers()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        let removed: Vec<ItemKind> = repaired.removed.iter().map(|item| item.kind).collect();
        assert_eq!(removed, [ItemKind::Image], "only the other image of the layer");
        assert!(store.exists("image").await.unwrap() && store.exists("box").await.unwrap());
        assert!(store.exists(&ids.base).await.unwrap());
        let repaired = store.repair(&check(&store).await, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        assert!(store.own_layers().await.is_empty() && check(&store).await.is_clean());
    }

    async fn records_that_refer_to_nothing_are_found(store) {
        let ids = fill(&store).await;
        // The Go library's `delete` asks nobody.
        store.delete(&ids.base).await.unwrap();
        let report = check(&store).await;
        let missing = format!("layer {}: layer is missing", ids.base);
        assert!(lines(&report, ItemKind::Layer, &ids.top).contains(&missing), "{report:#?}");
        let lacks = format!("layer {}: image layer is missing", ids.base);
        assert!(lines(&report, ItemKind::Image, &ids.image).contains(&lacks), "{report:#?}");
        let kinds: Vec<ErrorKind> = report.findings.iter().map(graphroot::Finding::kind).collect();
        assert!(kinds.contains(&ErrorKind::LayerMissing) && kinds.contains(&ErrorKind::ImageLayerMissing));
        store.delete(&ids.image).await.unwrap();
        let report = check(&store).await;
        let lacks = format!("image {}: image missing", ids.image);
        assert!(lines(&report, ItemKind::Container, &ids.container).contains(&lacks), "{report:#?}");
        let layer = store.container("box").await.unwrap().layer_id().to_owned();
        let other = "7".repeat(64);
        rewrite(&store, &layer, &other);
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        again.free();
        let lacks = format!("layer {other}: layer is missing");
        assert!(lines(&report, ItemKind::Container, &ids.container).contains(&lacks), "{report:#?}");
        rewrite(&store, &other, &layer);
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        assert!(check(&store).await.is_clean());
        assert!(store.own_layers().await.is_empty() && store.own_images().await.is_empty());
    }

    async fn data_is_compared_with_the_record(store) {
        let ids = fill(&store).await;
        store.set_layer_big_data(&ids.top, "item", std::io::Cursor::new(b"data".to_vec())).await.unwrap();
        let image = |name: &str| store.records("images").join(&ids.image).join(name);
        let cases: [(PathBuf, Option<&str>, ItemKind, &str, &str); 6] = [
            (image("manifest"), None, ItemKind::Image, &ids.image, "data item \"manifest\": image data item is missing"),
            (image("manifest"), Some("{}"), ItemKind::Image, &ids.image,
                "data item \"manifest\": 2 bytes instead of 7 bytes: image data item has incorrect size"),
            (image("manifest"), Some("{\"b\":1}"), ItemKind::Image, &ids.image, "data item \"manifest\": digest "),
            (store.records("containers").join(&ids.container).join("state"), Some("stopped"), ItemKind::Container,
                &ids.container, "data item \"state\": digest "),
            (store.records("containers").join(&ids.container).join("state"), None, ItemKind::Container,
                &ids.container, "data item \"state\": container data item is missing"),
            (store.records("layers").join(&ids.top).join("item"), None, ItemKind::Layer, &ids.top,
                "data item \"item\": layer data item is missing"),
        ];
        for (path, content, kind, id, expected) in cases {
            let before = std::fs::read(&path).unwrap();
            match content {
                Some(content) => std::fs::write(&path, content).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let report = check(&store).await;
            let found = lines(&report, kind, id);
            assert!(found.len() == 1 && found[0].contains(expected), "{}: {report:#?}", path.display());
            std::fs::write(&path, before).unwrap();
            assert!(check(&store).await.is_clean());
        }
    }

    async fn layers_that_nobody_needs_are_found_when_they_are_old(store) {
        let ids = fill(&store).await;
        let alone = store.put(None, "alone", &[("a", "1")]).await.id().to_owned();
        let above = store.put(Some("alone"), "above", &[("b", "1")]).await.id().to_owned();
        assert!(check(&store).await.is_clean());
        let options = CheckOptions::records().layer_unreferenced_maximum_age(Duration::ZERO);
        let report = store.check(options).await.unwrap();
        let found: Vec<&str> = report.damaged(ItemKind::Layer, false).into_keys().collect();
        let mut expected = [alone.as_str(), above.as_str()];
        expected.sort_unstable();
        assert_eq!(found, expected);
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success() && repaired.removed.len() == 2, "{repaired:#?}");
        assert!(!store.exists(&alone).await.unwrap() && store.exists(&ids.base).await.unwrap());
    }

    /// A directory of the driver without a record is found and removed, but never while records are lost.
    async fn layers_without_a_record_are_found(store) {
        let ids = fill(&store).await;
        let stray = "5".repeat(64);
        let home = tree_of(&store, &ids.base);
        let dir = match store.graph_driver_name() {
            "overlay" => home.join("../..").join(&stray),
            _ => home.join("..").join(&stray),
        };
        if store.layout() == crate::support::Layout::Split {
            // The driver lists its own home, beside which images lie.
            return;
        }
        std::fs::create_dir(&dir).unwrap();
        let report = check(&store).await;
        let found = lines(&report, ItemKind::Layer, &stray);
        assert_eq!(found, ["layer in lower level storage driver not accounted for"], "{report:#?}");
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success() && !dir.exists(), "{repaired:#?}");
        assert!(check(&store).await.is_clean());
    }

    async fn lost_records_cost_nothing(store) {
        let ids = fill(&store).await;
        let images = store.records("images").join("images.json");
        for content in [None, Some(""), Some("\0\0\0\0")] {
            let before = std::fs::read(&images).unwrap();
            match content {
                Some(content) => std::fs::write(&images, content).unwrap(),
                None => std::fs::remove_file(&images).unwrap(),
            }
            let again = store.reopen().await;
            again.free();
            let options = CheckOptions::records().layer_unreferenced_maximum_age(Duration::ZERO);
            match again.check(options).await {
                Ok(report) => {
                    let lost = StoreProblem::RecordsLost { path: images.clone() };
                    assert!(report.store_problems.contains(&lost), "{report:#?}");
                    again.repair(&report, RepairOptions::everything()).await.ok();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain()),
            }
            std::fs::write(&images, before).unwrap();
            let again = store.reopen().await;
            let report = again.check(CheckOptions::everything()).await.unwrap();
            assert!(report.is_clean(), "{report:#?}");
            assert!(again.exists(&ids.container).await.unwrap());
        }
    }

    /// An additional store that is not mounted costs nothing of what stands on its layers.
    async fn a_missing_additional_store_costs_nothing(store) {
        if store.layout() != crate::support::Layout::Additional {
            return;
        }
        store.put(Some("additional-layer"), "above", &[("b", "1")]).await;
        store.create_image(Some("above"), ImageOptions::default().name("image")).await.unwrap();
        store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        assert!(check(&store).await.is_clean());
        let (there, away) = (store.path().join("additional"), store.path().join("away"));
        std::fs::rename(&there, &away).unwrap();
        // What a mount point has if nothing is mounted.
        std::fs::create_dir(&there).unwrap();
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        assert!(report.store_problems.len() == 1 && !report.is_clean(), "{report:#?}");
        let repaired = again.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.removed.is_empty() && repaired.is_success(), "{repaired:#?}");
        again.free();
        std::fs::remove_dir_all(&there).unwrap();
        std::fs::rename(&away, &there).unwrap();
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
        assert!(again.exists("box").await.unwrap());
    }

    async fn strays_are_told_of_and_garbage(store) {
        fill(&store).await;
        let stray = "5".repeat(64);
        let data = [
            store.records("layers").join(format!("{stray}.tar-split.gz")),
            store.records("images").join(&stray),
            store.records("containers").join(&stray),
        ];
        std::fs::write(&data[0], "").unwrap();
        std::fs::create_dir(&data[1]).unwrap();
        std::fs::create_dir(&data[2]).unwrap();
        let report = check(&store).await;
        assert!(report.is_clean(), "{report:#?}");
        let mut found: Vec<PathBuf> = report.strays.iter().map(|stray| stray.path.clone()).collect();
        let mut expected = data.to_vec();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert!(report.strays.iter().all(|stray| !stray.to_string().is_empty()));
        store.garbage_collect().await.unwrap();
        assert!(check(&store).await.strays.is_empty());
    }
}
