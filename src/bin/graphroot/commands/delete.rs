//! Deleting layers, images and containers.

use std::collections::BTreeMap;

use graphroot::{Error, Store};
use serde::Serialize;

use crate::call::Call;
use crate::flags::TEST;
use crate::input::spinner;
use crate::outcome::{CommandError, DONE, FAILED, Outcome, describe_briefly};
use crate::output::Output;

/// Deletes each argument with `delete` and reports all outcomes.
async fn each(
    call: &Call,
    out: &mut Output,
    delete: impl AsyncFn(&Store, &str) -> Result<(), Error>,
) -> Result<BTreeMap<String, String>, CommandError> {
    let mut outcomes: BTreeMap<String, String> = BTreeMap::new();
    let busy = spinner("Deleting");
    for arg in &call.args {
        let deleted = delete(call.store()?, arg).await;
        let text = deleted.err().as_ref().map(describe_briefly).unwrap_or_default();
        outcomes.insert(arg.clone(), text);
    }
    busy.finish_and_clear();
    if call.json() {
        out.json(&outcomes)?;
    } else {
        for (arg, text) in outcomes.iter().filter(|(_, text)| !text.is_empty()) {
            out.stderr_line(format!("{arg}: {text}"))?;
        }
    }
    Ok(outcomes)
}

fn outcome(outcomes: &BTreeMap<String, String>) -> Outcome {
    if outcomes.values().all(String::is_empty) {
        DONE
    } else {
        FAILED
    }
}

pub(crate) async fn anything(call: &Call, out: &mut Output) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete(arg).await).await?)
}

pub(crate) async fn layer(call: &Call, out: &mut Output) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete_layer(arg).await).await?)
}

pub(crate) async fn container(call: &Call, out: &mut Output) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete_container(arg).await).await?)
}

/// The layers deleted with an image, or why it was not deleted.
#[derive(Default, Serialize)]
struct DeletedImage {
    #[serde(rename = "deleted-layers", skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

pub(crate) async fn image(call: &Call, out: &mut Output) -> Outcome {
    let test = call.flags.is_on(&TEST);
    let mut outcomes: BTreeMap<&str, DeletedImage> = BTreeMap::new();
    let busy = spinner("Deleting");
    for arg in &call.args {
        let store = call.store()?;
        let deleted = if test {
            store.layers_deleted_with_image(arg).await
        } else {
            store.delete_image(arg).await
        };
        let deleted = match deleted {
            Ok(layers) => DeletedImage {
                layers,
                ..DeletedImage::default()
            },
            Err(error) => DeletedImage {
                error: describe_briefly(&error),
                ..DeletedImage::default()
            },
        };
        outcomes.insert(arg, deleted);
    }
    busy.finish_and_clear();
    if call.json() {
        out.json(&outcomes)?;
    } else {
        for (arg, deleted) in &outcomes {
            if !deleted.error.is_empty() {
                out.stderr_line(format!("{arg}: {}", deleted.error))?;
            }
            for layer in &deleted.layers {
                out.stderr_line(format!("{arg}: {layer}"))?;
            }
        }
    }
    if outcomes.values().all(|deleted| deleted.error.is_empty()) {
        DONE
    } else {
        FAILED
    }
}
