//! The records of images that were lost. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Result;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::check::finding::{CheckedItem, ItemKind};
use crate::store::check::rebuild::facts::DataFacts;
use crate::store::check::rebuild::plan::Builder;
use crate::store::check::rebuild::report::RebuiltRecord;
use crate::store::layer_identity::LayerIdentity;

impl Builder<'_> {
    /// The records of images that were lost.
    pub(super) fn add_images(&mut self) -> Result<()> {
        let facts = self.facts;
        let mut without_layer = Vec::new();
        for (store, images) in facts.images.iter().enumerate() {
            for facts in images {
                let row = self.image_row(store, facts);
                if row.layer.is_empty() {
                    without_layer.push((store, row.id.to_string()));
                }
                if let Some(rows) = self.images.get_mut(store) {
                    rows.put(row, 0)?;
                }
            }
        }
        if let [(store, image)] = without_layer.as_slice()
            && let Some(layer) = self.only_unused_layer()
            && let Some(rows) = self.images.get_mut(*store)
            && rows.get(image).is_some_and(|row| row.layer.is_empty())
        {
            rows.update(image, |row| row.layer = layer.as_str().into())?;
            let report = rows.report(image);
            report.lost.retain(|lost| !lost.starts_with("its top layer"));
            report.inferred(format!(
                "its top layer {layer}: no other layer and no other image is left alone"
            ));
        }
        Ok(())
    }

    /// The one layer with content that nothing stands on and no image or container has.
    fn only_unused_layer(&self) -> Option<String> {
        let mut used = self.used_layers();
        used.extend(self.copies.values().flatten().map(String::as_str));
        let unused = |row: &&Arc<LayerRow>| !used.contains(row.id.as_str()) && row.has_diff();
        let mut found = self.layers.rows().filter(unused).map(|row| row.id.to_string());
        found.next().filter(|_| found.next().is_none())
    }

    fn image_row(&mut self, store: usize, facts: &DataFacts) -> ImageRow {
        let mut report = RebuiltRecord::new(CheckedItem::new(ItemKind::Image, &facts.id, false));
        let mut row = ImageRow {
            id: facts.id.as_str().into(),
            created: facts.created.clone(),
            ..ImageRow::default()
        };
        facts.record_items(&mut row);
        report.known("the ID: its directory");
        report.known("its big data: the files");
        report.lost("its names and metadata");
        let documents = self
            .facts
            .documents
            .iter()
            .find(|documents| documents.image == facts.id);
        match documents {
            Some(documents) => {
                let config = &documents.config;
                match config.created {
                    Some(created) => {
                        row.created = created.into();
                        report.inferred("when it was created: its config");
                    }
                    None => report.inferred("when it was created: the time of its directory"),
                }
                let found = self.top_layer(&config.diff_ids);
                match found {
                    Some((layer, 1)) => {
                        report.known(format!("its top layer {layer}: the diff IDs in its config"));
                        row.layer = layer.as_str().into();
                    }
                    Some((layer, count)) => {
                        report.inferred(format!(
                            "its top layer {layer}: one of {count} with the diff IDs in its config"
                        ));
                        row.layer = layer.as_str().into();
                    }
                    None if config.diff_ids.is_empty() => report.known("it has no layers: its config"),
                    None => report.lost("its top layer: no layer has the diff IDs in its config"),
                }
            }
            None => {
                report.inferred("when it was created: the time of its directory");
                report.lost("its top layer: there is no manifest and config");
            }
        }
        if let Some(copies) = self.copies.get(row.layer.as_str()) {
            row.mapped_layers.clone_from(copies);
            report.inferred("copies of its top layer with other owners");
        }
        row.normalise();
        if let Some(rows) = self.images.get_mut(store) {
            let old = rows.report(&facts.id);
            report.lost.splice(0..0, std::mem::take(&mut old.lost));
            *old = report;
        }
        row
    }

    /// The layer with these contents, and how many there are.
    fn top_layer(&self, diff_ids: &[Digest]) -> Option<(String, usize)> {
        let mut usual: Option<String> = None;
        for diff_id in diff_ids {
            usual = Some(LayerIdentity::DiffId(diff_id.clone()).layer_id(usual.as_deref()));
        }
        let usual = usual?;
        if self.layers.get(&usual).is_some() {
            return Some((usual, 1));
        }
        let copies: HashSet<&String> = self.copies.values().flatten().collect();
        let all = self.layers.rows().map(|row| row.id.to_string());
        let originals = all.filter(|id| !copies.contains(id));
        let mut fitting: Vec<String> = originals
            .filter(|id| self.contents_of(id).is_some_and(|contents| contents == diff_ids))
            .collect();
        let count = fitting.len();
        fitting.drain(..).next().map(|first| (first, count))
    }
}
