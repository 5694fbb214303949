//! Commands of `zfs` that fail once: that tells nothing of a layer, which stays.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use graphroot::{CheckOptions, HealOptions, LayerOptions, RepairOptions, Store};

use crate::support::{Layout, TestStore, assert_clean, options, run_over, tar, tree_of};

/// Tells the process below what to do: the step, and the directories of the program and the store.
const VARIABLE: &str = "GRAPHROOT_TEST_ZFS_FAIL";

/// Runs the `zfs` that `zfs.real` leads to, but for the command after so many as the file beside it says.
const PROGRAM: &str = r#"#!/bin/sh
if left=$(cat "$0.left" 2>/dev/null); then
    echo $((left - 1)) >"$0.left"
    [ "$left" != 0 ] || { echo "internal error: out of memory" >&2; exit 1; }
fi
exec "$0.real" "$@"
"#;

/// The steps make fewer commands.
const MAX_COMMANDS: i64 = 30;

async fn step(store: &Store, name: &str) -> graphroot::Result<()> {
    match name {
        "create" => {
            let base = LayerOptions::default().id("base");
            store.graph_driver().create_layer(None, base).await.map(drop)
        }
        "heal" => store.heal(HealOptions::default()).await.map(drop),
        _ => {
            let report = store.check(CheckOptions::everything()).await?;
            let options = RepairOptions::keeping_containers();
            store.repair(&report, options).await.map(drop)
        }
    }
}

/// Does nothing unless the test below has started it.
#[tokio::test]
async fn a_process_of_which_a_command_fails() {
    let Ok(order) = std::env::var(VARIABLE) else {
        return;
    };
    let [name, commands, programs, dir] = order.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{order}");
    };
    let store = Store::open(options(Path::new(dir), "zfs", Layout::Plain))
        .await
        .unwrap();
    std::fs::write(Path::new(programs).join("zfs.left"), commands).unwrap();
    if let Err(error) = step(&store, name).await {
        eprintln!("{}", error.chain());
    }
}

/// A directory with the program.
fn programs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("zfs"));
    let real = found.find(|program| program.is_file()).unwrap();
    std::os::unix::fs::symlink(real, dir.path().join("zfs.real")).unwrap();
    let program = dir.path().join("zfs");
    std::fs::write(&program, PROGRAM).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Has the command after so many fail; `false` if the step has ended before. Also returns when that was.
fn run(store: &TestStore, name: &str, commands: i64) -> (bool, String) {
    let programs = programs();
    let mut paths = vec![programs.path().to_owned()];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "zfs_failures::a_process_of_which_a_command_fails",
        "--nocapture",
    ]);
    let (dir, root) = (programs.path().display(), store.path().display());
    child.env(VARIABLE, format!("{name} {commands} {dir} {root}"));
    child.env("PATH", std::env::join_paths(paths).unwrap());
    let ended = child.output().unwrap();
    let moment = format!(
        "{name}, after {commands} commands: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert!(ended.status.success(), "{moment}");
    let left = std::fs::read_to_string(programs.path().join("zfs.left")).unwrap();
    (left.trim().parse::<i64>().unwrap() < 0, moment)
}

#[test]
fn a_layer_stays_when_a_command_fails() {
    run_over(&["zfs"], async || {
        let Some(store) = TestStore::open("zfs", Layout::Plain).await else {
            return;
        };
        let base = std::io::Cursor::new(tar(&[("file", "base")]));
        store
            .put_layer(None, LayerOptions::default().id("base"), base)
            .await
            .unwrap();
        for name in ["create", "repair", "heal"] {
            let mut failed = 0;
            loop {
                let (has_failed, moment) = run(&store, name, failed);
                let content = std::fs::read_to_string(tree_of(&store, "base").join("file"));
                assert_eq!(content.ok().as_deref(), Some("base"), "{moment}");
                let next = store.reopen().await;
                assert_clean(&next, &moment).await;
                next.free();
                if !has_failed {
                    break;
                }
                failed += 1;
            }
            assert!((1..MAX_COMMANDS).contains(&failed), "{name}: {failed}");
        }
    });
}
