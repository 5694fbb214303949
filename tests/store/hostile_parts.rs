//! Blobs that are made to do harm to who pulls them in parts. The measure is the ordinary pull of the same tar.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use graphroot::LayerOptions;

use crate::hostile_blobs::{Case, Draft, ordinary};
use crate::hostile_contents::{CHUNKS, CONTENTS};
use crate::hostile_entries::ENTRIES;
use crate::hostile_lines::TAR_SPLITS;
use crate::hostile_tables::{ANNOTATIONS, TEXTS};
use crate::odd_layers::odd;
use crate::support::{Layout, PATIENCE, TestStore, over, tree_of};

/// Everything below a directory.
fn names_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        // What is being removed may be gone by now.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Below vfs there are no staged layers, and where the files of a store lie changes nothing.
fn on_overlay(case: fn(TestStore) -> std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    over("overlay", Layout::Plain, case);
}

async fn refuse_all(store: &TestStore, cases: &[Case]) {
    let honest = Draft::of(&ordinary()).finish();
    for expected in [None, Some(&honest.diff_id)] {
        let staged = honest.prepare(store, expected).await.unwrap();
        store.cleanup_staged_layer(staged).await.unwrap();
    }
    let before = names_below(store.path());
    let mut faults = Vec::new();
    for (what, change, kind, text) in cases {
        for is_expected in [false, true] {
            let mut draft = Draft::of(&ordinary());
            change(&mut draft);
            let blob = draft.finish();
            match blob.prepare(store, is_expected.then_some(&blob.diff_id)).await {
                Ok(_) => faults.push(format!("{what} is taken ({is_expected})")),
                Err(error) => {
                    let chain = error.chain().to_string().replace('"', "");
                    if error.kind() != *kind || !chain.contains(text) {
                        faults.push(format!("{what} ({is_expected}): {:?} {chain}", error.kind()));
                    }
                    if chain.len() > 2000 {
                        faults.push(format!("{what}: a message of {} bytes", chain.len()));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(store.own_layers().await.is_empty());
    // What was staged is removed in the background.
    let removed = async {
        while names_below(store.path()).difference(&before).next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, removed).await.is_err() {
        let after = names_below(store.path());
        panic!("{:?}", after.difference(&before).collect::<Vec<_>>());
    }
    store.free();
    drop(store.reopen().await);
}

macro_rules! refused {
    ($($name:ident: $cases:ident;)*) => {
        $(#[test]
        fn $name() {
            on_overlay(|store| Box::pin(async move { refuse_all(&store, $cases).await }));
        })*
    };
}

refused! {
    tables_that_cannot_be_read_are_refused: TEXTS;
    annotations_that_lie_are_refused: ANNOTATIONS;
    entries_that_lie_are_refused: ENTRIES;
    chunks_that_lie_are_refused: CHUNKS;
    contents_that_are_others_are_refused: CONTENTS;
    tar_split_data_that_lies_is_refused: TAR_SPLITS;
}

#[test]
fn odd_layers_are_those_of_the_ordinary_pull() {
    on_overlay(|store| {
        Box::pin(async move {
            let mut faults = Vec::new();
            for (what, members) in odd() {
                let blob = Draft::of(&members).finish();
                let options = LayerOptions::default().id("whole");
                let whole = store
                    .put_layer(None, options, Cursor::new(blob.tar.clone()))
                    .await;
                for expected in [None, Some(&blob.diff_id)] {
                    let staged = blob.prepare(&store, expected).await;
                    let parts = match staged {
                        Ok(staged) => {
                            let options = LayerOptions::default().id("parts");
                            store.apply_staged_layer(None, options, staged).await
                        }
                        Err(error) => Err(error),
                    };
                    match (&whole, parts) {
                        (Ok(_), Ok(layer)) => {
                            if layer.uncompressed_digest().as_ref() != Some(&blob.diff_id) {
                                faults.push(format!("{what}: another diff ID"));
                            }
                            let trees = ["whole", "parts"].map(|id| {
                                let mut tree = crate::manifest::manifest(&tree_of(&store, id));
                                // Directories without an entry have the time at which they were made.
                                for (path, entry) in &mut tree {
                                    let is_named = members.iter().any(|member| {
                                        member.kind == "dir"
                                            && !member.name.starts_with(".wh.")
                                            && Path::new(&member.name) == *path
                                    });
                                    if entry.kind == "directory" && !is_named {
                                        entry.mtime = (0, 0);
                                    }
                                }
                                tree
                            });
                            let differences = crate::manifest::differences(&trees[0], &trees[1]);
                            if !differences.is_empty() {
                                faults.push(format!("{what}: {differences:?}"));
                            }
                            store.delete_layer("parts").await.unwrap();
                        }
                        (Err(whole), Err(parts)) if whole.kind() == parts.kind() => {}
                        (Err(whole), Err(parts)) => {
                            faults.push(format!("{what}: {} but {}", whole.chain(), parts.chain()));
                        }
                        (Ok(_), Err(error)) => {
                            faults.push(format!("{what} is refused: {}", error.chain()));
                        }
                        (Err(error), Ok(_)) => {
                            faults.push(format!("{what} is taken, but not as a whole: {}", error.chain()));
                            store.delete_layer("parts").await.unwrap();
                        }
                    }
                }
                if whole.is_ok() {
                    store.delete_layer("whole").await.unwrap();
                }
            }
            assert!(faults.is_empty(), "{}", faults.join("\n"));
            assert!(!Path::new("/tmp/graphroot-planted").exists());
            assert!(store.own_layers().await.is_empty());
        })
    });
}

/// A line of this process's status, in KiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Most that a pull may take beside the blob, in KiB.
const MOST: u64 = 128 << 10;

#[test]
#[ignore = "measures the memory of its process, in which there must be nothing else"]
fn alone() {
    on_overlay(|store| {
        Box::pin(async move {
            let large = [
                "millions",
                "1 GiB",
                "MiB",
                "GiB",
                "TB",
                "2^62",
                "without end",
                "nested",
            ];
            let cases = [TEXTS, ENTRIES, CHUNKS, TAR_SPLITS].concat();
            let honest = Draft::of(&ordinary()).finish();
            drop(honest.prepare(&store, None).await.unwrap());
            for (what, change, ..) in cases {
                if !large.iter().any(|part| what.contains(part)) {
                    continue;
                }
                let mut draft = Draft::of(&ordinary());
                change(&mut draft);
                let blob = draft.finish();
                std::fs::write("/proc/self/clear_refs", "5").unwrap();
                let before = memory("VmRSS");
                blob.prepare(&store, Some(&blob.diff_id)).await.unwrap_err();
                let taken = memory("VmHWM").saturating_sub(before);
                eprintln!("{what}: {taken} KiB");
                assert!(taken < MOST, "{what} takes {taken} KiB");
            }
        })
    });
}

#[test]
fn harm_takes_little_memory() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["hostile_parts::alone", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
