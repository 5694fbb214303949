//! Compares the headers of a tar stream with the table of contents that goes with it.
//!
//! The tar stream is what becomes the layer; but the table is kept with it, and says to later pulls what is in it.

use std::sync::Arc;

use super::super::toc::{EntryKind, Moment, Toc, TocEntry};
use crate::archive::apply::pipeline::Inspect;
use crate::archive::path::show;
use crate::archive::tar::header::Timestamp;
use crate::archive::tar::reader::Entry;
use crate::error::{Error, ErrorKind, Result};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct HeaderCheck {
    toc: Arc<Toc>,
    /// The entries by name; made when they are not in the order of the stream.
    by_name: Option<Vec<u32>>,
    /// The entry that should come next.
    next: usize,
    /// Which entries have come.
    seen: Vec<bool>,
}

impl HeaderCheck {
    pub(crate) fn new(toc: Arc<Toc>) -> Self {
        Self {
            by_name: None,
            next: 0,
            seen: vec![false; toc.len()],
            toc,
        }
    }

    fn find(&mut self, name: &[u8]) -> Option<usize> {
        let toc = &self.toc;
        if toc.entry(self.next).is_some_and(|entry| entry.name() == name) {
            return Some(self.next);
        }
        let name_of = |index: u32| toc.entry(index as usize).map_or(&[][..], |entry| entry.name());
        let by_name = self.by_name.get_or_insert_with(|| {
            let mut order: Vec<u32> = (0..u32::try_from(toc.len()).unwrap_or(u32::MAX)).collect();
            order.sort_unstable_by(|one, other| name_of(*one).cmp(name_of(*other)));
            order
        });
        let at = by_name.binary_search_by(|index| name_of(*index).cmp(name)).ok()?;
        by_name.get(at).map(|index| *index as usize)
    }
}

impl Inspect for HeaderCheck {
    fn entry(&mut self, header: &Entry) -> Result<()> {
        let missing = || missing_in_toc(&header.name);
        let index = self.find(&header.name).ok_or_else(missing)?;
        match self.seen.get_mut(index) {
            Some(seen) if !*seen => *seen = true,
            // There as often as it is in the table, which is once.
            _ => return Err(missing()),
        }
        self.next = index + 1;
        let toc = Arc::clone(&self.toc);
        let entry = toc.entry(index).ok_or_else(missing)?;
        match difference(&entry, header) {
            None => Ok(()),
            Some(field) => Err(mismatch(header, field)),
        }
    }

    fn end(&mut self) -> Result<()> {
        let Some(left) = self.seen.iter().position(|seen| !seen) else {
            return Ok(());
        };
        Err(missing_in_tar_split(&self.toc, left))
    }
}

/// For a name in the tar stream that the table does not have, or does not have again.
pub(super) fn missing_in_toc(name: &[u8]) -> Error {
    let what = format!("tar-split contains an entry for {} missing in TOC", show(name));
    ErrorKind::InvalidArchive.err(what)
}

/// For an entry of the table that the tar stream does not have.
pub(super) fn missing_in_tar_split(toc: &Toc, index: usize) -> Error {
    let name = toc.entry(index).map(|entry| show(entry.name()));
    let what = format!(
        "TOC contains entries not present in tar-split, incl. {}",
        name.unwrap_or_default()
    );
    ErrorKind::InvalidArchive.err(what)
}

fn mismatch(header: &Entry, field: &str) -> Error {
    let what = format!(
        "TOC and tar-split metadata doesn't match: the {field} of {}",
        show(&header.name)
    );
    ErrorKind::InvalidArchive.err(what)
}

/// What the two say differently.
fn difference(entry: &TocEntry<'_>, header: &Entry) -> Option<&'static str> {
    let kind = match header.kind {
        b'0' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return Some("type"),
    };
    let (major, minor) = entry.device();
    let same = [
        (kind == entry.kind() && header.sparse.is_none(), "type"),
        (header.link == entry.link(), "link name"),
        (header.mode == entry.mode(), "mode"),
        (header.size == entry.size(), "size"),
        (header.uid == i64::from(entry.uid()), "owner"),
        (header.gid == i64::from(entry.gid()), "group"),
        (
            same_time(entry.time(), Some(header.mtime)),
            "time of modification",
        ),
        (same_time(entry.access_time(), header.atime), "time of access"),
        (same_time(entry.change_time(), header.ctime), "time of change"),
        (
            (header.dev_major, header.dev_minor) == (i64::from(major), i64::from(minor)),
            "device",
        ),
        (same_attributes(entry, header), "attributes"),
    ];
    same.into_iter().find(|(same, _)| !same).map(|(_, field)| field)
}

/// Compat: a table has no time where a header has the start of the epoch.
fn same_time(one: Option<Moment>, other: Option<Timestamp>) -> bool {
    let one = one.map_or((0, 0), |time| (time.seconds, time.nanoseconds));
    let other = other.map_or((0, 0), |time| (time.secs, time.nanos));
    one == other
}

fn same_attributes(entry: &TocEntry<'_>, header: &Entry) -> bool {
    if entry.xattrs().next().is_none() && header.records.xattrs().next().is_none() {
        return true;
    }
    let mut one: Vec<_> = entry.xattrs().collect();
    let mut other: Vec<_> = header.records.xattrs().collect();
    one.sort_unstable();
    other.sort_unstable();
    one == other
}
