//! What only one of the drivers does.

use std::path::PathBuf;

use graphroot::{ContainerOptions, HealOptions, HealedHow, ImageBuilder, NotHealed};

use super::{
    Liar, MIDDLE, State, assert_as_before, assert_same_trees, fill, heal, healthy_like, layers, overwrite,
    place_of, put, state, trees,
};
use crate::support::{Layout, assert_clean, assert_nothing_temporary, over, tree_of};

mod overlay_only {
    use super::*;

    /// Of a layer with a few damaged files the others stay, as what they are.
    #[test]
    fn only_damaged_files_are_replaced() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let tree = tree_of(&store, &five.layers[MIDDLE]);
                let inode = |name: &str| {
                    let metadata = std::fs::symlink_metadata(tree.join(name)).unwrap();
                    std::os::unix::fs::MetadataExt::ino(&metadata)
                };
                let names = ["dir/one", "dir/two", "hard", "sub/deep/file", "set-id"];
                let inodes = names.map(inode);
                overwrite(&tree.join("dir/one"), b"eno");
                std::fs::remove_file(tree.join("dir/empty")).unwrap();
                std::fs::create_dir_all(tree.join("sub/new/deep")).unwrap();
                std::os::unix::fs::symlink("/etc", tree.join("dir/new")).unwrap();
                let source = Liar(layers()[MIDDLE].clone());
                let healed = heal(&store, source).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                let HealedHow::Files { paths, .. } = &healed.healed[0].how else {
                    panic!("{healed:#?}");
                };
                for name in ["dir/one", "dir/empty", "dir/new", "sub/new"] {
                    assert!(paths.contains(&PathBuf::from(name)), "{name}: {healed:#?}");
                }
                let now = names.map(inode);
                assert!(
                    now[0] != inodes[0] && now[1..] == inodes[1..],
                    "{inodes:?} {now:?}"
                );
                assert_as_before("files", &before, &state(&store, &five).await);
                // Under both of its names.
                overwrite(&tree.join("hard"), b"x");
                let healed = heal(&store, Liar(layers()[MIDDLE].clone())).await;
                let by_files = matches!(healed.healed[0].how, HealedHow::Files { .. });
                assert!(healed.is_success() && by_files, "{healed:#?}");
                assert_as_before("names", &before, &state(&store, &five).await);
                assert_clean(&store, "all").await;
                assert_nothing_temporary(&store).await;
            })
        });
    }

    /// The driver's files are made anew without a source.
    #[test]
    fn files_of_the_driver_are_healed() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let id = &five.layers[MIDDLE];
                for (file, content) in [("lower-layers", "wrong"), ("lower", "l/WRONG"), ("link", "")] {
                    overwrite(&place_of(&store, id).join(file), content.as_bytes());
                    let healed = store.heal(HealOptions::default()).await.unwrap();
                    assert!(healed.is_success(), "{file}: {healed:#?}");
                    let is_it = |healed: &graphroot::Healed| healed.how == HealedHow::DriverData;
                    assert!(
                        !healed.healed.is_empty() && healed.healed.iter().all(is_it),
                        "{healed:#?}"
                    );
                    assert_clean(&store, file).await;
                    assert_as_before(file, &before, &state(&store, &five).await);
                }
            })
        });
    }

    /// What is in the place of a layer's tree, or of its link, and is something else.
    #[test]
    fn things_in_the_way_are_replaced() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let source = healthy_like(&store).await;
                let place = place_of(&store, &five.layers[MIDDLE]);
                let tree = place.join("diff");
                let elsewhere = place_of(&store, &five.layers[0]).join("diff");
                for name in ["a file", "a link"] {
                    std::fs::remove_dir_all(&tree).unwrap();
                    match name {
                        "a file" => overwrite(&tree, b"no tree"),
                        _ => std::os::unix::fs::symlink(&elsewhere, &tree).unwrap(),
                    }
                    let healed = heal(&store, source.store.clone()).await;
                    assert!(healed.is_success(), "{name}: {healed:#?}");
                    assert_clean(&store, name).await;
                    assert_as_before(name, &before, &state(&store, &five).await);
                }
                let link = std::fs::read_to_string(place.join("link")).unwrap();
                let link = place.parent().unwrap().join("l").join(link);
                std::fs::remove_file(&link).unwrap();
                std::fs::create_dir(&link).unwrap();
                let healed = store.heal(HealOptions::default()).await.unwrap();
                assert!(healed.is_success(), "{healed:#?}");
                assert_clean(&store, "a directory").await;
                assert_as_before("a directory", &before, &state(&store, &five).await);
            })
        });
    }

    /// A layer of which the record is wrong is not made anew again and again.
    #[test]
    fn what_cannot_become_whole_is_made_anew_once() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let source = healthy_like(&store).await;
                let id = &five.layers[MIDDLE];
                let path = store.records("layers").join("layers.json");
                let mut rows: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                for row in rows.as_array_mut().unwrap() {
                    if row["id"] == **id {
                        row["parent"] = five.layers[0].clone().into();
                    }
                }
                let before = path.metadata().unwrap().modified().unwrap();
                std::fs::write(&path, rows.to_string()).unwrap();
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(before + std::time::Duration::from_secs(2))
                    .unwrap();
                let healed = heal(&store, source.store.clone()).await;
                assert!(!healed.is_success(), "{healed:#?}");
                let anew = healed.healed.iter();
                let anew = anew.filter(|healed| matches!(healed.how, HealedHow::Layer { .. }));
                assert!(anew.count() <= 1, "{healed:#?}");
            })
        });
    }

    /// A mounted container shows the old tree until it is mounted again, with all that it has.
    #[test]
    fn a_mount_keeps_what_it_shows() {
        over("overlay", Layout::Plain, |store| {
            Box::pin(async move {
                let five = fill(&store).await;
                let before = state(&store, &five).await;
                let source = healthy_like(&store).await;
                let mounted = store
                    .mount(&five.containers[0], Default::default())
                    .await
                    .unwrap();
                std::fs::write(mounted.join("own"), "own").unwrap();
                let id = &five.layers[MIDDLE];
                overwrite(&tree_of(&store, id).join("dir/one"), b"eno");
                for round in 0..2 {
                    std::fs::remove_file(tree_of(&store, id).join("dir/empty")).unwrap();
                    let healed = heal(&store, source.store.clone()).await;
                    assert!(healed.is_success(), "{healed:#?}");
                    assert!(place_of(&store, id).join(format!("replaced{round}")).exists());
                    store.garbage_collect().await.unwrap();
                    assert!(place_of(&store, id).join(format!("replaced{round}")).exists());
                    assert_eq!(std::fs::read(mounted.join("dir/one")).unwrap(), b"eno");
                    assert_eq!(std::fs::read(mounted.join("sub/deep/file")).unwrap(), b"deep");
                    std::fs::write(mounted.join("sub/more"), "more").unwrap();
                }
                store.unmount(&five.containers[0]).await.unwrap();
                let again = store
                    .mount(&five.containers[0], Default::default())
                    .await
                    .unwrap();
                assert_eq!(std::fs::read(again.join("dir/one")).unwrap(), b"one");
                assert_eq!(std::fs::read(again.join("own")).unwrap(), b"own");
                assert_eq!(std::fs::read(again.join("sub/more")).unwrap(), b"more");
                assert_eq!(std::fs::read(again.join("sub/deep/file")).unwrap(), b"deep");
                store.unmount(&five.containers[0]).await.unwrap();
                let none = store.heal(HealOptions::default()).await.unwrap();
                assert!(none.is_success() && none.healed.is_empty(), "{none:#?}");
                assert!(!place_of(&store, id).join("replaced0").exists());
                let after = state(&store, &five).await;
                assert_as_before(
                    "all",
                    &before,
                    &State {
                        shown: Vec::new(),
                        ..after
                    },
                );
                assert_clean(&store, "all").await;
            })
        });
    }

    /// In an additional store that is not mounted may be what is missing.
    #[test]
    fn what_may_be_in_a_missing_store_is_not_made() {
        over("overlay", Layout::Additional, |store| {
            Box::pin(async move {
                let tar = std::io::Cursor::new(layers()[1].clone());
                let above = store
                    .put_image_layer(Some("additional-layer"), tar)
                    .await
                    .unwrap();
                let image = ImageBuilder::new()
                    .top_layer(above.id())
                    .name("localhost/above:1");
                image.build(&store).await.unwrap();
                let (there, away) = (store.path().join("additional"), store.path().join("away"));
                std::fs::rename(&there, &away).unwrap();
                std::fs::create_dir(&there).unwrap();
                let again = store.reopen().await;
                let below = above.parent().unwrap();
                let healed = again
                    .heal(HealOptions::default().source(Liar(layers()[1].clone())))
                    .await
                    .unwrap();
                let is_kept = |failure: &graphroot::HealFailure| {
                    failure.item.id == below && matches!(failure.reason, NotHealed::MayBeWhole)
                };
                assert!(
                    healed.failures.iter().any(is_kept) && healed.healed.is_empty(),
                    "{healed:#?}"
                );
                again.free();
                std::fs::remove_dir_all(&there).unwrap();
                std::fs::rename(&away, &there).unwrap();
            })
        });
    }
}

