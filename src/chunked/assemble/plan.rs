//! Where the content of each file comes from. Blocks for as long as it takes to look for local files.

use std::ops::Range;

use rustix::fs::Stat;

use super::super::toc::{EntryKind, Part, Toc, TocEntry};
use crate::archive::path::show;
use crate::chunked::local::{LocalContent, Place};
use crate::error::{Error, ErrorKind, Result};

/// Bytes between two ranges that are fetched with them: a range more costs about as much.
const MAX_GAP: u64 = 1024;

/// How many bytes one compressed byte can stand for. A block of Zstandard that repeats one byte takes four for 128 KiB,
/// and gzip stays far below that.
const MAX_RATIO: u64 = 32 * 1024;

/// What the shortest compressed data takes without its blocks.
const FRAME: u64 = 64;

/// Where the content of one file comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// All of it from the blob, where the table of contents says.
    Blob,
    /// A local file as a whole.
    Local(Place),
    /// Several parts, of which this is the first; there are as many as in the table of contents.
    Parts(u32),
}

/// An origin in little space: there is one for each file. The top bit is set for one of [`Plan::places`].
#[derive(Clone, Copy, Debug)]
struct Code(u32);

const BLOB: u32 = u32::MAX;

const IN_PLACES: u32 = 1 << 31;

/// A part of a file.
#[derive(Clone, Debug)]
pub(super) struct PartPlan {
    pub(super) size: u64,
    pub(super) from: PartOrigin,
}

#[derive(Clone, Debug)]
pub(super) enum PartOrigin {
    /// Compressed bytes of the blob.
    Blob(Range<u64>),
    /// Nothing but zeros.
    Hole,
    /// A part of a local file.
    Local(Place),
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Those of the regular files that are not empty, in the order of the table of contents.
    files: Vec<Code>,
    places: Vec<Place>,
    pub(super) parts: Vec<PartPlan>,
    /// The ranges of the blob that are needed: ascending, disjoint.
    requests: Vec<Range<u64>>,
    reused: u64,
}

impl Plan {
    /// Looks for the content of all files in `local`.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] if content is needed in another order than the blob has it; the layer can be pulled as
    /// a whole. [`ErrorKind::InvalidArchive`] for more content than its compressed bytes can hold.
    pub(crate) fn new(toc: &Toc, local: Option<&LocalContent>) -> Result<Self> {
        // For a large table, growing by doubling would take twice the memory.
        let count = toc.entries().filter(has_content).count();
        let mut plan = Self {
            files: Vec::with_capacity(count),
            places: Vec::new(),
            parts: Vec::new(),
            requests: Vec::new(),
            reused: 0,
        };
        for entry in toc.entries().filter(has_content) {
            let like = |stat: &Stat| is_like(stat, &entry);
            let found = local.and_then(|local| local.find_like(entry.sum(), entry.size(), like));
            let code = match found {
                Some(place) => {
                    let bytes = entry
                        .parts()
                        .map(|part| part.blob.end.saturating_sub(part.blob.start));
                    plan.reused = plan.reused.saturating_add(bytes.sum());
                    grow_little(&mut plan.places);
                    plan.places.push(place);
                    number_of(plan.places.len() - 1)? | IN_PLACES
                }
                None => plan.parts_of(&entry, local)?,
            };
            plan.files.push(Code(code));
        }
        Ok(plan)
    }

    /// Where the content of the file with this number comes from.
    pub(super) fn origin(&self, file: usize) -> Option<Origin> {
        let Code(code) = *self.files.get(file)?;
        Some(match code {
            BLOB => Origin::Blob,
            _ if code & IN_PLACES != 0 => Origin::Local(*self.places.get((code & !IN_PLACES) as usize)?),
            first => Origin::Parts(first),
        })
    }

    /// Plans a file that is not there as a whole. Returns its code.
    fn parts_of(&mut self, entry: &TocEntry<'_>, local: Option<&LocalContent>) -> Result<u32> {
        let first = number_of(self.parts.len())?;
        let parts = entry.parts();
        let is_whole = parts.len() == 1;
        for part in parts {
            check_size(entry, &part)?;
            if is_whole && !part.is_hole {
                self.need(entry, &part.blob)?;
                return Ok(BLOB);
            }
            let found = match is_whole || part.is_hole {
                true => None,
                false => local.and_then(|local| local.find_chunk(&part.sum, part.size)),
            };
            let from = match found {
                _ if part.is_hole => PartOrigin::Hole,
                Some(place) => {
                    let bytes = part.blob.end.saturating_sub(part.blob.start);
                    self.reused = self.reused.saturating_add(bytes);
                    PartOrigin::Local(place)
                }
                None => {
                    self.need(entry, &part.blob)?;
                    PartOrigin::Blob(part.blob.clone())
                }
            };
            grow_little(&mut self.parts);
            self.parts.push(PartPlan {
                size: part.size,
                from,
            });
        }
        Ok(first)
    }

    /// Has a range fetched.
    fn need(&mut self, entry: &TocEntry<'_>, range: &Range<u64>) -> Result<()> {
        self.request(range).ok_or_else(|| {
            let what = format!("{} lies before other files in the blob", show(entry.name()));
            ErrorKind::NotSupported.err(what)
        })
    }

    /// Adds a range; `None` if it lies before the last one.
    fn request(&mut self, range: &Range<u64>) -> Option<()> {
        match self.requests.last_mut() {
            Some(last) if range.start < last.end => return None,
            Some(last) if range.start - last.end <= MAX_GAP => last.end = range.end,
            _ => self.requests.push(range.clone()),
        }
        Some(())
    }

    /// The ranges of the blob that are needed.
    pub(crate) fn requests(&self) -> &[Range<u64>] {
        &self.requests
    }

    /// Bytes of the blob that are needed.
    pub(crate) fn fetched(&self) -> u64 {
        self.requests.iter().map(|range| range.end - range.start).sum()
    }

    /// Bytes of the blob that are not needed, since the files that they hold are there already.
    pub(crate) fn reused(&self) -> u64 {
        self.reused
    }
}

/// Whether it is a regular file that is not empty.
pub(super) fn has_content(entry: &TocEntry<'_>) -> bool {
    entry.kind() == EntryKind::File && entry.size() > 0
}

/// Makes room for one more by little, since there may be as many as files.
fn grow_little<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 256);
    }
}

fn number_of(index: usize) -> Result<u32> {
    let number = u32::try_from(index).ok().filter(|number| number & IN_PLACES == 0);
    number.ok_or_else(too_many)
}

/// Whether a file may be what the entry is in everything. Its owner depends on where the layer is made.
fn is_like(stat: &Stat, entry: &TocEntry<'_>) -> bool {
    let time = entry.time().unwrap_or_default();
    stat.st_mode & 0o7777 == entry.mode()
        && stat.st_mtime == time.seconds
        && stat.st_mtime_nsec == u64::from(time.nanoseconds)
}

/// Refuses sizes that compressed bytes cannot stand for: without them a small table would have any amount of zeros written.
fn check_size(entry: &TocEntry<'_>, part: &Part) -> Result<()> {
    let length = part.blob.end.saturating_sub(part.blob.start);
    if part.size <= length.saturating_add(FRAME).saturating_mul(MAX_RATIO) {
        return Ok(());
    }
    let what = format!(
        "{} has {} bytes in {length} bytes of the blob",
        show(entry.name()),
        part.size
    );
    Err(ErrorKind::InvalidArchive.err(what))
}

fn too_many() -> Error {
    ErrorKind::NotSupported.err("more than two billion parts of files")
}
