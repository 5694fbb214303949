//! What a table is made of: rows with their text, their arrangement, and how a change is undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::json;
use crate::record::index::Position;
use crate::record::record_trait::Record;

#[derive(Clone, Debug)]
pub(super) struct Slot<R> {
    pub(super) row: Arc<R>,
    pub(super) location: usize,
    /// The JSON text of the row; `None` until a save needs it.
    pub(super) text: Option<Bytes>,
}

/// Identifies an arrangement of rows: while a table keeps it, no row is moved or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order(u64);

impl Order {
    /// One that no other table has.
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// Identifies a numbering of rows: in a table and its copies a position means the same row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbering(u64);

impl Numbering {
    /// One that no other table has.
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// How to undo one change.
#[derive(Clone, Debug)]
pub(super) enum Undo<R> {
    /// A row was added here.
    Insertion(Position),
    /// The row that was here was replaced by another.
    Replacement(Position, Slot<R>),
    /// The row that was here was removed.
    Removal(Position, Slot<R>),
}

impl<R> Undo<R> {
    /// Where the row is or was.
    pub(super) fn position(&self) -> Position {
        match self {
            Self::Insertion(position) | Self::Replacement(position, _) | Self::Removal(position, _) => {
                *position
            }
        }
    }

    /// What was there before.
    pub(super) fn before(&self) -> Option<&Slot<R>> {
        match self {
            Self::Insertion(_) => None,
            Self::Replacement(_, slot) | Self::Removal(_, slot) => Some(slot),
        }
    }
}

impl<R: Record> Slot<R> {
    /// Has the row have a text. Returns its length.
    pub(super) fn fill_text(&mut self) -> Result<usize> {
        if let Some(text) = &self.text {
            return Ok(text.len());
        }
        let text = json::to_bytes(&*self.row).map_err(|error| {
            let what = format!("encoding the record of {} {:?}", R::NOUN, self.row.id());
            ErrorKind::InvalidInput.err(what).with_source(error)
        })?;
        let length = text.len();
        self.text = Some(Bytes::from(text));
        Ok(length)
    }
}
