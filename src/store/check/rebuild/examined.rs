//! The files of records as they are, with what is wrong with each. Pure but for the time of files that are not synced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountPointRow;
use crate::record::record_trait::Record;
use crate::store::access::files::{FileText, StoreTexts};
use crate::store::check::rebuild::damage::RecordDamage;
use crate::store::check::rebuild::salvage::{Contents, Keyed};
use crate::store::check::report::StoreProblem;
use crate::sys::boot::changed_before_boot;

/// A file of records.
#[derive(Debug)]
pub(crate) struct ExaminedFile<R> {
    pub(super) path: PathBuf,
    /// Whether it is missing, or does not even say that there are no records.
    pub(super) says_nothing: bool,
    pub(super) contents: Contents<R>,
}

/// All files of records.
#[derive(Debug)]
pub(crate) struct Examined {
    /// By location.
    pub(super) layers: Vec<ExaminedFile<LayerRow>>,
    pub(super) additional_layers: Vec<Vec<ExaminedFile<LayerRow>>>,
    /// By store, one file each.
    pub(super) images: Vec<Vec<ExaminedFile<ImageRow>>>,
    pub(super) additional_images: Vec<Vec<ExaminedFile<ImageRow>>>,
    /// By location.
    pub(super) containers: Vec<ExaminedFile<ContainerRow>>,
    pub(super) mounts: ExaminedFile<MountPointRow>,
}

impl<R: Keyed> ExaminedFile<R> {
    fn of(text: &FileText) -> Self {
        let mut contents = match &text.content {
            Some(content) => Contents::of(content),
            None => Contents::default(),
        };
        // What a power cut has left of records that nobody needs after it.
        if !text.sync && !contents.damage.is_empty() && changed_before_boot(&text.path) {
            contents = Contents::default();
        }
        Self {
            path: text.path.clone(),
            says_nothing: (text.content.as_ref()).is_none_or(|content| content.trim_ascii() == b"null"),
            contents,
        }
    }

    /// Whether records may be missing.
    pub(super) fn loses_records(&self) -> bool {
        self.contents.damage.iter().any(RecordDamage::loses_records)
    }

    /// The IDs of records with damaged fields.
    pub(super) fn with_dropped_fields(&self) -> impl Iterator<Item = &str> {
        let rows = self.contents.rows.iter().filter(|row| !row.dropped.is_empty());
        rows.map(|row| row.row.key())
    }
}

impl<R> ExaminedFile<R> {
    pub(super) fn rows(&self) -> impl Iterator<Item = &Arc<R>> {
        self.contents.rows.iter().map(|salvaged| &salvaged.row)
    }
}

impl Examined {
    pub(crate) fn of(texts: &StoreTexts) -> Self {
        let mut examined = Self {
            layers: files(&texts.layers),
            additional_layers: texts.additional_layers.iter().map(|texts| files(texts)).collect(),
            images: texts.images.iter().map(|texts| files(texts)).collect(),
            additional_images: texts.additional_images.iter().map(|texts| files(texts)).collect(),
            containers: files(&texts.containers),
            mounts: ExaminedFile::of(&texts.mounts),
        };
        note_duplicates(&mut examined.layers);
        note_loops(&mut examined.layers);
        for images in &mut examined.images {
            note_duplicates(images);
        }
        note_duplicates(&mut examined.containers);
        examined
    }

    /// Whether programs can load all files, and leave them as they are.
    pub(crate) fn can_be_loaded(&self) -> bool {
        let mut damage = self.damage();
        damage.all(|(_, damage)| damage.can_be_loaded())
    }

    fn damage(&self) -> impl Iterator<Item = (&PathBuf, &RecordDamage)> {
        fn of<R>(file: &ExaminedFile<R>) -> impl Iterator<Item = (&PathBuf, &RecordDamage)> {
            file.contents.damage.iter().map(|damage| (&file.path, damage))
        }
        let layers = self.layers.iter().chain(self.additional_layers.iter().flatten());
        let images = self.images.iter().chain(&self.additional_images).flatten();
        let containers = self.containers.iter();
        layers
            .flat_map(of)
            .chain(images.flat_map(of))
            .chain(containers.flat_map(of))
            .chain(of(&self.mounts))
    }

    /// What is wrong with the files.
    pub(crate) fn problems(&self) -> Vec<StoreProblem> {
        let problem = |(path, damage): (&PathBuf, &RecordDamage)| StoreProblem::RecordsDamaged {
            path: path.clone(),
            damage: damage.clone(),
        };
        self.damage().map(problem).collect()
    }

    /// The records of layers that could be read, each with whether it is in an additional store and in which.
    pub(crate) fn layer_rows(&self) -> impl Iterator<Item = (Option<usize>, &Arc<LayerRow>)> {
        let own = self
            .layers
            .iter()
            .flat_map(ExaminedFile::rows)
            .map(|row| (None, row));
        let additional = self.additional_layers.iter().enumerate();
        let additional = additional.flat_map(|(index, files)| {
            files
                .iter()
                .flat_map(ExaminedFile::rows)
                .map(move |row| (Some(index), row))
        });
        own.chain(additional)
    }

