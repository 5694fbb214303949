//! The command that looks for damage in a store, and removes it.

use std::collections::BTreeMap;
use std::time::Duration;

use graphroot::{
    CheckOptions, CheckReport, CheckedItem, Finding, ItemKind, KeptReason, RepairOptions, RepairReport,
};
use serde::Serialize;

use crate::call::Call;
use crate::flags::check as flags;
use crate::input::spinner;
use crate::outcome::{CommandError, DONE, FAILED, Outcome, describe};
use crate::output::Output;
use crate::text::{duration, go_quote};

/// A finding in JSON. The Go program encodes an error value as an empty object.
#[derive(Serialize)]
struct FindingRow<'a> {
    error: String,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// A report in JSON, with the fields of the Go program and, where there is something to say, others.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReportRow<'a> {
    layers: BTreeMap<&'a str, Vec<FindingRow<'a>>>,
    #[serde(rename = "ROLayers")]
    read_only_layers: BTreeMap<&'a str, Vec<FindingRow<'a>>>,
    images: BTreeMap<&'a str, Vec<FindingRow<'a>>>,
    #[serde(rename = "ROImages")]
    read_only_images: BTreeMap<&'a str, Vec<FindingRow<'a>>>,
    containers: BTreeMap<&'a str, Vec<FindingRow<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    store: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    strays: Vec<String>,
}

/// A failure of the repair in JSON.
#[derive(Serialize)]
struct FailureRow {
    error: String,
}

/// Checks and repairs after the first: one for records, one for the driver's files, one for the rest.
const ROUNDS: usize = 3;

const SECTIONS: [(ItemKind, bool); 5] = [
    (ItemKind::Layer, false),
    (ItemKind::Layer, true),
    (ItemKind::Image, false),
    (ItemKind::Image, true),
    (ItemKind::Container, false),
];

fn rows(report: &CheckReport, kind: ItemKind, read_only: bool) -> BTreeMap<&str, Vec<FindingRow<'_>>> {
    let row = |finding| FindingRow {
        error: Finding::to_string(finding),
        finding,
    };
    let damaged = report.damaged(kind, read_only).into_iter();
    damaged
        .map(|(id, findings)| (id, findings.into_iter().map(row).collect()))
        .collect()
}

fn print_report(call: &Call, out: &mut Output, report: &CheckReport) -> Result<(), CommandError> {
    if call.json() {
        return out.json(&ReportRow {
            layers: rows(report, ItemKind::Layer, false),
            read_only_layers: rows(report, ItemKind::Layer, true),
            images: rows(report, ItemKind::Image, false),
            read_only_images: rows(report, ItemKind::Image, true),
            containers: rows(report, ItemKind::Container, false),
            store: report.store_problems.iter().map(ToString::to_string).collect(),
            strays: report.strays.iter().map(ToString::to_string).collect(),
        });
    }
    for (kind, read_only) in SECTIONS {
        for findings in report.damaged(kind, read_only).values() {
            if let Some(first) = findings.first() {
                out.line(format!("{}:", first.item))?;
            }
            for finding in findings {
                out.line(format!(" {finding}"))?;
            }
        }
    }
    for problem in &report.store_problems {
        out.stderr_line(problem.to_string())?;
    }
    if report.records_alone {
        out.stderr_line("contents were not checked: the records cannot be loaded")?;
    }
    for stray in &report.strays {
        out.stderr_line(format!("{stray} (gc removes it)"))?;
    }
    Ok(())
}

