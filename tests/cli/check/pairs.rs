//! Two damages at once: both are found, and repaired.

use std::path::Path;

use super::healthy::{Damaged, Layout};
use super::{Case, cases, examine};
use crate::support::peers::PeerSet;

/// Damages that keep out of each other's way, by their names.
const PAIRS: [(&str, &str); 22] = [
    ("a file is missing", "a file was added"),
    ("a file is missing", "the data of an image is missing"),
    ("a file has other content", "a set-ID bit is gone"),
    (
        "a file has other content",
        "a file of the top layer has other content",
    ),
    ("a file has another mode", "a file has another owner"),
    ("a directory has another mode", "a link leads elsewhere"),
    ("a hidden file was added", "a file was added to the top layer"),
    ("a file is a directory", "a directory is a file"),
    ("an empty file is missing", "the data of a container is missing"),
    (
        "a file of the top layer is missing",
        "the data of a layer is missing",
    ),
    ("a file of the top layer is missing", "a layer without a record"),
    ("the tar-split file is missing", "a file has other content"),
    (
        "the tar-split file is cut off",
        "the data of an image is another one",
    ),
    ("the tar-split file is empty", "the tree is missing"),
    (
        "everything of the driver is missing",
        "the tar-split file is missing",
    ),
    ("everything of the driver is missing", "a layer without a record"),
    (
        "the data of an image is missing",
        "the data of a container is missing",
    ),
    (
        "the data of an image is longer",
        "a container is of an image that is nowhere",
    ),
    ("the digest of a layer is another one", "a file has other content"),
    (
        "the digest of a layer is none",
        "the size of a layer is another one",
    ),
    (
        "a container is of a layer that is nowhere",
        "the data of an image is missing",
    ),
    ("data without a record", "a file is missing"),
];

fn pairs_are_found(driver: &'static str) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let parent = Path::new("/dev/shm");
    let healthy = Damaged::healthy(parent, driver, Layout::Plain);
    let all = cases(driver);
    let find = |name: &str| -> Case {
        let found = all.iter().find(|case| case.name == name);
        *found.unwrap_or_else(|| panic!("there is no case {name:?}"))
    };
    let wrong: Vec<String> = PAIRS
        .iter()
        .flat_map(|(one, other)| {
            examine(
                &healthy,
                &format!("{one}, {other}"),
                &[find(one), find(other)],
                parent,
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pairs_are_found_and_repaired_over_overlay() {
    pairs_are_found("overlay");
}

#[test]
fn pairs_are_found_and_repaired_over_vfs() {
    pairs_are_found("vfs");
}
