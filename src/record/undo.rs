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

    /// Every change was saved: none can be undone any more.
    pub(crate) fn keep_changes(&mut self) {
        self.undo.clear();
        self.saves += 1;
        self.unknown = false;
        self.changes_at_save = self.changes;
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
