//! The command that copies a storage tree, or a part of it, into another one with another driver.

use std::io;
use std::path::Path;

use graphroot::{
    CopiedItem, CopyEvent, CopyOptions, CopyReport, DifferentItem, ItemKind, LostContent, StoreOptions,
};
use serde::Serialize;

use crate::call::Call;
use crate::flags::convert as flags;
use crate::input::spinner;
use crate::other_store::OtherStore;
use crate::outcome::{CommandError, DONE, FAILED, Outcome, file_failure};
use crate::output::Output;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReportRow<'a> {
    copied: &'a [CopiedItem],
    refreshed: &'a [CopiedItem],
    present: &'a [CopiedItem],
    different: &'a [DifferentItem],
    gone: &'a [CopiedItem],
    mounted: &'a [CopiedItem],
    lost: &'a [LostContent],
}

fn print_report(call: &Call, out: &mut Output, report: &CopyReport) -> Result<(), CommandError> {
    if call.json() {
        return out.json(&ReportRow {
            copied: &report.copied,
            refreshed: &report.refreshed,
            present: &report.present,
            different: &report.different,
            gone: &report.gone,
            mounted: &report.mounted,
            lost: &report.lost,
        });
    }
    for item in &report.copied {
        out.line(item.to_string())?;
    }
    for item in &report.refreshed {
        out.line(format!("{item}: replaced"))?;
    }
    for different in &report.different {
        // Only containers are replaced.
        let hint = match different.item.kind {
            ItemKind::Container => " (see --refresh)",
            _ => "",
        };
        out.stderr_line(format!(
            "{different}: it was there already, differs from the source, and is kept as it is there{hint}"
        ))?;
    }
    for lost in &report.lost {
        let moment = match report.is_known(lost) {
            true => ", where the rest was already",
            false => "",
        };
        out.stderr_line(format!("{lost}: cannot be in the new storage tree{moment}"))?;
    }
    for item in &report.gone {
        out.stderr_line(format!("{item}: it was deleted before it was copied"))?;
    }
    for item in &report.mounted {
        out.stderr_line(format!(
            "{item}: it was mounted while it was copied, each file is as it was at its time"
        ))?;
    }
    Ok(())
}

/// The driver whose layers are in a directory, if it is another one than `wanted`.
fn other_driver(root: &Path, wanted: &str) -> io::Result<Option<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let driver = name.to_str().and_then(|name| name.strip_suffix("-layers"));
        if let Some(driver) = driver.filter(|driver| *driver != wanted) {
            return Ok(Some(driver.to_owned()));
        }
    }
    Ok(None)
}

/// The storage tree that is copied to; an empty one that is kept nowhere where nothing is to be copied.
async fn open_target(call: &Call, copied: &CopyOptions) -> Result<OtherStore, CommandError> {
    let store = call.store()?;
    let given = call.arg(0);
    let failed = |error: io::Error| file_failure("find", given, &error);
    let root = std::path::absolute(given).map_err(failed)?;
    let driver = call.flags.text(&flags::TO);
    if driver.is_empty() {
        return Err("convert: no driver is given: --to overlay|btrfs|vfs|zfs".into());
    }
    if call.flags.is_on(&flags::NO_CONTAINERS) && !call.flags.list(&flags::CONTAINER).is_empty() {
        return Err("convert: --no-containers and --container exclude each other".into());
    }
    if store.contains(&root).await? {
        let what = format!(
            "{given} lies in the storage tree {}",
            store.graph_root().display()
        );
        return Err(what.into());
    }
    if let Some(other) = other_driver(&root, driver).map_err(failed)? {
        return Err(format!("{given} has layers of the driver {other}, not of {driver}").into());
    }
    // Before anything is made there.
    store.check_copy(copied).await?;
    let dir = store.temporary_directory().await?;
    let own = dir.path();
    let is_there = root.join(format!("{driver}-layers")).exists();
    let mut options = match call.flags.is_on(&flags::DRY_RUN) && !is_there {
        // An empty one.
        true => StoreOptions::new(own.join("graph"), own.join("run")).driver("vfs"),
        false => {
            let run = match call.flags.text(&flags::RUN) {
                "" => own.join("run"),
                run => std::path::absolute(run).map_err(failed)?,
            };
            StoreOptions::new(&root, run).driver(driver)
        }
    };
    if options.graph_root == root {
        for option in call.flags.list(&flags::OPTION) {
            options = options.driver_option(option);
        }
    }
    OtherStore::open(options, dir).await
}

pub(crate) async fn convert(call: &Call, out: &mut Output) -> Outcome {
    let options = CopyOptions::new()
        .images(call.flags.list(&flags::IMAGE))
        .containers(call.flags.list(&flags::CONTAINER))
        .without_containers(call.flags.is_on(&flags::NO_CONTAINERS))
        .refresh(call.flags.is_on(&flags::REFRESH))
        .dry_run(call.flags.is_on(&flags::DRY_RUN));
    let target = open_target(call, &options).await?;
    let busy = spinner("Comparing");
    let shown = busy.clone();
    let options = options.progress(move |event| match event {
        CopyEvent::Copying { kind, id } => shown.set_message(format!("Copying {kind} {id}")),
        CopyEvent::Comparing { id } => shown.set_message(format!("Comparing {id}")),
        _ => {}
    });
    let report = call.store()?.copy_to(&target.store, options).await;
    busy.finish_and_clear();
    target.close().await;
    let report = report?;
    print_report(call, out, &report)?;
    let is_complete = report.lost.iter().all(|lost| report.is_known(lost));
    // What is mounted there is not replaced.
    let is_refreshed = !call.flags.is_on(&flags::REFRESH) || report.different.is_empty();
    match is_complete && is_refreshed {
        true => DONE,
        false => FAILED,
    }
}
