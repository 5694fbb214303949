//! Every kind of damage to layers, records, manifests and configs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use graphroot::{HealOptions, HealedHow, NotHealed};
use serde_json::Value;

use super::{
    MIDDLE, assert_as_before, assert_same_trees, fill, heal, healthy_like, open_tree, overwrite, place_of,
    state, tar_split, trees,
};
use crate::support::{Layout, TestStore, assert_clean, assert_nothing_temporary, tree_of, writable};

type Damage = (&'static str, fn(&TestStore, &str));

fn damages() -> Vec<Damage> {
    vec![
        ("a file is missing", |store, id| {
            std::fs::remove_file(open_tree(store, id).join("dir/one")).unwrap();
        }),
        ("changed content of the same size", |store, id| {
            overwrite(&open_tree(store, id).join("dir/one"), b"eno");
        }),
        ("a truncated file", |store, id| {
            let file = std::fs::File::options()
                .write(true)
                .open(open_tree(store, id).join("dir/two"));
            file.unwrap().set_len(1000).unwrap();
        }),
        ("an added file", |store, id| {
            overwrite(&open_tree(store, id).join("dir/added"), b"x");
        }),
        ("another mode", |store, id| {
            let mode = PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(open_tree(store, id).join("dir/two"), mode).unwrap();
        }),
        ("another owner", |store, id| {
            // An ordinary user can give nothing away.
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(tree_of(store, id).join("dir/one"), Some(12), Some(34)).unwrap();
            } else {
                overwrite(&open_tree(store, id).join("dir/one"), b"two");
            }
        }),
        ("another attribute", |store, id| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(open_tree(store, id).join("dir/one"), "user.note", b"lost", flags).unwrap();
        }),
        ("a link that leads elsewhere", |store, id| {
            let link = open_tree(store, id).join("link");
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", link).unwrap();
        }),
        ("a missing directory", |store, id| {
            std::fs::remove_dir_all(open_tree(store, id).join("sub")).unwrap();
        }),
        ("a file in the place of a directory", |store, id| {
            let path = open_tree(store, id).join("sub");
            std::fs::remove_dir_all(&path).unwrap();
            overwrite(&path, b"no directory");
        }),
        ("a hard link that is a file of its own", |store, id| {
            let tree = open_tree(store, id);
            std::fs::remove_file(tree.join("hard")).unwrap();
            overwrite(&tree.join("hard"), b"other");
        }),
        ("the tree is gone", |store, id| {
            let tree = open_tree(store, id);
            match std::fs::remove_dir_all(&tree) {
                // What is mounted is emptied.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
                removed => removed.unwrap(),
            }
        }),
        ("the layer's directory is gone", TestStore::lose),
        ("the tar-split file is gone", |store, id| {
            std::fs::remove_file(tar_split(store, id)).unwrap();
        }),
        ("the tar-split file is cut off", |store, id| {
            let file = std::fs::File::options()
                .write(true)
                .open(tar_split(store, id))
                .unwrap();
            file.set_len(100).unwrap();
        }),
        ("the tar-split file is another one", |store, id| {
            overwrite(&tar_split(store, id), b"no gzip");
        }),
        ("the tar-split file is a directory", |store, id| {
            std::fs::remove_file(tar_split(store, id)).unwrap();
            std::fs::create_dir_all(tar_split(store, id).join("sub")).unwrap();
        }),
        ("everything is gone", |store, id| {
            store.lose(id);
            std::fs::remove_file(tar_split(store, id)).unwrap();
        }),
    ]
}

