//! How the rows of a large file lie in it, so that a change writes the bytes that differ. Pure.
//!
//! ```text
//! [{…},{…}        ,{…}                     ,{…},{…}   ]
//! ```
//!
//! Between the rows of a JSON array there may be white space. So a row that goes leaves blanks, one that becomes shorter
//! too, and one that becomes longer uses those after it; if there are none the rows up to the next blanks move. What a
//! file begins with has some at regular distances. New rows come at the end, as in the table. When too much of the file
//! is blank, or too much would have to move, the whole file is written anew.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::record::index::Position;

/// Bytes of rows from one stretch of blanks to the next in a new file, and bytes of each such stretch. A row that is being
/// deleted becomes longer by about a third of it.
const STRIDE: usize = 16 * 1024;
const BLANKS: usize = 512;

/// Bytes that are moved at most to make room for a row.
const MOVED: usize = 64 * 1024;

/// Blanks that a file may always have, beside a quarter of its length.
const SPARE_BLANKS: u64 = 64 * 1024;

/// Where a row lies. The byte before it is a comma, or for the first row a blank or the bracket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    at: u64,
    length: u64,
}

impl Place {
    fn end(self) -> u64 {
        self.at + self.length
    }
}

/// The places of the rows in a file; all other bytes between the brackets are blanks.
#[derive(Debug, Default)]
pub(super) struct Layout {
    places: BTreeMap<Position, Place>,
    /// Bytes of the file.
    length: u64,
    /// Bytes of the rows and what separates them.
    used: u64,
}

/// What is to be written where.
pub(super) type Pieces = Vec<(u64, Vec<u8>)>;

impl Layout {
    /// A new file of these rows, in this order: its layout and content. It gets the length `like` if little is missing to it.
    pub(super) fn arrange<'a>(
        rows: impl Iterator<Item = (Position, &'a Bytes)>,
        like: u64,
    ) -> (Self, Vec<u8>) {
        let mut content = vec![b'['];
        let mut since = 0;
        let mut used = 1;
        let places = rows.map(|(position, text)| {
            if content.len() > 1 {
                if since >= STRIDE {
                    content.resize(content.len() + BLANKS, b' ');
                    since = 0;
                }
                content.push(b',');
            }
            let at = content.len() as u64;
            content.extend_from_slice(text);
            since += text.len() + 1;
            used += text.len() as u64 + 1;
            let length = text.len() as u64;
            (position, Place { at, length })
        });
        let places: BTreeMap<Position, Place> = places.collect();
        let like = usize::try_from(like).unwrap_or_default();
        if like > content.len() && like - content.len() <= content.len() / 8 {
            content.resize(like - 1, b' ');
        }
        content.push(b']');
        let layout = Self {
            places,
            length: content.len() as u64,
            used,
        };
        (layout, content)
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The content of the file; `text` gives the rows.
    pub(super) fn content<'a>(&self, text: impl Fn(Position) -> Option<&'a Bytes>) -> Option<Vec<u8>> {
        let length = usize::try_from(self.length).ok()?;
        let mut content = vec![b' '; length];
        let mut first = true;
        for (position, place) in &self.places {
            let at = usize::try_from(place.at).ok()?;
            let text = text(*position)?;
            content.get_mut(at..at + text.len())?.copy_from_slice(text);
            if !first {
                *content.get_mut(at.checked_sub(1)?)? = b',';
            }
            first = false;
        }
        *content.first_mut()? = b'[';
        *content.last_mut()? = b']';
        Some(content)
    }

