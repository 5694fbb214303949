//! The same damages in split stores, in additional stores, and on other file systems.

use std::collections::BTreeSet;
use std::path::Path;

use super::healthy::{Damaged, Layout};
use super::{Case, Theirs, cases, examine_all, set};
use crate::support::loop_fs::{LoopFs, format};
use crate::support::peers::PeerSet;

/// Damages of each kind.
const SOME: [&str; 14] = [
    "nothing",
    "a file is missing",
    "a file was added",
    "a file has other content",
    "a set-ID bit is gone",
    "a file has no capabilities",
    "a link leads elsewhere",
    "a file of the top layer has other content",
    "the tar-split file is cut off",
    "the tree is missing",
    "the data of an image is missing",
    "the data of an image is another one",
    "the data of a container is missing",
    "the size of a layer is another one",
];

/// What is damaged in a layout if these items are in a plain store.
pub(super) fn seen_in(layout: Layout, items: &[&str]) -> BTreeSet<String> {
    if layout != Layout::Additional {
        return set(items);
    }
    let stands_on_image = items.contains(&"layer L1") || items.contains(&"layer L2");
    let mut seen = BTreeSet::new();
    for item in items {
        match *item {
            // It stands on an image of its own, which stands on the same layers.
            "container C1" if items.len() == 1 || stands_on_image => drop(seen.insert((*item).to_owned())),
            "container C1" => {}
            read_only => drop(seen.insert(format!("read-only {read_only}"))),
        }
    }
    if stands_on_image {
        seen.insert("image IP".to_owned());
    }
    // What stands on a layer without its files cannot be mounted.
    if items.contains(&"layer L1") && items.contains(&"layer L2") {
        seen.insert("layer P1".to_owned());
    }
    seen
}

fn some(driver: &str) -> Vec<Case> {
    let mut some = cases(driver);
    some.retain(|case| SOME.contains(&case.name));
    assert_eq!(some.len(), SOME.len());
    some
}

fn in_layout(driver: &'static str, layout: Layout) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let parent = Path::new("/dev/shm");
    let healthy = Damaged::healthy(parent, driver, layout);
    let mut cases = some(driver);
    if layout == Layout::Additional {
        for case in &mut cases {
            case.theirs =
                Theirs::Differs("it neither mounts nor compares the trees of stores that are only read");
        }
    }
    examine_all(&healthy, &cases, parent);
}

#[test]
fn damages_are_found_in_split_stores_over_overlay() {
    in_layout("overlay", Layout::Split);
}

#[test]
fn damages_are_found_in_additional_stores_over_overlay() {
    in_layout("overlay", Layout::Additional);
}

#[test]
fn damages_are_found_in_additional_stores_over_vfs() {
    in_layout("vfs", Layout::Additional);
}

fn on_file_system(kind: &str) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("disk.img");
    format(kind, &image, 400 << 20);
    let disk = LoopFs::mount(&image, &place.path().join("disk"));
    for driver in ["overlay", "vfs"] {
        let healthy = Damaged::healthy(disk.path(), driver, Layout::Plain);
        examine_all(&healthy, &some(driver), disk.path());
    }
}

#[test]
fn damages_are_found_on_btrfs() {
    on_file_system("btrfs");
}

#[test]
fn damages_are_found_on_xfs() {
    on_file_system("xfs");
}
