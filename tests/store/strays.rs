//! What killed processes leave is told of with what has left it, and what is in use is not; and a repair removes only what
//! was checked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::SystemTime;

use graphroot::{ImageOptions, KeptReason, LayerOptions, RepairOptions, StrayKind};
use tokio::io::AsyncWriteExt as _;

use crate::check::{check, fill};
use crate::support::{Layout, assert_clean, tar};

each_driver! {
    async fn what_killed_processes_leave_is_told_of(store) {
        let ids = fill(&store).await;
        assert!(check(&store).await.strays.is_empty());
        let home = store.path().join("graph").join(store.graph_driver_name());
        let (layers, images) = (store.records("layers"), store.records("images"));
        let mut expected: BTreeSet<(PathBuf, StrayKind)> = BTreeSet::new();
        let mut leave = |path: PathBuf, kind: StrayKind, is_dir: bool| {
            match is_dir {
                true => std::fs::create_dir_all(&path).unwrap(),
                false => std::fs::write(&path, "x").unwrap(),
            }
            expected.insert((path, kind));
        };
        leave(home.join("tempdirs/temp-dir-7"), StrayKind::TempDir, true);
        leave(layers.join("tmp/temp-dir-8"), StrayKind::TempDir, true);
        leave(layers.join(".tmp-layers.json77"), StrayKind::RecordsInTheMaking, false);
        leave(images.join(".tmp-images.json77"), StrayKind::RecordsInTheMaking, false);
        leave(images.join(&ids.image).join(".tmp-config77"), StrayKind::DataInTheMaking, false);
        if store.graph_driver_name() == "overlay" {
            std::fs::create_dir_all(home.join("l")).unwrap();
            let link = home.join("l").join("N".repeat(26));
            std::os::unix::fs::symlink(format!("../{}/diff", "6".repeat(64)), &link).unwrap();
            expected.insert((link, StrayKind::Link));
        }
        std::fs::write(home.join("tempdirs/lock-7"), "").unwrap();
        let report = check(&store).await;
        assert!(report.is_clean(), "{report:#?}");
        let found: BTreeSet<(PathBuf, StrayKind)> =
            report.strays.iter().map(|stray| (stray.path.clone(), stray.kind)).collect();
        assert_eq!(found, expected);
        assert!(report.strays.iter().all(|stray| stray.to_string().contains("left by")));
        store.garbage_collect().await.unwrap();
        store.free();
        let again = store.reopen().await;
        assert_clean(&again, "afterwards").await;
    }

    /// What a writer is working in belongs to it.
    async fn what_is_in_use_is_no_stray(store) {
        fill(&store).await;
        let content = tar(&[("d/", ""), ("d/a", &"x".repeat(100_000))]);
        let (mut writer, reader) = tokio::io::duplex(64 * 1024);
        let puts = async { store.put_layer(None, LayerOptions::default().name("slow"), reader).await.unwrap() };
        let checks = async {
            writer.write_all(&content[..content.len() / 2]).await.unwrap();
            let again = store.reopen().await;
            assert_clean(&again, "while a layer is put").await;
            again.garbage_collect().await.unwrap();
            writer.write_all(&content[content.len() / 2..]).await.unwrap();
            drop(writer);
            again.free();
        };
        let (put, ()) = tokio::join!(puts, checks);
        assert!(store.exists(put.layer.id()).await.unwrap());
        assert_clean(&store, "afterwards").await;
    }

    /// An image that was made again with the same ID and time since the check is not the one that was damaged.
    async fn what_was_made_again_stays(store) {
        fill(&store).await;
        let id = "e".repeat(64);
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let options = || {
            let options = ImageOptions::default().id(id.as_str()).big_data("manifest", "{}");
            options.creation_date(time)
        };
        store.create_image(None, options()).await.unwrap();
        std::fs::remove_file(store.records("images").join(&id).join("manifest")).unwrap();
        let report = check(&store).await;
        assert!(!report.is_clean());
        store.delete_image(&id).await.unwrap();
        store.create_image(None, options()).await.unwrap();
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.removed.is_empty(), "{repaired:#?}");
        assert_eq!(repaired.kept[0].reason, KeptReason::Changed);
        assert!(check(&store).await.is_clean());
    }

    /// A layer that the driver alone was told to make is one without a record, in a new store too.
    async fn a_layer_that_the_driver_was_told_to_make_is_removed(store) {
        if store.layout() == Layout::Split {
            // The driver lists its own home, beside which images lie.
            return;
        }
        let id = store.graph_driver().create_layer(None, LayerOptions::default()).await.unwrap();
        let report = check(&store).await;
        let damaged: Vec<&str> = report.damaged(graphroot::ItemKind::Layer, false).into_keys().collect();
        assert_eq!(damaged, [id.as_str()], "{report:#?}");
        assert!(report.store_problems.is_empty(), "{report:#?}");
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success() && repaired.removed.len() == 1, "{repaired:#?}");
        assert!(check(&store).await.is_clean());
    }
}
