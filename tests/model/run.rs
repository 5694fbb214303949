//! Running a sequence on a real store and on the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use graphroot::{CheckOptions, DiffOptions, ErrorKind, Finding, Problem, Store};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

use crate::disk;
use crate::kill::{Killer, Moment};
use crate::model::{Item as _, Model};
use crate::observe::observe;
use crate::operation::{Operation, Outcome, digest};
use crate::plan::Plan;
use crate::rules::Expected;
use crate::support::peers::PeerSet;
use crate::support::root::{TestRoot, mounts_below};
use crate::worker::{Location, Remote};
use crate::zfs::{self, Dataset};

/// A call of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) plan: Plan,
    /// By the process of the test, not by the other one.
    pub(crate) here: bool,
    /// The other process makes the call, is killed, and gets a successor.
    pub(crate) kill: Option<Kill>,
}

/// How a call is cut short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) moment: Moment,
    /// Who looks first: the process that goes on, or the one that opens the store anew.
    pub(crate) survivor_first: bool,
}

/// A store that two processes use, and what it should be.
pub(crate) struct Bench<'a> {
    runtime: &'a Runtime,
    /// Before the root goes.
    _unmounting: Option<Unmounting>,
    pub(crate) root: TestRoot,
    pub(crate) location: Location,
    here: Store,
    there: Remote,
    pub(crate) model: Model,
    /// What was called, for the report of a failure.
    log: String,
    counts: Counts,
    /// What the root is in, if the driver is zfs.
    dataset: Option<Dataset>,
}

/// Unmounts what zfs-fuse has mounted below a directory, with the care that this takes.
struct Unmounting(PathBuf);

impl Drop for Unmounting {
    fn drop(&mut self) {
        for mounted in mounts_below(&self.0).iter().rev() {
            zfs::unmounts(mounted);
        }
    }
}

/// What was called, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// By kind of call, how many returned a value and how many an error.
    pub(crate) returned: BTreeMap<String, [u32; 2]>,
    /// By kind of call, of those that were killed before they returned, how many had not and had happened.
    pub(crate) cut: BTreeMap<String, [u32; 2]>,
    /// Kills that came too late.
    pub(crate) late: u32,
}

impl Counts {
    fn returned(&mut self, operation: &Operation, outcome: &Outcome) {
        let counts = self.returned.entry(operation.name()).or_default();
        counts[usize::from(outcome.is_err())] += 1;
    }

    fn cut(&mut self, operation: &Operation, happened: bool) {
        self.cut.entry(operation.name()).or_default()[usize::from(happened)] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sums, counts) in [(&mut self.returned, &other.returned), (&mut self.cut, &other.cut)] {
            for (name, [first, second]) in counts {
                let sum = sums.entry(name.clone()).or_default();
                *sum = [sum[0] + first, sum[1] + second];
            }
        }
        self.late += other.late;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sum = |counts: &BTreeMap<String, [u32; 2]>, index: usize| -> u32 {
            counts.values().map(|counts| counts[index]).sum()
        };
        let (values, errors) = (sum(&self.returned, 0), sum(&self.returned, 1));
        write!(f, "{values} values and {errors} errors")?;
        let (before, after) = (sum(&self.cut, 0), sum(&self.cut, 1));
        if before + after > 0 {
            write!(
                f,
                ", {} calls killed of which {after} had happened, {} kills late",
                before + after,
                self.late
            )?;
        }
        Ok(())
    }
}

/// What is the same for all sequences of a test.
pub(crate) struct Setup<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) driver: &'static str,
    /// The programs beside which the store is used.
    pub(crate) peers: PeerSet,
    /// The other process, which survives its sequence if it can.
    pub(crate) spare: &'a mut Option<Remote>,
}

/// Runs a sequence on a fresh store. Fails with everything that there is to say.
pub(crate) fn run(setup: &mut Setup<'_>, transient: bool, steps: &[Step]) -> Result<Counts, String> {
    let mut bench = Bench::new(setup, transient)?;
    bench.there.open(&bench.location)?;
    let result = steps
        .iter()
        .try_for_each(|step| bench.step(step))
        .and_then(|()| bench.end(steps.iter().any(|step| step.kill.is_some())));
    match result {
        Ok(()) => {
            // What has files open in a dataset keeps it mounted.
            if bench.dataset.is_none() {
                *setup.spare = Some(bench.there);
            }
            Ok(bench.counts)
        }
        Err(error) => Err(bench.report(&error)),
    }
}