    /// Changes the layout for rows that have been added, changed or removed (`text` gives none then). Returns what makes the
    /// old file the new one; `None` if the file is better written as a whole, and then the layout is of no use any more.
    pub(super) fn change<'a>(
        &mut self,
        changed: &[Position],
        text: impl Fn(Position) -> Option<&'a Bytes>,
    ) -> Option<Pieces> {
        let mut pieces = Pieces::new();
        for position in changed {
            if text(*position).is_none() {
                self.remove(*position, &mut pieces);
            }
        }
        for position in changed {
            let Some(new) = text(*position) else { continue };
            match self.places.get(position) {
                Some(place) => self.replace(*position, *place, new, &text, &mut pieces)?,
                None => self.append(*position, new, &mut pieces)?,
            }
        }
        let blank = self.length.saturating_sub(self.used + 1);
        (blank <= self.length / 4 + SPARE_BLANKS).then_some(pieces)
    }

    /// Where the last row ends.
    fn end(&self) -> u64 {
        self.places.last_key_value().map_or(1, |(_, place)| place.end())
    }

    fn after(&self, position: Position) -> Option<(Position, Place)> {
        let after = (Bound::Excluded(position), Bound::Unbounded);
        let (position, place) = self.places.range(after).next()?;
        Some((*position, *place))
    }

    fn remove(&mut self, position: Position, pieces: &mut Pieces) {
        let is_first = self
            .places
            .first_key_value()
            .is_some_and(|(first, _)| *first == position);
        let Some(place) = self.places.remove(&position) else {
            return;
        };
        self.used -= place.length + 1;
        let from = if is_first { place.at } else { place.at - 1 };
        pieces.push((from, blanks(place.end() - from)));
        // The next one has nothing before it now.
        if let Some((_, next)) = self.after(position).filter(|_| is_first) {
            pieces.push((next.at - 1, blanks(1)));
        }
    }

    fn append(&mut self, position: Position, text: &Bytes, pieces: &mut Pieces) -> Option<()> {
        let (last, end) = (self.places.last_key_value(), self.end());
        // Rows that come back stand where they were.
        if last.is_some_and(|(last, _)| *last > position) {
            return None;
        }
        let mut piece = Vec::with_capacity(text.len() + 2);
        let at = match last {
            Some(_) => {
                piece.push(b',');
                end + 1
            }
            None => end,
        };
        piece.extend_from_slice(text);
        let length = text.len() as u64;
        self.places.insert(position, Place { at, length });
        self.used += length + 1;
        self.close(&mut piece);
        pieces.push((end, piece));
        Some(())
    }

    /// Ends a piece that ends with the last row: with the bracket, if that has to move.
    fn close(&mut self, piece: &mut Vec<u8>) {
        let end = self.end();
        if end >= self.length {
            piece.push(b']');
            self.length = end + 1;
        }
    }

    /// Puts the new text of a row in its place, and moves rows behind it as far as it needs their places.
    fn replace<'a>(
        &mut self,
        position: Position,
        place: Place,
        new: &Bytes,
        text: &impl Fn(Position) -> Option<&'a Bytes>,
        pieces: &mut Pieces,
    ) -> Option<()> {
        let mut piece = new.to_vec();
        let mut old_end = place.end();
        self.resize(position, place.at, new);
        let mut last = position;
        let next = loop {
            let end = place.at + piece.len() as u64;
            match self.after(last) {
                Some((moved, next)) if next.at <= end => {
                    let text = text(moved)?;
                    old_end = next.end();
                    piece.push(b',');
                    self.resize(moved, end + 1, text);
                    piece.extend_from_slice(text);
                    last = moved;
                }
                next => break next,
            }
            if piece.len() > MOVED {
                return None;
            }
        };
        let end = place.at + piece.len() as u64;
        match next {
            None if end >= self.length => self.close(&mut piece),
            _ => piece.resize(
                piece.len() + usize::try_from(old_end.saturating_sub(end)).ok()?,
                b' ',
            ),
        }
        pieces.push((place.at, piece));
        Some(())
    }

    fn resize(&mut self, position: Position, at: u64, text: &Bytes) {
        let length = text.len() as u64;
        if let Some(old) = self.places.insert(position, Place { at, length }) {
            self.used = self.used - old.length + length;
        }
    }
}

