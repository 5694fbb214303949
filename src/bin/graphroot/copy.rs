//! Copying files into layers, out of layers, and between them.

use graphroot::{CopyEnd, IdMappings, Layer, Owner, Store, copy_content};

use crate::call::{Call, DONE, Failure, Out, Outcome, complain, plain_error, told};
use crate::input::spinner;
use crate::table::CHOWN;
use crate::text::go_quote;

/// An ID of the flag `--chown`.
fn id(text: &str, what: &str) -> Result<u32, Failure> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| plain);
    number.ok_or_else(|| {
        let reason = if plain && !text.is_empty() {
            "value out of range"
        } else {
            "invalid syntax"
        };
        let text = go_quote(text.as_bytes());
        Failure::from(format!("bad {what}: strconv.ParseUint: parsing {text}: {reason}"))
    })
}

fn owner(call: &Call) -> Result<Option<Owner>, Failure> {
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

/// Layers that are mounted while the copying goes on.
struct Mounts<'a> {
    store: &'a Store,
    layers: Vec<String>,
}

impl Mounts<'_> {
    /// The place that `[LAYER:]PATH` names; mounts the layer.
    async fn place(&mut self, spec: &str) -> Result<CopyEnd, Failure> {
        let Some((layer, path)) = spec.split_once(':') else {
            let here = std::path::absolute(spec).map_err(|error| format!("path {spec:?}: {error}"))?;
            return Ok(CopyEnd::new("/", here));
        };
        let found = self.store.layer(layer).await;
        let layer: Layer = found.map_err(|error| {
            let name = go_quote(layer.as_bytes());
            format!("error finding layer {name}: {}", plain_error(&error))
        })?;
        let mounted = self.store.mount(layer.id(), layer.mount_label()).await;
        let mounted = mounted.map_err(|error| {
            let id = go_quote(layer.id().as_bytes());
            format!("error mounting layer {id}: {}", told(&error))
        })?;
        self.layers.push(layer.id().to_owned());
        let mappings = IdMappings {
            uids: layer.uid_map().to_vec(),
            gids: layer.gid_map().to_vec(),
        };
        Ok(CopyEnd::new(mounted, path).mappings(mappings))
    }

    /// Unmounts everything, the last one first. Failures are told but do not count.
    async fn undo(self) {
        for id in self.layers.iter().rev() {
            if let Err(error) = self.store.unmount(id, false).await {
                let id = go_quote(id.as_bytes());
                complain(&format!("error unmounting layer {id}: {}", told(&error)));
            }
        }
    }
}

pub(crate) async fn copy(call: &Call, _out: &mut Out) -> Outcome {
    let owner = owner(call)?;
    let mut mounts = Mounts {
        store: call.store()?,
        layers: Vec::new(),
    };
    let busy = spinner("Copying");
    let copied = copy_all(call, &mut mounts, owner).await;
    mounts.undo().await;
    busy.finish_and_clear();
    copied.and(DONE)
}

async fn copy_all(call: &Call, mounts: &mut Mounts<'_>, owner: Option<Owner>) -> Result<(), Failure> {
    let Some((target, sources)) = call.args.split_last() else {
        return Ok(());
    };
    let to = mounts.place(target).await?;
    // A layer's name without a path is a likelier slip than a directory here of the same name.
    let on_host = !target.contains(':');
    let is_relative = on_host && !target.starts_with('/');
    for source in sources {
        let from = mounts.place(source).await?;
        let is_dir = from
            .root
            .join(from.path.strip_prefix("/").unwrap_or(&from.path))
            .is_dir();
        if is_dir && is_relative {
            let [source, target] = [source, target].map(|path| go_quote(path.as_bytes()));
            return Err(
                format!("error copying {source} to {target}: path {target} should be absolute").into(),
            );
        }
        let mut to = to.clone();
        if on_host && target.ends_with('/') && !is_dir {
            to.path.push(from.path.file_name().unwrap_or_default());
        }
        copy_content(from, to, owner)
            .await
            .map_err(|error| format!("error {}", told(&error)))?;
    }
    Ok(())
}
