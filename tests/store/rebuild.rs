//! Damaged files of records: what a check says of them, and what a repair makes of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use graphroot::{
    CheckOptions, CheckReport, ContainerOptions, Digest, ItemKind, Layer, LayerOptions, RecordDamage,
    RepairOptions, RepairReport, Store, StoreProblem,
};
use serde_json::{Value, json};

use crate::oci::OciImage;
use crate::support::{Layout, TestStore, tar};

/// The ID that image programs give to a layer.
fn usual_id(parent: Option<&Layer>, tar: &[u8]) -> String {
    let diff = Digest::sha256(tar);
    match parent {
        None => diff.encoded().to_owned(),
        Some(parent) => {
            let text = format!("{}+{}", parent.id(), diff.encoded());
            Digest::sha256(text).encoded().to_owned()
        }
    }
}

/// Two images on one base, as image programs make them, and a container on the first.
async fn fill(store: &TestStore) {
    let put = async |parent: Option<&Layer>, files: &[(&str, &str)]| {
        let tar = tar(files);
        let options = LayerOptions::default().id(usual_id(parent, &tar));
        let parent = parent.map(Layer::id);
        store
            .put_layer(parent, options, std::io::Cursor::new(tar))
            .await
            .unwrap()
            .layer
    };
    let base = put(None, &[("etc/", ""), ("etc/a", "1")]).await;
    let middle = put(Some(&base), &[("etc/", ""), ("etc/b", "2")]).await;
    let top = put(Some(&middle), &[("c", "-> etc/b")]).await;
    let other = put(Some(&base), &[("d", "4")]).await;
    OciImage::create_of(store, &[base.clone(), middle, top], "image").await;
    OciImage::create_of(store, &[base, other], "other").await;
    let options = ContainerOptions::default()
        .name("box")
        .big_data("state", "running");
    store.create_container(Some("image"), options).await.unwrap();
    store
        .set_container_directory_file("box", "note", "x")
        .await
        .unwrap();
}

/// The files of records that have records.
fn record_files(store: &TestStore) -> Vec<PathBuf> {
    let driver = store.graph_driver_name();
    let mut found = Vec::new();
    for root in ["graph", "images", "run"] {
        for (kind, names) in [
            ("layers", ["layers.json", "volatile-layers.json"]),
            ("images", ["images.json", "none"]),
            ("containers", ["containers.json", "volatile-containers.json"]),
        ] {
            let dir = store.path().join(root).join(format!("{driver}-{kind}"));
            let files = names.into_iter().map(|name| dir.join(name));
            found.extend(files.filter(|file| std::fs::read(file).is_ok_and(|content| content.len() > 2)));
        }
    }
    found
}

/// Whatever is in the store, but for locks, which have tokens.
fn everything(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            // Where zfs-fuse mounts what is looked at.
            if entry.path().ends_with("zfs/graph") {
                continue;
            }
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            }
            let is_lock = entry.file_name().to_string_lossy().contains("lock");
            let content = match kind.is_file() && !is_lock {
                true => std::fs::read(entry.path()).unwrap(),
                false => Vec::new(),
            };
            found.insert(entry.path(), content);
        }
    }
    found
}

/// The records, without what nothing on disk tells.
async fn records(store: &Store) -> Vec<Value> {
    let mut all = Vec::new();
    for layer in store.layers().await.unwrap() {
        all.push(serde_json::to_value(&layer).unwrap());
    }
    for image in store.images().await.unwrap() {
        all.push(serde_json::to_value(&image).unwrap());
    }
    for container in store.containers().await.unwrap() {
        all.push(serde_json::to_value(&container).unwrap());
    }
    for record in &mut all {
        let record = record.as_object_mut().unwrap();
        for field in ["names", "names-history", "created", "metadata", "flags"] {
            record.remove(field);
        }
        if let Some(keys) = record.get_mut("big-data-names").and_then(Value::as_array_mut) {
            keys.sort_by_key(ToString::to_string);
        }
    }
    all.sort_by_key(ToString::to_string);
    all
}

