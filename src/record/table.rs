//! The rows of one store in memory, with their indexes. Pure: no file, no lock.
//!
//! Rows are shared (`Arc`): a row that a caller keeps stays as it is when the table changes. The table has with every
//! row its location (which of the store's files it is in) and its JSON text, read or computed once, so that a save of a
//! large store is a concatenation. A location is dirty if its file differs from the table.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::record::index::{Index, Position};
use crate::record::intent;
use crate::record::names::{NameOperation, dedupe};
use crate::record::record_trait::{DigestKind, Record};
use crate::record::slot::{Numbering, Order, Slot, Undo};

/// All rows of one store.
#[derive(Clone, Debug)]
pub(crate) struct Table<R> {
    /// Declared before the slots, so that the rows are freed in the order in which they were allocated.
    pub(super) index: Index<R>,
    pub(super) slots: BTreeMap<Position, Slot<R>>,
    pub(super) next: Position,
    /// Per location, whether its file has to be written.
    pub(super) dirty: Vec<bool>,
    /// Rows whose intent is [`intent::NAMES`]: the file of another location may still have their names.
    pub(super) takers: BTreeSet<Position>,
    /// How often the table was changed since it was loaded.
    pub(super) changes: u64,
    pub(super) order: Order,
    pub(super) numbering: Numbering,
    /// How to undo what was changed since the last save, the latest last.
    pub(super) undo: Vec<Undo<R>>,
    /// How often saving was tried, and the count of changes when it has last worked.
    pub(super) saves: u64,
    pub(super) changes_at_save: u64,
    /// Whether the last attempt to save has failed: it is not known what the files say.
    pub(super) unknown: bool,
    /// Whether rows that are not complete are not shown.
    pub(super) hides: bool,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            next: 0,
            index: Index::default(),
            dirty: Vec::new(),
            takers: BTreeSet::new(),
            changes: 0,
            order: Order::new(),
            numbering: Numbering::new(),
            undo: Vec::new(),
            saves: 0,
            changes_at_save: 0,
            unknown: false,
            hides: false,
        }
    }
}

impl<R: Record> Table<R> {
    /// An empty table with this number of locations.
    #[cfg(test)]
    pub(crate) fn empty(locations: usize) -> Self {
        Self {
            dirty: vec![false; locations],
            ..Self::default()
        }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no rows.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All rows, in file order and location by location as loaded, new ones at the end.
    pub(crate) fn rows(&self) -> impl DoubleEndedIterator<Item = &Arc<R>> + Clone {
        let rows = self.slots.values().map(|slot| &slot.row);
        rows.filter(|row| !self.hides || !row.is_hidden())
    }

    /// The rows of one location.
    pub(crate) fn rows_in(&self, location: usize) -> impl Iterator<Item = &Arc<R>> {
        let slots = self.slots.values();
        slots
            .filter(move |slot| slot.location == location)
            .map(|slot| &slot.row)
    }

    /// The row with exactly this ID.
    pub(crate) fn get(&self, id: &str) -> Option<&Arc<R>> {
        self.at(*self.index.ids.get(id)?)
    }

    /// All rows with exactly this ID.
    pub(crate) fn all_with_id(&self, id: &str) -> impl Iterator<Item = &Arc<R>> {
        self.with_id(id).map(|(_, slot)| &slot.row)
    }

    fn with_id(&self, id: &str) -> impl Iterator<Item = (Position, &Slot<R>)> {
        // Mostly each ID stands once.
        let repeated = self.slots.len() > self.index.ids.len();
        let found = self.index.ids.get(id).filter(|_| !repeated);
        let alone = found.and_then(|position| Some((*position, self.slots.get(position)?)));
        let all = self.slots.iter().take(if repeated { usize::MAX } else { 0 });
        let all = all.map(|(position, slot)| (*position, slot));
        alone
            .into_iter()
            .chain(all.filter(move |(_, slot)| slot.row.id() == id))
    }

    /// The position of the row with exactly this ID: a number that grows in the order of [`Table::rows`].
    pub(crate) fn position(&self, id: &str) -> Option<u64> {
        self.index.ids.get(id).copied()
    }

    /// Changes whenever the [`Table::position`] of a row may have changed.
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// The row with this name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<R>> {
        self.at(*self.index.names.get(name)?)
    }