/// Whether a call's outcome is among those that the model allows.
fn matches(expected: &Expected, outcome: &Outcome) -> bool {
    match (expected, outcome) {
        (Ok(expected), Ok(value)) => expected == value,
        (Err(kinds), Err(text)) => {
            let kind = text.split(' ').next().unwrap_or_default();
            kinds.contains(&kind)
        }
        _ => false,
    }
}

impl<'a> Bench<'a> {
    /// A fresh store, open in this process.
    pub(crate) fn new(setup: &mut Setup<'a>, transient: bool) -> Result<Self, String> {
        let dataset = (setup.driver == "zfs").then(|| Dataset::new().unwrap());
        let root = match &dataset {
            Some(dataset) => TestRoot::in_dir(dataset.path(), setup.driver),
            None => TestRoot::of_driver(setup.driver),
        };
        let root = root.of(setup.peers);
        let location = Location::of(&root, transient);
        let there = setup.spare.take().unwrap_or_else(|| Remote::start(&root));
        let opened = setup.runtime.block_on(location.open());
        Ok(Self {
            runtime: setup.runtime,
            model: Model::new(setup.driver, transient),
            _unmounting: dataset.as_ref().map(|_| Unmounting(root.path().to_owned())),
            root,
            dataset,
            location,
            here: opened.map_err(|error| format!("opening: {}", error.chain()))?,
            there,
            log: String::new(),
            counts: Counts::default(),
        })
    }

    /// What was called, and what is wrong.
    pub(crate) fn report(&self, error: &str) -> String {
        let transient = self.model.transient;
        format!(
            "{}, transient: {transient}\n{}{error}",
            self.root.driver(),
            self.log
        )
    }

    /// The other process, to be used again.
    pub(crate) fn into_spare(self) -> Remote {
        self.there
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let operation = step.plan.resolve(&self.model);
        match step.kill {
            Some(kill) if self.is_worth_a_kill(&operation) => self.killed(&operation, kill),
            _ => self.whole(&operation, step.here),
        }
    }

    /// Whether the call will change something that is seen.
    fn is_worth_a_kill(&self, operation: &Operation) -> bool {
        let unseen = matches!(
            operation,
            Operation::SetContainerFile { .. } | Operation::Ask { .. }
        );
        let mut after = self.model.clone();
        !unseen && after.apply(operation, None).is_ok() && after.view() != self.model.view()
    }

    /// A call that is not interrupted.
    pub(crate) fn whole(&mut self, operation: &Operation, here: bool) -> Result<(), String> {
        let outcome = if here {
            self.runtime.block_on(operation.run(&self.here))
        } else {
            self.there.run(operation)
        };
        let who = if here { "here" } else { "there" };
        writeln!(self.log, "{who}: {operation:?}\n    -> {outcome:?}").unwrap();
        self.counts.returned(operation, &outcome);
        let expected = self.model.apply(operation, Some(&outcome));
        if matches(&expected, &outcome) {
            Ok(())
        } else {
            Err(format!("the model says {expected:?}"))
        }
    }

    /// A call whose process is killed meanwhile: it has happened, or it has not.
    fn killed(&mut self, operation: &Operation, kill: Kill) -> Result<(), String> {
        writeln!(self.log, "{kill:?}").unwrap();
        let killer = Killer::start(&self.root, self.there.id(), kill.moment);
        self.there.begin(operation);
        let outcome = self.there.end();
        killer.stop();
        let next = Remote::start(&self.root);
        std::mem::replace(&mut self.there, next).kill();
        self.after_kill(operation, outcome.as_ref(), kill.survivor_first)
    }

    /// Compares the store with the states before and after a call, of which nothing or only the outcome was heard.
    pub(crate) fn after_kill(
        &mut self,
        operation: &Operation,
        outcome: Option<&Outcome>,
        survivor_first: bool,
    ) -> Result<(), String> {
        writeln!(self.log, "killed: {operation:?}").unwrap();
        let mut after = self.model.clone();
        let expected = after.apply(operation, None);
        if let Some(outcome) = outcome {
            self.counts.late += 1;
            self.counts.returned(operation, outcome);
            writeln!(self.log, "    -> {outcome:?}").unwrap();
            if !matches(&expected, outcome) {
                return Err(format!("the model says {expected:?}"));
            }
        }
        let before_view = self.model.view();
        let mut after_view = after.view();
        let mut views = Vec::new();
        for survivor in [survivor_first, !survivor_first] {
            let view = self.look(survivor)?;
            let who = if survivor { "survivor" } else { "successor" };
            let stepwise = operation.is_stepwise() || self.model.deletes_layer_of_image(operation);
            if outcome.is_none() && stepwise && views.is_empty() {
                after = self.model.between(&after, &view);
                if operation.is_stepwise() {
                    after.check_references(&self.model)?;
                }
                after_view = after.view();
            }
            if view != after_view && (outcome.is_some() || view != before_view) {
                let before = difference(&before_view, &view);
                let after = difference(&after_view, &view);
                return Err(format!(
                    "the {who} sees neither of\n--- the state before:\n{before}--- the state after:\n{after}"
                ));
            }
            views.push(view);
        }
        if views[0] != views[1] {
            return Err("the survivor and the successor see different states".into());
        }
        let happened = views[0] == after_view;
        if outcome.is_none() {
            self.counts.cut(operation, happened);
        }
        writeln!(self.log, "    happened: {happened}").unwrap();
        if happened {
            self.model = after;
        }
        if outcome.is_none() {
            self.model.was_cut(operation);
        }
        Ok(())
    }

