//! Reads the stream of a layer of which there is no record: digest, size and owners, in bounded steps.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::replay::Replay;
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::whiteout::{self, WhiteoutName};

/// Bytes that are read in one piece.
const PIECE: usize = 128 * 1024;

/// What a layer's stream tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Its digest; `None` if files are not as the tar-split file says.
    pub(crate) digest: Option<Digest>,
    /// Its bytes.
    pub(crate) size: u64,
    /// Owners of its entries.
    pub(crate) uids: BTreeSet<u32>,
    /// Groups of its entries.
    pub(crate) gids: BTreeSet<u32>,
}

struct Pieces {
    replay: Replay<File>,
    hasher: Hasher,
    size: u64,
}

impl ChunkSource for Pieces {
    fn pass(&mut self, limit: u64) -> Result<u64> {
        let passed = self.replay.pass_zeros(limit)?;
        let count = passed.map_or(0, |(_, count)| count);
        self.size = self.size.saturating_add(count);
        Ok(count)
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let mut piece = Vec::new();
        if self.replay.part(&mut piece, PIECE)?.is_none() {
            return Ok(None);
        }
        self.hasher.update(&piece);
        self.size = self.size.saturating_add(piece.len() as u64);
        Ok(Some(piece.into()))
    }
}

/// See the module's head.
pub(super) struct StreamReading {
    reader: TarReader<Pieces>,
    found: Stream,
    in_payload: bool,
    at_end: bool,
}

impl StreamReading {
    /// `trees` are where the files are found, the layer's own first.
    pub(super) fn new(tar_split: File, trees: Vec<OwnedFd>) -> Self {
        Self {
            reader: TarReader::new(Pieces {
                replay: Replay::examining(tar_split, trees),
                hasher: Hasher::sha256(),
                size: 0,
            }),
            found: Stream::default(),
            in_payload: false,
            at_end: false,
        }
    }

    /// Reads on, for about `budget` bytes; `false` at the end.
    pub(super) fn step(&mut self, budget: u64) -> Result<bool> {
        let limit = self.reader.offset().saturating_add(budget);
        let mut entry = Entry::default();
        while self.reader.offset() < limit {
            if self.at_end {
                if self.reader.pass_rest()? == 0 && self.reader.rest()?.is_none() {
                    return Ok(false);
                }
            } else if self.in_payload {
                self.in_payload = self.reader.pass_payload()? > 0 || self.reader.payload()?.is_some();
            } else if self.reader.next(&mut entry, &mut |_| Ok(()))? {
                self.in_payload = true;
                self.note_owners(&entry);
            } else {
                self.at_end = true;
            }
        }
        Ok(true)
    }

    /// Compat: the owners of whiteouts are not among those of a layer.
    fn note_owners(&mut self, entry: &Entry) {
        let name = entry.name.strip_suffix(b"/").unwrap_or(&entry.name);
        let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
        if !matches!(whiteout::parse(base), WhiteoutName::None) {
            return;
        }
        self.found.uids.extend(u32::try_from(entry.uid));
        self.found.gids.extend(u32::try_from(entry.gid));
    }

    /// What was found, after the last step.
    pub(super) fn into_stream(mut self) -> Stream {
        let pieces = self.reader.source();
        let is_whole = pieces.replay.damaged().is_empty();
        let hasher = std::mem::replace(&mut pieces.hasher, Hasher::sha256());
        self.found.size = pieces.size;
        self.found.digest = is_whole.then(|| hasher.finish());
        self.found
    }
}
