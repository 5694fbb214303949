//! What refers to what: the findings that the records alone tell, and those that images and containers inherit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::record::layer::LayerRow;
use crate::store::check::finding::{CheckedItem, Finding, ItemKind, Problem};
use crate::store::check::survey::Survey;

/// Findings by item, in the order of a report.
#[derive(Debug, Default)]
pub(super) struct Findings(BTreeMap<CheckedItem, Vec<Arc<Finding>>>);

impl Findings {
    pub(super) fn add(&mut self, item: &CheckedItem, problem: Problem) {
        let finding = Arc::new(Finding::new(item, problem));
        self.0.entry(item.clone()).or_default().push(finding);
    }

    fn of(&self, item: &CheckedItem) -> &[Arc<Finding>] {
        self.0.get(item).map_or(&[], Vec::as_slice)
    }

    /// All of them.
    pub(super) fn into_list(self) -> Vec<Finding> {
        let all = self.0.into_values().flatten();
        all.map(Arc::unwrap_or_clone).collect()
    }

    /// Adds what an item inherits from another one.
    fn inherit(&mut self, item: &CheckedItem, from: &CheckedItem) {
        let inherited: Vec<Problem> = self
            .of(from)
            .iter()
            .map(|finding| Problem::Inherited(Arc::clone(finding)))
            .collect();
        for problem in inherited {
            self.add(item, problem);
        }
    }
}

/// The item of a layer.
pub(super) fn layer_item(survey: &Survey, id: &str) -> CheckedItem {
    let read_only = survey.layer(id).is_some_and(|(home, _)| home.read_only());
    CheckedItem::new(ItemKind::Layer, id, read_only)
}

/// Whether a layer was made so long ago. One without a time was.
fn is_older(row: &LayerRow, age: Duration) -> bool {
    let passed = || SystemTime::now().duration_since(row.created.system_time());
    row.created.is_go_zero() || passed().is_ok_and(|passed| passed > age)
}

/// Adds to `findings`, which are about contents, what the records tell.
pub(super) fn examine(survey: &Survey, unreferenced_age: Duration, findings: &mut Findings) {
    layers(survey, findings);
    let mut referenced = images(survey, findings);
    containers(survey, findings, &mut referenced);
    // Without all records nobody knows what refers to a layer.
    if survey.lost.is_empty() {
        for id in unreferenced(survey, &referenced, unreferenced_age) {
            findings.add(&layer_item(survey, id), Problem::Unreferenced);
        }
        for id in &survey.unaccounted {
            let item = CheckedItem::new(ItemKind::Layer, id, false);
            findings.add(&item, Problem::Unaccounted);
        }
    }
}

/// The layers to which nothing refers, as far as they and those that stand on them are old enough.
fn unreferenced<'a>(survey: &'a Survey, referenced: &HashSet<&str>, age: Duration) -> Vec<&'a str> {
    let writable = survey.layers.iter().filter(|(home, _)| !home.read_only());
    let mut found: HashSet<&str> = writable
        .map(|(_, row)| row)
        .filter(|row| !referenced.contains(&*row.id) && is_older(row, age))
        .map(|row| &*row.id)
        .collect();
    loop {
        let kept: Vec<&str> = survey
            .layers
            .iter()
            .map(|(_, row)| row)
            .filter(|row| found.contains(&*row.parent) && !found.contains(&*row.id))
            .map(|row| &*row.parent)
            .collect();
        if kept.is_empty() {
            break;
        }
        for id in kept {
            found.remove(id);
        }
    }
    let in_order = survey.layers.iter().map(|(_, row)| &*row.id);
    in_order.filter(|id| found.contains(id)).collect()
}

/// What is wrong with the parents of layers.
fn layers(survey: &Survey, findings: &mut Findings) {
    for damage in &survey.driver_damage {
        let (file, reason) = (damage.file.to_owned(), damage.reason.clone());
        findings.add(
            &layer_item(survey, &damage.id),
            Problem::DriverData { file, reason },
        );
    }
    for (home, row) in &survey.layers {
        let item = layer_item(survey, &row.id);
        if !row.parent.is_empty() && survey.layer(&row.parent).is_none() {
            findings.add(
                &item,
                Problem::ParentMissing {
                    parent: row.parent.to_string(),
                },
            );
        }
        if survey.loops(row) {
            findings.add(&item, Problem::ParentLoop);
        }
        if home.read_only() && row.is_incomplete() {
            findings.add(&item, Problem::Incomplete);
        }
    }
}

/// What images lack, and what they inherit from their layers. Returns the layers that they refer to, with those below.
fn images<'a>(survey: &'a Survey, findings: &mut Findings) -> HashSet<&'a str> {
    let mut referenced: HashSet<&str> = HashSet::new();
    for (home, row) in &survey.images {
        let item = CheckedItem::new(ItemKind::Image, &row.id, home.read_only());
        let mut inherited: HashSet<&str> = HashSet::new();
        for layer in row.top_layers().filter(|layer| !layer.is_empty()) {
            chain(survey, &item, layer, &mut referenced, &mut inherited, findings);
        }
    }
    referenced
}

/// Follows the layers of an image or container down from `top`.
fn chain<'a>(
    survey: &'a Survey,
    item: &CheckedItem,
    top: &'a str,
    referenced: &mut HashSet<&'a str>,
    inherited: &mut HashSet<&'a str>,
    findings: &mut Findings,
) {
    let Some((_, row)) = survey.layer(top) else {
        findings.add(
            item,
            Problem::LayerMissing {
                layer: top.to_owned(),
            },
        );
        return;
    };
    let below = survey.below(row);
    for (id, found) in std::iter::once((top, Some(row))).chain(below) {
        if found.is_none() {
            findings.add(item, Problem::LayerMissing { layer: id.to_owned() });
            continue;
        }
        referenced.insert(id);
        if inherited.insert(id) {
            findings.inherit(item, &layer_item(survey, id));
        }
    }
}

/// Likewise for containers, which inherit from their images too.
fn containers<'a>(survey: &'a Survey, findings: &mut Findings, referenced: &mut HashSet<&'a str>) {
    let images: HashMap<&str, bool> = survey
        .images
        .iter()
        .map(|(home, row)| (&*row.id, home.read_only()))
        .collect();
    for row in &survey.containers {
        let item = CheckedItem::new(ItemKind::Container, &row.id, false);
        let mut inherited: HashSet<&str> = HashSet::new();
        if !row.image.is_empty() {
            match images.get(&*row.image) {
                None => findings.add(
                    &item,
                    Problem::ImageMissing {
                        image: row.image.to_string(),
                    },
                ),
                Some(read_only) => {
                    let image = CheckedItem::new(ItemKind::Image, &row.image, *read_only);
                    findings.inherit(&item, &image);
                    // What the image has inherited is not told of twice.
                    let image = survey.images.iter().find(|(_, image)| image.id == row.image);
                    for top in image.iter().flat_map(|(_, image)| image.top_layers()) {
                        inherited.insert(top);
                        if let Some((_, top)) = survey.layer(top) {
                            inherited.extend(survey.below(top).map(|(id, _)| id));
                        }
                    }
                }
            }
        }
        if !row.layer.is_empty() {
            chain(survey, &item, &row.layer, referenced, &mut inherited, findings);
        }
    }
}