    /// The row whose own layer has this ID; the latest if several claim it.
    pub(crate) fn by_layer(&self, layer: &str) -> Option<&Arc<R>> {
        self.at(*self.index.layers.get(layer)?.last()?)
    }

    /// The rows with this digest, in the order of [`Table::rows`].
    pub(crate) fn by_digest(&self, kind: DigestKind, digest: &Digest) -> Vec<Arc<R>> {
        let all = self.slots.iter().map(|(position, slot)| (*position, &*slot.row));
        let positions = self.index.by_digest(kind, digest, all);
        positions
            .iter()
            .filter_map(|position| self.at(*position))
            .map(Arc::clone)
            .collect()
    }

    /// The rows that stand on what has this ID (the layers on a layer, the images with a top layer, the containers of an
    /// image), in the order of [`Table::rows`].
    pub(crate) fn users_of(&self, id: &str) -> impl Iterator<Item = &Arc<R>> {
        let all = self.slots.iter().map(|(position, slot)| (*position, &*slot.row));
        let positions = self.index.users_of(id, all);
        positions.into_iter().filter_map(|position| self.at(position))
    }

    /// The row that `key` names: by ID, else by name, else by the ID of the row's own layer, else by a unique prefix of an
    /// ID.
    pub(crate) fn find(&self, key: &str) -> Option<&Arc<R>> {
        self.get(key)
            .or_else(|| self.by_name(key))
            .or_else(|| self.by_layer(key))
            .or_else(|| self.by_prefix(key))
    }

    /// As [`Table::find`], but for rows that describe something incomplete: another step is making or deleting it.
    pub(crate) fn find_complete(&self, key: &str) -> Option<&Arc<R>> {
        self.find(key).filter(|row| !row.is_incomplete())
    }

    /// As [`Table::get`], but for such rows.
    pub(crate) fn get_complete(&self, id: &str) -> Option<&Arc<R>> {
        self.get(id).filter(|row| !row.is_incomplete())
    }

    /// As [`Table::find`], or the error that there is no such row.
    pub(crate) fn require(&self, key: &str) -> Result<&Arc<R>> {
        self.find(key).ok_or_else(|| R::unknown(key))
    }

    fn by_prefix(&self, prefix: &str) -> Option<&Arc<R>> {
        self.at(self.index.by_prefix(prefix)?)
    }

    /// The location of the row with this ID.
    pub(crate) fn location(&self, id: &str) -> Option<usize> {
        Some(self.slots.get(self.index.ids.get(id)?)?.location)
    }

    /// IDs of the rows that describe something incomplete.
    pub(crate) fn incomplete(&self) -> Vec<String> {
        let rows = self
            .index
            .incomplete
            .iter()
            .filter_map(|position| self.slots.get(position));
        rows.map(|slot| slot.row.id().to_owned()).collect()
    }

    /// Whether some row describes something incomplete.
    pub(crate) fn has_incomplete(&self) -> bool {
        !self.index.incomplete.is_empty()
    }

    /// Whether a writer has something to put right: what is not finished, or names that were given twice.
    pub(crate) fn needs_repair(&self) -> bool {
        self.needs_save() || self.has_incomplete()
    }

    /// Whether a save has something to write.
    pub(crate) fn needs_save(&self) -> bool {
        self.dirty.contains(&true) || !self.takers.is_empty()
    }