/// Damaged items by kind, as the Go program counts them.
fn counts(report: &CheckReport, sections: &[(ItemKind, bool)]) -> Option<String> {
    let count = |(kind, read_only): &(ItemKind, bool)| report.damaged(*kind, *read_only).len();
    let text = |section: &(ItemKind, bool)| {
        let noun = match section {
            (ItemKind::Layer, false) => "layer",
            (ItemKind::Layer, true) => "read-only layer",
            (ItemKind::Image, false) => "image",
            (ItemKind::Image, true) => "read-only image",
            _ => "container",
        };
        format!("{} {noun} errors", count(section))
    };
    let any = sections.iter().any(|section| count(section) > 0);
    any.then(|| sections.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// What a repair has made anew.
fn print_mended(out: &mut Output, repaired: &RepairReport) -> Result<(), CommandError> {
    for file in &repaired.replaced_files {
        out.stderr_line(file.to_string())?;
    }
    for record in &repaired.rebuilt {
        out.stderr_line(record.to_string())?;
    }
    for item in &repaired.mended {
        out.stderr_line(format!("{item} was mended"))?;
    }
    Ok(())
}

/// Why a repair changes or removes an item.
fn why(report: &CheckReport, item: &CheckedItem) -> String {
    let findings = report.findings.iter().filter(|finding| finding.item == *item);
    let mut reasons: Vec<String> = findings.map(ToString::to_string).collect();
    reasons.dedup();
    match reasons.is_empty() {
        true => "it goes with its image, and nothing else needs it".to_owned(),
        false => reasons.join("; "),
    }
}

/// What a repair has removed, and why.
fn print_removed(
    out: &mut Output,
    report: &CheckReport,
    repaired: &RepairReport,
) -> Result<(), CommandError> {
    for item in &repaired.removed {
        out.stderr_line(format!("{item} was removed: {}", why(report, item)))?;
    }
    Ok(())
}

/// What a repair would do, and why.
fn print_plan(out: &mut Output, report: &CheckReport, repaired: &RepairReport) -> Result<(), CommandError> {
    for file in &repaired.replaced_files {
        out.stderr_line(format!("would write {} anew", file.path.display()))?;
    }
    for record in &repaired.rebuilt {
        out.stderr_line(format!("would do: {record}"))?;
    }
    for item in &repaired.mended {
        out.stderr_line(format!("would mend {item}: {}", why(report, item)))?;
    }
    for item in &repaired.removed {
        out.stderr_line(format!("would remove {item}: {}", why(report, item)))?;
    }
    if !repaired.mended.is_empty() || !repaired.replaced_files.is_empty() {
        out.stderr_line("then it would check again, and remove what that finds to be damaged all the same")?;
    }
    Ok(())
}

fn print_repair(call: &Call, out: &mut Output, repaired: &RepairReport) -> Result<(), CommandError> {
    if !call.json() {
        for kept in &repaired.kept {
            out.stderr_line(format!("{} was left: {}", kept.item, kept.reason))?;
        }
        for left in &repaired.left_behind {
            out.stderr_line(format!(
                "{} is gone, but not its files: {}",
                left.item,
                describe(&left.error)
            ))?;
        }
    }
    let failures = repaired.failures.iter().map(|failure| describe(&failure.error));
    if call.json() && !repaired.failures.is_empty() {
        let rows: Vec<FailureRow> = failures.map(|error| FailureRow { error }).collect();
        return out.json(&rows);
    }
    for failure in failures {
        out.stderr_line(failure)?;
    }
    Ok(())
}

pub(crate) async fn check(call: &Call, out: &mut Output) -> Outcome {
    let mut options = match call.flags.is_on(&flags::QUICK) {
        true => CheckOptions::most(),
        false => CheckOptions::everything(),
    };
    let max_age = call.flags.text(&flags::MAX);
    if !max_age.is_empty() {
        let invalid = || format!("time: invalid duration {}", go_quote(max_age.as_bytes()));
        let age: Duration = duration(max_age).ok_or_else(invalid)?;
        options = options.layer_unreferenced_maximum_age(age);
    }
    let removes_containers = call.flags.is_on(&flags::FORCE);
    let store = call.store()?;
    let busy = spinner("Checking");
    let check_options = options.clone();
    let report = store.check(options).await;
    busy.finish_and_clear();
    let report = report?;
    print_report(call, out, &report)?;
    let repairs = [&flags::REPAIR, &flags::DRY_RUN]
        .iter()
        .any(|flag| call.flags.is_on(flag));
    if !removes_containers && !repairs {
        return match counts(&report, &SECTIONS) {
            Some(counts) => Err(counts.into()),
            None if report.is_clean() => DONE,
            None => FAILED,
        };
    }
    let dry_run = call.flags.is_on(&flags::DRY_RUN);
    let options = RepairOptions::everything()
        .remove_containers(removes_containers)
        .missing_layers_are_lost(removes_containers)
        .dry_run(dry_run);
    let mut report = report;
    let mut repaired = store.repair(&report, options.clone()).await?;
    // What was rebuilt or mended may be whole now, or show what else is wrong.
    for _ in 0..ROUNDS {
        let has_mended = !repaired.mended.is_empty() || !repaired.replaced_files.is_empty();
        if dry_run || !has_mended || !repaired.is_success() {
            break;
        }
        print_mended(out, &repaired)?;
        print_removed(out, &report, &repaired)?;
        report = store.check(check_options.clone()).await?;
        repaired = store.repair(&report, options.clone()).await?;
    }
    match dry_run {
        true => print_plan(out, &report, &repaired)?,
        false => print_removed(out, &report, &repaired)?,
    }
    print_repair(call, out, &repaired)?;
    if let Some(failure) = repaired.failures.first() {
        return Err(describe(&failure.error).into());
    }
    let lacks_layers = repaired
        .kept
        .iter()
        .any(|kept| kept.reason == KeptReason::LayersMissing);
    let mut left = vec![(ItemKind::Layer, true), (ItemKind::Image, true)];
    if !removes_containers {
        left.push((ItemKind::Container, false));
    }
    match counts(&report, if dry_run { &SECTIONS } else { &left }) {
        Some(counts) => Err(counts.into()),
        None if report.store_problems.is_empty() && !lacks_layers && repaired.left_behind.is_empty() => DONE,
        None => FAILED,
    }
}
