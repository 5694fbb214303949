//! The table that readers get, also while a writer of the same process changes another copy.
//!
//! A writer takes the cached table out of the cache, so that a change needs no copy. But if a reader has come meanwhile, from
//! then on writers leave each table that they have saved in the cache, and go on with one that was there before and that
//! nobody reads any more: it lacks only what was changed since, which is known. So readers do not wait for writers, and the
//! cost of that grows with the changes, not with the rows; a whole copy is made only where every earlier table is in use.
//!
//! While a writer exists, it holds the exclusive locks, and what it has saved last is what the files say: a reader needs
//! neither the locks nor the token.

use std::sync::Arc;

use crate::lock::last_write::Token;
use crate::record::index::Position;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::sys::atomic::Mtime;

/// Tables that are kept to be used again.
const MAX_EARLIER: usize = 3;

/// Changes that a table may always lack.
const MUCH: usize = 64;

/// Writers after which tables are not published any more if no reader has come while one of them wrote.
const MAX_UNREAD: u32 = 256;

/// A table, and the state of the files that it was read from or written to.
#[derive(Clone, Debug)]
pub(super) struct Snapshot<R> {
    pub(super) table: Table<R>,
    /// `None` without lock files.
    pub(super) token: Option<Token>,
    /// Per location; `None` if there was no file, or one without a list (see `Content`).
    pub(super) mtimes: Vec<Option<Mtime>>,
}

/// The tables of one store that this process knows.
#[derive(Debug)]
pub(super) struct Cached<R> {
    /// The table as last loaded or saved; `None` if the content of the files is unknown, or a writer has it.
    pub(super) current: Option<Arc<Snapshot<R>>>,
    /// Whether a writer exists.
    writing: bool,
    /// Whether writers publish what they have saved.
    publishing: bool,
    /// Writers since the last reader that came while one wrote.
    unread: u32,
    earlier: Vec<Earlier<R>>,
}

/// A table that was published, and what has been changed since.
#[derive(Debug)]
pub(super) struct Earlier<R> {
    snapshot: Arc<Snapshot<R>>,
    changed: Vec<Position>,
}

/// Tables that are to be freed without the mutex.
pub(super) type Old<R> = (Option<Arc<Snapshot<R>>>, Vec<Earlier<R>>);

impl<R> Default for Cached<R> {
    fn default() -> Self {
        Self {
            current: None,
            writing: false,
            publishing: false,
            unread: 0,
            earlier: Vec::new(),
        }
    }
}

impl<R: Record> Cached<R> {
    /// What the files say while a writer exists; `Some(None)` if it has not been published, but will be from now on.
    pub(super) fn while_writing(&mut self) -> Option<Option<Arc<Snapshot<R>>>> {
        if !self.writing {
            return None;
        }
        self.publishing = true;
        self.unread = 0;
        Some(self.current.as_ref().map(Arc::clone))
    }

    /// Takes over a table that was read from the files.
    pub(super) fn load(&mut self, snapshot: &Arc<Snapshot<R>>) -> Old<R> {
        let old = self.current.replace(Arc::clone(snapshot));
        (old, std::mem::take(&mut self.earlier))
    }

    /// A writer begins with a table. Returns whether the table stays here, for readers.
    pub(super) fn begin(&mut self, snapshot: &Arc<Snapshot<R>>, reloaded: bool) -> (bool, Old<R>) {
        self.writing = true;
        self.unread += 1;
        self.publishing = self.publishing && self.unread <= MAX_UNREAD;
        // What a killed process has left is repaired first.
        let stays = self.publishing && !snapshot.table.shows_incomplete();
        let earlier = match reloaded || !self.publishing {
            true => std::mem::take(&mut self.earlier),
            false => Vec::new(),
        };
        let current = stays.then(|| Arc::clone(snapshot));
        (stays, (std::mem::replace(&mut self.current, current), earlier))
    }

    /// Whether a saved table is to be published.
    pub(super) fn wants(&self, changed: &[Position]) -> bool {
        self.publishing && (self.current.is_none() || !changed.is_empty())
    }

    /// Publishes a table that was saved, in which these rows differ from the one before.
    pub(super) fn publish(&mut self, snapshot: &Arc<Snapshot<R>>, changed: Vec<Position>) -> Old<R> {
        for earlier in &mut self.earlier {
            earlier.changed.extend_from_slice(&changed);
        }
        let before = self.current.replace(Arc::clone(snapshot));
        self.earlier
            .extend(before.map(|snapshot| Earlier { snapshot, changed }));
        // One that differs in much is of no use.
        let much = snapshot.table.len() / 2 + MUCH;
        let (old, kept) = std::mem::take(&mut self.earlier)
            .into_iter()
            .partition(|earlier| earlier.changed.len() > much);
        self.earlier = kept;
        let mut old: Vec<Earlier<R>> = old;
        let too_many = self.earlier.len().saturating_sub(MAX_EARLIER);
        old.extend(self.earlier.drain(..too_many));
        (None, old)
    }

    /// What the files say is not known any more.
    pub(super) fn forget(&mut self) -> Old<R> {
        (self.current.take(), std::mem::take(&mut self.earlier))
    }

    /// A writer ends; `unchanged` is its table if that agrees with the files.
    pub(super) fn end(&mut self, unchanged: Option<Snapshot<R>>) {
        self.writing = false;
        let Some(snapshot) = unchanged else { return };
        let snapshot = Arc::new(snapshot);
        match &self.current {
            None => self.current = Some(snapshot),
            Some(_the_same) if self.earlier.len() < MAX_EARLIER => self.earlier.push(Earlier {
                snapshot,
                changed: Vec::new(),
            }),
            Some(_the_same) => {}
        }
    }

    /// An earlier table that nobody reads, with what has been changed since.
    pub(super) fn take_earlier(&mut self) -> Option<Earlier<R>> {
        let unread = |earlier: &Earlier<R>| Arc::strong_count(&earlier.snapshot) == 1;
        let at = self.earlier.iter().position(unread)?;
        Some(self.earlier.swap_remove(at))
    }
}

impl<R: Record> Earlier<R> {
    /// The table, made the same as what was published since, if that is possible.
    pub(super) fn catch_up(self, published: &Table<R>) -> Option<Table<R>> {
        let mut table = Arc::into_inner(self.snapshot)?.table;
        table.catch_up(published, self.changed).then_some(table)
    }
}
