//! The records of one kind while they are put together. Pure.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::error::{ErrorKind, Result};
use crate::json;
use crate::record::held_files::texts_of;
use crate::record::record_trait::Record;
use crate::store::check::finding::{CheckedItem, ItemKind};
use crate::store::check::rebuild::examined::ExaminedFile;
use crate::store::check::rebuild::report::RebuiltRecord;
use crate::store::check::rebuild::salvage::Salvaged;

/// What is said of a field of another type.
const DAMAGED_FIELD: &str = "the damaged field";

/// The records of the files of one store.
pub(super) struct Rows<R> {
    kind: ItemKind,
    /// By file.
    files: Vec<Vec<Salvaged<R>>>,
    /// Where the record with an ID is: its file, and its place in there.
    places: HashMap<String, (usize, usize)>,
    paths: Vec<PathBuf>,
    /// Files that are to be written.
    changed: BTreeSet<usize>,
    /// The texts as they were.
    before: Vec<Vec<u8>>,
    is_damaged: bool,
    /// What was done with each record.
    reports: HashMap<String, RebuiltRecord>,
}

/// A file that is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NewFile {
    pub(super) location: usize,
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
}

impl<R: Record> Rows<R> {
    pub(super) fn of(kind: ItemKind, files: &[ExaminedFile<R>]) -> Self {
        let join = |file: &ExaminedFile<R>| json::join(file.contents.rows.iter().map(|row| &row.text));
        let damaged = files
            .iter()
            .enumerate()
            .filter(|(_, file)| !file.contents.damage.is_empty());
        let changed: BTreeSet<usize> = damaged.map(|(index, _)| index).collect();
        let mut rows = Self {
            kind,
            files: files.iter().map(|file| file.contents.rows.clone()).collect(),
            places: HashMap::new(),
            paths: files.iter().map(|file| file.path.clone()).collect(),
            before: files.iter().map(join).collect(),
            is_damaged: !changed.is_empty(),
            changed,
            reports: HashMap::new(),
        };
        rows.unite();
        for (location, file) in rows.files.iter().enumerate() {
            let ids = file.iter().enumerate();
            let places = ids.map(|(at, row)| (row.row.id().to_owned(), (location, at)));
            rows.places.extend(places);
        }
        for row in rows.files.clone().into_iter().flatten() {
            for field in &row.dropped {
                rows.report(row.row.id())
                    .lost(format!("{DAMAGED_FIELD} {field:?} as it was"));
            }
        }
        rows
    }

