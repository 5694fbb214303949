//! `tree` and `du`: images with their layers and containers, and the space that they take.

use std::collections::{BTreeMap, HashMap, HashSet};

use graphroot::{Container, Image, Layer, Store};
use serde::Serialize;

use crate::call::Call;
use crate::outcome::{CommandError, DONE, Outcome};
use crate::output::Output;
use crate::text::human_size;

/// The first 12 digits of a random ID; a chosen ID as it is.
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

/// An image with its layers and containers.
#[derive(Serialize)]
struct ImageTree {
    id: String,
    names: Vec<String>,
    /// The top layer first.
    layers: Vec<LayerLine>,
    containers: Vec<ContainerLine>,
}

#[derive(Serialize)]
struct LayerLine {
    id: String,
    names: Vec<String>,
    /// Size of the uncompressed diff in bytes, if recorded.
    size: Option<u64>,
    /// Whether several images use it.
    shared: bool,
}

#[derive(Serialize)]
struct ContainerLine {
    id: String,
    names: Vec<String>,
    layer: String,
    mounted: bool,
}

impl LayerLine {
    fn new(layer: &Layer, shared: bool) -> Self {
        Self {
            id: layer.id().to_owned(),
            names: layer.names().to_vec(),
            size: layer.uncompressed_size(),
            shared,
        }
    }

    fn text(&self) -> String {
        let size = self.size.map_or_else(|| "size unknown".to_owned(), human_size);
        let shared = if self.shared { ", shared" } else { "" };
        format!("layer {} {size}{shared}", title(&self.names, &self.id))
    }
}

impl ContainerLine {
    fn new(container: &Container, contents: &StoreContents) -> Self {
        let layer = contents.layers.get(container.layer_id());
        Self {
            id: container.id().to_owned(),
            names: container.names().to_vec(),
            layer: container.layer_id().to_owned(),
            mounted: layer.is_some_and(|layer| layer.mount_count() > 0),
        }
    }

    fn text(&self) -> String {
        let mounted = if self.mounted { ", mounted" } else { "" };
        format!("container {}{mounted}", title(&self.names, &self.id))
    }
}

/// Everything in the store, by image.
#[derive(Serialize)]
struct Trees {
    images: Vec<ImageTree>,
    /// Layers of neither an image nor a container.
    layers_without_image: Vec<LayerLine>,
    containers_without_image: Vec<ContainerLine>,
}

impl Trees {
    fn new(contents: &StoreContents, containers: &[Container]) -> Self {
        let uses = contents.use_counts();
        let image_tree = |image: &Image| ImageTree {
            id: image.id().to_owned(),
            names: image.names().to_vec(),
            layers: contents
                .layers_of(image)
                .into_iter()
                .map(|layer| LayerLine::new(layer, uses.get(layer.id()).is_some_and(|count| *count > 1)))
                .collect(),
            containers: containers
                .iter()
                .filter(|container| container.image_id() == Some(image.id()))
                .map(|container| ContainerLine::new(container, contents))
                .collect(),
        };
        let is_container_layer = |layer: &Layer| {
            let mut ids = containers.iter().map(Container::layer_id);
            ids.any(|id| id == layer.id())
        };
        let has_image = |container: &Container| {
            let mut ids = contents.images.iter().map(Image::id);
            ids.any(|id| Some(id) == container.image_id())
        };
        let mut layers: Vec<&Layer> = contents.layers.values().collect();
        layers.retain(|layer| !uses.contains_key(layer.id()) && !is_container_layer(layer));
        layers.sort_by_key(|layer| (layer.created(), layer.id().to_owned()));
        Self {
            images: contents.images.iter().map(image_tree).collect(),
            layers_without_image: layers
                .into_iter()
                .map(|layer| LayerLine::new(layer, false))
                .collect(),
            containers_without_image: containers
                .iter()
                .filter(|container| !has_image(container))
                .map(|container| ContainerLine::new(container, contents))
                .collect(),
        }
    }
}

