//! The records of containers that were lost. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::record::container::ContainerRow;
use crate::record::layer::LayerRow;
use crate::store::check::rebuild::facts::{ContainerNotes, DataFacts};
use crate::store::check::rebuild::plan::Builder;
use crate::store::check::rebuild::rows::Rows;
use crate::store::dirs::container_location;
use crate::time::Time;

/// How long after its layer the directory of a container is made at the latest.
const MOMENT: Duration = Duration::from_secs(10);

impl Builder<'_> {
    /// The records of containers that were lost.
    pub(super) fn add_containers(&mut self) -> Result<()> {
        let facts = self.facts;
        let lost = |location: usize| facts.lost_containers.get(location) == Some(&true);
        let location = match lost(container_location::STABLE) {
            true => container_location::STABLE,
            false => container_location::VOLATILE,
        };
        let mut without_layer = Vec::new();
        for (facts, notes) in &facts.containers {
            let row = self.container_row(facts, notes);
            if row.layer.is_empty() {
                without_layer.push((facts.id.clone(), facts.created.clone()));
            }
            self.containers.put(row, location)?;
        }
        for (container, layer, reason) in self.match_layers(&without_layer) {
            let name = self
                .layers
                .get(&layer)
                .and_then(|row| row.container_name())
                .map(str::to_owned);
            let has_name = self
                .containers
                .get(&container)
                .is_some_and(|row| !row.names.is_empty());
            let report = self.containers.report(&container);
            report.lost.retain(|lost| !lost.starts_with("its layer"));
            report.inferred(format!("its layer {layer}: {reason}"));
            let name = name.filter(|_| !has_name);
            if name.is_some() {
                report.lost.retain(|lost| lost != "its names");
                report.inferred("its name: that of its layer");
            }
            self.containers.update(&container, |row| {
                row.layer = layer.as_str().into();
                row.names.extend(name);
            })?;
        }
        for (facts, notes) in &facts.containers {
            // Of a record with other damage it may be there.
            if self
                .containers
                .get(&facts.id)
                .is_some_and(|row| row.image.is_empty())
            {
                self.find_image(&facts.id, notes)?;
            }
        }
        Ok(())
    }

    fn container_row(&mut self, facts: &DataFacts, notes: &ContainerNotes) -> ContainerRow {
        let report = self.containers.report(&facts.id);
        let mut row = ContainerRow {
            id: facts.id.as_str().into(),
            created: facts.created.clone(),
            ..ContainerRow::default()
        };
        facts.record_items(&mut row);
        report.known("the ID: its directory");
        report.known("its big data and userdata: the files");
        report.inferred("when it was created: the time of its directory");
        match &notes.name {
            Some((name, file)) => {
                row.names.push(name.clone());
                report.known(format!("its name: {file}"));
            }
            None => report.lost("its names"),
        }
        if let Some(label) = &notes.mount_label {
            row.flags.insert("MountLabel".into(), label.as_str().into());
            report.known("the label of its mounts: userdata/config.json");
        }
        report.lost("its ID mappings and flags");
        let layer = notes.layer.as_ref();
        match layer.filter(|(layer, _)| self.layers.get(layer).is_some()) {
            Some((layer, file)) => {
                row.layer = layer.as_str().into();
                self.containers
                    .report(&facts.id)
                    .known(format!("its layer {layer}: {file}"));
            }
            None => self
                .containers
                .report(&facts.id)
                .lost("its layer: nothing says which it is"),
        }
        row
    }

    /// The layers of containers of which nothing says which they are: the only one for the only one; else what was made just
    /// before the container's directory, as far as no other layer or container was made in between.
    fn match_layers(&self, containers: &[(String, Time)]) -> Vec<(String, String, &'static str)> {
        let free = self.layers_of_no_container();
        if let ([(container, _)], [layer]) = (containers, free.as_slice()) {
            let reason = "no other layer and no other container is left alone";
            return vec![(container.clone(), layer.id.to_string(), reason)];
        }
        let layers = free
            .iter()
            .map(|layer| (layer.created.system_time(), None, layer.id.to_string()));
        let made = containers
            .iter()
            .map(|(id, time)| (time.system_time(), Some(id.clone()), String::new()));
        let mut events: Vec<_> = layers.chain(made).collect();
        events.sort();
        let (mut matches, mut waiting) = (Vec::new(), Vec::new());
        for (time, container, layer) in events {
            let Some(container) = container else {
                waiting.push((time, layer));
                continue;
            };
            waiting.retain(|(made, _)| time.duration_since(*made).is_ok_and(|since| since <= MOMENT));
            // Of several nobody knows which is whose.
            if let [(_, layer)] = waiting.as_slice() {
                matches.push((container, layer.clone(), "it was made just before the container"));
            }
            waiting.clear();
        }
        matches
    }

    /// The layers without content that nothing stands on and no image or container has.
    fn layers_of_no_container(&self) -> Vec<Arc<LayerRow>> {
        let used = self.used_layers();
        let is_free = |row: &&Arc<LayerRow>| {
            !used.contains(row.id.as_str()) && !row.has_diff() && row.may_be_of_container()
        };
        self.layers.rows().filter(is_free).cloned().collect()
    }

    /// The image of a container: what programs have written down, or the image with the layer below the container's.
    fn find_image(&mut self, id: &str, notes: &ContainerNotes) -> Result<()> {
        let images = || self.images.iter().flat_map(Rows::rows);
        let noted = notes.image.as_ref();
        let noted = noted.filter(|(image, _)| images().any(|row| row.id == *image));
        let layer = self
            .containers
            .get(id)
            .and_then(|row| self.layers.get(&row.layer));
        let parent = layer.and_then(|row| row.parent_id());
        let mut fitting =
            images().filter(|row| parent.is_some_and(|parent| row.top_layers().any(|top| top == parent)));
        let (first, second) = (fitting.next(), fitting.next());
        let found = match (noted, first, second) {
            (Some((image, file)), ..) => Some((image.clone(), format!("its image {image}: {file}"), true)),
            (None, Some(image), None) => {
                let text = format!(
                    "its image {}: the only one with the layer below the container's",
                    image.id
                );
                Some((image.id.to_string(), text, false))
            }
            _ => None,
        };
        let several = second.is_some();
        let (image, created) = match found {
            Some((image, text, is_known)) => {
                let report = self.containers.report(id);
                match is_known {
                    true => report.known(text),
                    false => report.inferred(text),
                }
                (image, self.containers.get(id).map(|row| row.created.clone()))
            }
            None => {
                self.containers.report(id).lost(match several {
                    true => "its image: several have the layer below the container's",
                    false => "its image, if it had one",
                });
                (String::new(), None)
            }
        };
        let row = self.containers.get(id);
        let name = row.and_then(|row| row.names.first().cloned()).unwrap_or_default();
        let has_metadata = row.is_some_and(|row| !row.metadata.is_empty());
        let metadata = (notes.of_podman && !has_metadata)
            .then(|| podman_metadata(&image, &name, created.as_ref(), notes));
        if metadata.is_some() {
            let text = "its metadata: what Podman needs of it";
            self.containers.report(id).inferred(text);
        }
        self.containers.update(id, |row| {
            row.image = image.as_str().into();
            if let Some(metadata) = metadata {
                row.metadata = metadata;
            }
        })
    }
}

/// What Podman reads before it mounts a container.
fn podman_metadata(image: &str, name: &str, created: Option<&Time>, notes: &ContainerNotes) -> String {
    let mut metadata = serde_json::json!({
        "image-name": "",
        "image-id": image,
        "name": name,
        "created-at": created.map_or(0, |created| created.since_epoch().0),
    });
    if let (Some(fields), Some(label)) = (metadata.as_object_mut(), &notes.mount_label) {
        fields.insert("mountlabel".into(), label.as_str().into());
    }
    metadata.to_string()
}
