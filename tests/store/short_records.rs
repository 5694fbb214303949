//! Files of records that are missing, empty or short: nothing is removed because of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graphroot::{ContainerOptions, ErrorKind, ImageOptions, LayerOptions, Store};

use crate::support::{Layout, TestStore, kind, writable};

/// What a file of records is replaced by; `None` removes it.
const DAMAGES: [Option<&str>; 4] = [None, Some(""), Some("null"), Some("[]")];

/// Everything below a directory, but for files of records and their locks, temporary files and what a driver keeps for
/// itself.
fn content(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let own = [".json", ".lock"].iter().any(|end| name.ends_with(end)) || name.starts_with('.');
            if own || ["tempdirs", "tmp", "staging"].contains(&&*name) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// The content of the directories that outlive a reboot.
fn lasting(store: &TestStore) -> BTreeSet<PathBuf> {
    let mut all = content(&store.path().join("graph"));
    if store.layout() == Layout::Split {
        all.extend(content(&store.path().join("images")));
    }
    all
}

/// The files of records of one kind, which are there.
fn files(store: &TestStore, kind: &str) -> Vec<PathBuf> {
    let driver = store.graph_driver_name();
    let roots =
        ["graph", "images"].map(|root| store.path().join(format!("{root}/{driver}-{kind}/{kind}.json")));
    roots.into_iter().filter(|path| path.exists()).collect()
}

fn damage(path: &Path, with: Option<&str>) {
    match with {
        Some(text) => std::fs::write(path, text).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    }
}

/// A store with an image of two layers that has a container with data.
async fn fill(store: &TestStore) {
    let id = |digit: &str| digit.repeat(64);
    let layer = |name: &str, digit: &str| LayerOptions::default().name(name).id(id(digit));
    let tar = |name: &str| std::io::Cursor::new(crate::support::tar(&[(name, "1")]));
    store.put_layer(None, layer("one", "1"), tar("a")).await.unwrap();
    store
        .put_layer(Some("one"), layer("two", "2"), tar("b"))
        .await
        .unwrap();
    let image = ImageOptions::default()
        .id(id("3"))
        .name("image")
        .big_data("manifest", "{}");
    store.create_image(Some("two"), image).await.unwrap();
    let container = ContainerOptions::default().id(id("4")).name("box");
    store.create_container(Some("image"), container).await.unwrap();
    let dir = store.container_directory("box").await.unwrap();
    std::fs::write(dir.join("data"), "1").unwrap();
}

/// A file of records as a power cut leaves it: it was written before the machine was started.
fn cut_off(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400))
        .unwrap();
}

async fn is_whole(store: &Store) {
    assert!(store.exists("two").await.unwrap());
    assert_eq!(store.image_big_data("image", "manifest").await.unwrap(), "{}");
    let mounted = store.mount("box", Default::default()).await.unwrap();
    assert!(mounted.join("a").exists() && mounted.join("b").exists());
    store.unmount("box").await.unwrap();
}

