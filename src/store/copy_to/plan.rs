//! What has to be copied, and what is there already.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::record::big_data::Items as _;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::everything::Everything;
use crate::store::check::finding::ItemKind;
use crate::store::copy_to::options::CopyOptions;
use crate::store::copy_to::report::CopiedItem;
use crate::store::dirs::{container_location, layer_location};
use crate::store::inner::StoreOrigin;

/// A layer of the source.
#[derive(Clone)]
pub(super) struct SourceLayer {
    pub(super) row: Arc<LayerRow>,
    pub(super) home: StoreOrigin,
    /// Its record may be lost.
    pub(super) volatile: bool,
}

/// An image of the source.
#[derive(Clone)]
pub(super) struct SourceImage {
    pub(super) row: Arc<ImageRow>,
    pub(super) home: StoreOrigin,
}

/// A container of the source.
#[derive(Clone)]
pub(super) struct SourceContainer {
    pub(super) row: Arc<ContainerRow>,
    pub(super) layer: SourceLayer,
    /// Its record may be lost.
    pub(super) volatile: bool,
}

/// What has to be copied.
#[derive(Default)]
pub(super) struct Plan {
    /// The lower ones first; without those of containers.
    pub(super) layers: Vec<SourceLayer>,
    pub(super) images: Vec<SourceImage>,
    pub(super) containers: Vec<SourceContainer>,
    pub(super) present: Vec<CopiedItem>,
    /// Containers that are there already, perhaps as they were once.
    pub(super) there: Vec<SourceContainer>,
    /// The same of layers of which no digest tells what is in them.
    pub(super) undigested: Vec<SourceLayer>,
}

impl SourceLayer {
    pub(super) fn item(&self) -> CopiedItem {
        CopiedItem::new(ItemKind::Layer, &self.row.id, &self.row.names)
    }
}

impl SourceImage {
    pub(super) fn item(&self) -> CopiedItem {
        CopiedItem::new(ItemKind::Image, &self.row.id, &self.row.names)
    }
}

impl SourceContainer {
    pub(super) fn item(&self) -> CopiedItem {
        CopiedItem::new(ItemKind::Container, &self.row.id, &self.row.names)
    }
}

/// What an item of one store is compared with in the other one.
trait Compared: Record {
    /// Whether the other one with the same ID is the same.
    fn is_same(&self, other: &Self) -> bool;

    /// What tells them apart.
    fn identity(&self) -> String;
}

/// Whether two layers have the same digest; `None` if there is none that both have.
fn have_same_digest(layer: &LayerRow, other: &LayerRow) -> Option<bool> {
    let digests = [
        (&layer.diff_digest, &other.diff_digest),
        (&layer.toc_digest, &other.toc_digest),
        (&layer.compressed_digest, &other.compressed_digest),
    ];
    let known = digests.iter().find(|(a, b)| !a.is_empty() && !b.is_empty());
    known.map(|(a, b)| a == b)
}

impl Compared for LayerRow {
    fn is_same(&self, other: &Self) -> bool {
        // Where no digest tells what is in it, a copy was made at the same moment.
        self.parent == other.parent
            && have_same_digest(self, other).unwrap_or_else(|| self.created == other.created)
    }

    fn identity(&self) -> String {
        let digest = match self.diff_digest.is_empty() {
            true => &self.toc_digest,
            false => &self.diff_digest,
        };
        let parent = self.parent_id().unwrap_or("no layer");
        format!("{digest:?} on {parent}, made {}", self.created)
    }
}

impl Compared for ImageRow {
    fn is_same(&self, other: &Self) -> bool {
        let (_, _, others) = other.items();
        let mut items = self.big_data_digests.iter();
        self.layer == other.layer
            && items.all(|(key, digest)| others.get(key).is_none_or(|other| other == digest))
    }

    fn identity(&self) -> String {
        format!("{:?} on {}", self.digest, self.layer)
    }
}

impl Compared for ContainerRow {
    fn is_same(&self, other: &Self) -> bool {
        self.image == other.image && self.layer == other.layer && self.created == other.created
    }

    fn identity(&self) -> String {
        format!("of {} with {}, made {}", self.image, self.layer, self.created)
    }
}

