//! Names and metadata of layers, images and containers.

use std::collections::BTreeMap;

use crate::call::Call;
use crate::flags::{ADD_NAME, NEW_NAME, OMIT_NAMES, REMOVE_NAME, new};
use crate::outcome::{CommandError, DONE, FAILED, Outcome};
use crate::output::Output;

pub(crate) async fn get(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let id = store.lookup(call.arg(0)).await?;
    let names = store.names(&id).await?;
    if call.json() {
        out.json(&names)?;
        return DONE;
    }
    for name in names {
        out.line(name)?;
    }
    DONE
}

/// Prints the new names if JSON is asked for.
async fn show(call: &Call, out: &mut Output, id: &str) -> Outcome {
    let names = call.store()?.names(id).await?;
    if call.json() {
        out.json_or_null(&names)?;
    }
    DONE
}

pub(crate) async fn add(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let id = store.lookup(call.arg(0)).await?;
    store.add_names(&id, call.flags.list(&ADD_NAME)).await?;
    show(call, out, &id).await
}

pub(crate) async fn remove(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let id = store.lookup(call.arg(0)).await?;
    store.remove_names(&id, call.flags.list(&REMOVE_NAME)).await?;
    show(call, out, &id).await
}

pub(crate) async fn set(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let id = store.lookup(call.arg(0)).await?;
    store.set_names(&id, call.flags.list(&NEW_NAME)).await?;
    show(call, out, &id).await
}

pub(crate) async fn metadata(call: &Call, out: &mut Output) -> Outcome {
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    let mut missing = false;
    for arg in &call.args {
        match call.store()?.metadata(arg).await {
            Ok(text) => {
                let text = text.strip_suffix('\n').map(str::to_owned).unwrap_or(text);
                found.insert(arg, text);
            }
            Err(error) if error.is_not_found() => missing = true,
            Err(error) => return Err(error.into()),
        }
    }
    if call.json() {
        out.json(&found)?;
    } else {
        for arg in &call.args {
            let text = found.get(arg.as_str()).map_or("", String::as_str);
            if call.flags.is_on(&OMIT_NAMES) {
                out.line(text)?;
            } else {
                out.line(format!("{arg}: {text}"))?;
            }
        }
    }
    if missing { FAILED } else { DONE }
}

/// The metadata of `--metadata-file`, or else of `--metadata`.
pub(crate) fn given_metadata(call: &Call) -> Result<String, CommandError> {
    match call.read_file(&new::METADATA_FILE)? {
        Some(data) => String::from_utf8(data).map_err(|error| {
            let path = call.flags.text(&new::METADATA_FILE);
            CommandError::from(format!("metadata in {path}: {error}"))
        }),
        None => Ok(call.flags.text(&new::METADATA).to_owned()),
    }
}

pub(crate) async fn set_metadata(call: &Call, _out: &mut Output) -> Outcome {
    if call.flags.text(&new::METADATA).is_empty() && call.flags.text(&new::METADATA_FILE).is_empty() {
        return Err("no new metadata provided".into());
    }
    let metadata = given_metadata(call)?;
    call.store()?.set_metadata(call.arg(0), metadata).await?;
    DONE
}