    /// Compares the store with its state before a call that changes nothing.
    pub(crate) fn unchanged(&mut self, survivor_first: bool) -> Result<(), String> {
        for survivor in [survivor_first, !survivor_first] {
            let view = self.look(survivor)?;
            self.is_as_expected(&view)?;
        }
        Ok(())
    }

    /// Compares what was seen of the store with what there is.
    pub(crate) fn is_as_expected(&self, seen: &Value) -> Result<(), String> {
        let expected = self.model.view();
        match *seen == expected {
            true => Ok(()),
            false => Err(format!("seen otherwise:\n{}", difference(&expected, seen))),
        }
    }

    /// What the survivor of a kill sees, or the process that comes after the killed one.
    fn look(&mut self, survivor: bool) -> Result<Value, String> {
        if survivor {
            let seen = self.runtime.block_on(observe(&self.here));
            return seen.map_err(|error| format!("looking, by the survivor: {error:?}"));
        }
        self.there.open(&self.location)?;
        let seen = self.there.observe();
        seen.map_err(|error| format!("looking, by the successor: {error}"))
    }

    /// As [`Bench::after_kill`], for calls at the same time that do not depend on each other: each of them has happened or
    /// not.
    pub(crate) fn after_kill_together(
        &mut self,
        operations: &[Operation],
        outcomes: Option<&[Outcome]>,
        survivor_first: bool,
    ) -> Result<(), String> {
        writeln!(self.log, "killed: {operations:?}").unwrap();
        let all = (1_usize << operations.len()) - 1;
        let states = (0..=all).filter(|chosen| outcomes.is_none() || *chosen == all);
        let mut states: Vec<Model> = states
            .map(|chosen| {
                let mut model = self.model.clone();
                for (index, operation) in operations.iter().enumerate() {
                    if chosen & (1 << index) != 0 {
                        drop(model.apply(operation, None));
                    }
                }
                model
            })
            .collect();
        if let Some(outcomes) = outcomes {
            let mut model = self.model.clone();
            for (operation, outcome) in operations.iter().zip(outcomes) {
                let expected = model.apply(operation, None);
                if !matches(&expected, outcome) {
                    return Err(format!(
                        "{operation:?} -> {outcome:?}; the model says {expected:?}"
                    ));
                }
            }
        }
        for survivor in [survivor_first, !survivor_first] {
            let view = self.look(survivor)?;
            states.retain(|state| state.view() == view);
            if states.is_empty() {
                let before = difference(&self.model.view(), &view);
                return Err(format!(
                    "a state in which one of the calls has half happened:\n--- the state before:\n{before}"
                ));
            }
        }
        self.model = states.swap_remove(0);
        if outcomes.is_none() {
            for operation in operations {
                self.model.was_cut(operation);
            }
        }
        Ok(())
    }

    /// Compares everything, and that everything can be removed again.
    pub(crate) fn end(&mut self, with_kills: bool) -> Result<(), String> {
        let expected = self.model.view();
        let seen = self.runtime.block_on(observe(&self.here));
        let here = seen.map_err(|error| format!("looking at the end, here: {error:?}"))?;
        let there = self
            .there
            .observe()
            .map_err(|error| format!("looking at the end, there: {error}"))?;
        for (who, seen) in [("here", here), ("there", there)] {
            if seen != expected {
                return Err(format!("at the end, {who}:\n{}", difference(&expected, &seen)));
            }
        }
        self.exports()?;
        self.check_finds_nothing(with_kills)?;
        if with_kills {
            let collected = self.runtime.block_on(self.here.garbage_collect());
            match collected {
                // What was deleted whether or not it was used looks like a lost record.
                Err(error)
                    if error.kind() == ErrorKind::CorruptMetadata && self.model.has_lost_references() => {}
                collected => collected.map_err(|error| format!("collecting garbage: {error:?}"))?,
            }
        }
        self.disk("at the end", with_kills)?;
        let wiped = self.runtime.block_on(self.here.wipe());
        wiped.map_err(|error| format!("wiping: {error:?}"))?;
        self.model = Model::new(self.root.driver(), self.model.transient);
        let seen = self.there.observe()?;
        if seen != self.model.view() {
            return Err(format!("after wiping: {seen}"));
        }
        self.disk("after wiping", with_kills)
    }

