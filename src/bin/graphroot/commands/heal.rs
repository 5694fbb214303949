//! The command that makes damaged and missing layers anew.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use futures::future::BoxFuture;
use graphroot::{
    BoxReader, CheckedItem, ErrorKind, Finding, HealEvent, HealOptions, HealReport, HealSource, Healed,
    HealedHow, Store, StoreOptions, WantedContent, WantedDocument,
};
use serde::Serialize;

use crate::call::Call;
use crate::flags::heal as flags;
use crate::input::spinner;
use crate::other_store::OtherStore;
use crate::outcome::{CommandError, DONE, FAILED, Outcome, file_failure};
use crate::output::Output;

/// The drivers whose stores can be read.
const DRIVERS: [&str; 3] = ["overlay", "btrfs", "vfs"];

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReportRow<'a> {
    healed: Vec<HealedRow<'a>>,
    failures: Vec<FailureRow<'a>>,
    left: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    store: Vec<String>,
}

#[derive(Serialize)]
struct HealedRow<'a> {
    #[serde(flatten)]
    item: &'a CheckedItem,
    how: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
}

#[derive(Serialize)]
struct FailureRow<'a> {
    #[serde(flatten)]
    item: &'a CheckedItem,
    error: String,
}

fn row(healed: &Healed) -> HealedRow<'_> {
    let (how, source) = match &healed.how {
        HealedHow::Layer { source, .. } => ("layer", Some(source.as_str())),
        HealedHow::Files { source, .. } => ("files", Some(source.as_str())),
        HealedHow::Parts { source, .. } => ("parts", Some(source.as_str())),
        HealedHow::Record { .. } => ("record", None),
        HealedHow::DriverData => ("driver_data", None),
        HealedHow::Data { source, .. } => ("data", Some(source.as_str())),
        _ => ("other", None),
    };
    HealedRow {
        item: &healed.item,
        how,
        source,
    }
}

/// What is left, each once: images and containers inherit what is wrong with their layers.
fn left(report: &HealReport) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let lines = report.left.iter().map(Finding::to_string);
    lines.filter(|line| seen.insert(line.clone())).collect()
}

fn print_report(call: &Call, out: &mut Output, report: &HealReport) -> Result<(), CommandError> {
    if call.json() {
        let failures = report.failures.iter().map(|failure| FailureRow {
            item: &failure.item,
            error: failure.reason.to_string(),
        });
        return out.json(&ReportRow {
            healed: report.healed.iter().map(row).collect(),
            failures: failures.collect(),
            left: left(report),
            store: report.store_problems.iter().map(ToString::to_string).collect(),
        });
    }
    for healed in &report.healed {
        out.line(healed.to_string())?;
    }
    for failure in &report.failures {
        out.stderr_line(failure.to_string())?;
    }
    for finding in left(report) {
        out.stderr_line(finding)?;
    }
    for problem in &report.store_problems {
        out.stderr_line(problem.to_string())?;
    }
    Ok(())
}

/// That store as a source, under the name that the caller has for it.
#[derive(Debug)]
struct Named {
    name: String,
    store: Store,
}

impl HealSource for Named {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, graphroot::Result<Option<BoxReader>>> {
        self.store.layer_stream(wanted, attempt)
    }

    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, graphroot::Result<Option<Bytes>>> {
        self.store.document(wanted)
    }
}

/// A storage tree that layers come from, opened as the additional store of an empty one: nothing in it is changed.
async fn open_source(call: &Call, root: &Path) -> Result<OtherStore, CommandError> {
    let own = call.store()?.graph_driver_name();
    let has = |driver: &&&str| root.join(format!("{driver}-layers")).is_dir();
    let driver = [own].iter().chain(&DRIVERS).find(has).copied();
    let driver = driver.ok_or_else(|| format!("{}: no storage tree", root.display()))?;
    let dir = call.store()?.temporary_directory().await?;
    let absolute = std::path::absolute(root);
    let root = absolute.map_err(|error| file_failure("find", &root.display().to_string(), &error))?;
    let options = StoreOptions::new(dir.path().join("graph"), dir.path().join("run"))
        .driver(driver)
        .driver_option(format!("{driver}.imagestore={}", root.display()));
    OtherStore::open(options, dir).await
}

#[cfg(feature = "pull")]
async fn add_images(
    call: &Call,
    store: &Store,
    mut options: HealOptions,
) -> Result<HealOptions, CommandError> {
    use graphroot::oci::{Policy, PullOptions, Puller};

    let from = call.flags.list(&flags::FROM);
    // Whoever names a source means that one.
    if from.is_empty() && !call.flags.list(&flags::FROM_STORE).is_empty() {
        return Ok(options);
    }
    let mut pull = PullOptions::default()
        .registry(super::transfer::registry_options(call).await?)
        .policy(Policy::load().await?);
    let platform = call.flags.text(&crate::flags::transfer::PLATFORM);
    if !platform.is_empty() {
        pull.platform = platform.parse()?;
    }
    let puller = Puller::new(store, pull);
    for image in from {
        options = options.source(puller.layers_of(image.parse()?));
    }
    Ok(match from.is_empty() {
        true => options.source(puller.layers_by_name()),
        false => options,
    })
}

#[cfg(not(feature = "pull"))]
#[expect(clippy::unused_async, reason = "with images it waits")]
async fn add_images(_call: &Call, _store: &Store, options: HealOptions) -> Result<HealOptions, CommandError> {
    Ok(options)
}

pub(crate) async fn heal(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let mut options = add_images(call, store, HealOptions::default().items(&call.args)).await?;
    let mut others = Vec::new();
    for root in call.flags.list(&flags::FROM_STORE) {
        let other = open_source(call, Path::new(root)).await?;
        options = options.source(Named {
            name: root.clone(),
            store: other.store.clone(),
        });
        others.push(other);
    }
    let busy = spinner("Checking");
    let shown = busy.clone();
    let options = options.progress(move |event| {
        if let HealEvent::Reading { layer, source } = event {
            shown.set_message(format!("Reading layer {layer} from {source}"));
        }
    });
    let report = store.heal(options).await;
    busy.finish_and_clear();
    for other in others {
        other.close().await;
    }
    let report = match report {
        Err(error) if error.kind() == ErrorKind::LayerUnknown => {
            return Err(format!("{}: neither a layer nor an image: {}", call.name, error.chain()).into());
        }
        report => report?,
    };
    print_report(call, out, &report)?;
    if report.is_success() { DONE } else { FAILED }
}