fn damages<'a>(report: &'a CheckReport, file: &Path) -> Vec<&'a RecordDamage> {
    let problems = report.store_problems.iter();
    let of_file = problems.filter_map(|problem| match problem {
        StoreProblem::RecordsDamaged { path, damage } if path == file => Some(damage),
        _ => None,
    });
    of_file.collect()
}

async fn repair(store: &Store, report: &CheckReport) -> RepairReport {
    let repaired = store.repair(report, RepairOptions::everything()).await.unwrap();
    assert!(
        repaired.is_success() && repaired.removed.is_empty(),
        "{repaired:#?}"
    );
    repaired
}

async fn assert_clean(store: &TestStore, name: &str) -> Store {
    let again = store.reopen().await;
    let report = again.check(CheckOptions::everything()).await.unwrap();
    assert!(report.is_clean(), "{name}: {report:#?}");
    again
}

each_driver! {
    async fn every_damaged_file_is_told_of_and_rebuilt(store) {
        fill(&store).await;
        let before = records(&store).await;
        for file in record_files(&store) {
            let content = std::fs::read(&file).unwrap();
            let text = String::from_utf8(content.clone()).unwrap();
            let with = |edit: &dyn Fn(&mut Vec<Value>)| {
                let mut rows: Vec<Value> = serde_json::from_slice(&content).unwrap();
                edit(&mut rows);
                serde_json::to_vec(&rows).unwrap()
            };
            let cases: [(&str, Vec<u8>); 11] = [
                ("empty", Vec::new()),
                ("zeros", vec![0; 300]),
                ("no JSON", b"\x7fELF \xff\xfe".to_vec()),
                ("no list", b"{\"id\":\"x\"}".to_vec()),
                ("cut in a row", content[..content.len() / 2].to_vec()),
                ("cut at the end", content[..content.len() - 1].to_vec()),
                ("cut at the beginning", content[content.len() / 3..].to_vec()),
                ("a row that is nothing", with(&|rows| rows.insert(0, Value::Null))),
                ("rows of other types", with(&|rows| rows.extend([json!(3), json!("x"), json!([])]))),
                ("a row without an ID", with(&|rows| rows[0]["id"] = 7.into())),
                ("more than the list", format!("{text}{text}").into_bytes()),
            ];
            for (name, damaged) in cases {
                let name = format!("{}: {name}", file.display());
                std::fs::write(&file, &damaged).unwrap();
                let again = store.reopen().await;
                let disk = everything(store.path());
                let report = again.check(CheckOptions::everything()).await.unwrap();
                assert!(!damages(&report, &file).is_empty(), "{name}: {report:#?}");
                assert!(report.store_problems.iter().all(|problem| !problem.to_string().is_empty()));
                let dry = again.repair(&report, RepairOptions::everything().dry_run(true)).await.unwrap();
                assert!(dry.replaced_files.iter().any(|replaced| replaced.path == file), "{name}: {dry:#?}");
                assert!(everything(store.path()) == disk, "{name}: a check or a dry run has changed something");
                let repaired = repair(&again, &report).await;
                again.free();
                let replaced: Vec<_> = repaired.replaced_files.iter().filter(|replaced| replaced.path == file).collect();
                assert_eq!(replaced.len(), 1, "{name}: {repaired:#?}");
                assert_eq!(std::fs::read(replaced[0].kept.as_ref().unwrap()).unwrap(), damaged, "{name}");
                let again = assert_clean(&store, &name).await;
                assert_eq!(records(&again).await, before, "{name}");
                again.free();
                std::fs::write(&file, &content).unwrap();
            }
        }
        let again = assert_clean(&store, "the end").await;
        assert!(again.exists("box").await.unwrap());
    }

    /// Records that contradict each other are resolved, and all others stay byte for byte.
    async fn contradictions_are_told_of_and_resolved(store) {
        fill(&store).await;
        let before = records(&store).await;
        for file in record_files(&store) {
            let content = std::fs::read(&file).unwrap();
            let rows: Vec<Value> = serde_json::from_slice(&content).unwrap();
            let mut extra = rows.clone();
            extra[0]["unknown"] = json!({"b": [1.5, null], "a": "é<"});
            let mut twice = extra.clone();
            twice.push(rows[0].clone());
            let mut named = extra.clone();
            let mut stranger = json!({"id": "f".repeat(64), "names": ["one"], "created": "2020-01-01T00:00:00Z",
                "layer": "", "image": ""});
            named[0]["names"] = json!(["one", "two"]);
            named.push(stranger.take());
            for (name, rows) in [("twice", &twice), ("named", &named)] {
                let name = format!("{}: {name}", file.display());
                std::fs::write(&file, serde_json::to_vec(rows).unwrap()).unwrap();
                let again = store.reopen().await;
                let disk = everything(store.path());
                let report = again.check(CheckOptions::everything()).await.unwrap();
                let found = damages(&report, &file);
                let id = rows[0]["id"].as_str().unwrap();
                let is_it = match found.as_slice() {
                    [RecordDamage::DuplicateId { id: found }] => found == id && name.ends_with("twice"),
                    [RecordDamage::DuplicateName { name: found, ids }] => found == "one" && ids[0] == id,
                    _ => false,
                };
                assert!(is_it || name.ends_with("twice") && found.len() == 1, "{name}: {report:#?}");
                assert!(everything(store.path()) == disk, "{name}");
                let repaired = repair(&again, &report).await;
                assert!(!repaired.rebuilt.is_empty(), "{name}: {repaired:#?}");
                again.free();
                let text = std::fs::read_to_string(&file).unwrap();
                let left: Vec<Value> = serde_json::from_str(&text).unwrap();
                if name.ends_with("named") {
                    assert_eq!(left[0]["names"], json!(["two"]), "{name}");
                    assert_eq!(left[0]["unknown"], extra[0]["unknown"], "{name}");
                    assert_eq!(left.last().unwrap()["names"], json!(["one"]), "{name}");
                } else {
                    let first = left.iter().filter(|row| row["id"] == id);
                    assert_eq!(first.count(), 1, "{name}");
                }
                // Rows that are as they should be are not touched.
                for row in &rows[1..rows.len() - 1] {
                    assert!(text.contains(&serde_json::to_string(row).unwrap()), "{name}");
                }
                std::fs::write(&file, &content).unwrap();
            }
        }
        let again = assert_clean(&store, "the end").await;
        assert_eq!(records(&again).await, before);
    }

    /// Damaged fields are made again where the disk tells them, and the others of the row stay.
    async fn damaged_fields_are_made_again(store) {
        fill(&store).await;
        let before = records(&store).await;
        for file in record_files(&store) {
            let content = std::fs::read(&file).unwrap();
            let mut rows: Vec<Value> = serde_json::from_slice(&content).unwrap();
            let last = rows.last_mut().unwrap();
            last["unknown"] = json!({"a": [1]});
            last["names"] = json!(["kept"]);
            for field in ["parent", "diff-digest", "diff-size", "uidset", "big-data-names", "big-data-sizes", "layer"] {
                if last.get(field).is_some() {
                    last[field] = json!([{}]);
                }
            }
            std::fs::write(&file, serde_json::to_vec(&rows).unwrap()).unwrap();
            let again = store.reopen().await;
            let report = again.check(CheckOptions::everything()).await.unwrap();
            let found = damages(&report, &file);
            let of_field = |damage: &&RecordDamage| matches!(damage, RecordDamage::Field { .. });
            assert!(!found.is_empty() && found.iter().all(of_field), "{}: {report:#?}", file.display());
            repair(&again, &report).await;
            again.free();
            let again = assert_clean(&store, &file.display().to_string()).await;
            let text = std::fs::read(&file).unwrap();
            let mut left: Vec<Value> = serde_json::from_slice(&text).unwrap();
            let last = left.last_mut().unwrap();
            assert_eq!((&last["unknown"], &last["names"]), (&json!({"a": [1]}), &json!(["kept"])));
            again.free();
            std::fs::write(&file, &content).unwrap();
            let again = store.reopen().await;
            assert_eq!(records(&again).await, before);
            again.free();
        }
    }

    /// All files at once: nothing but names, and what only the driver knows, is lost.
    async fn all_files_at_once_are_rebuilt(store) {
        fill(&store).await;
        let before = records(&store).await;
        for file in record_files(&store) {
            std::fs::write(&file, "").unwrap();
        }
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        let repaired = repair(&again, &report).await;
        let count = |kind| repaired.rebuilt.iter().filter(|rebuilt| rebuilt.item.kind == kind).count();
        assert_eq!(count(ItemKind::Image), 2, "{repaired:#?}");
        assert_eq!(count(ItemKind::Container), 1, "{repaired:#?}");
        assert!(repaired.rebuilt.iter().all(|rebuilt| !rebuilt.known.is_empty() && !rebuilt.lost.is_empty()));
        again.free();
        let again = assert_clean(&store, "all").await;
        // Of a container's layer vfs does not know what it stands on.
        if store.graph_driver_name() == "overlay" && store.layout() != Layout::Transient {
            let mut after = records(&again).await;
            for record in &mut after {
                record.as_object_mut().unwrap().remove("mountlabel");
            }
            assert_eq!(after, before);
        }
        assert!(again.layers().await.unwrap().len() >= 5 && again.images().await.unwrap().len() >= 2);
    }

    /// Layers that stand on each other are cut where the driver's files, or the IDs, say.
    async fn loops_are_cut(store) {
        if store.layout() == Layout::Additional {
            return;
        }
        fill(&store).await;
        let before = records(&store).await;
        let files = record_files(&store);
        // Where images lie apart, that of containers' layers has one record.
        let is_of_images = |file: &&PathBuf| file.ends_with("layers.json") && std::fs::read(file).unwrap().len() > 1500;
        let file = files.iter().find(is_of_images).unwrap();
        let content = std::fs::read(file).unwrap();
        let mut rows: Vec<Value> = serde_json::from_slice(&content).unwrap();
        let top = rows[2]["id"].clone();
        rows[0]["parent"] = top;
        std::fs::write(file, serde_json::to_vec(&rows).unwrap()).unwrap();
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        let found = damages(&report, file);
        assert!(matches!(found.as_slice(), [RecordDamage::ParentLoop { ids }] if ids.len() == 3), "{report:#?}");
        let repaired = repair(&again, &report).await;
        assert_eq!(repaired.rebuilt.len(), 1, "{repaired:#?}");
        assert!(repaired.rebuilt[0].inferred.is_empty(), "{repaired:#?}");
        again.free();
        let again = assert_clean(&store, "loop").await;
        assert_eq!(records(&again).await, before);
    }

    /// Mounts are found by the kernel's table.
    async fn damaged_mount_points_are_told_of_and_rebuilt(store) {
        fill(&store).await;
        let layer = store.container("box").await.unwrap().layer_id().to_owned();
        let mounted = store.mount("box", graphroot::MountOptions::default()).await.unwrap();
        let file = store.path().join(format!("run/{}-layers/mountpoints.json", store.graph_driver_name()));
        for damaged in ["", "[{", "null null", "[null]", "{}"] {
            std::fs::write(&file, damaged).unwrap();
            let again = store.reopen().await;
            let report = again.check(CheckOptions::records()).await.unwrap();
            assert!(!damages(&report, &file).is_empty(), "{damaged:?}: {report:#?}");
            repair(&again, &report).await;
            let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            let is_kernel_mount = store.graph_driver_name() == "overlay";
            assert_eq!(rows.len(), usize::from(is_kernel_mount), "{damaged:?}: {rows:?}");
            if is_kernel_mount {
                assert_eq!((&rows[0]["id"], &rows[0]["count"]), (&json!(layer), &json!(1)));
                assert_eq!(rows[0]["path"], mounted.to_string_lossy().as_ref());
            }
            let report = again.check(CheckOptions::records()).await.unwrap();
            assert!(report.is_clean(), "{damaged:?}: {report:#?}");
            again.free();
        }
        store.unmount_all("box").await.unwrap();
    }
}