    /// Adds a row at the end. Repeated names are dropped; names of other rows are never taken.
    ///
    /// Fails with [`ErrorKind::DuplicateId`] or [`ErrorKind::DuplicateName`], and then changes nothing.
    pub(crate) fn insert(&mut self, mut row: R, location: usize) -> Result<Arc<R>> {
        if location >= self.dirty.len() {
            return Err(ErrorKind::InvalidInput.err(format!("{} store has no location {location}", R::NOUN)));
        }
        if self.index.ids.contains_key(row.id()) {
            let article = if R::NOUN.starts_with('i') { "an" } else { "a" };
            let what = format!("{article} {} with ID {:?} already exists", R::NOUN, row.id());
            return Err(ErrorKind::DuplicateId.err(what));
        }
        dedupe(row.names_mut());
        self.check_names(&row, None)?;
        row.normalise();
        let row = Arc::new(row);
        self.push(Slot {
            row: Arc::clone(&row),
            location,
            text: None,
        });
        self.set_dirty(location);
        Ok(row)
    }

    /// Changes the row with exactly this ID; `false` if there is none.
    ///
    /// Fails, and then changes nothing, if the closure gives the row another row's name
    /// ([`ErrorKind::DuplicateName`]) or another ID. A closure that leaves the row as it was makes no save necessary.
    pub(crate) fn update(&mut self, id: &str, change: impl FnOnce(&mut R)) -> Result<bool> {
        let Some(&position) = self.index.ids.get(id) else {
            return Ok(false);
        };
        let Some(slot) = self.slots.get(&position) else {
            return Ok(false);
        };
        let mut row = R::clone(&slot.row);
        change(&mut row);
        if row.id() != id {
            return Err(ErrorKind::InvalidInput.err(format!("changing the ID of {} {id:?}", R::NOUN)));
        }
        dedupe(row.names_mut());
        self.check_names(&row, Some(position))?;
        row.normalise();
        self.replace(position, row);
        Ok(true)
    }

    /// Removes the row with exactly this ID, and any other row with the same ID.
    pub(crate) fn remove(&mut self, id: &str) -> Option<Arc<R>> {
        let position = *self.index.ids.get(id)?;
        let found = self.take(position)?;
        let others: Vec<Position> = self.with_id(id).map(|(position, _)| position).collect();
        for position in others {
            self.take(position);
        }
        Some(found)
    }

    /// Changes the names of the row with exactly this ID. Names that other rows have are taken from them.
    pub(crate) fn apply_names(&mut self, id: &str, operation: NameOperation, names: &[String]) -> Result<()> {
        let Some(&position) = self.index.ids.get(id) else {
            return Err(R::unknown(id));
        };
        let Some(slot) = self.slots.get(&position) else {
            return Err(R::unknown(id));
        };
        let mut row = R::clone(&slot.row);
        let list = row.names_mut();
        match operation {
            NameOperation::Set => *list = names.to_vec(),
            NameOperation::Add => {
                list.splice(0..0, names.iter().cloned());
            }
            NameOperation::Remove => {
                let gone: HashSet<&String> = names.iter().collect();
                list.retain(|name| !gone.contains(name));
            }
        }
        dedupe(list);
        row.remember_names();
        let location = slot.location;
        for name in row.names().to_vec() {
            match self.index.names.get(name.as_str()) {
                Some(&loser) if loser != position => {
                    if self
                        .slots
                        .get(&loser)
                        .is_some_and(|slot| slot.location != location)
                    {
                        row.set_intent(intent::NAMES);
                        self.takers.insert(position);
                    }
                    self.take_name(loser, &name);
                }
                _ => {}
            }
        }
        self.replace(position, row);
        Ok(())
    }

    /// How often the table has been changed since it was loaded.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The locations that a save has to write, in this order: a row that has taken names comes before the rows that have
    /// lost them.
    pub(crate) fn dirty_locations(&self) -> Vec<usize> {
        let dirty = self.dirty.iter().enumerate();
        let mut locations: Vec<usize> = dirty
            .filter(|(_, dirty)| **dirty)
            .map(|(location, _)| location)
            .collect();
        let has_taker = |location: usize| {
            let mut takers = self.takers.iter().filter_map(|position| self.slots.get(position));
            takers.any(|slot| slot.location == location)
        };
        locations.sort_by_key(|location| !has_taker(*location));
        locations
    }

