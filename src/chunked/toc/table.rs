//! A table of contents in memory: what it says of each file, in little space.
//!
//! A table of 100,000 files takes about 15 MiB. Names, link names and attributes are bytes one after the other; what
//! few entries have (device numbers, times of access, attributes) is kept apart.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::time::Time;

/// A sha256 sum.
pub(crate) type Sum = [u8; 32];

/// That of an entry without content.
static NO_SUM: Sum = [0; 32];

/// What an entry of a table of contents is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time. Before the year 0 and behind 9999 there is none in a table of contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// Bytes of [`Toc::text`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
}

/// An entry.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: EntryKind,
    pub(super) has_extra: bool,
    pub(super) has_time: bool,
    pub(super) mode: u16,
    /// Where its name begins in the text; the name that it is a link to follows.
    pub(super) text: u32,
    pub(super) name_length: u32,
    pub(super) link_length: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nanoseconds: u32,
    pub(super) seconds: i64,
    pub(super) size: u64,
    /// Where the content ends in the blob; 0 if the table does not say it.
    pub(super) end: u64,
    /// The first of its chunks; they go up to the first of the next entry.
    pub(super) first_chunk: u32,
    /// Which of the extras, if it has one.
    pub(super) extra: u32,
}

impl Record {
    pub(super) fn name(&self) -> Span {
        Span {
            start: self.text,
            length: self.name_length,
        }
    }

    fn link(&self) -> Span {
        Span {
            start: self.text.saturating_add(self.name_length),
            length: self.link_length,
        }
    }

    fn time(&self) -> Moment {
        Moment {
            seconds: self.seconds,
            nanoseconds: self.nanoseconds,
        }
    }
}

/// What few entries have.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) access_time: Option<Moment>,
    pub(super) change_time: Option<Moment>,
    pub(super) device: (u32, u32),
    /// Pairs of name and value.
    pub(super) xattrs: Vec<(Span, Span)>,
}

/// A chunk of a file.
#[derive(Debug)]
pub(super) struct ChunkRecord {
    /// Where it begins in the blob.
    pub(super) offset: u64,
    /// Its bytes, and whether it is a hole.
    size: u64,
    pub(super) sum: Sum,
}

/// Set in the size of a hole.
const HOLE: u64 = 1 << 63;

impl ChunkRecord {
    /// A chunk of up to 2^63 - 1 bytes.
    pub(super) fn new(offset: u64, size: u64, is_hole: bool, sum: Sum) -> Self {
        let hole = if is_hole { HOLE } else { 0 };
        Self {
            offset,
            size: size & !HOLE | hole,
            sum,
        }
    }

    fn size(&self) -> u64 {
        self.size & !HOLE
    }

    fn is_hole(&self) -> bool {
        self.size & HOLE != 0
    }
}

/// The table of contents of a layer blob.
///
/// It was checked when it was read: names can be used below some directory, sizes and positions fit each other and the
/// blob, no content is there twice. What it says of a file's content is not: that has to be compared with the digests.
#[derive(Default)]
pub struct Toc {
    pub(super) text: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) chunks: Vec<ChunkRecord>,
    /// Digests of the contents of files with several chunks, by entry; that of another file is that of its chunk.
    pub(super) sums: Vec<(u32, Sum)>,
    pub(super) extras: Vec<Extra>,
    pub(super) tar_split_digest: Option<Digest>,
}

impl fmt::Debug for Toc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Toc")
            .field("entries", &self.records.len())
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

impl Toc {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The entries, in the order of the tar stream.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = TocEntry<'_>> {
        self.records.iter().enumerate().map(|(index, record)| TocEntry {
            toc: self,
            record,
            index,
        })
    }

    /// An entry by its place.
    pub(crate) fn entry(&self, index: usize) -> Option<TocEntry<'_>> {
        let record = self.records.get(index)?;
        Some(TocEntry {
            toc: self,
            record,
            index,
        })
    }

    /// Digest of the compressed tar-split data that belongs to it. Without, the tar stream cannot be made again.
    pub fn tar_split_digest(&self) -> Option<&Digest> {
        self.tar_split_digest.as_ref()
    }

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let xattrs = |extra: &Extra| extra.xattrs.capacity() * size_of::<(Span, Span)>();
        self.text.capacity()
            + self.records.capacity() * size_of::<Record>()
            + self.chunks.capacity() * size_of::<ChunkRecord>()
            + self.sums.capacity() * size_of::<(u32, Sum)>()
            + self.extras.capacity() * size_of::<Extra>()
            + self.extras.iter().map(xattrs).sum::<usize>()
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.text
            .get(start..start + span.length as usize)
            .unwrap_or_default()
    }

    /// The digest of a file with several chunks.
    fn sum_of(&self, index: usize) -> &Sum {
        let found = self
            .sums
            .binary_search_by_key(&index, |(entry, _)| *entry as usize);
        let sum = found.ok().and_then(|found| self.sums.get(found));
        sum.map_or(&NO_SUM, |(_, sum)| sum)
    }

    /// The chunks of an entry.
    pub(super) fn chunks_of(&self, index: usize) -> &[ChunkRecord] {
        let first = |record: &Record| record.first_chunk as usize;
        let start = self.records.get(index).map_or(0, first);
        let end = self.records.get(index + 1).map_or(self.chunks.len(), first);
        self.chunks.get(start..end).unwrap_or_default()
    }
}

