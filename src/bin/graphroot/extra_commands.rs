//! Commands for people, which containers-storage does not have: `tree`, `du`, `locks`.

use std::collections::{BTreeMap, HashMap, HashSet};

use graphroot::{Image, Layer, Store};
use serde::Serialize;

use crate::call::{Call, DONE, Failure, Out, Outcome};
use crate::text::human_size;

/// How many digits of an ID people want to see.
fn short(id: &str) -> &str {
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { id.get(..12).unwrap_or(id) } else { id }
}

fn title(names: &[String], id: &str) -> String {
    match names {
        [] => short(id).to_owned(),
        names => format!("{} ({})", names.join(", "), short(id)),
    }
}

/// An image with what belongs to it.
#[derive(Serialize)]
struct ImageTree {
    id: String,
    names: Vec<String>,
    /// From the top down.
    layers: Vec<LayerLine>,
    containers: Vec<ContainerLine>,
}

#[derive(Serialize)]
struct LayerLine {
    id: String,
    names: Vec<String>,
    /// Bytes of the uncompressed stream, where it is known.
    size: Option<u64>,
    /// Whether another image stands on it too.
    shared: bool,
}

#[derive(Serialize)]
struct ContainerLine {
    id: String,
    names: Vec<String>,
    layer: String,
    mounted: bool,
}

/// Images, layers and containers of one moment.
struct Snapshot {
    layers: HashMap<String, Layer>,
    images: Vec<Image>,
}

impl Snapshot {
    async fn read(store: &Store) -> Result<Self, Failure> {
        let layers = store.layers().await?;
        Ok(Self {
            layers: layers
                .into_iter()
                .map(|layer| (layer.id().to_owned(), layer))
                .collect(),
            images: store.images().await?,
        })
    }

    /// The layers from `top` down to the base. Ends where a parent is missing or comes again.
    fn chain(&self, top: Option<&str>) -> Vec<&Layer> {
        let mut chain: Vec<&Layer> = Vec::new();
        let mut seen = HashSet::new();
        let mut next = top;
        while let Some(layer) = next.and_then(|id| self.layers.get(id))
            && seen.insert(layer.id())
        {
            chain.push(layer);
            next = layer.parent();
        }
        chain
    }

    /// Every layer of an image, copies of its top layer with other owners included.
    fn layers_of(&self, image: &Image) -> Vec<&Layer> {
        let mut all = self.chain(image.top_layer());
        for copy in image.mapped_top_layers() {
            for layer in self.chain(Some(copy)) {
                if !all.iter().any(|known| known.id() == layer.id()) {
                    all.push(layer);
                }
            }
        }
        all
    }

    /// How many images stand on each layer.
    fn uses(&self) -> HashMap<&str, usize> {
        let mut uses = HashMap::new();
        for image in &self.images {
            for layer in self.layers_of(image) {
                *uses.entry(layer.id()).or_default() += 1;
            }
        }
        uses
    }
}

pub(crate) async fn tree(call: &Call, out: &mut Out) -> Outcome {
    let store = call.store()?;
    let snapshot = Snapshot::read(store).await?;
    let containers = store.containers().await?;
    let uses = snapshot.uses();
    let mut trees = Vec::new();
    for image in &snapshot.images {
        let layers = snapshot.layers_of(image).into_iter().map(|layer| LayerLine {
            id: layer.id().to_owned(),
            names: layer.names().to_vec(),
            size: layer.diff_size(),
            shared: uses.get(layer.id()).is_some_and(|count| *count > 1),
        });
        let containers = containers
            .iter()
            .filter(|container| container.image_id() == Some(image.id()))
            .map(|container| ContainerLine {
                id: container.id().to_owned(),
                names: container.names().to_vec(),
                layer: container.layer_id().to_owned(),
                mounted: snapshot
                    .layers
                    .get(container.layer_id())
                    .is_some_and(|layer| layer.mount_count() > 0),
            });
        trees.push(ImageTree {
            id: image.id().to_owned(),
            names: image.names().to_vec(),
            layers: layers.collect(),
            containers: containers.collect(),
        });
    }
    if call.json() {
        out.json(&trees)?;
        return DONE;
    }
    for image in trees {
        out.line(title(&image.names, &image.id))?;
        let mut lines: Vec<String> = image
            .layers
            .iter()
            .map(|layer| {
                let size = layer.size.map_or_else(|| "size unknown".to_owned(), human_size);
                let shared = if layer.shared { ", shared" } else { "" };
                format!("layer {} {size}{shared}", title(&layer.names, &layer.id))
            })
            .collect();
        lines.extend(image.containers.iter().map(|container| {
            let mounted = if container.mounted { ", mounted" } else { "" };
            format!("container {}{mounted}", title(&container.names, &container.id))
        }));
        let last = lines.len().saturating_sub(1);
        for (index, line) in lines.iter().enumerate() {
            let branch = if index == last { '└' } else { '├' };
            out.line(format!("{branch}─{line}"))?;
        }
    }
    let lonely: Vec<_> = containers
        .iter()
        .filter(|container| {
            !snapshot
                .images
                .iter()
                .any(|image| Some(image.id()) == container.image_id())
        })
        .collect();
    if !lonely.is_empty() {
        out.line("(no image)")?;
        let last = lonely.len().saturating_sub(1);
        for (index, container) in lonely.iter().enumerate() {
            let branch = if index == last { '└' } else { '├' };
            out.line(format!(
                "{branch}─container {}",
                title(container.names(), container.id())
            ))?;
        }
    }
    DONE
}