    /// Clears the intent of rows that have taken names from other locations. To be called when those are saved. Returns
    /// whether there were any.
    pub(crate) fn clear_takers(&mut self) -> bool {
        let takers = std::mem::take(&mut self.takers);
        for position in &takers {
            if let Some(slot) = self.slots.get(position) {
                let mut row = R::clone(&slot.row);
                row.set_intent("");
                self.replace(*position, row);
            }
        }
        !takers.is_empty()
    }

    /// Whether the row at `position` has taken names from rows in `location`, whose file may still have them.
    pub(super) fn has_taken_names(&self, position: Position, location: usize) -> bool {
        let slot = self.slots.get(&position);
        self.takers.contains(&position) && slot.is_some_and(|slot| slot.location != location)
    }

    /// Records that the location's file has been written.
    pub(crate) fn saved(&mut self, location: usize) {
        if let Some(dirty) = self.dirty.get_mut(location) {
            *dirty = false;
        }
    }

    fn at(&self, position: Position) -> Option<&Arc<R>> {
        let row = self.slots.get(&position).map(|slot| &slot.row)?;
        (!self.hides || !row.is_hidden()).then_some(row)
    }

    /// Does not show rows that are being made or deleted any more, if there are some.
    pub(super) fn hide_incomplete(&mut self) {
        self.hides = false;
        self.hides = self.shows_incomplete();
    }

    /// Whether a row is shown that readers beside a writer are not to see.
    pub(super) fn shows_incomplete(&self) -> bool {
        let mut incomplete = self.index.incomplete.iter();
        incomplete.any(|position| self.at(*position).is_some_and(|row| row.is_hidden()))
    }

    /// Whether rows are not shown.
    pub(super) fn hides(&self) -> bool {
        self.hides
    }

    /// Shows every row.
    pub(super) fn show_all(&mut self) {
        self.hides = false;
    }

    /// Makes the next save write this location.
    pub(crate) fn set_dirty(&mut self, location: usize) {
        if let Some(dirty) = self.dirty.get_mut(location) {
            *dirty = true;
        }
        self.changes += 1;
    }

    fn check_names(&self, row: &R, own: Option<Position>) -> Result<()> {
        let taken = row.names().iter().find_map(|name| {
            let position = self
                .index
                .names
                .get(name.as_str())
                .filter(|position| Some(**position) != own)?;
            Some((name, self.at(*position)?.id()))
        });
        let Some((name, id)) = taken else { return Ok(()) };
        let noun = R::NOUN;
        Err(ErrorKind::DuplicateName.err(format!(
            "{noun} name {name:?} is already associated with {noun} {id:?}"
        )))
    }

    fn push(&mut self, slot: Slot<R>) {
        let position = self.next;
        self.next += 1;
        self.index.add(position, &slot.row);
        self.slots.insert(position, slot);
        self.undo.push(Undo::Insertion(position));
    }

    fn take(&mut self, position: Position) -> Option<Arc<R>> {
        let slot = self.slots.remove(&position)?;
        self.order = Order::new();
        self.takers.remove(&position);
        self.index.remove(position, &*slot.row);
        self.set_dirty(slot.location);
        let row = Arc::clone(&slot.row);
        self.undo.push(Undo::Removal(position, slot));
        Some(row)
    }

    pub(super) fn take_name(&mut self, loser: Position, name: &str) {
        if let Some(slot) = self.slots.get(&loser) {
            let mut row = R::clone(&slot.row);
            row.names_mut().retain(|other| other != name);
            self.replace(loser, row);
        }
    }

    fn replace(&mut self, position: Position, row: R) {
        let Some(slot) = self.slots.get_mut(&position) else {
            return;
        };
        if *slot.row == row {
            return;
        }
        self.index.remove(position, &*slot.row);
        let location = slot.location;
        let new = Slot {
            row: Arc::new(row),
            location,
            text: None,
        };
        let old = std::mem::replace(slot, new);
        self.index.add(position, &slot.row);
        self.undo.push(Undo::Replacement(position, old));
        self.set_dirty(location);
    }
}
