//! `copy`: files copied into layers, out of layers and between layers.

use graphroot::{CopyEnd, IdMappings, Layer, MountOptions, Owner, Store, copy_content};

use crate::call::Call;
use crate::flags::CHOWN;
use crate::input::spinner;
use crate::outcome::{CommandError, DONE, Outcome, describe, describe_briefly};
use crate::output::{Output, stderr_line};
use crate::text::{go_quote, system_error};

/// A user or group ID of `--chown`; errors read as those of the Go program.
fn id(text: &str, what: &str) -> Result<u32, CommandError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| plain);
    number.ok_or_else(|| {
        let reason = if plain && !text.is_empty() {
            "value out of range"
        } else {
            "invalid syntax"
        };
        let text = go_quote(text.as_bytes());
        CommandError::from(format!("bad {what}: strconv.ParseUint: parsing {text}: {reason}"))
    })
}

fn owner(call: &Call) -> Result<Option<Owner>, CommandError> {
    let text = call.flags.text(&CHOWN);
    if text.is_empty() {
        return Ok(None);
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Ok(Some(Owner {
        uid: id(uid, "UID")?,
        gid: id(gid, "GID")?,
    }))
}

/// Layers that are mounted for the copy.
struct CopyMounts<'a> {
    store: &'a Store,
    layers: Vec<String>,
}

impl CopyMounts<'_> {
    /// The source or target that `[LAYER:]PATH` names. Mounts the layer.
    async fn copy_end(&mut self, spec: &str) -> Result<CopyEnd, CommandError> {
        let Some((layer, path)) = spec.split_once(':') else {
            if spec.is_empty() {
                return Err("path \"\": no such file or directory".into());
            }
            let here = std::path::absolute(spec)
                .map_err(|error| format!("path {spec:?}: {}", system_error(&error)))?;
            return Ok(CopyEnd::new("/", here));
        };
        let found = self.store.layer(layer).await;
        let layer: Layer = found.map_err(|error| {
            let name = go_quote(layer.as_bytes());
            format!("error finding layer {name}: {}", describe_briefly(&error))
        })?;
        let mounted = self.store.mount(layer.id(), MountOptions::default()).await;
        let mounted = mounted.map_err(|error| {
            let id = go_quote(layer.id().as_bytes());
            format!("error mounting layer {id}: {}", describe(&error))
        })?;
        self.layers.push(layer.id().to_owned());
        let mappings = IdMappings {
            uids: layer.uid_map().to_vec(),
            gids: layer.gid_map().to_vec(),
        };
        Ok(CopyEnd::new(mounted, path).mappings(mappings))
    }

    /// Unmounts the layers, the last one first. Errors are printed and do not fail the command.
    async fn unmount(self) {
        for id in self.layers.iter().rev() {
            if let Err(error) = self.store.unmount(id).await {
                let id = go_quote(id.as_bytes());
                stderr_line(&format!("error unmounting layer {id}: {}", describe(&error)));
            }
        }
    }
}

pub(crate) async fn copy(call: &Call, _out: &mut Output) -> Outcome {
    let owner = owner(call)?;
    let mut mounts = CopyMounts {
        store: call.store()?,
        layers: Vec::new(),
    };
    let busy = spinner("Copying");
    let copied = copy_all(call, &mut mounts, owner).await;
    mounts.unmount().await;
    busy.finish_and_clear();
    copied.and(DONE)
}

async fn copy_all(
    call: &Call,
    mounts: &mut CopyMounts<'_>,
    owner: Option<Owner>,
) -> Result<(), CommandError> {
    let Some((target, sources)) = call.args.split_last() else {
        return Ok(());
    };
    let to = mounts.copy_end(target).await?;
    // A relative target is more often a layer's name without its path than a directory, so a directory is not copied
    // to it. containers-storage refuses it as well.
    let on_host = !target.contains(':');
    let is_relative = on_host && !target.starts_with('/');
    for source in sources {
        let from = mounts.copy_end(source).await?;
        let is_dir = from
            .root
            .join(from.path.strip_prefix("/").unwrap_or(&from.path))
            .is_dir();
        if is_dir && is_relative {
            let [from, to] = [source, target].map(|path| go_quote(path.as_bytes()));
            return Err(format!("error copying {from} to {to}: path: {target} should be absolute").into());
        }
        let mut to = to.clone();
        if on_host && target.ends_with('/') && !is_dir {
            to.path.push(from.path.file_name().unwrap_or_default());
        }
        copy_content(from, to, owner)
            .await
            .map_err(|error| format!("error {}", describe(&error)))?;
    }
    Ok(())
}
