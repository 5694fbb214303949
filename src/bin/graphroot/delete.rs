//! Deleting.

use std::collections::BTreeMap;

use graphroot::{Error, Store};
use serde::Serialize;

use crate::call::{Call, DONE, FAILED, Failure, Out, Outcome, plain_error};
use crate::input::spinner;
use crate::table::TEST;

/// Deletes each argument in one way and reports on all.
async fn each(
    call: &Call,
    out: &mut Out,
    delete: impl AsyncFn(&Store, &str) -> Result<(), Error>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut outcomes: BTreeMap<String, String> = BTreeMap::new();
    let busy = spinner("Deleting");
    for arg in &call.args {
        let deleted = delete(call.store()?, arg).await;
        let text = deleted.err().as_ref().map(plain_error).unwrap_or_default();
        outcomes.insert(arg.clone(), text);
    }
    busy.finish_and_clear();
    if call.json() {
        out.json(&outcomes)?;
    } else {
        for (arg, text) in outcomes.iter().filter(|(_, text)| !text.is_empty()) {
            out.complain(format!("{arg}: {text}"))?;
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

pub(crate) async fn anything(call: &Call, out: &mut Out) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete(arg).await).await?)
}

pub(crate) async fn layer(call: &Call, out: &mut Out) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete_layer(arg).await).await?)
}

pub(crate) async fn container(call: &Call, out: &mut Out) -> Outcome {
    outcome(&each(call, out, async |store, arg| store.delete_container(arg).await).await?)
}

/// What deleting an image came to.
#[derive(Default, Serialize)]
struct DeletedImage {
    #[serde(rename = "deleted-layers", skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

pub(crate) async fn image(call: &Call, out: &mut Out) -> Outcome {
    let commit = !call.flags.is_on(&TEST);
    let mut outcomes: BTreeMap<&str, DeletedImage> = BTreeMap::new();
    let busy = spinner("Deleting");
    for arg in &call.args {
        let deleted = match call.store()?.delete_image(arg, commit).await {
            Ok(layers) => DeletedImage {
                layers,
                ..DeletedImage::default()
            },
            Err(error) => DeletedImage {
                error: plain_error(&error),
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
                out.complain(format!("{arg}: {}", deleted.error))?;
            }
            for layer in &deleted.layers {
                out.complain(format!("{arg}: {layer}"))?;
            }
        }
    }
    if outcomes.values().all(|deleted| deleted.error.is_empty()) {
        DONE
    } else {
        FAILED
    }
}
