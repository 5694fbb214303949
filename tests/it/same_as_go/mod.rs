//! One sequence of operations, through the library and through the Go library's command: the same answers, the same
//! refusals, the same files.

mod accepted;
mod answer;
mod archives;
mod compare;
mod edit;
mod headers;
mod names;
mod op;
mod ours;
mod records;
mod roots;
mod script;
mod theirs;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use accepted::accepting;
use archives::Archives;
use names::Names;
use op::{New, Op, Step};
use records::Records;
use roots::Normaliser;

use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{each_set, require_driver};

/// One of the two roots.
struct Side {
    root: TestRoot,
    names: Names,
    records: Records,
    started: Timestamp,
}

impl Side {
    fn new(driver: &'static str, set: PeerSet, started: Timestamp) -> Self {
        Self {
            root: match driver {
                "btrfs" => TestRoot::of_driver(driver),
                _ => TestRoot::in_dir(&std::env::temp_dir(), driver),
            }
            .of(set),
            names: Names::default(),
            records: Records::default(),
            started,
        }
    }

    fn normaliser(&self) -> Normaliser<'_> {
        Normaliser::new(&self.root, &self.names, self.started)
    }

    /// Reads what an operation has left.
    fn look(&mut self, new: Option<&New>, known: &BTreeSet<&str>) {
        self.records = Records::read(&self.root);
        self.names.learn(&self.records, new, known);
    }

    /// What a script does to files itself.
    fn edit(&self, op: &Op) {
        match op {
            Op::Edit(key, edits) => {
                let layer = self.records.layer_of(&self.names.id(key));
                let path = self
                    .records
                    .mount_point(&layer)
                    .unwrap_or_else(|| panic!("{key} is not mounted"));
                edit::apply(path.as_ref(), edits);
            }
            Op::DateDeletions(key) if self.root.driver() == "overlay" => {
                let layer = self.records.layer_of(&self.names.id(key));
                edit::date_deletions(&self.root.graph().join("overlay").join(layer).join("diff"));
            }
            _ => {}
        }
    }
}

fn new_of(op: &Op) -> Option<&New> {
    match op {
        Op::CreateLayer(new) | Op::ImportLayer(new, _) | Op::CreateImage(new) | Op::CreateContainer(new) => {
            Some(new)
        }
        _ => None,
    }
}

/// What a step does, for messages.
fn title(op: &Op) -> String {
    match op {
        Op::Checkpoint(what) => format!("looking at {what}"),
        other => format!("{other:?}"),
    }
}

/// Runs the script on a fresh root on either side; panics with a list of all differences that are not accepted.
async fn run(driver: &'static str, set: PeerSet) {
    let archives = Archives::new().await;
    let started = Timestamp::now();
    let (mut ours, mut theirs) = (Side::new(driver, set, started), Side::new(driver, set, started));
    let store = ours.root.open().await;
    let old = theirs::is_old(&theirs.root);
    let age = set.age();
    let script = script::script();
    let known: BTreeSet<&str> = script
        .iter()
        .filter_map(|step| Some(new_of(&step.op)?.id))
        .filter(|id| !id.starts_with('@'))
        .collect();
    let mut found = Vec::new();
    let mut lasting = BTreeSet::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, Step { op, differs }) in script.iter().enumerate() {
        let our_outcome = ours::run(&store, op, &ours.names, &archives).await;
        let their_outcome = theirs::run(&theirs.root, old, op, &theirs.names, &archives).await;
        for side in [&mut ours, &mut theirs] {
            side.look(new_of(op), &known);
            side.edit(op);
        }
        let mut lines = compare::outcomes((&ours, &our_outcome), (&theirs, &their_outcome));
        // A difference that stays is told once.
        let records = compare::records(&ours, &theirs);
        lines.extend(records.iter().filter(|line| !lasting.contains(*line)).cloned());
        lasting = records.into_iter().collect();
        if let Op::Checkpoint(_) = op {
            lines.extend(compare::files(&ours, &theirs));
        }
        let mut shown = false;
        for line in lines {
            match accepting(&line, *differs, driver, age) {
                Some(accepted) => {
                    shown |= Some(accepted.key) == *differs;
                    *seen.entry(accepted.key).or_default() += 1;
                }
                None => found.push(format!("step {number}, {}: {line}", title(op))),
            }
        }
        if let Some(key) = differs.filter(|key| !shown && accepted::is_due(key, driver, age)) {
            found.push(format!(
                "step {number}, {}: the difference {key:?} is gone",
                title(op)
            ));
        }
    }
    store.shutdown_force().await.unwrap();
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    eprintln!(
        "{driver}, {set:?}: {} steps, accepted differences: {seen:?}",
        script.len()
    );
}

async fn overlay(set: PeerSet) {
    run("overlay", set).await;
}
each_set!(async overlay: "containers-storage");

async fn vfs(set: PeerSet) {
    run("vfs", set).await;
}
each_set!(async vfs: "containers-storage");

async fn btrfs(set: PeerSet) {
    if require_driver("btrfs") {
        run("btrfs", set).await;
    }
}
each_set!(newer async btrfs: "containers-storage");
