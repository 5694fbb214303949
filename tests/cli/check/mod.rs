//! Checks of damaged stores by both programs: which items each of them reports, where the other one is wrong, and what a repair
//! leaves.
//!
//! Each condition is a [`Case`]; there are many more stores than cases, because they come over several drivers, in several
//! layouts, on several file systems and in pairs. A store is damaged in a copy of a healthy one. Nothing in it may change by
//! a check, and nothing that is healthy by a repair.

mod healthy;
mod layouts;
mod odd_layers;
mod pairs;
mod records;
mod trees;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use healthy::{Damaged, Layout};

use crate::program::{Answer, Program};
use crate::support::peers::PeerSet;

/// What the newest Go program does with a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theirs {
    /// It reports the same items.
    Same,
    /// It reports nothing, for this reason.
    Misses(&'static str),
    /// It reports other items, for this reason.
    Differs(&'static str),
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    damage: fn(&Damaged),
    /// The items that are damaged.
    items: &'static [&'static str],
    theirs: Theirs,
    /// A repair mends it, and removes nothing.
    mended: bool,
    /// A layer that stays after a repair, although the image is gone that it was of.
    stays: &'static str,
}

impl Case {
    fn mended(mut self) -> Self {
        self.mended = true;
        self
    }

    fn leaving(mut self, layer: &'static str) -> Self {
        self.stays = layer;
        self
    }
}

const LAYER: &[&str] = &["layer L1", "image I1", "image I2", "container C1"];
const BOTH: &[&str] = &["layer L1", "layer L2", "image I1", "image I2", "container C1"];
const TOP: &[&str] = &["layer L2", "image I1", "container C1"];
const IMAGE: &[&str] = &["image I1", "container C1"];

