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

    /// Whether there are changes since that were not saved.
    pub(crate) fn is_unsaved_since(&self, before: &Savepoint) -> bool {
        self.changes > before.changes.max(self.changes_at_save)
    }

    /// Undoes what was changed since; if the table was saved meanwhile, what was changed since that save.
    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        if to.saves != self.saves {
            self.undo_all();
            self.dirty.fill(false);
            self.changes = self.changes_at_save;
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
        self.changes += 1;
    }

    /// Every change was saved: none can be undone any more.
    pub(crate) fn keep_changes(&mut self) {
        self.undo.clear();
        self.saves += 1;
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
