//! Reads a layer's tar stream as its tar-split file describes it, in bounded steps: the digest and size of the whole, what is
//! wrong with single files, and the tree that the headers describe.
//!
//! A file that is missing or not as recorded does not end the reading: all of them are found. Then the digest of the stream
//! says nothing and is not computed.
//!
//! How long that takes depends on the files that are there, and not on the sizes that the tar-split file says: what stands in the
//! place of damaged files is passed over, and beyond the size that the stream should have no file is read.

use std::fs::File;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar::sparse::Fragment;
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::replay::{DamagedFile, Origin, Replay};
use crate::archive::verify::expected_item::Content;
use crate::archive::verify::expected_tree::ExpectedTree;
use crate::digest::{Digest, Hasher};
use crate::error::Result;

/// Bytes that are read in one piece.
const PIECE: usize = 128 * 1024;

/// What the reading of a layer has found.
#[derive(Debug)]
pub(crate) struct LayerContent {
    /// Digest of the stream; `None` if files are damaged, if nothing was hashed, or if the stream cannot be made again.
    pub(crate) digest: Option<Digest>,
    /// Bytes of the stream; `None` if it cannot be made again.
    pub(crate) size: Option<u64>,
    /// Files that are not as recorded.
    pub(crate) damaged: Vec<DamagedFile>,
    /// What the headers describe, if it was asked for.
    pub(crate) expected: Option<ExpectedTree>,
}

/// See the module's head.
pub(crate) struct LayerReading {
    reader: TarReader<Pieces>,
    entry: Entry,
    expected: Option<ExpectedTree>,
    state: State,
    crc: Crc,
    /// Whether bytes of the current payload came from the tar-split file.
    recorded: bool,
    /// Of the current entry if it is sparse.
    sparse: Option<SparseSum>,
}

/// The checksum of a sparse file, whose payload has no holes.
struct SparseSum {
    /// Parts that are still to come, the next one last.
    parts: Vec<Fragment>,
    /// Where the file was reached.
    position: u64,
}

impl SparseSum {
    fn new(map: &[Fragment]) -> Self {
        Self {
            parts: map.iter().rev().copied().collect(),
            position: 0,
        }
    }

    /// Adds the next bytes of the payload.
    fn update(&mut self, crc: &mut Crc, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(part) = self.parts.last_mut()
        {
            let length = usize::try_from(part.length).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(length.min(bytes.len()));
            let count = now.len() as u64;
            crc.zeros(part.offset.saturating_sub(self.position));
            crc.update(now);
            part.offset += count;
            part.length -= count;
            self.position = part.offset;
            bytes = later;
            if part.length == 0 {
                self.parts.pop();
            }
        }
    }

    /// After the payload of a file of this size.
    fn finish(self, crc: &mut Crc, size: u64) {
        crc.zeros(size.saturating_sub(self.position));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start, or between two entries.
    Between,
    /// The payload of an entry is being read.
    InPayload,
    /// After the end of the archive.
    AfterEnd,
}

/// The stream, with where its last piece came from.
struct Pieces {
    replay: Replay<File>,
    hasher: Option<Hasher>,
    origin: Origin,
    size: u64,
    /// Bytes that were not passed over.
    read: u64,
    /// Bytes that the stream should have, if that is known.
    limit: Option<u64>,
    /// It has more.
    is_too_long: bool,
    /// Whether the stream was another one than what is read.
    expanded: bool,
}

impl ChunkSource for Pieces {
    fn is_expanded(&mut self) -> Result<bool> {
        let expanded = self.replay.is_at_file()?;
        if expanded {
            self.expanded = true;
            self.hasher = None;
        }
        Ok(expanded)
    }

    fn pass(&mut self, limit: u64) -> Result<u64> {
        self.omit_excess()?;
        let Some((origin, count)) = self.replay.pass_zeros(limit)? else {
            return Ok(0);
        };
        self.origin = origin;
        self.size = self.size.saturating_add(count);
        self.hasher = None;
        Ok(count)
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        self.omit_excess()?;
        let mut piece = Vec::new();
        let Some(origin) = self.replay.part(&mut piece, PIECE)? else {
            return Ok(None);
        };
        self.origin = origin;
        self.size = self.size.saturating_add(piece.len() as u64);
        self.read = self.read.saturating_add(piece.len() as u64);
        if self.replay.damaged().is_empty() {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&piece);
            }
        } else {
            self.hasher = None;
        }
        Ok(Some(piece.into()))
    }
}