fn case(name: &'static str, items: &'static [&'static str], theirs: Theirs, damage: fn(&Damaged)) -> Case {
    Case {
        name,
        damage,
        items,
        theirs,
        mended: false,
        stays: "",
    }
}

/// All cases over a driver.
fn cases(driver: &str) -> Vec<Case> {
    let mut all = trees::cases();
    all.extend(trees::of_streams());
    all.extend(trees::of_lost_files(driver));
    all.extend(records::of_data());
    all.extend(records::of_rows());
    if driver == "overlay" {
        all.extend(trees::of_overlay());
        all.extend(records::of_overlay());
    }
    all
}

/// The items that a report names.
fn named(answer: &Answer) -> BTreeSet<String> {
    let heads = answer.out.lines().filter(|line| !line.starts_with(' '));
    // The layers of containers have random IDs.
    heads
        .filter_map(|line| line.strip_suffix(':'))
        .filter(|item| item.rsplit(' ').next().is_some_and(|id| id.len() < 64))
        .map(str::to_owned)
        .collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// The items that a repair removes: those that are damaged, and what only they need.
fn removed(damaged: &BTreeSet<String>) -> BTreeSet<String> {
    let mut gone: BTreeSet<String> = damaged
        .iter()
        .filter(|item| !item.starts_with("read-only"))
        .cloned()
        .collect();
    for (lost, with_it) in [
        ("layer L1", "layer L2"),
        ("image I1", "layer L2"),
        ("image IP", "layer P1"),
    ] {
        if gone.contains(lost) {
            gone.insert(with_it.to_owned());
        }
    }
    gone
}

/// Damages a copy of `healthy` and has both programs check it, and ours repair it. What is wrong comes back.
fn examine(healthy: &Damaged, name: &str, damages: &[Case], parent: &Path) -> Vec<String> {
    let store = healthy.copy(parent);
    let mut wrong = Vec::new();
    let mut expected = BTreeSet::new();
    for case in damages {
        (case.damage)(&store);
        expected.extend(layouts::seen_in(store.layout, case.items));
    }
    let (before, untouched) = (store.everything(), store.untouched());
    let items = store.items();

    let found = store.run(Program::Ours, "check");
    if named(&found) != expected || found.code != i32::from(!expected.is_empty()) {
        wrong.push(format!("{name}: expected {expected:?}: {found:?}"));
    }
    let after = store.everything();
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    wrong.extend(changed.map(|path| format!("{name}: the check has changed {}", path.display())));

    wrong.extend(compare(&store, name, damages, &expected, &found));

    let repaired = store.run(Program::Ours, "check -f");
    let is_read_only = expected.iter().any(|item| item.starts_with("read-only"));
    if repaired.code != i32::from(is_read_only) {
        wrong.push(format!("{name}: the repair: {repaired:?}"));
    }
    let after = store.run(Program::Ours, "check");
    let left: BTreeSet<String> = expected
        .iter()
        .filter(|item| item.starts_with("read-only"))
        .cloned()
        .collect();
    if named(&after) != left {
        wrong.push(format!("{name}: after the repair: {after:?}"));
    }
    let mut gone = match damages.iter().any(|case| case.mended) {
        true => BTreeSet::new(),
        false => removed(&expected),
    };
    gone.retain(|item| damages.iter().all(|case| case.stays != item));
    let expected_items: Vec<String> = items.into_iter().filter(|item| !gone.contains(item)).collect();
    if store.items() != expected_items {
        wrong.push(format!(
            "{name}: left are {:?}, not {expected_items:?}",
            store.items()
        ));
    }
    if store.untouched() != untouched {
        wrong.push(format!("{name}: something healthy was touched"));
    }
    let outside = store.root.path().join("outside");
    if outside.exists() && fs::read_to_string(&outside).unwrap() != "content" {
        wrong.push(format!("{name}: something outside was touched"));
    }
    wrong
}

/// What the other program finds, on a copy of the store.
fn compare(
    store: &Damaged,
    name: &str,
    damages: &[Case],
    expected: &BTreeSet<String>,
    ours: &Answer,
) -> Option<String> {
    let copy = store.copy(store.root.path().parent().unwrap());
    let theirs = copy.run(Program::Theirs, "check");
    let (mut found, mut expected) = (named(&theirs), expected.clone());
    // It compares what a layer shows, so that the one above has the same faults.
    if expected.iter().any(|item| item.ends_with("layer L1")) {
        found.remove("layer L2");
        expected.remove("layer L2");
    }
    let is_as_expected = match damages {
        [case] => match case.theirs {
            Theirs::Same => found == expected && theirs.code == ours.code,
            Theirs::Misses(_why) => found.is_empty() && theirs.code == 0,
            Theirs::Differs(_why) => true,
        },
        _ => true,
    };
    (!is_as_expected).then(|| format!("{name}: theirs: {theirs:?}"))
}

/// Examines each of the cases alone.
fn examine_all(healthy: &Damaged, cases: &[Case], parent: &Path) {
    let part = |cases: &[Case]| -> Vec<String> {
        let each = cases.iter();
        each.flat_map(|case| examine(healthy, case.name, &[*case], parent))
            .collect()
    };
    let (first, second) = cases.split_at(cases.len() / 2);
    let wrong = std::thread::scope(|scope| {
        let first = scope.spawn(|| part(first));
        let mut wrong = part(second);
        wrong.extend(first.join().unwrap());
        wrong
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn each_damage(driver: &'static str) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let parent = Path::new("/dev/shm");
    let healthy = Damaged::healthy(parent, driver, Layout::Plain);
    examine_all(&healthy, &cases(driver), parent);
}

#[test]
fn each_damage_is_found_and_repaired_over_overlay() {
    each_damage("overlay");
}

#[test]
fn each_damage_is_found_and_repaired_over_vfs() {
    each_damage("vfs");
}

#[test]
fn a_report_is_json_too() {
    if !crate::support::require_root() {
        return;
    }
    let store = Damaged::healthy(Path::new("/dev/shm"), "vfs", Layout::Plain);
    let clean = "{\"Layers\":{},\"ROLayers\":{},\"Images\":{},\"ROImages\":{},\"Containers\":{}}\n";
    assert_eq!(store.run(Program::Ours, "check -j").out, clean);
    fs::remove_file(store.tree("L2").join("dir/new")).unwrap();
    let answer = store.run(Program::Ours, "check -j");
    assert_eq!(answer.code, 1, "{answer:?}");
    let report: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let errors = report["Layers"]["L2"].as_array().unwrap();
    assert_eq!(errors.len(), 2, "{report:#}");
    assert!(
        errors[0]["error"].as_str().unwrap().contains("it is missing"),
        "{report:#}"
    );
    let inherited = report["Containers"]["C1"].as_array().unwrap();
    assert_eq!(inherited.len(), 2, "{report:#}");
}