fn blanks(length: u64) -> Vec<u8> {
    vec![b' '; usize::try_from(length).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rows of a file, by position.
    type Rows = BTreeMap<Position, Bytes>;

    fn row(number: u64, length: usize) -> Bytes {
        format!("{{\"{number}\":\"{}\"}}", "x".repeat(length)).into()
    }

    fn apply(file: &mut Vec<u8>, pieces: &Pieces) {
        for (at, piece) in pieces {
            let (at, end) = (
                usize::try_from(*at).unwrap(),
                usize::try_from(*at).unwrap() + piece.len(),
            );
            file.resize(file.len().max(end), b'?');
            file[at..end].copy_from_slice(piece);
        }
    }

    /// What every program reads in the file.
    fn read(file: &[u8]) -> Vec<String> {
        let rows: Vec<serde_json::Value> = serde_json::from_slice(file).unwrap();
        rows.iter().map(ToString::to_string).collect()
    }

    /// Changes the rows and the file, and compares them. Returns whether the layout is still of use.
    fn step(layout: &mut Layout, file: &mut Vec<u8>, rows: &Rows, changed: &[Position]) -> bool {
        let Some(pieces) = layout.change(changed, |position| rows.get(&position)) else {
            return false;
        };
        apply(file, &pieces);
        assert_eq!(file.len() as u64, layout.length());
        assert_eq!(
            String::from_utf8_lossy(file),
            String::from_utf8(layout.content(|position| rows.get(&position)).unwrap()).unwrap()
        );
        assert!(rows.values().eq(read(file).iter().map(String::as_bytes)));
        true
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_changed_file_has_the_rows_in_their_order(
            count in 0..120u64,
            steps in prop::collection::vec(prop::collection::vec((0..240u64, 0..1200usize, any::<bool>()), 1..6), 1..30),
        ) {
            let mut rows: Rows = (0..count).map(|number| (number, row(number, 300))).collect();
            let (mut layout, mut file) = Layout::arrange(rows.iter().map(|(at, text)| (*at, text)), 0);
            let mut next = count;
            for changes in steps {
                let mut changed = Vec::new();
                for (target, length, remove) in changes {
                    let position = if target < next && rows.contains_key(&target) {
                        target
                    } else {
                        next += 1;
                        next - 1
                    };
                    match remove {
                        true => drop(rows.remove(&position)),
                        false => drop(rows.insert(position, row(position, length))),
                    }
                    changed.push(position);
                }
                changed.sort_unstable();
                changed.dedup();
                if !step(&mut layout, &mut file, &rows, &changed) {
                    (layout, file) = Layout::arrange(rows.iter().map(|(at, text)| (*at, text)), 0);
                }
                prop_assert!(rows.values().eq(read(&file).iter().map(String::as_bytes)));
            }
        }
    }

    #[test]
    fn a_change_writes_little() {
        let mut rows: Rows = (0..2000).map(|number| (number, row(number, 400))).collect();
        let (mut layout, mut file) = Layout::arrange(rows.iter().map(|(at, text)| (*at, text)), 0);
        assert!(file.len() > 800_000 && file.len() < 850_000);
        let written = |layout: &mut Layout, rows: &Rows, changed: &[Position]| {
            let pieces = layout.change(changed, |position| rows.get(&position)).unwrap();
            pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>()
        };
        // As a deletion does it: longer, longer still, gone.
        for (position, length) in [(0, 430), (0, 550), (1000, 430), (1999, 550)] {
            rows.insert(position, row(position, length));
            assert!(written(&mut layout, &rows, &[position]) < 20_000);
        }
        for position in [0, 1000, 1999] {
            rows.remove(&position);
            assert!(written(&mut layout, &rows, &[position]) < 700);
        }
        for position in 2000..2010 {
            rows.insert(position, row(position, 400));
            assert!(written(&mut layout, &rows, &[position]) < 450);
        }
        file = layout.content(|position| rows.get(&position)).unwrap();
        assert!(rows.values().eq(read(&file).iter().map(String::as_bytes)));
        // Too much has gone.
        let gone: Vec<Position> = rows.keys().copied().step_by(2).collect();
        rows.retain(|position, _| !gone.contains(position));
        assert!(layout.change(&gone, |position| rows.get(&position)).is_none());
    }
}
