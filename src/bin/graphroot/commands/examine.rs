//! Single items: `layer`, `image`, `container`, `exists`, `layer-parent-owners` and `container-parent-owners`.

use std::collections::BTreeMap;

use graphroot::{ParentOwners, Store};
use serde::Serialize;

use crate::call::Call;
use crate::flags::{IS_CONTAINER, IS_IMAGE, IS_LAYER, NO_NAMES};
use crate::outcome::{CommandError, DONE, FAILED, Outcome, describe};
use crate::output::Output;
use crate::text::numbers;

/// The items that a look-up finds. Arguments that name none are left out; whatever else goes wrong ends the command.
async fn found<T>(
    call: &Call,
    find: impl AsyncFn(&Store, &str) -> graphroot::Result<T>,
) -> Result<Vec<T>, CommandError> {
    let mut found = Vec::new();
    for arg in &call.args {
        found.extend(some(find(call.store()?, arg).await)?);
    }
    Ok(found)
}

/// What was found, `None` if there is none.
fn some<T>(result: graphroot::Result<T>) -> graphroot::Result<Option<T>> {
    match result {
        Ok(item) => Ok(Some(item)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Success if every argument was found.
fn all_found(call: &Call, found: usize) -> Outcome {
    if found == call.args.len() { DONE } else { FAILED }
}

pub(crate) async fn layer(call: &Call, out: &mut Output) -> Outcome {
    let found = found(call, async |store, arg| store.layer(arg).await).await?;
    if call.json() {
        out.json(&found)?;
        return all_found(call, found.len());
    }
    for layer in &found {
        out.line(format!("ID: {}", layer.id()))?;
        for (what, ranges) in [("UID", layer.uid_map()), ("GID", layer.gid_map())] {
            for range in ranges {
                out.line(format!(
                    "{what} mapping: (container={}, host={}, size={})",
                    range.container_id, range.host_id, range.size
                ))?;
            }
        }
        if let Some(parent) = layer.parent() {
            out.line(format!("Parent: {parent}"))?;
        }
        for name in layer.names() {
            out.line(format!("Name: {name}"))?;
        }
        if layer.read_only() {
            out.line("Read Only: true")?;
        }
    }
    all_found(call, found.len())
}

pub(crate) async fn image(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let found = found(call, async |store, arg| store.image(arg).await).await?;
    if call.json() {
        out.json(&found)?;
        return all_found(call, found.len());
    }
    for image in &found {
        out.line(format!("ID: {}", image.id()))?;
        for name in image.names() {
            out.line(format!("Name: {name}"))?;
        }
        out.line(format!("Top Layer: {}", image.top_layer().unwrap_or_default()))?;
        for layer in image.mapped_top_layers() {
            out.line(format!("Top Layer: {layer}"))?;
        }
        for digest in image.digests() {
            out.line(format!("Digest: {digest}"))?;
        }
        for key in image.big_data_names() {
            out.line(format!("Data: {key}"))?;
        }
        size(out, store.image_size(image.id()).await)?;
        if image.read_only() {
            out.line("Read Only: true")?;
        }
    }
    all_found(call, found.len())
}

fn size(out: &mut Output, size: graphroot::Result<u64>) -> Result<(), CommandError> {
    match size {
        Ok(size) => out.line(format!("Size: {size}")),
        Err(error) => out.line(format!("Size unknown: {}", describe(&error))),
    }
}

pub(crate) async fn container(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let images = store.images().await?;
    let found = found(call, async |store, arg| store.container(arg).await).await?;
    if call.json() {
        out.json(&found)?;
        return all_found(call, found.len());
    }
    for container in &found {
        out.line(format!("ID: {}", container.id()))?;
        for name in container.names() {
            out.line(format!("Name: {name}"))?;
        }
        let image_id = container.image_id().unwrap_or_default();
        out.line(format!("Image: {image_id}"))?;
        let image = images.iter().find(|image| image.id() == image_id);
        for name in image.map(|image| image.names()).unwrap_or_default() {
            out.line(format!("Image name: {name}"))?;
        }
        size(out, store.container_size(container.id()).await)?;
        out.line(format!("Layer: {}", container.layer_id()))?;
        for key in container.big_data_names() {
            out.line(format!("Data: {key}"))?;
        }
    }
    all_found(call, found.len())
}

pub(crate) async fn exists(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let mut answers: Vec<(&str, bool)> = Vec::new();
    let mut all = true;
    for arg in &call.args {
        let exists = store.exists(arg).await?;
        if !answers.iter().any(|(known, _)| *known == arg.as_str()) {
            answers.push((arg, exists));
        }
        all &= exists
            && (!call.flags.is_on(&IS_CONTAINER) || some(store.container(arg).await)?.is_some())
            && (!call.flags.is_on(&IS_IMAGE) || some(store.image(arg).await)?.is_some())
            && (!call.flags.is_on(&IS_LAYER) || some(store.layer(arg).await)?.is_some());
    }
    if call.json() {
        out.json(&answers.iter().copied().collect::<BTreeMap<&str, bool>>())?;
    } else if !call.flags.is_on(&NO_NAMES) {
        for (arg, exists) in answers {
            out.line(format!("{arg}: {exists}"))?;
        }
    }
    if all { DONE } else { FAILED }
}

/// Parent owners as JSON, `null` for an empty list.
#[derive(Serialize)]
struct Owners<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "UIDs")]
    uids: Option<&'a [u32]>,
    #[serde(rename = "GIDs")]
    gids: Option<&'a [u32]>,
}

fn owners(
    call: &Call,
    out: &mut Output,
    id: &str,
    owners: &ParentOwners,
    always: bool,
) -> Result<(), CommandError> {
    let some = |ids: &'_ [u32]| !ids.is_empty();
    if call.json() {
        return out.json(&Owners {
            id,
            uids: Some(owners.uids.as_slice()).filter(|ids| some(ids)),
            gids: Some(owners.gids.as_slice()).filter(|ids| some(ids)),
        });
    }
    out.line(format!("ID: {id}"))?;
    for (what, ids) in [("UIDs", &owners.uids), ("GIDs", &owners.gids)] {
        if always || some(ids) {
            out.line(format!("{what}: {}", numbers(ids)))?;
        }
    }
    Ok(())
}

pub(crate) async fn layer_parent_owners(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let found = found(call, async |store, arg| store.layer(arg).await).await?;
    for layer in &found {
        let above = store.layer_parent_owners(layer.id()).await;
        let above = above.map_err(|error| format!("LayerParentOwner: {}", describe(&error)))?;
        owners(call, out, layer.id(), &above, false)?;
    }
    all_found(call, found.len())
}

pub(crate) async fn container_parent_owners(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let found = found(call, async |store, arg| store.container(arg).await).await?;
    for container in &found {
        let above = store.container_parent_owners(container.id()).await;
        let above = above.map_err(|error| format!("ContainerParentOwner: {}", describe(&error)))?;
        owners(call, out, container.id(), &above, true)?;
    }
    all_found(call, found.len())
}
