//! The records of layers that were lost. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::compression::Compression;
use crate::digest::Digest;
use crate::driver::FoundLayer;
use crate::error::Result;
use crate::record::layer::LayerRow;
use crate::store::check::rebuild::facts::LayerFacts;
use crate::store::check::rebuild::plan::{Builder, has_usual_id};
use crate::store::check::rebuild::report::RebuiltRecord;
use crate::store::check::rebuild::rows::Rows;
use crate::store::dirs::layer_location;
use crate::store::layer_identity::LayerIdentity;

impl Builder<'_> {
    /// The records of layers that were lost, the oldest first.
    pub(super) fn add_layers(&mut self) -> Result<()> {
        let facts = self.facts;
        let mut layers: Vec<&LayerFacts> = facts.layers.iter().collect();
        layers.sort_by_key(|layer| (layer.created.since_epoch(), layer.found.id.as_str()));
        for facts in layers {
            let location = self.location_of(&facts.found);
            let row = self.layer_row(facts);
            self.layers.put(row, location)?;
        }
        Ok(())
    }

    fn location_of(&self, found: &FoundLayer) -> usize {
        if found.in_image_store == Some(true) {
            return layer_location::IMAGE_STORE;
        }
        let lost = |location: usize| self.facts.lost_layers.get(location) == Some(&true);
        let is_volatile = || {
            let row = self.containers.rows().find(|row| row.layer == found.id);
            row.is_some_and(|row| row.flags.get("Volatile") == Some(&serde_json::Value::Bool(true)))
        };
        match (lost(layer_location::STABLE), lost(layer_location::VOLATILE)) {
            (true, true) if is_volatile() => layer_location::VOLATILE,
            (false, true) => layer_location::VOLATILE,
            _ => layer_location::STABLE,
        }
    }

    fn layer_row(&mut self, facts: &LayerFacts) -> LayerRow {
        let id = facts.found.id.as_str();
        let mut report = RebuiltRecord::new(self.layers.report(id).item.clone());
        let mut row = LayerRow {
            id: id.into(),
            created: facts.created.clone(),
            diff_size: -1,
            big_data_names: facts.items.clone(),
            ..LayerRow::default()
        };
        report.known("the ID: its directory");
        report.inferred("when it was created: the time of its files");
        report.lost("names and metadata, if it had some");
        let of_image = self.known_layers.by_id.get(id);
        match (&facts.found.below, of_image) {
            (Some(below), _) => {
                row.parent = below.first().map_or("", String::as_str).into();
                report.known(match below.first() {
                    Some(parent) => format!("its parent {parent}: the driver's files"),
                    None => "it is a base layer: the driver's files".to_owned(),
                });
            }
            (None, Some((parent, _))) => {
                row.parent = parent.as_deref().unwrap_or_default().into();
                report.known("its parent: its ID and the configs of images");
            }
            (None, None) => {
                let of_container = self.containers.rows().find(|container| container.layer == *id);
                let image = of_container.map(|container| container.image.clone());
                let images = || self.images.iter().flat_map(Rows::rows);
                let image = image.and_then(|image| images().find(|row| row.id == image));
                if let Some(image) = image {
                    row.parent = image.layer.clone();
                    report.inferred("its parent: the image of its container");
                }
            }
        }
        match &facts.stream {
            Some(Ok(stream)) => {
                row.diff_size = i64::try_from(stream.size).unwrap_or(-1);
                row.uids = stream.uids.iter().copied().collect();
                row.gids = stream.gids.iter().copied().collect();
                row.diff_digest = stream.digest.clone().into();
                if stream.digest.is_some() {
                    report.known("its diff ID, size and owners: its stream was made again");
                }
            }
            Some(Err(reason)) => report.lost(format!("its size and owners: {reason}")),
            None => {}
        }
        if row.diff_digest.is_empty() {
            match of_image {
                Some((_, diff)) => {
                    row.diff_digest = diff.clone().into();
                    report.inferred(
                        "its diff ID: its ID and the configs of images; its content is not as it was",
                    );
                }
                None if facts.stream.is_some() => {
                    report.lost("its diff ID: its content is not as its tar-split file says");
                }
                None => report.lost("its diff ID, if it had one: there is no tar-split file"),
            }
        }
        let blob = row
            .diff_digest
            .valid()
            .and_then(|diff| self.known_layers.blobs.get(diff));
        match blob.cloned() {
            Some(blob) => {
                row.compressed_size = i64::try_from(blob.size).unwrap_or(0);
                row.compression = Compression::of_media_type(&blob.media_type).as_i64();
                row.compressed_digest = blob.digest.into();
                report.inferred("the blob that it came from: the manifest of an image");
            }
            None if !row.diff_digest.is_empty() => report.lost("the blob that it came from"),
            None => {}
        }
        if row.diff_digest.is_empty() {
            row.diff_size = 0;
        }
        let old = self.layers.report(id);
        report.lost.splice(0..0, std::mem::take(&mut old.lost));
        *old = report;
        row
    }

    /// Layers without a record whose driver says nothing of parents, and copies with other owners: what the digests tell.
    pub(super) fn find_copies(&mut self) -> Result<()> {
        let facts = self.facts;
        let made: HashSet<&str> = facts.layers.iter().map(|layer| layer.found.id.as_str()).collect();
        for facts in &facts.layers {
            let id = facts.found.id.as_str();
            let Some(row) = self.layers.get(id).cloned() else {
                continue;
            };
            if facts.found.below.is_none() && row.parent.is_empty() {
                self.find_parent(id)?;
                continue;
            }
            let original = row
                .parent_id()
                .and_then(|parent| self.layers.get(parent))
                .cloned();
            let Some(original) = original else { continue };
            let is_copy = row.diff_digest.valid().is_some()
                && row.diff_digest.valid() == original.diff_digest.valid()
                && !has_usual_id(&row);
            if is_copy {
                let parent = original.parent.clone();
                self.layers.update(id, |row| row.parent = parent.clone())?;
                let report = self.layers.report(id);
                report.known.retain(|known| !known.starts_with("its parent"));
                report.inferred(format!(
                    "it is a copy of layer {} with other owners, on the same parent: both have one content",
                    original.id
                ));
                report.lost("the ID mappings of its owners");
                self.copies
                    .entry(original.id.to_string())
                    .or_default()
                    .push(id.to_owned());
            }
        }
        let mapped = self
            .layers
            .rows()
            .filter(|row| !row.uid_map.is_empty() && !made.contains(row.id.as_str()));
        for copy in mapped.filter(|row| row.names.is_empty() && row.diff_digest.valid().is_some()) {
            let originals = self
                .layers
                .rows()
                .filter(|row| row.uid_map.is_empty() && row.id != copy.id);
            let same = |row: &&Arc<LayerRow>| {
                row.parent == copy.parent && row.diff_digest.valid() == copy.diff_digest.valid()
            };
            for original in originals.filter(same) {
                let copies = self.copies.entry(original.id.to_string()).or_default();
                copies.push(copy.id.to_string());
            }
        }
        Ok(())
    }

    /// The parent of a layer with the ID that image programs give it, among all layers.
    fn find_parent(&mut self, id: &str) -> Result<()> {
        let Some(row) = self.layers.get(id).cloned() else {
            return Ok(());
        };
        if has_usual_id(&row) {
            self.layers.report(id).known("it is a base layer: its ID");
            return Ok(());
        }
        let found = row.diff_digest.valid().and_then(|diff| {
            let identity = LayerIdentity::DiffId(diff.clone());
            let mut candidates = self.layers.rows();
            candidates.find(|parent| identity.layer_id(Some(&parent.id)) == *row.id)
        });
        match found.map(|parent| parent.id.clone()) {
            Some(parent) => {
                let known = format!("its parent {parent}: its ID");
                self.layers.update(id, |row| row.parent = parent)?;
                self.layers.report(id).known(known);
            }
            None => self
                .layers
                .report(id)
                .lost("its parent; it is taken for a base layer"),
        }
        Ok(())
    }

    /// The content of a layer and of those below, the lowest first; `None` if it is not known of one.
    pub(super) fn contents_of(&self, top: &str) -> Option<Vec<Digest>> {
        let mut contents = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some(top.to_owned());
        while let Some(id) = next.filter(|id| seen.insert(id.clone())) {
            let row = self.layers.get(&id)?;
            contents.push(row.diff_digest.valid()?.clone());
            next = row.parent_id().map(str::to_owned);
        }
        contents.reverse();
        Some(contents)
    }
}