/// All layers and images of the store.
struct StoreContents {
    layers: HashMap<String, Layer>,
    images: Vec<Image>,
}

impl StoreContents {
    async fn read(store: &Store) -> Result<Self, CommandError> {
        let layers = store.layers().await?;
        Ok(Self {
            layers: layers
                .into_iter()
                .map(|layer| (layer.id().to_owned(), layer))
                .collect(),
            images: store.images().await?,
        })
    }

    /// The layers from `top` down to the base. Ends at a parent that is missing or in the chain already.
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

    /// Every layer of an image, including the ID-mapped copies of its top layer.
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

    /// How many images use each layer.
    fn use_counts(&self) -> HashMap<&str, usize> {
        let mut uses = HashMap::new();
        for image in &self.images {
            for layer in self.layers_of(image) {
                *uses.entry(layer.id()).or_default() += 1;
            }
        }
        uses
    }
}

pub(crate) async fn tree(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let contents = StoreContents::read(store).await?;
    let containers = store.containers().await?;
    let trees = Trees::new(&contents, &containers);
    if call.json() {
        out.json(&trees)?;
        return DONE;
    }
    for image in &trees.images {
        let layers = image.layers.iter().map(LayerLine::text);
        let containers = image.containers.iter().map(ContainerLine::text);
        out.line(title(&image.names, &image.id))?;
        branches(out, layers.chain(containers).collect())?;
    }
    let layers = trees.layers_without_image.iter().map(LayerLine::text);
    let containers = trees.containers_without_image.iter().map(ContainerLine::text);
    let without_image: Vec<String> = layers.chain(containers).collect();
    if !without_image.is_empty() {
        out.line("(no image)")?;
        branches(out, without_image)?;
    }
    DONE
}

/// Prints lines below a title.
fn branches(out: &mut Output, lines: Vec<String>) -> Result<(), CommandError> {
    let last = lines.len().saturating_sub(1);
    for (index, line) in lines.iter().enumerate() {
        let branch = if index == last { '└' } else { '├' };
        out.line(format!("{branch}─{line}"))?;
    }
    Ok(())
}

/// The space that one image takes, in bytes.
#[derive(Default, Serialize)]
struct ImageUsage {
    id: String,
    names: Vec<String>,
    /// Layers and big data of this image only.
    unique: u64,
    /// Layers that other images use too.
    shared: u64,
    total: u64,
}

#[derive(Serialize)]
struct UsageReport {
    images: Vec<ImageUsage>,
    /// All images, each layer counted once.
    total: u64,
}

pub(crate) async fn du(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let contents = StoreContents::read(store).await?;
    let uses = contents.use_counts();
    // The recorded size of the uncompressed diff; a size that is not recorded is measured once.
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for image in &contents.images {
        for layer in contents.layers_of(image) {
            if !sizes.contains_key(layer.id()) {
                let size = match layer.uncompressed_size() {
                    Some(size) => size,
                    None => store.diff_size(None, layer.id()).await?,
                };
                sizes.insert(layer.id(), size);
            }
        }
    }
    let mut report = UsageReport {
        images: Vec::new(),
        total: sizes.values().copied().fold(0, u64::saturating_add),
    };
    for image in &contents.images {
        let mut usage = ImageUsage {
            id: image.id().to_owned(),
            names: image.names().to_vec(),
            ..ImageUsage::default()
        };
        for layer in contents.layers_of(image) {
            let size = sizes.get(layer.id()).copied().unwrap_or_default();
            if uses.get(layer.id()).is_some_and(|count| *count > 1) {
                usage.shared = usage.shared.saturating_add(size);
            } else {
                usage.unique = usage.unique.saturating_add(size);
            }
        }
        let data: u64 = image
            .big_data_names()
            .iter()
            .filter_map(|key| image.big_data_size(key))
            .fold(0, u64::saturating_add);
        usage.unique = usage.unique.saturating_add(data);
        usage.total = usage.unique.saturating_add(usage.shared);
        report.total = report.total.saturating_add(data);
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