/// Whether the target has the item already.
fn is_present<R: Compared>(
    row: &R,
    tables: &[&Table<R>],
    (from, to): (impl Display, impl Display),
) -> Result<bool> {
    let noun = R::NOUN;
    if let Some(other) = tables.iter().find_map(|table| table.get(row.id())) {
        if row.is_same(other) {
            return Ok(true);
        }
        let what = format!(
            "{noun} {:?} of {from} ({}) and {noun} {:?} of {to} ({}) are not the same",
            row.id(),
            row.identity(),
            other.id(),
            other.identity()
        );
        return Err(ErrorKind::DuplicateId.err(what));
    }
    let primary = tables.first();
    for name in row.names() {
        if let Some(other) = primary.and_then(|table| table.by_name(name)) {
            let what = format!(
                "the name {name:?} is that of {noun} {:?} in {from}, and of {noun} {:?} in {to}",
                row.id(),
                other.id()
            );
            return Err(ErrorKind::DuplicateName.err(what));
        }
    }
    Ok(false)
}

/// What is wanted of the source.
struct Wanted<'a> {
    held: &'a Everything,
    found: HashMap<&'a str, SourceLayer>,
    /// In the order in which they were found.
    order: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    fn find(&self, id: &str) -> Option<SourceLayer> {
        self.held.layers.iter().find_map(|(home, table)| {
            let row = table.get_complete(id)?;
            Some(SourceLayer {
                row: Arc::clone(row),
                home: *home,
                volatile: home.is_primary() && table.location(id) == Some(layer_location::VOLATILE),
            })
        })
    }

    /// Adds a layer and those below it. `user` is what needs it.
    fn add(&mut self, id: &'a str, user: impl Display) -> Result<()> {
        let mut next = id;
        let mut user = user.to_string();
        while !next.is_empty() && !self.found.contains_key(next) {
            let Some(layer) = self.find(next) else {
                return Err(ErrorKind::LayerUnknown.err(format!("layer {next:?}, which {user} needs")));
            };
            let row = self.row(next).ok_or_else(|| LayerRow::unknown(next))?;
            self.found.insert(&row.id, layer);
            self.order.push(&row.id);
            user = format!("layer {:?}", row.id);
            next = &row.parent;
        }
        Ok(())
    }

    /// The record as it is held.
    fn row(&self, id: &str) -> Option<&'a LayerRow> {
        let mut tables = self.held.layers.iter();
        tables.find_map(|(_, table)| table.get_complete(id).map(|row| &**row))
    }

    /// The layers, the lower ones first: those without a parent, then those on them, and so on.
    fn ordered(self) -> Result<Vec<SourceLayer>> {
        let Self { found, order, .. } = self;
        let mut depths: HashMap<&str, usize> = HashMap::new();
        for id in &order {
            let (mut depth, mut next) = (0, found.get(id).map(|layer| layer.row.parent.as_str()));
            while let Some(layer) = next.and_then(|next| found.get(next)) {
                depth += 1;
                next = Some(layer.row.parent.as_str());
                if depth > found.len() {
                    return Err(ErrorKind::CorruptMetadata.err(format!("layer {id:?} is below itself")));
                }
            }
            depths.insert(id, depth);
        }
        let mut order = order;
        order.sort_by_key(|id| depths.get(id).copied());
        Ok(order.iter().filter_map(|id| found.get(id).cloned()).collect())
    }
}

impl Plan {
    /// Whether the source has all that is to be copied.
    pub(super) async fn check(from: &Store, options: &CopyOptions) -> Result<()> {
        Selection::of(&from.hold_everything().await?, options).map(drop)
    }

    pub(super) async fn new(from: &Store, to: &Store, options: &CopyOptions) -> Result<Self> {
        let Selection {
            layers,
            images,
            containers,
        } = Selection::of(&from.hold_everything().await?, options)?;
        let target = to.hold_everything().await?;
        let roots = (from.graph_root().display(), to.graph_root().display());
        let mut plan = Self::default();
        let tables: Vec<_> = target.layers.iter().map(|(_, table)| &**table).collect();
        let mut own = HashSet::new();
        for container in containers {
            own.insert(container.row.layer.to_string());
            let there = is_present(&*container.row, &[&*target.containers], (&roots.0, &roots.1))?;
            let has_layer = is_present(&*container.layer.row, &tables, (&roots.0, &roots.1))?;
            match there {
                true => plan.there.push(container),
                false if has_layer => {
                    let what = format!(
                        "layer {:?} of container {:?} is in {} already, without the container",
                        container.row.layer, container.row.id, roots.1
                    );
                    return Err(ErrorKind::DuplicateId.err(what));
                }
                false => plan.containers.push(container),
            }
        }
        for layer in layers {
            if own.contains(layer.row.id.as_str()) {
                continue;
            }
            let other = tables.iter().find_map(|table| table.get(&layer.row.id));
            let is_undigested = other.is_some_and(|other| have_same_digest(&layer.row, other).is_none());
            match is_present(&*layer.row, &tables, (&roots.0, &roots.1))? {
                true if is_undigested => plan.undigested.push(layer),
                true => plan.present.push(layer.item()),
                false => plan.layers.push(layer),
            }
        }
        let tables: Vec<_> = target.images.iter().map(|(_, table)| &**table).collect();
        for image in images {
            match is_present(&*image.row, &tables, (&roots.0, &roots.1))? {
                true => plan.present.push(image.item()),
                false => plan.images.push(image),
            }
        }
        Ok(plan)
    }
}

