//! Checks of a store that others write to: what comes, goes and changes meanwhile is no finding.

use std::sync::atomic::{AtomicBool, Ordering};

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, MountOptions, Store};

use crate::support::peers::{PeerSet, Run as _, block_on};
use crate::support::root::TestRoot;
use crate::support::store::{assert_clean, put_bytes};
use crate::support::tar::Tar;
use crate::support::{each_set, require_driver};

/// Rounds of each writer.
const ROUNDS: usize = 10;

fn content(seed: usize) -> Vec<u8> {
    let files = (0..20).fold(Tar::new().dir("d/"), |tar, file| {
        tar.file(format!("d/{file}"), format!("{seed} {file} ").repeat(100))
    });
    files.hard_link("d/link", "d/0").symlink("symbolic", "d").build()
}

/// Two layers, an image, a container in which files change, and all of that deleted again except each third image.
async fn ours(store: &Store, name: &str) {
    for round in 0..ROUNDS {
        let base = put_bytes(store, None, LayerOptions::default(), content(round))
            .await
            .unwrap();
        let top = put_bytes(
            store,
            Some(base.id()),
            LayerOptions::default(),
            content(round + 1),
        );
        let top = top.await.unwrap();
        let options = ImageOptions::default().name(format!("localhost/{name}:{round}"));
        let image = store.create_image(Some(top.id()), options).await.unwrap();
        for data in ["manifest of old", "manifest"] {
            let digest = store.set_image_big_data(image.id(), "manifest", data, None);
            digest.await.unwrap();
        }
        let container = store
            .create_container(Some(image.id()), ContainerOptions::default())
            .await
            .unwrap();
        let path = store
            .mount(container.id(), MountOptions::default())
            .await
            .unwrap();
        std::fs::write(path.join("d/1"), "changed").unwrap();
        std::fs::remove_file(path.join("d/2")).unwrap();
        std::fs::write(path.join("new"), "new").unwrap();
        for data in ["{}", "{\"a\": 1}"] {
            store
                .set_container_big_data(container.id(), "config", data)
                .await
                .unwrap();
        }
        store.unmount(container.id()).await.unwrap();
        if round % 3 > 0 {
            store.delete_container(container.id()).await.unwrap();
            store.delete_image(image.id()).await.unwrap();
        }
    }
}

/// The same by Go's command, a process for each step.
fn theirs(root: &TestRoot) {
    let archive = root.path().join("archive.tar");
    std::fs::write(&archive, content(100)).unwrap();
    let file = root.path().join("data");
    std::fs::write(&file, "{}").unwrap();
    for round in 0..ROUNDS {
        let [layer, image, container] =
            ["layer", "image", "container"].map(|kind| format!("go-{kind}-{round}"));
        let go = |words: &[&str]| root.go().with(words).run();
        root.go()
            .with(["import-layer", "-i", &layer, "-f"])
            .with([&archive])
            .run();
        go(&[
            "create-image",
            "-i",
            &image,
            "-n",
            &format!("localhost/go:{round}"),
            &layer,
        ]);
        root.go()
            .with(["set-image-data", "-f"])
            .with([&file])
            .with([&*image, "manifest"])
            .run();
        go(&["create-container", "-i", &container, &image]);
        let path = go(&["mount", &container]);
        std::fs::write(std::path::Path::new(path.trim()).join("d/1"), "changed").unwrap();
        go(&["unmount", &container]);
        if round % 3 > 0 {
            go(&["delete-container", &container]);
            go(&["delete-image", &image]);
        }
    }
}

fn check_beside(set: PeerSet, driver: &'static str) {
    let root = TestRoot::of_driver(driver).of(set);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let go = scope.spawn(|| theirs(&root));
        block_on(async {
            // Each with files and locks of its own, as other processes have them.
            let (store, checker) = (root.open().await, root.open().await);
            let writers = async {
                tokio::join!(ours(&store, "a"), ours(&store, "b"));
                is_done.store(true, Ordering::SeqCst);
            };
            let checks = async {
                let mut count = 0;
                while !(is_done.load(Ordering::SeqCst) && go.is_finished()) {
                    count += 1;
                    assert_clean(&checker, &format!("check {count} beside writers")).await;
                }
                eprintln!("{count} checks beside writers");
                assert!(count > 1);
            };
            tokio::join!(writers, checks);
            assert_clean(&checker, "afterwards").await;
        });
    });
}

fn checks_beside_writers_find_nothing_with_overlay(set: PeerSet) {
    check_beside(set, "overlay");
}
each_set!(fn checks_beside_writers_find_nothing_with_overlay: "containers-storage");

fn checks_beside_writers_find_nothing_with_vfs(set: PeerSet) {
    check_beside(set, "vfs");
}
each_set!(fn checks_beside_writers_find_nothing_with_vfs: "containers-storage");

fn checks_beside_writers_find_nothing_with_btrfs(set: PeerSet) {
    if require_driver("btrfs") {
        check_beside(set, "btrfs");
    }
}
each_set!(newer fn checks_beside_writers_find_nothing_with_btrfs: "containers-storage");