fn rows(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Takes the row of a layer out of the records.
async fn lose_record(store: &TestStore, id: &str) {
    let directories = [store.records("layers"), images_records(store)];
    for directory in directories {
        let path = directory.join("layers.json");
        if path.exists() {
            let mut rows = rows(&path);
            rows.retain(|row| row["id"] != id);
            let before = path.metadata().unwrap().modified().unwrap();
            std::fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
            // Not every file system tells apart what was written within a second.
            let later = before + std::time::Duration::from_secs(2);
            let file = std::fs::File::options().write(true).open(&path);
            file.unwrap().set_modified(later).unwrap();
        }
    }
    assert!(!store.exists(id).await.unwrap(), "the record of {id}");
}

/// Where the records of images' layers are if they lie apart.
fn images_records(store: &TestStore) -> PathBuf {
    let name = format!("{}-layers", store.graph_driver_name());
    store.path().join("images").join(name)
}

each_driver! {
    /// Every kind of damage to one layer of five, with one container that is mounted and one that is not.
    async fn every_damage_is_healed(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        let mounted = store.mount(&five.containers[0], Default::default()).await.unwrap();
        for (name, damage) in damages() {
            let whole_trees = store.graph_driver_name() != "overlay";
            for index in [MIDDLE, 0] {
                let is_of_middle = !matches!(name, "the tree is gone" | "the layer's directory is gone"
                    | "the tar-split file is gone" | "the tar-split file is cut off" | "everything is gone");
                if index == 0 && is_of_middle {
                    continue;
                }
                let id = &five.layers[index];
                damage(&store, id);
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success(), "{name}, {index}: {healed:#?}");
                let layers: Vec<&str> = healed.healed.iter().map(|healed| healed.item.id.as_str()).collect();
                assert_eq!(layers, [id.as_str()], "{name}: {healed:#?}");
                let by_files = matches!(healed.healed[0].how, HealedHow::Files { .. });
                let is_of_files = !whole_trees && index == MIDDLE && is_of_middle;
                let is_told = store.layout() == Layout::Program || name.starts_with("a hard link") || name.starts_with("a file in") || name.starts_with("the tar-split");
                assert!(is_told || by_files == is_of_files, "{name}: {healed:#?}");
                assert_clean(&store, name).await;
                assert_same_trees(name, &before.trees, &trees(&store, &five.layers));
                // The mount shows it.
                assert_eq!(place_of(&store, id).join("replaced0").exists(), !whole_trees, "{name}");
            }
        }
        assert!(mounted.is_dir());
        store.unmount(&five.containers[0]).await.unwrap();
        let after = state(&store, &five).await;
        assert_as_before("all", &before, &after);
        // What the mount showed goes with the next collection.
        store.garbage_collect().await.unwrap();
        for id in &five.layers {
            assert!(!place_of(&store, id).join("replaced0").exists());
        }
        assert_clean(&store, "all").await;
        assert_eq!(state(&store, &five).await.names, before.names);
        assert_nothing_temporary(&store).await;
    }

    /// The record of a layer is made by the config of the image; its content is what is there, or comes from elsewhere.
    async fn lost_records_are_made_anew(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        for index in [0, MIDDLE, 4] {
            let id = &five.layers[index];
            let layer = store.layer(id).await.unwrap();
            for is_gone in [false, true] {
                if is_gone {
                    store.delete(id).await.unwrap();
                } else {
                    lose_record(&store, id).await;
                }
                let options = HealOptions::default().item("localhost/five:1").source(source.store.clone());
                let healed = store.heal(options).await.unwrap();
                let name = format!("{index}, {is_gone}");
                assert!(healed.is_success(), "{name}: {healed:#?}");
                let parent = layer.parent().map(str::to_owned);
                assert_eq!(healed.healed[0].how, HealedHow::Record { parent: parent.clone() }, "{name}");
                assert_eq!(healed.healed.len(), 1 + usize::from(is_gone), "{name}: {healed:#?}");
                let again = store.layer(id).await.unwrap();
                assert_eq!(again.parent().map(str::to_owned), parent);
                assert_eq!(again.uncompressed_digest(), layer.uncompressed_digest());
                let told = |layer: &graphroot::Layer| {
                    (layer.uncompressed_size(), layer.uids().to_vec(), layer.gids().to_vec())
                };
                assert_eq!(told(&again), told(&layer), "{name}");
                assert_clean(&store, &name).await;
                assert_as_before(&name, &before, &state(&store, &five).await);
            }
        }
        // Two at once.
        store.delete(&five.layers[1]).await.unwrap();
        store.delete(&five.layers[2]).await.unwrap();
        let healed = heal(&store, source.store.clone()).await;
        assert!(healed.is_success() && healed.healed.len() == 4, "{healed:#?}");
        assert_as_before("two", &before, &state(&store, &five).await);
        assert_clean(&store, "two").await;
    }

    async fn manifests_and_configs_are_healed(store) {
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let dir = store.records("images").join(five.image.id());
        let names = || std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let before: Vec<(PathBuf, Vec<u8>)> =
            names().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        assert!(before.len() >= 2, "{before:?}");
        for is_gone in [true, false] {
            for (path, content) in &before {
                if is_gone {
                    std::fs::remove_file(path).unwrap();
                } else {
                    overwrite(path, &vec![b' '; content.len()]);
                }
            }
            let healed = heal(&store, source.store.clone()).await;
            assert!(healed.is_success(), "{healed:#?}");
            let is_data = |healed: &graphroot::Healed| matches!(healed.how, HealedHow::Data { .. });
            assert!(healed.healed.iter().all(is_data), "{healed:#?}");
            for (path, content) in &before {
                assert!(std::fs::read(path).unwrap() == *content, "{}", path.display());
            }
            assert_clean(&store, "data").await;
        }
    }

    /// A container's own layer has what nobody else has.
    async fn layers_of_containers_are_left(store) {
        let five = fill(&store).await;
        let source = healthy_like(&store).await;
        let layer = store.container("resting").await.unwrap().layer_id().to_owned();
        match store.layout() {
            Layout::Split => {
                let place = place_of(&store, &layer).display().to_string();
                std::fs::remove_dir_all(writable(place.replace("/images/", "/graph/").into())).unwrap();
            }
            _ => store.lose(&layer),
        }
        let healed = heal(&store, source.store.clone()).await;
        let of_layer: Vec<&NotHealed> = healed
            .failures
            .iter()
            .filter(|failure| failure.item.id == layer)
            .map(|failure| &failure.reason)
            .collect();
        assert!(matches!(of_layer[..], [NotHealed::OfContainer]), "{healed:#?}");
        assert!(healed.healed.is_empty());
        store.mount(&five.containers[1], Default::default()).await.unwrap_err();
        drop(five);
    }
}
