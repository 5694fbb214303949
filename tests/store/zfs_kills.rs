//! Processes that are killed between the commands of `zfs` with which layers are made, removed, and get other trees.

use std::os::unix::process::ExitStatusExt as _;

use graphroot::{ContainerOptions, HealOptions, ImageBuilder, ImageOptions, LayerOptions, Store};

use crate::heal::Liar;
use crate::manifest::{Manifest, assert_same, layer_manifest};
use crate::support::{Layout, TestStore, assert_clean, assert_nothing_temporary, run_over, tar, tree_of};
use crate::zfs_process::ZfsProcess;

const PROCESS: ZfsProcess = ZfsProcess {
    variable: "GRAPHROOT_TEST_ZFS_KILL",
    entry: "zfs_kills::a_process_that_is_killed",
    program: PROGRAM,
};

/// Runs the `zfs` that `zfs.real` leads to. When a command that changes something was the last of those that the file beside it allows, who
/// has started it is killed. Where trees are exchanged, they are looked at before.
const PROGRAM: &str = r#"#!/bin/sh
"$0.real" "$@"
status=$?
case $1/$GRAPHROOT_TEST_ZFS_KILL in list/* | get/* | mount/[45]*) exit $status ;; esac
left=$(cat "$0.left" 2>/dev/null) || exit $status
echo $((left - 1)) >"$0.left"
[ "$left" != 0 ] || kill -KILL $PPID
exit $status
"#;

/// A process makes fewer changes in a step.
const MAX_COMMANDS: usize = 30;

/// What is there before a step, and after it.
const STEPS: [(bool, bool); 4] = [(false, true), (true, false), (false, true), (true, false)];

/// The step that applies a diff to a layer which is there.
const APPLY: usize = 4;
/// The step that heals a layer.
const HEAL: usize = 5;

async fn step(store: &Store, number: usize) -> graphroot::Result<()> {
    let tar = std::io::Cursor::new(tar(&[("file", "child")]));
    let layer = LayerOptions::default().id("child");
    let container = ContainerOptions::default().id("box");
    match number {
        0 => store.put_layer(Some("base"), layer, tar).await.map(drop),
        1 => store.delete_layer("child").await,
        2 => store.create_container(Some("image"), container).await.map(drop),
        3 => store.delete_container("box").await,
        APPLY => store.apply_diff("child", tar).await.map(drop),
        _ => heal(store).await,
    }
}

/// The layer that is healed.
fn lower() -> Vec<u8> {
    tar(&[("file", "lower"), ("dir/", ""), ("dir/other", "x")])
}

async fn heal(store: &Store) -> graphroot::Result<()> {
    let healed = store.heal(HealOptions::default().source(Liar(lower()))).await?;
    assert!(healed.is_success(), "{healed:#?}");
    Ok(())
}

async fn is_there(store: &Store, number: usize) -> bool {
    match number {
        0 | 1 => store.layer("child").await.is_ok(),
        _ => store.container("box").await.is_ok(),
    }
}

/// Works until it is killed. Does nothing unless the test below has started it.
#[tokio::test]
async fn a_process_that_is_killed() {
    if let Some((store, number)) = PROCESS.begin().await {
        step(&store, number.parse().unwrap()).await.unwrap();
    }
}

/// Kills the process of a step after so many commands; `false` if it has ended before. Also returns when that was.
fn run(store: &TestStore, number: usize, commands: usize) -> (bool, String) {
    let (ended, _programs) = PROCESS.run(store, number, commands);
    let moment = format!(
        "step {number}, after {commands} commands: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let was_killed = ended.status.signal() == Some(9);
    assert!(was_killed || ended.status.success(), "{moment}");
    (was_killed, moment)
}

/// Has a new process look at what is there: nothing else than layers with records.
async fn look_at(store: &TestStore, moment: &str) -> Store {
    let next = store.reopen().await;
    assert_clean(&next, moment).await;
    let layers = next.layers().await.unwrap().len();
    assert_eq!(store.datasets().len(), layers, "{moment}: {:?}", store.datasets());
    next
}

/// Kills the process of a step; what it makes or removes is there or not.
async fn kill(store: &TestStore, number: usize, commands: usize) -> bool {
    let (before, after) = STEPS[number];
    if is_there(store, number).await != before {
        // The step that undoes this one, or is undone by it.
        step(store, number ^ 1).await.unwrap();
    }
    let (was_killed, moment) = run(store, number, commands);
    let next = look_at(store, &moment).await;
    let found = is_there(&next, number).await;
    assert!(was_killed || found == after, "{moment}");
    if number < 2 && found {
        let content = std::fs::read_to_string(tree_of(store, "child").join("file"));
        assert_eq!(content.unwrap(), "child", "{moment}");
    }
    next.free();
    assert_nothing_temporary(store).await;
    was_killed
}

#[test]
fn the_next_process_finds_the_state_before_or_after() {
    run_over(&["zfs"], async || {
        let Some(store) = TestStore::open("zfs", Layout::Plain).await else {
            return;
        };
        let base = std::io::Cursor::new(tar(&[("file", "base")]));
        store
            .put_layer(None, LayerOptions::default().id("base"), base)
            .await
            .unwrap();
        let image = ImageOptions::default().id("image");
        store.create_image(Some("base"), image).await.unwrap();
        for number in 0..STEPS.len() {
            let mut kills = 0;
            while kill(&store, number, kills).await {
                kills += 1;
            }
            assert!((1..MAX_COMMANDS).contains(&kills), "step {number}: {kills} kills");
        }
    });
}

fn file_of(store: &TestStore, layer: &str) -> Option<String> {
    std::fs::read_to_string(tree_of(store, layer).join("file")).ok()
}

/// A diff is in the layer and its record, or in neither.
#[test]
fn the_next_process_finds_all_of_a_diff_or_nothing() {
    run_over(&["zfs"], async || {
        let Some(store) = TestStore::open("zfs", Layout::Plain).await else {
            return;
        };
        let base = LayerOptions::default().id("base");
        let base_tar = std::io::Cursor::new(tar(&[("file", "base")]));
        store.put_layer(None, base, base_tar).await.unwrap();
        for commands in 0.. {
            let child = LayerOptions::default().id("child");
            store.create_layer(Some("base"), child).await.unwrap();
            let (was_killed, moment) = run(&store, APPLY, commands);
            let next = look_at(&store, &moment).await;
            let is_recorded = next.layer("child").await.unwrap().uncompressed_digest().is_some();
            let expected = if is_recorded { "child" } else { "base" };
            assert_eq!(file_of(&store, "child").as_deref(), Some(expected), "{moment}");
            next.free();
            assert_nothing_temporary(&store).await;
            store.delete_layer("child").await.unwrap();
            if !was_killed {
                assert!(is_recorded && (5..MAX_COMMANDS).contains(&commands), "{moment}");
                break;
            }
        }
    });
}

fn trees(store: &TestStore, layers: &[&str]) -> Vec<Manifest> {
    layers
        .iter()
        .map(|id| layer_manifest(&tree_of(store, id)))
        .collect()
}

#[test]
fn the_next_process_heals_what_a_killed_one_has_begun_to() {
    run_over(&["zfs"], async || {
        let Some(store) = TestStore::open("zfs", Layout::Plain).await else {
            return;
        };
        let lower = store
            .put_image_layer(None, std::io::Cursor::new(lower()))
            .await
            .unwrap();
        let upper = std::io::Cursor::new(tar(&[("dir/", ""), ("dir/upper", "y")]));
        let upper = store.put_image_layer(Some(lower.id()), upper).await.unwrap();
        let image = ImageBuilder::new().top_layer(upper.id()).name("localhost/two:1");
        let image = image.build(&store).await.unwrap();
        let container = store.create_container(Some(image.id()), ContainerOptions::default());
        let container = container.await.unwrap();
        let layers = [lower.id(), upper.id(), container.layer_id()];
        let before = trees(&store, &layers);
        for commands in 0.. {
            std::fs::write(tree_of(&store, lower.id()).join("file"), "rewol").unwrap();
            let (was_killed, moment) = run(&store, HEAL, commands);
            let next = store.reopen().await;
            heal(&next).await.unwrap();
            next.free();
            look_at(&store, &moment).await.free();
            for (before, after) in before.iter().zip(trees(&store, &layers)) {
                assert_same("before", before, &moment, &after);
            }
            assert_nothing_temporary(&store).await;
            if !was_killed {
                assert!((5..MAX_COMMANDS).contains(&commands), "{moment}");
                break;
            }
        }
    });
}