/// The space of one image, in bytes.
#[derive(Default, Serialize)]
struct Usage {
    id: String,
    names: Vec<String>,
    /// What would be free without it.
    unique: u64,
    /// What other images stand on too.
    shared: u64,
    total: u64,
}

#[derive(Serialize)]
struct Report {
    images: Vec<Usage>,
    /// All images together, each layer once.
    total: u64,
}

pub(crate) async fn du(call: &Call, out: &mut Out) -> Outcome {
    let store = call.store()?;
    let snapshot = Snapshot::read(store).await?;
    let uses = snapshot.uses();
    // Recorded sizes of the uncompressed streams; what was never recorded is measured, once.
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for image in &snapshot.images {
        for layer in snapshot.layers_of(image) {
            if !sizes.contains_key(layer.id()) {
                let size = match layer.diff_size() {
                    Some(size) => size,
                    None => store.diff_size(None, layer.id()).await?,
                };
                sizes.insert(layer.id(), size);
            }
        }
    }
    let mut report = Report {
        images: Vec::new(),
        total: sizes.values().sum(),
    };
    for image in &snapshot.images {
        let mut usage = Usage {
            id: image.id().to_owned(),
            names: image.names().to_vec(),
            ..Usage::default()
        };
        for layer in snapshot.layers_of(image) {
            let size = sizes.get(layer.id()).copied().unwrap_or_default();
            if uses.get(layer.id()).is_some_and(|count| *count > 1) {
                usage.shared += size;
            } else {
                usage.unique += size;
            }
        }
        let data: u64 = image
            .big_data_names()
            .iter()
            .filter_map(|key| image.big_data_size(key))
            .sum();
        usage.unique += data;
        usage.total = usage.unique + usage.shared;
        report.total += data;
        report.images.push(usage);
    }
    if call.json() {
        out.json(&report)?;
        return DONE;
    }
    out.line(format!(
        "{:>12} {:>12} {:>12}  IMAGE",
        "UNIQUE", "SHARED", "TOTAL"
    ))?;
    for usage in &report.images {
        out.line(format!(
            "{:>12} {:>12} {:>12}  {}",
            human_size(usage.unique),
            human_size(usage.shared),
            human_size(usage.total),
            title(&usage.names, &usage.id)
        ))?;
    }
    out.line(format!(
        "{:>12} {:>12} {:>12}  all images, each layer once",
        "",
        "",
        human_size(report.total)
    ))?;
    DONE
}

#[derive(Serialize)]
struct Lock {
    file: String,
    pid: u32,
    command: String,
    exclusive: bool,
}

pub(crate) async fn locks(call: &Call, out: &mut Out) -> Outcome {
    let owners = Store::lock_owners_of(&call.options).await?;
    let locks: Vec<Lock> = owners
        .into_iter()
        .map(|owner| Lock {
            file: owner.path.to_string_lossy().into_owned(),
            pid: owner.pid,
            command: owner.command,
            exclusive: owner.exclusive,
        })
        .collect();
    if call.json() {
        out.json(&locks)?;
        return DONE;
    }
    for lock in locks {
        let how = if lock.exclusive { "exclusive" } else { "shared" };
        out.line(format!("{} {how} {} {}", lock.file, lock.pid, lock.command))?;
    }
    DONE
}
