//! Puts together the records of layers, images and containers from what is left of the files, and from what is on disk. Pure.
//!
//! Whatever is not known for sure stands in the report with what it was inferred from.

use std::collections::{HashMap, HashSet};

use crate::driver::FoundLayer;
use crate::error::Result;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::store::check::finding::ItemKind;
use crate::store::check::rebuild::examined::{Examined, loops};
use crate::store::check::rebuild::facts::{
    ContainerNotes, DataFacts, ImageDocuments, ImageLayers, LayerFacts, layers_of,
};
use crate::store::check::rebuild::report::RebuiltRecord;
use crate::store::check::rebuild::rows::{NewFile, Rows};
use crate::store::layer_identity::LayerIdentity;

/// What is on disk apart from the files of records.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Every layer that the driver has.
    pub(super) found: Vec<FoundLayer>,
    /// Layers whose records are to be made.
    pub(super) layers: Vec<LayerFacts>,
    /// Images whose records are to be made, by store.
    pub(super) images: Vec<Vec<DataFacts>>,
    /// The documents of all images.
    pub(super) documents: Vec<ImageDocuments>,
    /// Containers whose records are to be made.
    pub(super) containers: Vec<(DataFacts, ContainerNotes)>,
    /// Which files of layers have lost records, by location.
    pub(super) lost_layers: Vec<bool>,
    /// Likewise of containers.
    pub(super) lost_containers: Vec<bool>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) layers: Vec<NewFile>,
    /// By store.
    pub(super) images: Vec<Vec<NewFile>>,
    pub(super) containers: Vec<NewFile>,
    pub(super) records: Vec<RebuiltRecord>,
}

/// The records while they are put together.
pub(super) struct Builder<'a> {
    pub(super) facts: &'a Facts,
    pub(super) known_layers: ImageLayers,
    pub(super) found: HashMap<&'a str, &'a FoundLayer>,
    pub(super) layers: Rows<LayerRow>,
    pub(super) images: Vec<Rows<ImageRow>>,
    pub(super) containers: Rows<ContainerRow>,
    /// Copies of layers with other owners, by the layer.
    pub(super) copies: HashMap<String, Vec<String>>,
}

/// Makes the plan.
pub(super) fn plan(examined: &Examined, facts: &Facts) -> Result<Plan> {
    let images = examined
        .images
        .iter()
        .map(|files| Rows::of(ItemKind::Image, files));
    let mut builder = Builder {
        known_layers: layers_of(&facts.documents),
        found: facts
            .found
            .iter()
            .map(|found| (found.id.as_str(), found))
            .collect(),
        layers: Rows::of(ItemKind::Layer, &examined.layers),
        images: images.collect(),
        containers: Rows::of(ItemKind::Container, &examined.containers),
        copies: HashMap::new(),
        facts,
    };
    builder.add_layers()?;
    builder.find_copies()?;
    builder.add_images()?;
    builder.add_containers()?;
    builder.cut_loops()?;
    builder.finish()
}

/// Whether a layer has the ID that image programs give to one with this content on this parent.
pub(super) fn has_usual_id(row: &LayerRow) -> bool {
    row.diff_digest
        .valid()
        .is_some_and(|diff| LayerIdentity::DiffId(diff.clone()).layer_id(row.parent_id()) == *row.id)
}

impl Builder<'_> {
    /// Layers that stand on each other in a circle: what the driver says counts, then IDs; else the oldest becomes a base
    /// layer.
    fn cut_loops(&mut self) -> Result<()> {
        for ids in self.loops() {
            for id in ids {
                let below = self.found.get(id.as_str()).and_then(|found| found.below.clone());
                let Some(below) = below else { continue };
                let parent = below.first().cloned().unwrap_or_default();
                let is_other = self.layers.get(&id).is_some_and(|row| row.parent != parent);
                if is_other && (parent.is_empty() || self.layers.get(&parent).is_some()) {
                    self.layers
                        .update(&id, |row| row.parent = parent.as_str().into())?;
                    self.layers.report(&id).known(match parent.as_str() {
                        "" => "it is a base layer: the driver's files".to_owned(),
                        parent => format!("its parent {parent}: the driver's files"),
                    });
                }
            }
        }
        for ids in self.loops() {
            let rows: Vec<_> = ids.iter().filter_map(|id| self.layers.get(id).cloned()).collect();
            let base = |row: &&std::sync::Arc<LayerRow>| {
                let mut base = (***row).clone();
                base.parent = "".into();
                has_usual_id(&base)
            };
            let oldest = || rows.iter().min_by_key(|row| row.created.since_epoch());
            let by_id = rows.iter().find(base);
            let Some(cut) = by_id.or_else(oldest) else {
                continue;
            };
            let id = cut.id.to_string();
            self.layers.update(&id, |row| row.parent = "".into())?;
            let text = format!("it is a base layer: of the circle {} ", ids.join(", "));
            match by_id {
                Some(_) => self.layers.report(&id).known(text + "it has the ID of one"),
                None => self.layers.report(&id).inferred(text + "it is the oldest"),
            }
        }
        Ok(())
    }

    /// The layers that others stand on, or that an image or a container has.
    pub(super) fn used_layers(&self) -> HashSet<&str> {
        let images = self.images.iter().flat_map(Rows::rows);
        let mut used: HashSet<&str> = images.flat_map(|row| row.top_layers()).collect();
        used.extend(self.containers.rows().map(|row| row.layer.as_str()));
        used.extend(self.layers.rows().filter_map(|row| row.parent_id()));
        used
    }

    fn loops(&self) -> Vec<Vec<String>> {
        let rows = self.layers.rows();
        let parents = rows.map(|row| (row.id.to_string(), row.parent.to_string()));
        loops(&parents.collect())
    }

    fn finish(self) -> Result<Plan> {
        let mut plan = Plan::default();
        let (layers, records) = self.layers.finish()?;
        plan.layers = layers;
        plan.records.extend(records);
        for images in self.images {
            let (images, records) = images.finish()?;
            plan.images.push(images);
            plan.records.extend(records);
        }
        let (containers, records) = self.containers.finish()?;
        plan.containers = containers;
        plan.records.extend(records);
        Ok(plan)
    }
}
