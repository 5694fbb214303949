//! What a heal says is left, and damage that no source mends.

use graphroot::{CheckOptions, Finding, HealOptions, HealedHow, ImageOptions, Problem, RepairOptions};

use super::{MIDDLE, Store, TestStore, fill, heal, healthy_like, open_tree, overwrite, place_of};
use crate::support::assert_clean;

/// What is wrong, without layers that nothing refers to.
async fn found(store: &TestStore) -> Vec<Finding> {
    let report = store.check(CheckOptions::everything()).await.unwrap();
    let is_damage =
        |finding: &Finding| !matches!(finding.problem, Problem::Unreferenced | Problem::Unaccounted);
    report.findings.into_iter().filter(is_damage).collect()
}

async fn reports_what_is_left(store: &TestStore, source: &Store, name: &str, is_whole: bool) {
    let healed = heal(store, source.clone()).await;
    assert!(healed.is_success() == is_whole, "{name}: {healed:#?}");
    assert!(!healed.healed.is_empty(), "{name}: {healed:#?}");
    assert_eq!(healed.left, found(store).await, "{name}");
}

each_driver! {
    /// What was mended elsewhere does not hide what could not be.
    async fn all_that_a_check_finds_is_left(store) {
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let other = store.put(None, "other", &[("a", "1")]).await.id().to_owned();
        let data = std::io::Cursor::new(b"data".to_vec());
        store.set_layer_big_data(&other, "item", data).await.unwrap();
        let image = ImageOptions::default().name("localhost/other:1").big_data("item", "x");
        store.create_image(Some(&other), image).await.unwrap();
        store.set_container_big_data(&five.containers[1], "item", "x").await.unwrap();
        let damage = || overwrite(&open_tree(&store, &five.layers[MIDDLE]).join("dir/one"), b"eno");
        let item = store.records("layers").join(&other).join("item");
        let file = open_tree(&store, &other).join("a");
        let of_container = store.records("containers").join(&five.containers[1]).join("item");
        for path in [&item, &file, &of_container] {
            let before = std::fs::read(path).unwrap();
            let time = std::fs::metadata(path).unwrap().modified().unwrap();
            std::fs::write(path, "y").unwrap();
            if path == &item {
                std::fs::remove_file(path).unwrap();
            }
            damage();
            reports_what_is_left(&store, &source, &path.display().to_string(), false).await;
            std::fs::write(path, before).unwrap();
            std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            damage();
            reports_what_is_left(&store, &source, "whole", true).await;
        }
    }

    /// The lowest layer of an image stands on nothing, whatever its files say.
    async fn lists_of_the_lowest_layer_are_removed(store) {
        if store.graph_driver_name() != "overlay" {
            return;
        }
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let dir = place_of(&store, &five.layers[0]);
        for (name, content) in [
            ("lower", "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
            ("lower", ""),
            ("lower-layers", "abc"),
            ("lower", "no list"),
        ] {
            let stray = dir.join(name);
            std::fs::write(&stray, content).unwrap();
            let healed = heal(&store, source.store.clone()).await;
            assert!(healed.is_success(), "{name} {content:?}: {healed:#?}");
            assert_eq!(healed.healed[0].how, HealedHow::DriverData, "{healed:#?}");
            assert!(!stray.exists());
            assert_clean(&store, name).await;

            std::fs::write(&stray, content).unwrap();
            let report = store.check(CheckOptions::everything()).await.unwrap();
            let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
            assert!(repaired.is_success() && repaired.mended.len() == 1, "{repaired:#?}");
            assert!(!stray.exists() && repaired.removed.is_empty(), "{repaired:#?}");
            assert_clean(&store, name).await;
        }
    }

    /// Of a layer of no image nobody knows what it stands on: nothing is mended then, and nobody says so.
    async fn lists_of_other_layers_are_left(store) {
        if store.graph_driver_name() != "overlay" {
            return;
        }
        let other = store.put(None, "other", &[("a", "1")]).await.id().to_owned();
        for content in ["l/ABCDEFGHIJKLMNOPQRSTUVWXYZ", ""] {
            std::fs::write(place_of(&store, &other).join("lower"), content).unwrap();
            let report = store.check(CheckOptions::everything()).await.unwrap();
            let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
            assert!(repaired.mended.is_empty() && !repaired.is_success(), "{repaired:#?}");
            let healed = store.heal(HealOptions::default()).await.unwrap();
            assert!(healed.healed.is_empty() && !healed.is_success(), "{healed:#?}");
        }
    }
}
