//! Creating layers, images and containers.

use graphroot::{ContainerOptions, Digest, IdMap, IdMappingOptions, ImageOptions, Layer, LayerOptions};

use super::names::given_metadata;
use crate::call::Call;
use crate::flags::{file, new};
use crate::input::Input;
use crate::mflag::Flag;
use crate::outcome::{CommandError, DONE, Outcome, describe, file_failure};
use crate::output::Output;
use crate::text::go_quote;

/// The ID mappings that the flags describe.
fn id_mappings(call: &Call) -> Result<IdMappingOptions, CommandError> {
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
        let user_ranges = sub_ids("/etc/subuid", user)?;
        let group_ranges = sub_ids("/etc/subgid", group)?;
        if user_ranges.is_empty() {
            let user = go_quote(user.as_bytes());
            return Err(format!("no subuid ranges found for user {user} in /etc/subuid").into());
        }
        if group_ranges.is_empty() {
            let group = go_quote(group.as_bytes());
            return Err(format!("no subgid ranges found for group {group} in /etc/subgid").into());
        }
        options.uid_map = user_ranges;
        options.gid_map = group_ranges;
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

/// The ranges that a file such as `/etc/subuid` grants to a user (by name or number), mapped consecutively from
/// container ID 0 on. The user `ALL` takes the ranges of every user, as in the Go library.
fn sub_ids(path: &str, user: &str) -> Result<Vec<IdMap>, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|error| file_failure("open", path, &error))?;
    let number = user_number(user);
    let (mut ranges, mut next) = (Vec::new(), 0_u32);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let [owner, start, count] = fields[..] else {
            let what = format!("cannot parse subuid/gid information: Format not correct for {path} file");
            return Err(format!("{what}: the line {line:?} is not of the form USER:FIRST:COUNT").into());
        };
        if owner != user && Some(owner) != number.as_deref() && user != "ALL" {
            continue;
        }
        let bad = |_error| {
            format!(
                "string to int conversion failed during subuid/gid parsing of {path}: no number in the line {line:?}"
            )
        };
        let (start, count): (u32, u32) = (start.parse().map_err(bad)?, count.parse().map_err(bad)?);
        ranges.push((start, count));
    }
    ranges.sort_unstable();
    let mut maps = Vec::new();
    for (start, count) in ranges {
        maps.push(IdMap::new(next, start, count));
        next = next
            .checked_add(count)
            .ok_or_else(|| format!("{path}: more than 32 bits of IDs for {user}"))?;
    }
    Ok(maps)
}

/// The user ID of a name in `/etc/passwd`.
fn user_number(name: &str) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2).map(str::to_owned)
}

/// The text of a flag that is left out or empty where there is nothing to say.
fn optional_text(call: &Call, flag: &Flag) -> Option<String> {
    Some(call.flags.text(flag).to_owned()).filter(|text| !text.is_empty())
}

fn layer_options(call: &Call) -> Result<LayerOptions, CommandError> {
    let mut options = LayerOptions::default();
    options.id = optional_text(call, &new::LAYER_ID);
    options.names = call.flags.list(&new::LAYER_NAME).to_vec();
    options.mount_label = optional_text(call, &new::LABEL);
    options.writeable = !call.flags.is_on(&new::READ_ONLY);
    options.id_mappings = id_mappings(call)?;
    Ok(options)
}

pub(crate) async fn storage_layer(call: &Call, out: &mut Output) -> Outcome {
    let options = layer_options(call)?;
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
    let options = layer_options(call)?;
    let layer = call.store()?.create_layer(call.optional(0), options).await?;
    created_layer(call, out, &layer)
}

pub(crate) async fn import_layer(call: &Call, out: &mut Output) -> Outcome {
    let diff = Input::open(call, &file::INSTEAD_OF_STDIN, "Importing")?;
    let options = layer_options(call)?;
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
    options.id_mappings = id_mappings(call)?;
    options.volatile = call.flags.is_on(&new::VOLATILE);
    let container = call.store()?.create_container(call.optional(0), options).await?;
    if call.json() {
        out.json(&container)?;
        return DONE;
    }
    created(out, container.id(), container.names())
}