/// An entry of a table of contents.
#[derive(Clone, Copy)]
pub struct TocEntry<'a> {
    toc: &'a Toc,
    record: &'a Record,
    index: usize,
}

impl fmt::Debug for TocEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TocEntry")
            .field("kind", &self.kind())
            .field("name", &String::from_utf8_lossy(self.name()))
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl<'a> TocEntry<'a> {
    /// What it is.
    pub fn kind(&self) -> EntryKind {
        self.record.kind
    }

    /// Its name as in the tar stream: `usr/bin/`, `./etc/passwd`. It may contain `..`, which leads no further up than
    /// the root of the layer.
    pub fn name(&self) -> &'a [u8] {
        self.toc.bytes(self.record.name())
    }

    /// The target of a symbolic link, or the name of the file that a hard link is another name of; else empty.
    pub fn link(&self) -> &'a [u8] {
        self.toc.bytes(self.record.link())
    }

    /// Permissions with set-ID, set-group-ID and sticky.
    pub fn mode(&self) -> u32 {
        self.record.mode.into()
    }

    /// User ID of the owner.
    pub fn uid(&self) -> u32 {
        self.record.uid
    }

    /// Group ID of the owner.
    pub fn gid(&self) -> u32 {
        self.record.gid
    }

    /// Bytes of a regular file, 0 for everything else.
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Digest of the content of a regular file; that of an empty one means nothing.
    pub(crate) fn sum(&self) -> &'a Sum {
        match self.toc.chunks_of(self.index) {
            [only] => &only.sum,
            _ => self.toc.sum_of(self.index),
        }
    }

    /// Time of last modification.
    pub(crate) fn time(&self) -> Option<Moment> {
        self.record.has_time.then(|| self.record.time())
    }

    /// Time of last access.
    pub(crate) fn access_time(&self) -> Option<Moment> {
        self.extra().and_then(|extra| extra.access_time)
    }

    /// Time of last change of metadata.
    pub(crate) fn change_time(&self) -> Option<Moment> {
        self.extra().and_then(|extra| extra.change_time)
    }

    /// Time of last modification.
    pub fn modified(&self) -> Option<SystemTime> {
        let Moment { seconds, nanoseconds } = self.time()?;
        Time::at(seconds, nanoseconds).map(|time| time.system_time())
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        self.extra().map_or((0, 0), |extra| extra.device)
    }

    /// Names and values of the extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let (toc, extra) = (self.toc, self.extra());
        let xattrs = extra.map_or(&[][..], |extra| &extra.xattrs);
        xattrs
            .iter()
            .map(|(name, value)| (toc.bytes(*name), toc.bytes(*value)))
    }

    /// Digest of the content of a regular file; `None` for an empty one and for everything else.
    pub fn digest(&self) -> Option<Digest> {
        (self.record.size > 0).then(|| Digest::of_sum(self.sum()))
    }

    /// Where the content is: the parts of a regular file, in order. None for an empty one.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> {
        let mut at = 0;
        self.parts().map(move |part| {
            let start = at;
            at += part.size;
            Chunk {
                file: start..at,
                blob: part.blob,
                is_hole: part.is_hole,
                digest: Digest::of_sum(&part.sum),
            }
        })
    }

    /// As [`TocEntry::chunks`], without an allocation for each.
    pub(crate) fn parts(&self) -> impl ExactSizeIterator<Item = Part> + use<'a> {
        let chunks = self.toc.chunks_of(self.index);
        let end = self.record.end;
        chunks.iter().enumerate().map(move |(index, chunk)| Part {
            blob: chunk.offset..chunks.get(index + 1).map_or(end, |next| next.offset),
            size: chunk.size(),
            is_hole: chunk.is_hole(),
            sum: chunk.sum,
        })
    }

    fn extra(&self) -> Option<&'a Extra> {
        let extra = self.toc.extras.get(self.record.extra as usize);
        extra.filter(|_| self.record.has_extra)
    }
}

/// A part of a regular file, as the table has it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// As [`Chunk::blob`].
    pub(crate) blob: Range<u64>,
    /// Bytes of the file.
    pub(crate) size: u64,
    pub(crate) is_hole: bool,
    pub(crate) sum: Sum,
}

/// A part of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Which bytes of the file it is.
    pub file: Range<u64>,
    /// Which bytes of the blob give it when they are decompressed. Other bytes of the tar stream may follow it there.
    pub blob: Range<u64>,
    /// Whether all of it is zeros.
    pub is_hole: bool,
    /// Digest of its bytes.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Record>() <= 64, "{}", size_of::<Record>());
        assert!(size_of::<ChunkRecord>() <= 48, "{}", size_of::<ChunkRecord>());
    }
}
