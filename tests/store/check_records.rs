//! What a check finds in the records, and what a repair does about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use graphroot::{
    CheckOptions, ContainerOptions, ErrorKind, ImageOptions, ItemKind, RepairOptions, StoreProblem,
};
use serde_json::{Value, json};

use crate::check::{check, fill, lines};
use crate::support::{PATIENCE, TestStore, tree_of};

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

each_driver! {
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
        assert!(report.findings.iter().any(|finding| finding.kind() == ErrorKind::ContainerImageMissing));
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
        // The container is not the one any more that was checked.
        let report = check(&store).await;
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        assert!(check(&store).await.is_clean());
        assert!(store.own_layers().await.is_empty() && store.own_images().await.is_empty());
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
                    let is_lost = report.store_problems.iter().any(|problem| match problem {
                        StoreProblem::RecordsLost { path } | StoreProblem::RecordsDamaged { path, .. } => *path == images,
                        _ => false,
                    });
                    assert!(is_lost, "{report:#?}");
                    again.repair(&report, RepairOptions::everything().rebuild_records(false)).await.ok();
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

    /// One that the store was not opened with costs nothing either, unless it is said that what is missing is lost.
    async fn an_additional_store_that_is_not_named_costs_nothing(store) {
        if store.layout() != crate::support::Layout::Additional {
            return;
        }
        store.put(Some("additional-layer"), "above", &[("b", "1")]).await;
        store.create_image(Some("above"), ImageOptions::default().name("image")).await.unwrap();
        store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        let alone = store.reopen_as(crate::support::Layout::Plain).await;
        let options = CheckOptions::everything().layer_unreferenced_maximum_age(Duration::ZERO);
        let report = alone.check(options).await.unwrap();
        assert!(!report.is_clean() && report.store_problems.is_empty(), "{report:#?}");
        let repaired = alone.repair(&report, RepairOptions::keeping_containers()).await.unwrap();
        assert!(repaired.removed.is_empty() && repaired.is_success(), "{repaired:#?}");
        let told = |kept: &graphroot::Kept| kept.reason == graphroot::KeptReason::LayersMissing;
        assert!(repaired.kept.iter().any(told), "{repaired:#?}");
        alone.free();
        let again = store.reopen().await;
        let whole = again.check(CheckOptions::everything()).await.unwrap();
        assert!(whole.is_clean(), "{whole:#?}");
        assert!(again.exists("box").await.unwrap());
        again.free();
        let alone = store.reopen_as(crate::support::Layout::Plain).await;
        let lost = RepairOptions::everything();
        let repaired = alone.repair(&report, lost).await.unwrap();
        assert!(repaired.is_success() && !alone.exists("image").await.unwrap(), "{repaired:#?}");
    }

    /// Records that no program writes: they are told of, nothing outside of the store is touched, and nothing hangs.
    async fn impossible_records_are_told_of(store) {
        if store.layout() != crate::support::Layout::Plain {
            return;
        }
        let ids = fill(&store).await;
        let victim = store.path().join("victim");
        std::fs::create_dir_all(victim.join("diff")).unwrap();
        std::fs::write(victim.join("precious"), "x").unwrap();
        let (layers, images, containers) = (
            store.records("layers").join("layers.json"),
            store.records("images").join("images.json"),
            store.records("containers").join("containers.json"),
        );
        let row = |rows: &mut Value, id: &str| -> usize {
            let mut all = rows.as_array().unwrap().iter();
            all.position(|row| row["id"] == id).unwrap()
        };
        type Edit<'a> = &'a dyn Fn(&mut Value);
        let cases: [(&str, &Path, Edit<'_>); 14] = [
            ("a layer on itself", &layers, &|rows| {
                let index = row(rows, &ids.base);
                rows[index]["parent"] = ids.base.clone().into();
            }),
            ("two layers on each other", &layers, &|rows| {
                let index = row(rows, &ids.base);
                rows[index]["parent"] = ids.top.clone().into();
            }),
            ("a row that is nothing", &layers, &|rows| rows.as_array_mut().unwrap().push(Value::Null)),
            ("a row without an ID", &layers, &|rows| rows.as_array_mut().unwrap().push(json!({"id": ""}))),
            ("a row that leads out", &layers, &|rows| {
                let row = json!({"id": "../../victim", "diff-digest": "sha256:1", "created": "2020-01-01T00:00:00Z"});
                rows.as_array_mut().unwrap().push(row);
            }),
            ("a row that is the directory", &layers, &|rows| {
                rows.as_array_mut().unwrap().push(json!({"id": ".", "created": "2020-01-01T00:00:00Z"}));
            }),
            ("a parent that leads out", &layers, &|rows| {
                let index = row(rows, &ids.base);
                rows[index]["parent"] = "../../victim".into();
            }),
            ("a digest that is none", &layers, &|rows| {
                let index = row(rows, &ids.base);
                rows[index]["diff-digest"] = "sha256:zz".into();
            }),
            ("a size that is another one", &layers, &|rows| {
                let index = row(rows, &ids.base);
                rows[index]["diff-size"] = 7.into();
            }),
            ("an ID twice", &layers, &|rows| {
                let index = row(rows, &ids.base);
                let again = rows[index].clone();
                rows.as_array_mut().unwrap().push(again);
            }),
            ("an image of a layer that leads out", &images, &|rows| {
                let index = row(rows, &ids.image);
                rows[index]["layer"] = "../../victim".into();
            }),
            ("an image that leads out", &images, &|rows| {
                let row = json!({"id": "../../victim", "layer": ids.top, "created": "2020-01-01T00:00:00Z",
                    "big-data-names": ["precious"]});
                rows.as_array_mut().unwrap().push(row);
            }),
            ("a container that leads out", &containers, &|rows| {
                let row = json!({"id": "../../victim", "layer": ids.top, "image": ids.image,
                    "created": "2020-01-01T00:00:00Z", "big-data-names": ["precious"]});
                rows.as_array_mut().unwrap().push(row);
            }),
            ("a container on a layer that leads out", &containers, &|rows| {
                let index = row(rows, &ids.container);
                rows[index]["layer"] = "../../victim".into();
            }),
        ];
        for (name, file, edit) in cases {
            if !file.exists() {
                continue;
            }
            let before = std::fs::read(file).unwrap();
            let mut rows: Value = serde_json::from_slice(&before).unwrap();
            edit(&mut rows);
            std::fs::write(file, serde_json::to_vec(&rows).unwrap()).unwrap();
            store.free();
            let again = store.reopen().await;
            let checked = tokio::time::timeout(PATIENCE, again.check(CheckOptions::everything())).await;
            let Ok(checked) = checked else { panic!("{name}: it hangs") };
            match checked {
                Ok(report) => {
                    assert!(!report.is_clean(), "{name}: {report:#?}");
                    if name == "a size that is another one" {
                        let kind = report.findings[0].kind();
                        assert_eq!(kind, ErrorKind::LayerIncorrectContentSize, "{report:#?}");
                    }
                    let repaired = again.repair(&report, RepairOptions::keeping_containers().dry_run(true)).await;
                    repaired.unwrap();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{name}: {}", error.chain()),
            }
            assert!(victim.join("precious").exists() && victim.join("diff").exists(), "{name}");
            again.free();
            std::fs::write(file, before).unwrap();
        }
        let again = store.reopen().await;
        let report = again.check(CheckOptions::everything()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
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
        if store.graph_driver_name() == "zfs" {
            let options = graphroot::LayerOptions::default().id(stray.clone());
            store.graph_driver().create_layer(None, options).await.unwrap();
        } else {
            std::fs::create_dir(&dir).unwrap();
        }
        let report = check(&store).await;
        let found = lines(&report, ItemKind::Layer, &stray);
        assert_eq!(found, ["layer in lower level storage driver not accounted for"], "{report:#?}");
        assert_eq!(report.findings[0].kind(), ErrorKind::LayerUnaccounted);
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success() && !dir.exists(), "{repaired:#?}");
        assert!(!store.graph_driver().exists(&stray).await.unwrap());
        assert!(check(&store).await.is_clean());
    }

    async fn layers_that_nobody_needs_are_found_when_they_are_old(store) {
        let ids = fill(&store).await;
        let alone = store.put(None, "alone", &[("a", "1")]).await.id().to_owned();
        let above = store.put(Some("alone"), "above", &[("b", "1")]).await.id().to_owned();
        assert!(check(&store).await.is_clean());
        let options = CheckOptions::records().layer_unreferenced_maximum_age(Duration::ZERO);
        let report = store.check(options).await.unwrap();
        assert!(report.findings.iter().all(|finding| finding.kind() == ErrorKind::LayerUnreferenced));
        let found: Vec<&str> = report.damaged(ItemKind::Layer, false).into_keys().collect();
        let mut expected = [alone.as_str(), above.as_str()];
        expected.sort_unstable();
        assert_eq!(found, expected);
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success() && repaired.removed.len() == 2, "{repaired:#?}");
        assert!(!store.exists(&alone).await.unwrap() && store.exists(&ids.base).await.unwrap());
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

    /// A stream that is another one, and one that cannot be made again.
    async fn streams_are_compared_with_the_record(store) {
        let ids = fill(&store).await;
        let tar_split = store.records("layers").join(format!("{}.tar-split.gz", ids.base));
        let other = store.records("layers").join(format!("{}.tar-split.gz", ids.top));
        let before = std::fs::read(&tar_split).unwrap();
        for (content, kind) in [
            (None, ErrorKind::LayerIncorrectContentDigest),
            (Some(before.get(..before.len() / 2).unwrap().to_vec()), ErrorKind::Io),
            (Some(b"no gzip".to_vec()), ErrorKind::Io),
            (Some(std::fs::read(&other).unwrap()), ErrorKind::LayerContentModified),
        ] {
            match content {
                Some(content) => std::fs::write(&tar_split, content).unwrap(),
                None => std::fs::remove_file(&tar_split).unwrap(),
            }
            let report = check(&store).await;
            assert_eq!(report.findings[0].item.id, ids.base, "{report:#?}");
            assert_eq!(report.findings[0].kind(), kind, "{report:#?}");
            std::fs::write(&tar_split, &before).unwrap();
        }
        assert!(check(&store).await.is_clean());
    }

    /// Records of containers that are gone cost no layer of a container: its data is still there.
    async fn layers_stay_while_there_is_data_without_a_record(store) {
        let ids = fill(&store).await;
        let layer = store.container("box").await.unwrap().layer_id().to_owned();
        let dirs = [
            store.records("containers"),
            store.path().join("run").join(format!("{}-containers", store.graph_driver_name())),
        ];
        let mut before = Vec::new();
        for path in dirs.iter().flat_map(|dir| [dir.join("containers.json"), dir.join("volatile-containers.json")]) {
            if let Ok(content) = std::fs::read(&path) {
                std::fs::write(&path, "[]").unwrap();
                before.push((path, content));
            }
        }
        // What a program leaves that has made a directory for the container.
        let data = store.records("containers").join("6".repeat(64));
        std::fs::create_dir_all(&data).unwrap();
        store.free();
        let again = store.reopen().await;
        let options = CheckOptions::records().layer_unreferenced_maximum_age(Duration::ZERO);
        let report = again.check(options).await.unwrap();
        assert!(report.damaged(ItemKind::Layer, false).contains_key(layer.as_str()), "{report:#?}");
        let repaired = again.repair(&report, RepairOptions::keeping_containers()).await.unwrap();
        assert!(repaired.is_success() && repaired.removed.is_empty(), "{repaired:#?}");
        assert!(again.exists(&layer).await.unwrap());
        again.free();
        for (path, content) in before {
            std::fs::write(path, content).unwrap();
        }
        std::fs::remove_dir(data).unwrap();
        let again = store.reopen().await;
        assert!(again.check(CheckOptions::everything()).await.unwrap().is_clean());
        assert!(again.exists(&ids.container).await.unwrap());
    }
}