/// What the options choose of a store, with what it needs.
struct Selection {
    layers: Vec<SourceLayer>,
    images: Vec<SourceImage>,
    containers: Vec<SourceContainer>,
}

impl Selection {
    fn of(held: &Everything, options: &CopyOptions) -> Result<Self> {
        let mut containers: Vec<&Arc<ContainerRow>> = Vec::new();
        let mut images: Vec<(StoreOrigin, &Arc<ImageRow>)> = Vec::new();
        if options.is_selection() {
            for key in &options.containers {
                containers.push(held.containers.require(key)?);
            }
            for key in &options.images {
                images.push(find_image(held, |table| table.find(key)).ok_or_else(|| ImageRow::unknown(key))?);
            }
        } else {
            if !options.without_containers {
                containers.extend(held.containers.rows());
            }
            let changeable = held.images.iter().filter(|(home, _)| !home.read_only());
            images.extend(changeable.flat_map(|(home, table)| table.rows().map(|row| (*home, row))));
        }
        let of_containers = containers.iter().filter(|row| !row.image.is_empty());
        // An image that was removed by force leaves its containers.
        images.extend(of_containers.filter_map(|row| find_image(held, |table| table.get(&row.image))));
        let mut wanted = Wanted {
            held,
            found: HashMap::new(),
            order: Vec::new(),
        };
        if !options.is_selection() {
            let own = held.layers.iter().filter(|(home, _)| home.is_primary());
            let used: HashSet<&str> = held.containers.rows().map(|row| row.layer.as_str()).collect();
            for row in own.flat_map(|(_, table)| table.rows()) {
                // Without their containers these are nothing.
                if !row.is_incomplete() && !used.contains(row.id.as_str()) {
                    wanted.add(&row.id, "the store")?;
                }
            }
        }
        let mut seen = HashSet::new();
        images.retain(|(_, row)| seen.insert(row.id.to_string()));
        for (_, row) in &images {
            let user = format!("image {:?}", row.id);
            wanted.add(&row.layer, &user)?;
            for copy in &row.mapped_layers {
                if wanted.row(copy).is_some() {
                    wanted.add(copy, &user)?;
                }
            }
        }
        let mut seen = HashSet::new();
        containers.retain(|row| seen.insert(row.id.to_string()));
        let mut chosen = Vec::new();
        for row in containers {
            let missing = |id: &str| -> Error {
                let what = format!("layer {id:?}, which container {:?} needs", row.id);
                ErrorKind::LayerUnknown.err(what)
            };
            let layer = wanted.find(&row.layer).ok_or_else(|| missing(&row.layer))?;
            if let Some(own) = wanted.row(&row.layer) {
                wanted.add(&own.parent, format!("container {:?}", row.id))?;
            }
            chosen.push(SourceContainer {
                row: Arc::clone(row),
                layer,
                volatile: held.containers.location(&row.id) == Some(container_location::VOLATILE),
            });
        }
        let images = images.into_iter().map(|(home, row)| SourceImage {
            row: Arc::clone(row),
            home,
        });
        Ok(Self {
            images: images.collect(),
            layers: wanted.ordered()?,
            containers: chosen,
        })
    }
}

/// The first image that is found in one of the image stores.
fn find_image<'a>(
    held: &'a Everything,
    find: impl Fn(&'a Table<ImageRow>) -> Option<&'a Arc<ImageRow>>,
) -> Option<(StoreOrigin, &'a Arc<ImageRow>)> {
    held.images
        .iter()
        .find_map(|(home, table)| Some((*home, find(table)?)))
}