mod vfs_only {
    use super::*;

    /// Whoever uses a mounted layer has its directory; damage that was there when a layer was copied is in both.
    #[test]
    fn whole_trees_are_healed_from_below() {
        over("vfs", Layout::Plain, |store| {
            Box::pin(async move {
                let (ids, image) = put(&store).await;
                let before = trees(&store, &ids);
                let source = healthy_like(&store).await;
                for id in &ids {
                    overwrite(&tree_of(&store, id).join("dir/below"), b"other");
                    std::fs::write(tree_of(&store, id).join("added"), "x").unwrap();
                }
                let top = store.mount_image(image.id(), Default::default()).await.unwrap();
                let healed = heal(&store, source.store.clone()).await;
                let busy = |failure: &graphroot::HealFailure| match &failure.reason {
                    NotHealed::Failed(error) => error.is_busy() && failure.item.id == ids[4],
                    _ => false,
                };
                assert!(
                    healed.failures.len() == 1 && busy(&healed.failures[0]),
                    "{healed:#?}"
                );
                assert!(top.join("added").exists());
                store.unmount_image(image.id()).await.unwrap();
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                assert_same_trees("healed", &before, &trees(&store, &ids));
                assert_clean(&store, "all").await;
            })
        });
    }

    /// A copy of a layer with other owners stays as it is; nobody else has its content.
    #[test]
    fn copies_with_other_owners_are_left() {
        over("vfs", Layout::Plain, |store| {
            Box::pin(async move {
                let (ids, image) = put(&store).await;
                let mapped = vec![graphroot::IdMap::new(0, 10_000, 1_000)];
                let mut options = ContainerOptions::default().name("mapped");
                options.id_mappings.uid_map.clone_from(&mapped);
                options.id_mappings.gid_map.clone_from(&mapped);
                store.create_container(Some(image.id()), options).await.unwrap();
                let image = store.image(image.id()).await.unwrap();
                let [copy] = image.mapped_top_layers() else {
                    panic!("{image:?}");
                };
                let all: Vec<String> = ids.iter().chain([copy]).cloned().collect();
                let before = trees(&store, &all);
                let source = healthy_like(&store).await;
                overwrite(&tree_of(&store, &ids[4]).join("shared/fifth"), b"x");
                let healed = heal(&store, source.store.clone()).await;
                assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
                assert_same_trees("own layers", &before, &trees(&store, &all));
                overwrite(&tree_of(&store, copy).join("shared/fifth"), b"x");
                let damaged = trees(&store, &all);
                let healed = heal(&store, source.store.clone()).await;
                let of_copy = |failure: &graphroot::HealFailure| {
                    failure.item.id == *copy && matches!(failure.reason, NotHealed::Copy)
                };
                let only = healed.failures.iter().all(of_copy) && healed.failures.len() == 1;
                assert!(
                    only && healed.healed.is_empty() && !healed.left.is_empty(),
                    "{healed:#?}"
                );
                assert_same_trees("copies", &damaged, &trees(&store, &all));
            })
        });
    }
}
