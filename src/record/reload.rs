//! Making a table that another process has changed current: only rows whose text has changed are read.
//!
//! The result is what [`Table::load`] makes of the same files: the same rows, texts and order. Where the content is unusual
//! (rows in another order, an ID or a name that stands twice, what cannot be read at all), it says nothing and a full
//! load decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::record::index::Position;
use crate::record::intent;
use crate::record::names::dedupe;
use crate::record::record_trait::Record;
use crate::record::slot::{Order, Slot};
use crate::record::table::Table;

/// Rows of which a reload may give each a new place, beside an eighth of all.
const MOVED: usize = 64;

/// How the files differ from the table.
struct Difference<R> {
    /// Rows that are not where they were: gone, moved or changed.
    removed: Vec<Position>,
    /// Rows that have changed where they are.
    changed: Vec<(Position, Slot<R>)>,
    /// Rows that come after all others, in order.
    last: Vec<Slot<R>>,
    /// Whether rows in `last` have begun, so that whatever follows belongs there too.
    at_end: bool,
    /// The position of the last row that is where it was.
    reached: Option<Position>,
    /// How many rows may have changed or moved: more cost as much as a full load.
    limit: usize,
}

impl<R: Record> Table<R> {
    /// The table of files with this content, one for each location. `None` if a full load has to tell.
    pub(super) fn reload(mut self, files: &[Bytes]) -> Option<Self> {
        self.show_all();
        let repeated = self.slots.len() > self.index.ids.len();
        if files.len() != self.dirty.len()
            || repeated
            || self.needs_save()
            || !self.undo.is_empty()
            || self.unknown
        {
            return None;
        }
        let mut difference = Difference {
            removed: Vec::new(),
            changed: Vec::new(),
            last: Vec::new(),
            at_end: false,
            reached: None,
            limit: MOVED + self.slots.len() / 8,
        };
        for (location, content) in files.iter().enumerate() {
            self.compare(location, content, &mut difference)?;
        }
        let Difference {
            removed,
            changed,
            last,
            ..
        } = difference;
        if removed.is_empty() && changed.is_empty() && last.is_empty() {
            drop(self.keep_changes());
            return Some(self);
        }
        for position in removed.iter().chain(changed.iter().map(|(position, _)| position)) {
            let slot = self.slots.remove(position)?;
            self.index.remove(*position, &*slot.row);
        }
        let first = self.next;
        let last = (first..).zip(last);
        for (position, slot) in changed.into_iter().chain(last) {
            // An ID or a name that another row has too: a matter of order and place.
            self.index.try_add(position, &slot.row).ok()?;
            self.slots.insert(position, slot);
            self.next = self.next.max(position + 1);
        }
        self.order = Order::new();
        drop(self.keep_changes());
        Some(self)
    }

    /// Compares the content of a location's file with its rows.
    fn compare(&self, location: usize, content: &[u8], difference: &mut Difference<R>) -> Option<()> {
        let mut known = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.location == location)
            .peekable();
        // Rows that were expected before others that came: gone, or to come yet.
        let mut missed: BTreeSet<Position> = BTreeSet::new();
        let mut rest = trim(content).strip_prefix(b"[")?;
        rest = trim(rest);
        let mut first = true;
        while !rest.starts_with(b"]") {
            if !first {
                rest = trim(rest.strip_prefix(b",")?);
            }
            first = false;
            let same = |(_, slot): &(&Position, &Slot<R>)| {
                slot.text.as_ref().is_some_and(|text| rest.starts_with(text))
            };
            if let Some((position, slot)) = known.next_if(same) {
                rest = trim(rest.get(slot.text.as_ref()?.len()..)?);
                difference.keep(*position, slot, None)?;
                continue;
            }
            let (row, text) = read::<R>(rest)?;
            rest = trim(rest.get(text.len()..)?);
            let Some(&position) = self.index.ids.get(row.id()) else {
                difference.append(new_slot(row, location, text)?)?;
                continue;
            };
            let old = self
                .slots
                .get(&position)
                .filter(|slot| slot.location == location)?;
            if known.peek().is_some_and(|(next, _)| **next <= position) {
                while let Some((passed, _)) = known.next_if(|(next, _)| **next < position) {
                    missed.insert(*passed);
                }
                known.next()?;
            } else if !missed.remove(&position) {
                // It was there before.
                return None;
            }
            let new = match &old.text {
                Some(known) if *known == *text => None,
                _ => Some(new_slot(row, location, text)?),
            };
            let new = new.filter(|new| new.text.is_some() || old.text.is_some() || new.row != old.row);
            difference.keep(position, old, new)?;
        }
        difference.removed.extend(missed);
        difference.removed.extend(known.map(|(position, _)| *position));
        trim(rest.strip_prefix(b"]")?).is_empty().then_some(())
    }
}

impl<R: Record> Difference<R> {
    /// A known row, with what it has become if it has changed.
    fn keep(&mut self, position: Position, old: &Slot<R>, new: Option<Slot<R>>) -> Option<()> {
        if self.at_end || self.reached.is_some_and(|reached| reached > position) {
            self.removed.push(position);
            return self.append(new.unwrap_or_else(|| old.clone()));
        }
        self.reached = Some(position);
        self.changed.extend(new.map(|new| (position, new)));
        self.is_small()
    }

    fn append(&mut self, slot: Slot<R>) -> Option<()> {
        self.at_end = true;
        self.last.push(slot);
        self.is_small()
    }

    fn is_small(&self) -> Option<()> {
        (self.last.len() + self.changed.len() <= self.limit).then_some(())
    }
}

/// The row at the beginning of a text, and how far it goes.
fn read<R: Record>(text: &[u8]) -> Option<(R, &[u8])> {
    let mut parser = serde_json::Deserializer::from_slice(text).into_iter::<R>();
    let row = parser.next()?.ok()?;
    Some((row, text.get(..parser.byte_offset())?))
}

/// As loading makes it of a row that needs no decision.
fn new_slot<R: Record>(mut row: R, location: usize, text: &[u8]) -> Option<Slot<R>> {
    let same_text = !row.normalise();
    let unusual = dedupe(row.names_mut()) || row.intent() == intent::NAMES;
    (!unusual).then(|| Slot {
        row: Arc::new(row),
        location,
        // A copy: the text of the whole file is not to stay for it.
        text: same_text.then(|| Bytes::copy_from_slice(text)),
    })
}

/// Without the white space of JSON at the beginning.
fn trim(text: &[u8]) -> &[u8] {
    let from = text
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    from.map_or(&[], |from| text.get(from..).unwrap_or_default())
}
