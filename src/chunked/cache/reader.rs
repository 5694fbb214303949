//! Looks digests up in a cache file, which is read at the places that matter and never as a whole.
//!
//! Sums are evenly distributed, so that the place of one among the sorted tags is known well enough to find it with
//! one or two reads. Where they are not, halving bounds the reads.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use super::filter::{HASHES, Key};
use super::format::{DIGEST_LENGTH, DIGEST_PREFIX, MAX_TAGS_LENGTH, TAG_LENGTH, VERSION};
use crate::archive::path::MAX_PATH;

/// Tags that one read takes in.
const BLOCK: u64 = 128;
const BLOCK_BYTES: usize = 128 * TAG_LENGTH;

/// Tags of one digest that are looked at: contents that are there more often are rarely worth a look.
const MAX_SAME: u64 = 32;

/// Tags of one digest that one read takes in.
const SAME: u64 = 8;

/// Bytes of a name and its length that are read at once.
const SHORT_NAME: usize = 256;

/// Reads that are placed by what sums look like, before the rest is halved.
const PLACED_READS: u32 = 6;

/// The longest location: three varints of 64 bits.
const MAX_LOCATION: usize = 30;

/// Bytes up to the filter.
const HEAD: usize = 36;

/// Bytes that can be read anywhere.
pub(crate) trait ReadAt {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// Also if there is less.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// So many bytes from `offset` on, if they are in memory.
    fn in_memory(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let _ = (offset, length);
        None
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// Why a cache file is of no use.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It is of another version.
    Version(u64),
    /// It contradicts itself.
    Damaged(&'static str),
    /// It cannot be read.
    Io(io::Error),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "it is of version {version}"),
            Self::Damaged(what) => f.write_str(what),
            Self::Io(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a content is: a part of a file of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Where the name of the file is, for [`CacheFile::name`].
    pub(crate) name: u32,
    /// Which byte of the file it begins at.
    pub(crate) offset: u64,
    /// Bytes of it. 0 can also stand for all bytes up to the end of the file.
    pub(crate) length: u64,
}

/// What has to be known of a cache file to look something up in it.
#[derive(Debug)]
pub(crate) struct CacheFile {
    /// Words of the filter, which begins at [`HEAD`].
    words: u32,
    /// The filter, if it is kept in memory.
    filter: Option<Box<[u64]>>,
    tags_at: u64,
    tags: u64,
    locations_at: u64,
    locations_length: u64,
    names_length: u64,
}

impl CacheFile {
    /// Reads the head of a cache file of `size` bytes.
    ///
    /// # Errors
    /// Why the file has to be made anew.
    pub(crate) fn open(file: &impl ReadAt, size: u64) -> Result<Self, Unusable> {
        let mut head = [0; HEAD];
        let Some(rest) = size.checked_sub(HEAD as u64) else {
            return Err(Unusable::Damaged("it is too short"));
        };
        file.read_at(&mut head, 0)?;
        let (numbers, hashes) = head.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let (version, tag_length, digest_length, words) = (next(), next(), next(), next());
        if version != VERSION {
            return Err(Unusable::Version(version));
        }
        if hashes != HASHES.to_le_bytes() {
            return Err(Unusable::Damaged("its filter has another number of hashes"));
        }
        // The bits of the filter have numbers of 32 bits.
        let Some(words) = u32::try_from(words).ok().filter(|words| {
            let bits = u64::from(*words) * 64;
            bits > 0 && bits <= u32::MAX.into()
        }) else {
            return Err(Unusable::Damaged("its filter has no size that can be"));
        };
        let lengths_at = HEAD as u64 + u64::from(words) * 8;
        let Some(rest) = rest.checked_sub(u64::from(words) * 8 + 24) else {
            return Err(Unusable::Damaged("it ends within its filter"));
        };
        let mut lengths = [0; 24];
        file.read_at(&mut lengths, lengths_at)?;
        let (lengths, _) = lengths.as_chunks::<8>();
        let mut lengths = lengths.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || lengths.next().unwrap_or(0);
        let (tags_length, locations_length, names_length) = (next(), next(), next());
        let sum = tags_length
            .checked_add(locations_length)
            .and_then(|sum| sum.checked_add(names_length));
        if sum != Some(rest) {
            return Err(Unusable::Damaged("its parts are not all of it"));
        }
        if tags_length > MAX_TAGS_LENGTH {
            return Err(Unusable::Damaged("it has too many tags"));
        }
        if tags_length > 0 && (tag_length == 0 || !tags_length.is_multiple_of(tag_length)) {
            return Err(Unusable::Damaged("it ends within a tag"));
        }
        // In a file with other digests than sha256 ones nothing can be found.
        let is_known = tag_length == TAG_LENGTH as u64 && digest_length == DIGEST_LENGTH as u64;
        let tags_at = lengths_at + 24;
        Ok(Self {
            words,
            filter: None,
            tags_at,
            tags: if is_known { tags_length / tag_length } else { 0 },
            locations_at: tags_at + tags_length,
            locations_length,
            names_length,
        })
    }

    /// Whether nothing can be found.
    pub(crate) fn is_empty(&self) -> bool {
        self.tags == 0
    }

    /// Bytes of memory that [`CacheFile::load_filter`] takes.
    pub(crate) fn filter_size(&self) -> usize {
        self.words as usize * 8
    }

    /// Keeps the filter in memory. Otherwise each look-up reads from the file first.
    pub(crate) fn load_filter(&mut self, file: &impl ReadAt) -> io::Result<()> {
        let mut filter = vec![0; self.words as usize];
        let (mut at, mut buffer) = (HEAD as u64, [0; 4096]);
        for part in filter.chunks_mut(buffer.len() / 8) {
            let bytes = buffer.get_mut(..part.len() * 8).unwrap_or_default();
            file.read_at(bytes, at)?;
            at += bytes.len() as u64;
            let (bytes, _) = bytes.as_chunks::<8>();
            for (word, bytes) in part.iter_mut().zip(bytes) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        self.filter = Some(filter.into());
        Ok(())
    }

    /// Whether a look-up needs the file: `false` if the filter says that there is nothing.
    pub(crate) fn may_have(&self, key: &Key) -> bool {
        let Some(filter) = &self.filter else {
            return !self.is_empty();
        };
        !self.is_empty()
            && key
                .bits(self.words)
                .all(|(word, bit)| filter.get(word as usize).is_some_and(|word| word & bit != 0))
    }

    /// Gives the locations of a digest to `visit`, until it breaks.
    pub(crate) fn visit<T>(
        &self,
        file: &impl ReadAt,
        key: &Key,
        mut visit: impl FnMut(Location) -> ControlFlow<T>,
    ) -> io::Result<Option<T>> {
        if self.filter.is_none() && !self.read_filter(file, key)? {
            return Ok(None);
        }
        let mut buffer = [0; BLOCK_BYTES];
        let (first, mut tags) = self.first(file, key, &mut buffer)?;
        let mut at = first;
        while at - first < MAX_SAME {
            let Some((tag, rest)) = tags.split_first() else {
                let count = (self.tags - at).min(SAME);
                if count == 0 {
                    break;
                }
                tags = self.read_tags(file, at, count, &mut buffer)?;
                continue;
            };
            let (digest, place) = parts(tag);
            if digest != key.digest() {
                break;
            }
            if let Some(location) = self.location(file, place)?
                && let ControlFlow::Break(found) = visit(location)
            {
                return Ok(Some(found));
            }
            tags = rest;
            at += 1;
        }
        Ok(None)
    }

    /// A file's name. `None` if there is none there, or none that a file can have.
    pub(crate) fn name(&self, file: &impl ReadAt, at: u32) -> io::Result<Option<Vec<u8>>> {
        let names_at = self.locations_at + self.locations_length + u64::from(at);
        let Some(rest) = self.names_length.checked_sub(u64::from(at)) else {
            return Ok(None);
        };
        // Most names are short enough to come along with their length.
        let mut buffer = [0; SHORT_NAME];
        let known = usize::try_from(rest).map_or(SHORT_NAME, |rest| rest.min(SHORT_NAME));
        let Some(head) = buffer.get_mut(..known) else {
            return Ok(None);
        };
        file.read_at(head, names_at)?;
        let Some((length, name)) = head.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        if u64::from(length) > rest - 4 || length as usize > MAX_PATH {
            return Ok(None);
        }
        if let Some(name) = name.get(..length as usize) {
            return Ok(Some(name.to_vec()));
        }
        let mut name = vec![0; length as usize];
        file.read_at(&mut name, names_at + 4)?;
        Ok(Some(name))
    }

    fn read_filter(&self, file: &impl ReadAt, key: &Key) -> io::Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        for (word, bit) in key.bits(self.words) {
            let mut bytes = [0; 8];
            file.read_at(&mut bytes, HEAD as u64 + u64::from(word) * 8)?;
            if u64::from_le_bytes(bytes) & bit == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of the first tag whose digest is not less than the one looked for, and those of the tags from it on that
    /// were read.
    fn first<'a>(
        &self,
        file: &'a impl ReadAt,
        key: &Key,
        buffer: &'a mut [u8],
    ) -> io::Result<(u64, &'a [[u8; TAG_LENGTH]])> {
        let wanted = key.digest().as_slice();
        // The tags before `low` are less, those from `high` on are not; the places of the sums on both sides.
        let (mut low, mut high) = (0, self.tags);
        let (mut low_place, mut high_place) = (0, u64::MAX);
        let mut reads = 0;
        let (start, count) = loop {
            let span = high - low;
            if span <= BLOCK {
                self.read_tags(file, low, span, buffer)?;
                break (low, span);
            }
            let guess = match reads < PLACED_READS {
                true => {
                    let wide = u128::from(high_place.saturating_sub(low_place)).max(1);
                    let part = u128::from(place(wanted).saturating_sub(low_place)) * u128::from(span) / wide;
                    u64::try_from(part).unwrap_or(span)
                }
                false => span / 2,
            };
            reads += 1;
            let start = low + guess.saturating_sub(BLOCK / 2).min(span - BLOCK);
            let tags = self.read_tags(file, start, BLOCK, buffer)?;
            let at = tags.partition_point(|tag| parts(tag).0.as_slice() < wanted);
            let digest = |at: usize| tags.get(at).map(|tag| place(parts(tag).0));
            if at == 0 {
                high = start;
                high_place = digest(0).unwrap_or(high_place);
            } else if at == tags.len() {
                low = start + BLOCK;
                low_place = digest(at - 1).unwrap_or(low_place);
            } else {
                break (start, BLOCK);
            }
        };
        let length = usize::try_from(count).map_or(usize::MAX, |count| count.saturating_mul(TAG_LENGTH));
        let in_memory = file.in_memory(self.tags_at + start * TAG_LENGTH as u64, length);
        let read: &[u8] = buffer;
        let tags = in_memory.or_else(|| read.get(..length)).unwrap_or_default();
        let tags = tags.as_chunks().0;
        let at = tags.partition_point(|tag| parts(tag).0.as_slice() < wanted);
        Ok((start + at as u64, tags.get(at..).unwrap_or_default()))
    }

    /// Tags, no more than fit into the buffer.
    fn read_tags<'a>(
        &self,
        file: &'a impl ReadAt,
        first: u64,
        count: u64,
        buffer: &'a mut [u8],
    ) -> io::Result<&'a [[u8; TAG_LENGTH]]> {
        let length = usize::try_from(count).map_or(usize::MAX, |count| count.saturating_mul(TAG_LENGTH));
        let offset = self.tags_at + first * TAG_LENGTH as u64;
        if let Some(bytes) = file.in_memory(offset, length) {
            return Ok(bytes.as_chunks().0);
        }
        let Some(bytes) = buffer.get_mut(..length) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        file.read_at(bytes, offset)?;
        Ok(bytes.as_chunks().0)
    }

    /// The location that a tag names; `None` if there is none.
    fn location(&self, file: &impl ReadAt, place: &[u8; 16]) -> io::Result<Option<Location>> {
        let (numbers, _) = place.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let (at, length) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let is_within = at
            .checked_add(length)
            .is_some_and(|end| end <= self.locations_length);
        let mut buffer = [0; MAX_LOCATION];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(bytes) = buffer.get_mut(..length).filter(|_| is_within) else {
            return Ok(None);
        };
        file.read_at(bytes, self.locations_at + at)?;
        Ok(parse_location(bytes))
    }
}

fn parts(tag: &[u8; TAG_LENGTH]) -> (&[u8; DIGEST_LENGTH], &[u8; 16]) {
    const NOTHING: (&[u8; DIGEST_LENGTH], &[u8; 16]) = (&[0; DIGEST_LENGTH], &[0; 16]);
    tag.split_first_chunk()
        .and_then(|(digest, rest)| Some((digest, rest.first_chunk()?)))
        .unwrap_or(NOTHING)
}

/// The first bytes of the sum in a digest: where among all sums it is.
fn place(digest: &[u8]) -> u64 {
    let sum = digest.get(DIGEST_PREFIX.len()..).and_then(<[u8]>::first_chunk);
    sum.map_or(0, |first| u64::from_be_bytes(*first))
}

fn parse_location(mut bytes: &[u8]) -> Option<Location> {
    let mut next = || {
        let (number, rest) = varint(bytes)?;
        bytes = rest;
        Some(number)
    };
    let (name, offset, length) = (next()?, next()?, next()?);
    Some(Location {
        name: u32::try_from(name).ok()?,
        offset,
        length,
    })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * index;
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index + 1..).unwrap_or_default()));
        }
    }
    None
}
