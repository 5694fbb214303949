//! Commands of `zfs` that fail once: that tells nothing of a layer, which stays.

use graphroot::{CheckOptions, HealOptions, LayerOptions, RepairOptions, Store};

use crate::support::{Layout, TestStore, assert_clean, run_over, tar, tree_of};
use crate::zfs_process::ZfsProcess;

const PROCESS: ZfsProcess = ZfsProcess {
    variable: "GRAPHROOT_TEST_ZFS_FAIL",
    entry: "zfs_failures::a_process_of_which_a_command_fails",
    program: PROGRAM,
};

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
    let Some((store, name)) = PROCESS.begin().await else {
        return;
    };
    if let Err(error) = step(&store, &name).await {
        eprintln!("{}", error.chain());
    }
}

/// Has the command after so many fail; `false` if the step has ended before. Also returns when that was.
fn run(store: &TestStore, name: &str, commands: i64) -> (bool, String) {
    let (ended, programs) = PROCESS.run(store, name, commands);
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
