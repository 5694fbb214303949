//! The JSON texts of a table's rows, for saving them. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::Result;
use crate::json;
use crate::record::index::Position;
use crate::record::record_trait::Record;
use crate::record::slot::Numbering;
use crate::record::table::Table;

impl<R: Record> Table<R> {
    /// The content of the location's file.
    #[cfg(test)]
    pub(crate) fn serialise(&mut self, location: usize) -> Result<Vec<u8>> {
        self.fill_texts(location)?;
        Ok(self.join_texts(location))
    }

    /// The plain content of the location's file, of rows that have texts.
    pub(super) fn join_texts(&self, location: usize) -> Vec<u8> {
        json::join(self.texts_in(location).map(|(_, text)| text))
    }

    /// Has all rows of a location have texts. Returns how long these are together.
    pub(super) fn fill_texts(&mut self, location: usize) -> Result<usize> {
        let mut length = 0;
        for slot in self.slots.values_mut().filter(|slot| slot.location == location) {
            length += slot.fill_text()?;
        }
        Ok(length)
    }

    /// The texts of a location's rows, in order; a row without one is left out.
    pub(super) fn texts_in(&self, location: usize) -> impl Iterator<Item = (Position, &Bytes)> + Clone {
        let slots = self
            .slots
            .iter()
            .filter(move |(_, slot)| slot.location == location);
        slots.filter_map(|(position, slot)| Some((*position, slot.text.as_ref()?)))
    }

    /// The text of the row at a position.
    pub(super) fn text_at(&self, position: Position) -> Option<&Bytes> {
        self.slots.get(&position)?.text.as_ref()
    }

    /// The positions in a location at which rows were added, changed or removed since the last save, in order. The rows have
    /// texts.
    pub(super) fn changed_in(&mut self, location: usize) -> Result<Vec<Position>> {
        let mut changed = BTreeSet::new();
        for change in &self.undo {
            let position = change.position();
            let before = change.before().map(|slot| slot.location);
            let now = || self.slots.get(&position).map(|slot| slot.location);
            if before.or_else(now) == Some(location) {
                changed.insert(position);
            }
        }
        for position in &changed {
            if let Some(slot) = self.slots.get_mut(position) {
                slot.fill_text()?;
            }
        }
        Ok(changed.into_iter().collect())
    }

    /// Identifies what the positions mean.
    pub(super) fn numbering(&self) -> Numbering {
        self.numbering
    }
}