    /// Likewise of images; those of the graph root beside a separate image store are those of a store of their own.
    pub(crate) fn image_rows(&self) -> impl Iterator<Item = (Option<usize>, &Arc<ImageRow>)> {
        let stores = self.images.iter().chain(&self.additional_images).enumerate();
        stores.flat_map(|(index, files)| {
            files
                .iter()
                .flat_map(ExaminedFile::rows)
                .map(move |row| (index.checked_sub(1), row))
        })
    }

    /// Likewise of containers.
    pub(crate) fn container_rows(&self) -> impl Iterator<Item = &Arc<ContainerRow>> {
        self.containers.iter().flat_map(ExaminedFile::rows)
    }

    /// The files that are damaged so that records are missing.
    pub(crate) fn losing(&self) -> Vec<PathBuf> {
        let losing = self.damage().filter(|(_, damage)| damage.loses_records());
        let mut paths: Vec<PathBuf> = losing.map(|(path, _)| path.clone()).collect();
        paths.dedup();
        paths
    }
}

fn files<R: Keyed>(texts: &[FileText]) -> Vec<ExaminedFile<R>> {
    texts.iter().map(ExaminedFile::of).collect()
}

/// Notes IDs and names that stand in several records of one kind, at the file of the later one.
fn note_duplicates<R: Record>(files: &mut [ExaminedFile<R>]) {
    let mut ids: HashSet<String> = HashSet::new();
    let mut names: HashMap<String, String> = HashMap::new();
    for file in files {
        let mut found = Vec::new();
        let mut clashes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in file.contents.rows.iter().map(|salvaged| &salvaged.row) {
            let is_again = !ids.insert(row.id().to_owned());
            if is_again {
                let id = row.id().to_owned();
                let duplicate = RecordDamage::DuplicateId { id };
                if !found.contains(&duplicate) {
                    found.push(duplicate);
                }
            }
            // A writer that takes names from others, and was killed, says so; whoever opens the store goes on.
            for name in row.names().iter().filter(|_| row.intent().is_empty()) {
                let other = names.insert(name.clone(), row.id().to_owned());
                if let Some(other) = other.filter(|other| other != row.id()) {
                    let ids = clashes.entry(name.clone()).or_insert_with(|| vec![other]);
                    ids.push(row.id().to_owned());
                }
            }
        }
        let clashes = clashes.into_iter();
        found.extend(clashes.map(|(name, ids)| RecordDamage::DuplicateName { name, ids }));
        file.contents.damage.append(&mut found);
    }
}

/// Layers that stand on each other in a circle: each circle once.
pub(super) fn loops(parents: &HashMap<String, String>) -> Vec<Vec<String>> {
    let mut known: HashSet<&str> = HashSet::new();
    let mut found = Vec::new();
    let mut starts: Vec<&String> = parents.keys().collect();
    starts.sort();
    for start in starts {
        let mut path: Vec<&str> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut next = Some(start.as_str());
        while let Some(id) = next.filter(|id| !known.contains(id)) {
            if let Some(place) = places.get(id) {
                let circle = path.get(*place..).unwrap_or_default();
                found.push(circle.iter().map(ToString::to_string).collect());
                break;
            }
            places.insert(id, path.len());
            path.push(id);
            next = parents.get(id).map(String::as_str);
        }
        known.extend(path);
    }
    found
}

fn note_loops(files: &mut [ExaminedFile<LayerRow>]) {
    let mut parents: HashMap<String, String> = HashMap::new();
    for row in files.iter().flat_map(ExaminedFile::rows) {
        // Of several records with one ID the first counts.
        let parent = row.parent.to_string();
        parents.entry(row.id.to_string()).or_insert(parent);
    }
    for ids in loops(&parents) {
        let has =
            |file: &&mut ExaminedFile<LayerRow>| file.rows().any(|row| ids.iter().any(|id| row.id == **id));
        if let Some(file) = files.iter_mut().find(has) {
            file.contents.damage.push(RecordDamage::ParentLoop { ids });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_circle_is_found_once() {
        let parents = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(id, parent)| ((*id).to_owned(), (*parent).to_owned()))
                .collect()
        };
        assert!(loops(&parents(&[("a", ""), ("b", "a"), ("c", "gone")])).is_empty());
        assert_eq!(loops(&parents(&[("a", "a"), ("b", "a")])), [["a"]]);
        let two = loops(&parents(&[
            ("a", "b"),
            ("b", "a"),
            ("c", "d"),
            ("d", "e"),
            ("e", "c"),
            ("f", "d"),
        ]));
        assert_eq!(two, [vec!["a", "b"], vec!["c", "d", "e"]]);
    }
}
