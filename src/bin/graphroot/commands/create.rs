//! Creating layers, images and containers.

use graphroot::{ContainerOptions, Digest, IdMap, IdMappingOptions, ImageOptions, Layer, LayerOptions};

use super::names::given_metadata;
use crate::call::Call;
use crate::flags::{file, new};
use crate::input::Input;
use crate::mflag::Flag;
use crate::outcome::{CommandError, DONE, Outcome, describe};
use crate::output::Output;
use crate::text::go_quote;

/// The ID mappings that the flags describe.
async fn id_mappings(call: &Call) -> Result<IdMappingOptions, CommandError> {
    let text = |flag| call.flags.text(flag);
    let mut options = IdMappingOptions::default();
    options.host_uid_mapping = call.flags.is_on(&new::HOST_UIDS);
    options.host_gid_mapping = call.flags.is_on(&new::HOST_GIDS);
    let (uids, gids) = (text(&new::UIDS), text(&new::GIDS));
    let (mut user, mut group) = (text(&new::SUB_UIDS), text(&new::SUB_GIDS));
    if options.host_uid_mapping && !(uids.is_empty() && user.is_empty()) {
        return Err("host uid map specified along with UID mapping".into());
    }
    if options.host_gid_mapping && !(gids.is_empty() && group.is_empty()) {
        return Err("host gid map specified along with GID mapping".into());
    }
    if group.is_empty() {
        group = user;
    }
    if user.is_empty() {
        user = group;
    }
    if !user.is_empty() {
        let ranges = graphroot::sub_id_mappings(user, group).await;
        let ranges = ranges.map_err(|error| {
            // The Go library's words without the kind.
            let (text, kind) = (describe(&error), format!(": {}", error.kind()));
            CommandError::from(text.strip_suffix(&kind).unwrap_or(&text))
        })?;
        options.uid_map = ranges.uids;
        options.gid_map = ranges.gids;
    }
    options.uid_map.extend(triples(uids, "uid")?);
    options.gid_map.extend(triples(gids, "gid")?);
    Ok(options)
}

/// ID maps written as `CONTAINER:HOST:SIZE`, several of them separated by colons.
fn triples(text: &str, what: &str) -> Result<Vec<IdMap>, CommandError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = || {
        format!(
            "initializing ID mappings: {what} setting is malformed expected [\"uint32:uint32:uint32\"]: [{}]",
            go_quote(text.as_bytes())
        )
    };
    let mut numbers: Vec<u32> = Vec::new();
    for number in text.split(':') {
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        numbers.push(number.parse().ok().filter(|_| digits).ok_or_else(malformed)?);
    }
    let (triples, rest) = numbers.as_chunks::<3>();
    if !rest.is_empty() {
        return Err(malformed().into());
    }
    Ok(triples
        .iter()
        .map(|[container, host, size]| IdMap::new(*container, *host, *size))
        .collect())
}

/// The text of a flag that is left out or empty where there is nothing to say.
fn optional_text(call: &Call, flag: &Flag) -> Option<String> {
    Some(call.flags.text(flag).to_owned()).filter(|text| !text.is_empty())
}

async fn layer_options(call: &Call) -> Result<LayerOptions, CommandError> {
    let mut options = LayerOptions::default();
    options.id = optional_text(call, &new::LAYER_ID);
    options.names = call.flags.list(&new::LAYER_NAME).to_vec();
    options.mount_label = optional_text(call, &new::LABEL);
    options.writeable = !call.flags.is_on(&new::READ_ONLY);
    options.id_mappings = id_mappings(call).await?;
    Ok(options)
}

pub(crate) async fn storage_layer(call: &Call, out: &mut Output) -> Outcome {
    let options = layer_options(call).await?;
    let driver = call.store()?.graph_driver();
    let id = driver.create_layer(call.optional(0), options).await?;
    if call.json() {
        out.json(&id)?;
    } else {
        out.line(id)?;
    }
    DONE
}

/// Prints the ID and the names of a new item.
fn created(out: &mut Output, id: &str, names: &[String]) -> Outcome {
    out.line(id)?;
    for name in names {
        out.line(format!("\t{name}"))?;
    }
    DONE
}

fn created_layer(call: &Call, out: &mut Output, layer: &Layer) -> Outcome {
    if call.json() {
        out.json(layer)?;
        return DONE;
    }
    created(out, layer.id(), layer.names())
}

pub(crate) async fn layer(call: &Call, out: &mut Output) -> Outcome {
    let options = layer_options(call).await?;
    let layer = call.store()?.create_layer(call.optional(0), options).await?;
    created_layer(call, out, &layer)
}

pub(crate) async fn import_layer(call: &Call, out: &mut Output) -> Outcome {
    let diff = Input::open(call, &file::INSTEAD_OF_STDIN, "Importing")?;
    let options = layer_options(call).await?;
    let put = call.store()?.put_layer(call.optional(0), options, diff).await?;
    created_layer(call, out, &put.layer)
}

pub(crate) async fn image(call: &Call, out: &mut Output) -> Outcome {
    let mut options = ImageOptions::default();
    options.id = optional_text(call, &new::IMAGE_ID);
    options.names = call.flags.list(&new::IMAGE_NAME).to_vec();
    options.metadata = given_metadata(call)?;
    let digest = call.flags.text(&new::DIGEST);
    let given: Option<graphroot::Result<Digest>> = Some(digest)
        .filter(|digest| !digest.is_empty())
        .map(|digest| digest.parse());
    let top = match call.optional(0) {
        Some(layer) => Some(call.store()?.layer(layer).await?),
        None => None,
    };
    options.digest = given
        .transpose()
        .map_err(|error| format!("validating digests for new image: {}", describe(&error)))?;
    let image = call
        .store()?
        .create_image(top.as_ref().map(Layer::id), options)
        .await?;
    if call.json() {
        out.json(&image)?;
        return DONE;
    }
    created(out, image.id(), image.names())
}

pub(crate) async fn container(call: &Call, out: &mut Output) -> Outcome {
    let mut options = ContainerOptions::default();
    options.id = optional_text(call, &new::CONTAINER_ID);
    options.names = call.flags.list(&new::CONTAINER_NAME).to_vec();
    options.metadata = given_metadata(call)?;
    options.id_mappings = id_mappings(call).await?;
    options.volatile = call.flags.is_on(&new::VOLATILE);
    let container = call.store()?.create_container(call.optional(0), options).await?;
    if call.json() {
        out.json(&container)?;
        return DONE;
    }
    created(out, container.id(), container.names())
}