    /// Nothing is found that nobody has damaged.
    fn check_finds_nothing(&self, with_kills: bool) -> Result<(), String> {
        let report = self.runtime.block_on(self.here.check(CheckOptions::everything()));
        let report = report.map_err(|error| format!("checking: {}", error.chain()))?;
        let is_known = |finding: &Finding| match finding.kind() {
            // What was deleted whether or not it was used.
            ErrorKind::LayerMissing | ErrorKind::ImageLayerMissing | ErrorKind::ContainerImageMissing => {
                self.model.has_lost_references()
            }
            // What a killed process has left, and garbage collection removes.
            ErrorKind::LayerUnaccounted => with_kills,
            ErrorKind::LayerContentModified => self.model.is_mixed(&origin(finding).item.id),
            _ => false,
        };
        match report.findings.iter().find(|finding| !is_known(finding)) {
            Some(finding) => Err(format!("the check finds {finding}")),
            None => Ok(()),
        }
    }

    fn disk(&self, when: &str, with_kills: bool) -> Result<(), String> {
        let found = match &self.dataset {
            Some(dataset) => datasets_in(dataset),
            None => self.root.layer_directories(),
        };
        let differences = disk::differences(&self.root, found, &self.model, with_kills);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("on disk {when}:\n{}", differences.join("\n")))
        }
    }

    /// Layers come out as they were put.
    fn exports(&mut self) -> Result<(), String> {
        for layer in &self.model.layers.0 {
            let parent_there = layer
                .parent
                .as_ref()
                .is_none_or(|parent| self.model.layers.get(parent).is_some());
            let Some(diff) = layer
                .diff
                .as_ref()
                .filter(|_| parent_there && self.model.is_whole(layer))
            else {
                continue;
            };
            let id = &layer.common().id;
            let exported = self.runtime.block_on(async {
                let mut bytes = Vec::new();
                let mut stream = self.here.diff(None, id, DiffOptions::uncompressed()).await?;
                stream.read_to_end(&mut bytes).await.unwrap();
                graphroot::Result::<Vec<u8>>::Ok(bytes)
            });
            let bytes = exported.map_err(|error| format!("exporting layer {id}: {error:?}"))?;
            if bytes != diff.tar {
                return Err(format!("layer {id} comes out as {}", digest(bytes)));
            }
        }
        Ok(())
    }
}

/// The datasets of layers, whatever state they are in.
fn datasets_in(dataset: &Dataset) -> BTreeSet<String> {
    let mut zfs = Command::new("zfs");
    zfs.args(["list", "-H", "-r", "-t", "filesystem", "-o", "name"]);
    let listed = zfs.arg(dataset.name()).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let names = listed.lines().filter_map(|name| name.rsplit_once('/'));
    let below = names.filter(|(above, _name)| *above == dataset.name());
    below.map(|(_above, name)| name.to_owned()).collect()
}

/// The finding from which one is inherited.
fn origin(finding: &Finding) -> &Finding {
    match &finding.problem {
        Problem::Inherited(from) => origin(from),
        _ => finding,
    }
}

/// The parts of two views that differ, one a line.
fn difference(expected: &Value, seen: &Value) -> String {
    let mut text = String::new();
    for (kind, items) in expected.as_object().unwrap() {
        let nothing = json!({});
        let (old, new) = (items, seen.get(kind).unwrap_or(&nothing));
        let keys = old.as_object().unwrap().keys();
        let mut ids: Vec<&String> = keys.chain(new.as_object().unwrap().keys()).collect();
        ids.sort();
        ids.dedup();
        for id in ids {
            let (old, new) = (&old[id.as_str()], &new[id.as_str()]);
            if old != new {
                writeln!(text, "{kind} {id}\n    expected {old}\n    seen     {new}").unwrap();
            }
        }
    }
    text
}