    /// What is told of a record.
    pub(super) fn report(&mut self, id: &str) -> &mut RebuiltRecord {
        let kind = self.kind;
        self.reports
            .entry(id.to_owned())
            .or_insert_with(|| RebuiltRecord::new(CheckedItem::new(kind, id, false)))
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Arc<R>> {
        self.files.iter().flatten().map(|salvaged| &salvaged.row)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Arc<R>> {
        let (location, at) = self.places.get(id)?;
        Some(&self.files.get(*location)?.get(*at)?.row)
    }

    /// Adds a record that was lost, or takes its fields in the place of damaged ones.
    pub(super) fn put(&mut self, row: R, location: usize) -> Result<()> {
        let id = row.id().to_owned();
        let known = self
            .places
            .get(&id)
            .and_then(|(location, at)| self.files.get(*location)?.get(*at))
            .cloned();
        let Some(known) = known else {
            let Some(file) = self.files.get_mut(location) else {
                return Err(ErrorKind::InvalidInput.err("a record for a file that is none"));
            };
            self.places.insert(id, (location, file.len()));
            file.push(salvaged(row)?);
            self.changed.insert(location);
            return Ok(());
        };
        let dropped = known.dropped;
        let report = self.report(&id);
        report.lost.retain(|lost| lost.starts_with(DAMAGED_FIELD));
        report.known = vec!["the other fields: the record".to_owned()];
        report.inferred = vec!["the damaged fields: the disk, as far as it tells them".to_owned()];
        let encoded = |row: &R| serde_json::to_value(row).map_err(|error| encoding(&id, error));
        let (mut fields, new) = (encoded(&known.row)?, encoded(&row)?);
        if let (Value::Object(fields), Value::Object(new)) = (&mut fields, new) {
            for (field, value) in new {
                if dropped.iter().any(|dropped| dropped.eq_ignore_ascii_case(&field)) {
                    fields.insert(field, value);
                }
            }
        }
        let row = serde_json::from_value(fields).map_err(|error| encoding(&id, error))?;
        self.replace(row)
    }

    /// Changes a record.
    pub(super) fn update(&mut self, id: &str, change: impl FnOnce(&mut R)) -> Result<()> {
        if let Some(row) = self.get(id) {
            let mut row = (**row).clone();
            change(&mut row);
            self.replace(row)?;
        }
        Ok(())
    }

    fn replace(&mut self, row: R) -> Result<()> {
        if let Some((location, at)) = self.places.get(row.id()).copied()
            && let Some(known) = self.files.get_mut(location).and_then(|file| file.get_mut(at))
        {
            *known = salvaged(row)?;
            self.changed.insert(location);
        }
        Ok(())
    }

    /// Of several records with one ID leaves the one that programs use, with the names of all.
    fn unite(&mut self) {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for row in self.rows() {
            *counts.entry(row.id().to_owned()).or_default() += 1;
        }
        for (id, count) in counts.into_iter().filter(|(_, count)| *count > 1) {
            let same = |row: &&Salvaged<R>| row.row.id() == id;
            let all: Vec<Salvaged<R>> = self.files.iter().flatten().filter(same).cloned().collect();
            let chosen = match R::KEEPS_DUPLICATE_IDS {
                true => all.last(),
                false => all.first(),
            };
            let Some(mut chosen) = chosen.cloned() else {
                continue;
            };
            let taken: BTreeSet<String> = self
                .rows()
                .filter(|row| row.id() != id)
                .flat_map(|row| row.names().iter().cloned())
                .collect();
            let mut names = chosen.row.names().to_vec();
            for name in all.iter().flat_map(|row| row.row.names()) {
                if !names.contains(name) && !taken.contains(name) {
                    names.push(name.clone());
                }
            }
            if names.len() > chosen.row.names().len() {
                let mut row = (*chosen.row).clone();
                *row.names_mut() = names;
                if let Ok(changed) = salvaged(row) {
                    chosen = changed;
                }
            }
            let is_equal = all.iter().all(|other| other.row == chosen.row);
            let mut rest = Some(chosen);
            for file in &mut self.files {
                file.retain_mut(|row| {
                    if row.row.id() != id {
                        return true;
                    }
                    match rest.take() {
                        Some(chosen) => {
                            *row = chosen;
                            true
                        }
                        None => false,
                    }
                });
            }
            let which = if R::KEEPS_DUPLICATE_IDS { "last" } else { "first" };
            let report = self.report(&id);
            match is_equal {
                true => report.known(format!("{count} equal records became one")),
                false => report.inferred(format!(
                    "of {count} different records the {which} one counts, as programs see it, with the names of all"
                )),
            }
        }
    }

    /// The files that are to be written, and what was done with the records.
    pub(super) fn finish(mut self) -> Result<(Vec<NewFile>, Vec<RebuiltRecord>)> {
        let owned: Vec<(String, Vec<String>)> = self
            .rows()
            .map(|row| (row.id().to_owned(), row.names().to_vec()))
            .collect();
        let mut owners: HashMap<String, String> = HashMap::new();
        for (id, names) in owned {
            for name in names {
                if let Some(other) = owners
                    .insert(name.clone(), id.clone())
                    .filter(|other| *other != id)
                {
                    let text = format!("the name {name:?} belongs to the later record, {id:?}");
                    self.report(&other).inferred(text);
                }
            }
        }
        let files = std::mem::take(&mut self.files).into_iter();
        let pairs = |file: Vec<Salvaged<R>>| file.into_iter().map(|row| (row.row, row.text)).collect();
        let texts = texts_of(files.map(pairs).collect())?;
        let mut new = Vec::new();
        for (location, content) in texts.into_iter().enumerate() {
            let differs = self.is_damaged && self.before.get(location) != Some(&content);
            if !self.changed.contains(&location) && !differs {
                continue;
            }
            if let Some(path) = self.paths.get(location).cloned() {
                new.push(NewFile {
                    location,
                    path,
                    content,
                });
            }
        }
        let mut reports: Vec<RebuiltRecord> = self.reports.into_values().collect();
        reports.sort_by(|one, other| one.item.cmp(&other.item));
        Ok((new, reports))
    }
}

fn encoding(id: &str, error: serde_json::Error) -> crate::error::Error {
    ErrorKind::InvalidInput
        .err(format!("encoding the record {id:?}"))
        .with_source(error)
}

fn salvaged<R: Record>(row: R) -> Result<Salvaged<R>> {
    let text = json::to_bytes(&row).map_err(|error| encoding(row.id(), error))?;
    Ok(Salvaged {
        row: Arc::new(row),
        text: text.into(),
        dropped: Vec::new(),
    })
}
