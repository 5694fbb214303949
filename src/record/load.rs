//! Building a table from the rows of the files.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::record::index::{Clash, Position};
use crate::record::intent;
use crate::record::names::dedupe;
use crate::record::record_trait::Record;
use crate::record::slot::Slot;
use crate::record::table::Table;

impl<R: Record> Table<R> {
    /// Builds the table from the rows of each location, in this order.
    ///
    /// If two rows have the same name, the later one keeps it, unless the intent of the earlier one says that it has taken
    /// the name; the location of the row that loses it becomes dirty. With `read_only` that is an error.
    pub(crate) fn load(files: Vec<Vec<(Arc<R>, Bytes)>>, read_only: bool) -> Result<Self> {
        let mut table = Self {
            dirty: vec![false; files.len()],
            ..Self::default()
        };
        let rows = files.iter().flatten().map(|(row, _)| row);
        let (count, names) = rows.fold((0, 0), |(count, names), row| {
            (count + 1, names + row.names().len())
        });
        table.index.reserve(count, names);
        // Collected in order and turned into a tree at once, which is much faster than inserting one by one.
        let mut slots: Vec<(Position, Slot<R>)> = Vec::with_capacity(count);
        for (location, rows) in files.into_iter().enumerate() {
            for (mut shared, text) in rows {
                // What normalising fills in is written with the next save, but does not cause one.
                let row = Arc::make_mut(&mut shared);
                let mut same_text = !row.normalise();
                let repeats = dedupe(row.names_mut());
                let position = table.next;
                match table.index.try_add(position, &shared) {
                    Ok(()) => {}
                    Err(Clash::Id) if !R::KEEPS_DUPLICATE_IDS => continue,
                    Err(_) => {
                        table.slots.extend(slots.drain(..));
                        let row = Arc::make_mut(&mut shared);
                        if table.resolve_names(row, location, read_only)? {
                            same_text = false;
                            table.set_dirty(location);
                        }
                        table.index.add(position, &shared);
                    }
                }
                table.next += 1;
                if repeats {
                    same_text = false;
                    table.set_dirty(location);
                }
                if shared.intent() == intent::NAMES {
                    table.takers.insert(position);
                }
                let slot = Slot {
                    row: shared,
                    location,
                    text: same_text.then_some(text),
                };
                slots.push((position, slot));
            }
        }
        match table.slots.is_empty() {
            true => table.slots = slots.into_iter().collect(),
            false => table.slots.extend(slots),
        }
        table.changes = 0;
        drop(table.keep_changes());
        Ok(table)
    }

    /// Takes each name of a row that is being loaded from an earlier row, or from this one. Returns whether this row loses
    /// some.
    fn resolve_names(&mut self, row: &mut R, location: usize, read_only: bool) -> Result<bool> {
        let mut lost: Vec<String> = Vec::new();
        for name in row.names() {
            let Some(&loser) = self.index.names.get(name.as_str()) else {
                continue;
            };
            if read_only {
                let other = self.slots.get(&loser).map_or("", |slot| slot.row.id());
                let what = format!("name {name:?} of {} {:?} and {:?}", R::NOUN, other, row.id());
                return Err(R::AMBIGUOUS_NAMES.err(what));
            }
            if self.has_taken_names(loser, location) {
                lost.push(name.clone());
            } else {
                self.take_name(loser, name);
            }
        }
        row.names_mut().retain(|name| !lost.contains(name));
        Ok(!lost.is_empty())
    }
}
