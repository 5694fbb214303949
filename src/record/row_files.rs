//! Writing the files of rows: small ones as a whole, of large ones what has changed.

use std::path::Path;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::lock::last_write::Token;
use crate::record::layout::Layout;
use crate::record::record_trait::Record;
use crate::record::slot::Numbering;
use crate::record::table::Table;
use crate::sys::atomic::Mtime;
use crate::sys::reserve;
use crate::sys::spare::{Patch, Spares};

/// Bytes from which a file is not written as a whole.
const LARGE: usize = 64 * 1024;

/// The permissions of a file.
const MODE: u32 = 0o600;

/// What this process knows of the files of one store, from its last save.
#[derive(Debug, Default)]
pub(super) struct RowFiles {
    /// The rows that are in the files, and the token of the save that wrote them.
    of: Option<(Numbering, Token)>,
    each: Vec<RowFile>,
}

#[derive(Debug, Default)]
struct RowFile {
    /// `None` for a small file.
    layout: Option<Layout>,
    spares: Spares,
}

/// What a save writes to one file.
#[derive(Debug)]
pub(super) enum Change {
    /// All of a small file.
    Whole(Vec<u8>),
    /// All of a large one, which gets a new layout.
    Arranged(Vec<u8>),
    /// What has changed in a large one.
    Patch(Arc<Patch>),
}

/// What was written.
#[derive(Debug)]
pub(super) struct Saved {
    /// The time of the file.
    pub(super) mtime: Mtime,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Whether a reserve has become the file, so that the new reserve may be too small.
    pub(super) spent: bool,
}

impl RowFiles {
    /// Forgets the files unless they have the rows of this table, as of this token: another process, or a save that has
    /// failed, may have changed them.
    pub(super) fn check<R: Record>(&mut self, table: &Table<R>, token: Option<Token>) {
        let known = self
            .of
            .take()
            .filter(|(numbering, _)| *numbering == table.numbering());
        if known.is_none_or(|(_, known)| Some(known) != token) {
            for file in &mut self.each {
                file.layout = None;
                file.spares.forget();
            }
        }
    }

    /// The files have the rows of this table, as of this token.
    pub(super) fn saved<R: Record>(&mut self, table: &Table<R>, token: Option<Token>) {
        self.of = token.map(|token| (table.numbering(), token));
    }

    /// The names in the directory of a location's file are on disk.
    pub(super) fn settle(&mut self, index: usize) {
        if let Some(file) = self.each.get_mut(index) {
            file.spares.settle();
        }
    }

    /// What is to be written to the file of location `index`; `sync` tells whether it is forced to disk.
    pub(super) fn change<R: Record>(
        &mut self,
        table: &mut Table<R>,
        index: usize,
        path: &Path,
        sync: bool,
    ) -> Result<Change> {
        if self.each.len() <= index {
            self.each.resize_with(index + 1, RowFile::default);
        }
        let file = self.each.get_mut(index).ok_or_else(no_such_file)?;
        if let Some(layout) = &mut file.layout {
            let changed = table.changed_in(index)?;
            if let Some(pieces) = layout.change(&changed, |position| table.text_at(position)) {
                return Ok(Change::Patch(Arc::new(Patch { pieces })));
            }
            file.layout = None;
        }
        let length = table.fill_texts(index)?;
        file.spares.forget();
        if length < LARGE || !file.spares.can_write(path, sync) {
            return Ok(Change::Whole(table.join_texts(index)));
        }
        // A file that has to be cut off would lose the blocks that it has in reserve.
        let (layout, content) = Layout::arrange(table.texts_in(index), file.spares.size_of_next(path));
        file.layout = Some(layout);
        Ok(Change::Arranged(content))
    }

    /// Writes it.
    pub(super) fn write<R: Record>(
        &mut self,
        change: Change,
        table: &Table<R>,
        index: usize,
        path: &Path,
        sync: bool,
    ) -> Result<Saved> {
        let RowFile { layout, spares } = self.each.get_mut(index).ok_or_else(no_such_file)?;
        let in_place = |mtime, layout: &Option<Layout>| Saved {
            mtime,
            size: layout.as_ref().map_or(0, Layout::length),
            spent: true,
        };
        let (content, patch) = match change {
            Change::Whole(content) => {
                let written = reserve::write_file(path, &content, MODE, sync)?;
                return Ok(Saved {
                    mtime: written.mtime,
                    size: content.len() as u64,
                    spent: written.spent,
                });
            }
            Change::Arranged(content) => (content, None),
            Change::Patch(patch) => {
                if let Some(mtime) = spares.patch(path, &patch, sync)? {
                    return Ok(in_place(mtime, layout));
                }
                let content = layout
                    .as_ref()
                    .and_then(|layout| layout.content(|position| table.text_at(position)));
                (content.ok_or_else(no_such_file)?, Some(patch))
            }
        };
        if let Some(mtime) = spares.write(path, &content, patch.as_ref(), sync)? {
            return Ok(in_place(mtime, layout));
        }
        let written = reserve::write_file(path, &content, MODE, sync)?;
        spares.replaced(path, patch.as_ref());
        Ok(Saved {
            mtime: written.mtime,
            size: content.len() as u64,
            spent: written.spent,
        })
    }
}

/// The error for what cannot be.
fn no_such_file() -> crate::error::Error {
    ErrorKind::InvalidInput.err("saving rows of an unknown file")
}