each_driver! {
    async fn nothing_is_collected_for_want_of_a_record(store) {
        fill(&store).await;
        let before = lasting(&store);
        for what in ["layers", "images", "containers"] {
            for with in DAMAGES {
                let damaged = files(&store, what);
                let kept: Vec<Vec<u8>> = damaged.iter().map(|path| std::fs::read(path).unwrap()).collect();
                damaged.iter().for_each(|path| damage(path, with));
                let again = store.reopen().await;
                let collected = again.garbage_collect().await;
                again.layers().await.ok();
                again.images().await.ok();
                again.containers().await.ok();
                again.free();
                let after = lasting(&store);
                let gone: Vec<_> = before.difference(&after).collect();
                // An empty list says that there are no containers, and nothing refers to one.
                let said = what == "containers" && with == Some("[]");
                if !said {
                    assert!(gone.is_empty(), "{what} {with:?}: {gone:?}");
                }
                if with == Some("") && !damaged.is_empty() {
                    let Err(error) = collected else { panic!("{what}") };
                    assert_eq!(error.kind(), ErrorKind::CorruptMetadata);
                    assert!(error.chain().contains(&format!("{what}.json")), "{}", error.chain());
                }
                if said {
                    break;
                }
                for (path, content) in damaged.iter().zip(kept) {
                    std::fs::write(path, content).unwrap();
                }
                is_whole(&store.reopen().await).await;
            }
        }
    }

    async fn records_that_were_lost_are_not_replaced_by_new_ones(store) {
        fill(&store).await;
        let before = lasting(&store);
        for what in ["layers", "images", "containers"] {
            for with in &DAMAGES[..3] {
                let damaged = files(&store, what);
                // In transient mode a reboot takes records away, and what is left belongs to nobody.
                if damaged.is_empty() || store.layout() == Layout::Transient && *with != Some("") {
                    continue;
                }
                let kept: Vec<Vec<u8>> = damaged.iter().map(|path| std::fs::read(path).unwrap()).collect();
                damaged.iter().for_each(|path| damage(path, *with));
                let again = store.reopen().await;
                let result = match what {
                    "layers" => again.create_layer(None, LayerOptions::default()).await.map(drop),
                    "images" => again.create_image(None, ImageOptions::default()).await.map(drop),
                    _ => again.create_container(None, ContainerOptions::default()).await.map(drop),
                };
                again.free();
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{what} {with:?}");
                assert!(error.chain().contains(&format!("{what}.json")), "{}", error.chain());
                for (path, content) in damaged.iter().zip(kept) {
                    std::fs::write(path, content).unwrap();
                }
            }
        }
        assert_eq!(lasting(&store), before);
        is_whole(&store.reopen().await).await;
    }

    async fn what_a_killed_program_leaves_is_collected(store) {
        fill(&store).await;
        let driver = store.graph_driver_name().to_owned();
        let stray = "f".repeat(64);
        let mut strays = vec![store.path().join(format!("graph/{driver}-layers/{stray}.tar-split.gz"))];
        std::fs::write(&strays[0], "").unwrap();
        for kind in ["images", "containers"] {
            let dir = store.records(kind).join(&stray);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("manifest"), "{}").unwrap();
            strays.push(dir);
        }
        store.reopen().await.garbage_collect().await.unwrap();
        for path in strays {
            assert!(!path.exists(), "{}", path.display());
        }
        is_whole(&store.reopen().await).await;
    }

    async fn a_volatile_layer_without_a_container_is_no_sign_of_lost_records(store) {
        fill(&store).await;
        let mut options = LayerOptions::default().name("cache").metadata("of a build");
        options.volatile = true;
        store.create_layer(None, options).await.unwrap();
        let stray = store.records("containers").join("f".repeat(64));
        std::fs::create_dir(&stray).unwrap();
        store.garbage_collect().await.unwrap();
        assert!(!stray.exists());
        is_whole(&store.reopen().await).await;
    }

    async fn layers_that_have_nothing_but_their_files_are_a_sign_of_lost_records(store) {
        if matches!(store.layout(), Layout::Transient | Layout::Split) {
            return;
        }
        store.create_layer(None, LayerOptions::default().name("one")).await.unwrap();
        let file = store.records("layers").join("layers.json");
        let kept = std::fs::read(&file).unwrap();
        for with in [None, Some("null")] {
            damage(&file, with);
            let again = store.reopen().await;
            let two = LayerOptions::default().name("two");
            let error = again.create_layer(None, two).await.unwrap_err();
            assert!(error.chain().contains("layers.json"), "{}", error.chain());
            assert_eq!(kind(again.garbage_collect().await), ErrorKind::CorruptMetadata);
            again.free();
            std::fs::write(&file, &kept).unwrap();
            let mounted = store.reopen().await.mount("one", Default::default()).await.unwrap();
            assert!(mounted.exists());
        }
    }

    async fn an_interrupted_deletion_is_not_finished_for_want_of_the_container(store) {
        fill(&store).await;
        let container = store.container("box").await.unwrap();
        let root = if store.layout() == Layout::Transient { "run" } else { "graph" };
        let name = if store.layout() == Layout::Transient { "volatile-" } else { "" };
        let driver = store.graph_driver_name();
        let path = |kind: &str| store.path().join(format!("{root}/{driver}-{kind}/{name}{kind}.json"));
        let layers = std::fs::read_to_string(path("layers")).unwrap();
        let mut rows: Vec<serde_json::Value> = serde_json::from_str(&layers).unwrap();
        let row = rows.iter_mut().find(|row| row["id"] == container.layer_id()).unwrap();
        row["flags"] = serde_json::json!({"graphroot-pending": format!("with container {}", container.id())});
        std::fs::write(path("layers"), serde_json::to_string(&rows).unwrap()).unwrap();
        let kept = std::fs::read(path("containers")).unwrap();
        std::fs::remove_file(path("containers")).unwrap();
        let before = lasting(&store);
        let again = store.reopen().await;
        assert!(again.exists(container.layer_id()).await.unwrap());
        again.create_layer(None, LayerOptions::default().name("other")).await.unwrap();
        again.delete_layer("other").await.unwrap();
        assert_eq!(lasting(&store), before);
        again.free();
        std::fs::write(path("containers"), kept).unwrap();
        is_whole(&store.reopen().await).await;
    }

    async fn containers_of_the_other_mode_are_not_collected(store) {
        let other = match store.layout() {
            Layout::Transient => Layout::Plain,
            Layout::Plain => Layout::Transient,
            _ => return,
        };
        // Without a file of lasting containers a directory that is there is a sign that it was lost.
        let first = other == Layout::Transient;
        if first {
            fill(&store).await;
        }
        let there = store.reopen_as(other).await;
        there.free();
        let mut options = ContainerOptions::default().id("5".repeat(64));
        options.volatile = true;
        there.create_container(None, options).await.unwrap();
        std::fs::write(there.container_directory(&"5".repeat(64)).await.unwrap().join("data"), "1").unwrap();
        let mounted = there.mount(&"5".repeat(64), Default::default()).await.unwrap();
        std::fs::write(writable(mounted).join("written"), "1").unwrap();
        there.unmount(&"5".repeat(64)).await.unwrap();
        if !first {
            fill(&store).await;
        }
        let before = lasting(&store);
        store.reopen().await.garbage_collect().await.unwrap();
        assert_eq!(before.difference(&lasting(&store)).next(), None);
        there.delete_container(&"5".repeat(64)).await.unwrap();
        is_whole(&store.reopen().await).await;
    }

    async fn an_empty_file_of_mounts_is_an_error(store) {
        fill(&store).await;
        let mounts = store.path().join(format!("run/{}-layers/mountpoints.json", store.graph_driver_name()));
        std::fs::write(&mounts, "").unwrap();
        let again = store.reopen().await;
        assert_eq!(kind(again.mount("box", Default::default()).await), ErrorKind::CorruptMetadata);
        std::fs::write(&mounts, "[]").unwrap();
        is_whole(&again).await;
    }

    async fn lost_records_of_volatile_containers_take_no_others_with_them(store) {
        fill(&store).await;
        let mut options = ContainerOptions::default().id("5".repeat(64));
        options.volatile = true;
        store.create_container(None, options).await.unwrap();
        std::fs::write(store.container_directory(&"5".repeat(64)).await.unwrap().join("data"), "1").unwrap();
        let before = lasting(&store);
        let root = if store.layout() == Layout::Transient { "run" } else { "graph" };
        let path = store.path().join(format!("{root}/{}-containers/volatile-containers.json", store.graph_driver_name()));
        let kept = std::fs::read(&path).unwrap();
        // A power cut leaves an empty file: it is not synced.
        std::fs::write(&path, "").unwrap();
        let again = store.reopen().await;
        assert!(again.containers().await.unwrap().len() < 2);
        let error = again.garbage_collect().await.unwrap_err();
        assert!(error.chain().contains("volatile-containers.json"), "{}", error.chain());
        assert_eq!(lasting(&store), before);
        again.free();
        std::fs::write(&path, kept).unwrap();
        assert!(store.reopen().await.exists(&"5".repeat(64)).await.unwrap());
        is_whole(&store.reopen().await).await;
    }

    async fn volatile_records_that_a_power_cut_has_destroyed_are_no_obstacle(store) {
        fill(&store).await;
        let outlasts = store.layout() != Layout::Transient;
        let root = if outlasts { "graph" } else { "run" };
        for what in ["containers", "layers"] {
            for with in ["", "null", "[{\"id\":\"555", "\0\0\0"] {
                let there = store.reopen().await;
                let id = "5".repeat(64);
                let mut options = ContainerOptions::default().id(&id).layer_id("6".repeat(64));
                options.volatile = true;
                there.create_container(None, options).await.unwrap();
                let dir = there.container_directory(&id).await.unwrap();
                let file = format!("{root}/{}-{what}/volatile-{what}.json", store.graph_driver_name());
                let file = store.path().join(file);
                let kept = std::fs::read(&file).unwrap();
                there.free();
                // Since the machine was started nothing is destroyed in this way.
                std::fs::write(&file, with).unwrap();
                let again = store.reopen().await;
                assert_eq!(kind(again.garbage_collect().await), ErrorKind::CorruptMetadata, "{what} {with:?}");
                again.free();
                std::fs::write(&file, kept).unwrap();
                assert!(dir.exists() && store.reopen().await.exists(&id).await.unwrap());
                cut_off(&file, with);
                let again = store.reopen().await;
                again.garbage_collect().await.unwrap_or_else(|error| panic!("{what} {with:?}: {}", error.chain()));
                assert_eq!(dir.exists(), what == "layers");
                if what == "layers" {
                    assert!(lasting(&store).iter().all(|path| !path.ends_with("6".repeat(64))));
                    again.delete_container(&id).await.unwrap();
                } else {
                    again.delete_layer(&"6".repeat(64)).await.unwrap();
                }
                if outlasts {
                    is_whole(&again).await;
                    continue;
                }
                assert_eq!(again.image_big_data("image", "manifest").await.unwrap(), "{}");
                if what == "layers" {
                    again.delete_container("box").await.unwrap();
                } else {
                    again.delete_layer(again.layers().await.unwrap().last().unwrap().id()).await.unwrap();
                }
                again.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
                is_whole(&again).await;
            }
        }
    }

    async fn a_store_that_was_used_in_transient_mode_is_opened_in_the_other_one(store) {
        if store.layout() != Layout::Transient {
            return;
        }
        fill(&store).await;
        for reboot in [false, true] {
            if reboot {
                store.free();
                std::fs::remove_dir_all(store.path().join("run")).unwrap();
            }
            let other = store.reopen_as(Layout::Plain).await;
            let own = ContainerOptions::default().name("own");
            other.create_container(Some("image"), own).await.unwrap();
            other.garbage_collect().await.unwrap();
            other.mount("own", Default::default()).await.unwrap();
            other.unmount("own").await.unwrap();
            // As Podman's, that container lives on.
            assert_eq!(store.records("containers").join("4".repeat(64)).exists(), !reboot);
            other.delete_container("own").await.unwrap();
            other.free();
            if !reboot {
                is_whole(&store.reopen().await).await;
            }
        }
    }

    async fn a_store_of_volatile_containers_only_has_lost_nothing(store) {
        if store.layout() == Layout::Transient {
            return;
        }
        let mut options = ContainerOptions::default().name("box");
        options.volatile = true;
        store.create_container(None, options).await.unwrap();
        // Other programs do not write the file of those that outlive a reboot.
        let written = files(&store, "containers");
        assert_eq!(written.len(), 1);
        written.iter().for_each(|path| damage(path, None));
        let again = store.reopen().await;
        let stray = store.records("containers").join("f".repeat(64));
        std::fs::create_dir(&stray).unwrap();
        again.garbage_collect().await.unwrap();
        assert!(!stray.exists());
        // The first one that outlives a reboot.
        std::fs::create_dir(&stray).unwrap();
        let lasting = ContainerOptions::default().id("f".repeat(64));
        again.create_container(None, lasting).await.unwrap();
        again.free();
        assert!(store.reopen().await.exists("box").await.unwrap());
    }
}
