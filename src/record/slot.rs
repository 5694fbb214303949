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

impl<R: Record> Slot<R> {
    pub(super) fn fill_text(&mut self) -> Result<()> {
        if self.text.is_none() {
            let text = json::to_bytes(&*self.row).map_err(|error| {
                let what = format!("encoding the record of {} {:?}", R::NOUN, self.row.id());
                ErrorKind::InvalidInput.err(what).with_source(error)
            })?;
            self.text = Some(Bytes::from(text));
        }
        Ok(())
    }
}