impl Pieces {
    /// Has the file that comes next passed over if the stream would become longer than it should be.
    fn omit_excess(&mut self) -> Result<()> {
        if let Some(limit) = self.limit.filter(|_| !self.expanded)
            && self.replay.omit_beyond(limit.saturating_sub(self.size))?
        {
            self.is_too_long = true;
            self.hasher = None;
        }
        Ok(())
    }
}

impl LayerReading {
    /// Reads everything. `tar_split` is the compressed file; `trees` are where the files are found, the layer's own first.
    /// The digest has the algorithm of `like`. With a `limit` no file is read that lies beyond so many bytes of the stream.
    pub(crate) fn contents(
        tar_split: File,
        trees: Vec<OwnedFd>,
        like: &Digest,
        limit: Option<u64>,
        wants_tree: bool,
    ) -> Self {
        let replay = Replay::examining(tar_split, trees);
        Self::of(replay, Some(Hasher::like(like)), limit, wants_tree)
    }

    /// Reads the headers alone.
    pub(crate) fn headers(tar_split: File) -> Self {
        Self::of(Replay::headers(tar_split), None, None, true)
    }

    fn of(replay: Replay<File>, hasher: Option<Hasher>, limit: Option<u64>, wants_tree: bool) -> Self {
        let pieces = Pieces {
            replay,
            hasher,
            origin: Origin::TarSplit,
            size: 0,
            read: 0,
            limit,
            is_too_long: false,
            expanded: false,
        };
        Self {
            reader: TarReader::new(pieces),
            entry: Entry::default(),
            expected: wants_tree.then(ExpectedTree::default),
            state: State::Between,
            crc: Crc::new(),
            recorded: false,
            sparse: None,
        }
    }

    /// Bytes of the stream that were read so far, without those that were passed over.
    pub(crate) fn bytes_read(&mut self) -> u64 {
        self.reader.source().read
    }

    /// Reads on, for about `budget` bytes; `false` at the end.
    ///
    /// # Errors
    /// [`ErrorKind::LayerContentModified`](crate::ErrorKind::LayerContentModified) and others for tar-split data that cannot
    /// be read, [`ErrorKind::InvalidArchive`](crate::ErrorKind::InvalidArchive) for a stream that is no archive.
    pub(crate) fn step(&mut self, budget: u64) -> Result<bool> {
        let limit = self.reader.offset().saturating_add(budget);
        while self.reader.offset() < limit {
            match self.state {
                State::Between => {
                    if self.reader.next(&mut self.entry, &mut |_| Ok(()))? {
                        self.state = State::InPayload;
                        self.recorded = false;
                        self.sparse = self.entry.sparse.as_deref().map(SparseSum::new);
                    } else {
                        self.state = State::AfterEnd;
                    }
                }
                State::InPayload if self.reader.pass_payload()? > 0 => {}
                State::InPayload => match self.reader.payload()? {
                    Some(piece) => {
                        let is_recorded = self.reader.source().origin == Origin::TarSplit;
                        if is_recorded && self.expected.is_some() {
                            match &mut self.sparse {
                                Some(sparse) => sparse.update(&mut self.crc, &piece),
                                None => self.crc.update(&piece),
                            }
                        }
                        self.recorded |= is_recorded;
                    }
                    None => {
                        self.state = State::Between;
                        self.take_up()?;
                    }
                },
                State::AfterEnd => {
                    if self.reader.pass_rest()? == 0 && self.reader.rest()?.is_none() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Tells the expected tree of the entry whose payload was read.
    fn take_up(&mut self) -> Result<()> {
        let Some(expected) = &mut self.expected else {
            return Ok(());
        };
        let is_sparse = self.sparse.is_some();
        if let Some(sparse) = self.sparse.take() {
            sparse.finish(&mut self.crc, self.entry.size);
        }
        let sum = self.crc.take();
        let content = match self.reader.source().origin {
            Origin::File(sum) if !self.recorded && !is_sparse && self.entry.size > 0 => Content::Read(sum),
            _ => Content::Recorded(sum),
        };
        expected.add(&self.entry, content)
    }

    /// What was found, after the last step.
    pub(crate) fn into_content(mut self) -> LayerContent {
        let pieces = self.reader.source();
        let damaged = pieces.replay.take_damaged();
        let hasher = pieces.hasher.take().filter(|_| damaged.is_empty());
        LayerContent {
            digest: hasher.map(Hasher::finish),
            size: (!pieces.expanded || pieces.is_too_long).then_some(pieces.size),
            damaged,
            expected: self.expected,
        }
    }
}
