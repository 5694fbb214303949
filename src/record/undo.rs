//! Undoing changes of a table that were not saved. Pure.

use std::collections::BTreeSet;

use crate::record::index::Position;
use crate::record::record_trait::Record;
use crate::record::slot::{Order, Undo};
use crate::record::table::Table;

/// A state of a table to which [`Table::roll_back`] can return.
#[derive(Clone, Debug)]
pub(crate) struct Savepoint {
    saves: u64,
    undo: usize,
    changes: u64,
    dirty: Vec<bool>,
    takers: BTreeSet<Position>,
}

impl<R: Record> Table<R> {
    /// The state of the table at this moment.
    pub(crate) fn savepoint(&self) -> Savepoint {
        Savepoint {
            saves: self.saves,
            undo: self.undo.len(),
            changes: self.changes,
            dirty: self.dirty.clone(),
            takers: self.takers.clone(),
        }
    }

    /// The count of changes, if there are any since; else 0.
    pub(crate) fn changed_since(&self, before: &Savepoint) -> u64 {
        match self.changes > before.changes {
            true => self.changes,
            false => 0,
        }
    }

    /// The count of changes when they were last saved.
    pub(crate) fn changes_at_save(&self) -> u64 {
        self.changes_at_save
    }

    /// Undoes what was changed since; if the table was saved meanwhile, what was changed since that save.
    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        if to.saves != self.saves {
            self.undo_all();
            self.dirty.fill(self.unknown);
            self.changes = self.changes_at_save + u64::from(self.unknown);
            return;
        }
        if self.undo_to(to.undo) {
            self.dirty = to.dirty;
            self.changes = to.changes;
            self.takers = to.takers;
        }
    }

    /// Undoes what was changed since the last save, and makes the next save write every file: what the last attempt has
    /// written is not known.
    pub(crate) fn undo_failed_save(&mut self) {
        self.undo_all();
        self.dirty.fill(true);
        self.unknown = true;
        self.saves += 1;
        self.changes += 1;
    }

    /// Every change was saved: none can be undone any more. Returns the rows that were changed since the last save.
    pub(crate) fn keep_changes(&mut self) -> Vec<Position> {
        self.saves += 1;
        self.unknown = false;
        self.changes_at_save = self.changes;
        self.undo.drain(..).map(|change| change.position()).collect()
    }

    /// Makes this table, which was the same as `other` but for the `changed` rows, the same again. Not possible if IDs
    /// are not unique; then it is of no use any more.
    pub(super) fn catch_up(&mut self, other: &Self, mut changed: Vec<Position>) -> bool {
        let unique = |table: &Self| table.slots.len() == table.index.ids.len();
        if !unique(self) || !unique(other) || changed.len() > other.slots.len() / 2 {
            return false;
        }
        changed.sort_unstable();
        changed.dedup();
        for position in &changed {
            if let Some(old) = self.slots.remove(position) {
                self.index.remove(*position, &*old.row);
            }
        }
        for position in changed {
            if let Some(new) = other.slots.get(&position) {
                self.index.add(position, &new.row);
                self.slots.insert(position, new.clone());
            }
        }
        self.undo.clear();
        self.next = other.next;
        self.dirty.clone_from(&other.dirty);
        self.takers.clone_from(&other.takers);
        self.changes = other.changes;
        self.order = other.order;
        self.numbering = other.numbering;
        self.saves = other.saves;
        self.changes_at_save = other.changes_at_save;
        self.unknown = other.unknown;
        true
    }

    fn undo_all(&mut self) {
        self.undo_to(0);
        self.takers.clear();
    }

    /// Whether there was something to undo.
    fn undo_to(&mut self, length: usize) -> bool {
        if self.undo.len() <= length {
            return false;
        }
        for change in self.undo.split_off(length).into_iter().rev() {
            let (position, old) = match change {
                Undo::Insertion(position) => (position, None),
                Undo::Replacement(position, old) | Undo::Removal(position, old) => (position, Some(old)),
            };
            if let Some(new) = self.slots.remove(&position) {
                self.index.remove(position, &*new.row);
            }
            if let Some(old) = old {
                self.index.add(position, &old.row);
                self.slots.insert(position, old);
            }
        }
        self.order = Order::new();
        true
    }
}
