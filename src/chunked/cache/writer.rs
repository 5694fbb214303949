//! Writes the cache file of a table of contents, with the bytes that the Go library writes.
//!
//! What is in memory meanwhile: 36 bytes for each tag, and some for each location. Names go to a temporary file.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use serde::Deserialize;

use super::filter::{HASHES, Key, words_for};
use super::fingerprint::fingerprint;
use super::format::{DIGEST_LENGTH, DIGEST_PREFIX, MAX_TAGS_LENGTH, TAG_LENGTH, VERSION};
use crate::chunked::toc::{self, RawEntry, SUM_OF_NOTHING, Sink};
use crate::digest::{hex, sha256_sum};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// How the files of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerFormat {
    /// By their names.
    Tree,
    /// By their digests: `ab/cdef…`.
    Flat,
}

impl LayerFormat {
    /// The one that the big data item of [`FORMAT_KEY`](super::format::FORMAT_KEY) says; `None` if it makes no sense.
    pub(crate) fn parse(item: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct LayerData {
            #[serde(default)]
            format: i64,
        }
        match serde_json::from_slice::<LayerData>(item).ok()?.format {
            0 => Some(Self::Tree),
            1 => Some(Self::Flat),
            _ => None,
        }
    }
}

/// A tag in memory. The length of the location is not kept: it shows where that begins.
struct Tag {
    sum: [u8; 32],
    location: u32,
}

/// See the module's head.
pub(crate) struct CacheWriter<W: Write> {
    format: LayerFormat,
    tags: Vec<Tag>,
    locations: Vec<u8>,
    names: BufWriter<W>,
    names_length: u32,
    /// The last name, and where it is.
    last: (Vec<u8>, u32),
    /// Hashes of what is there once only: chunks behind the first one of a file; files stored by their digest.
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl<W: Read + Write + Seek> CacheWriter<W> {
    /// Writes the cache for the text of a table of contents to `out`. `names` is an empty temporary file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] or [`ErrorKind::NotSupported`] for a table of which none can be made; [`ErrorKind::Io`].
    pub(crate) fn write_for(
        table: impl Read,
        format: LayerFormat,
        names: W,
        out: &mut impl Write,
    ) -> Result<()> {
        let mut writer = Self::new(format, names);
        toc::parse_entries(table, &mut writer)?;
        writer.finish(out).during("writing a cache file")
    }

    fn new(format: LayerFormat, names: W) -> Self {
        Self {
            format,
            tags: Vec::new(),
            locations: Vec::new(),
            names: BufWriter::new(names),
            names_length: 0,
            last: (Vec::new(), 0),
            seen: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Writes the cache of no file.
    pub(crate) fn write_empty(names: W, out: &mut impl Write) -> Result<()> {
        let writer = Self::new(LayerFormat::Tree, names);
        writer.finish(out).during("writing a cache file")
    }

    fn is_first(&mut self, sum: &[u8; 32]) -> bool {
        self.seen.insert(self.hasher.hash_one(sum))
    }

    /// The position of a name. The entries of one file follow each other.
    fn name(&mut self, name: &[u8]) -> Result<u32> {
        if self.names_length > 0 && self.last.0 == name {
            return Ok(self.last.1);
        }
        let at = self.names_length;
        let length = u32::try_from(name.len()).ok();
        let end = length.and_then(|length| at.checked_add(length)?.checked_add(4));
        let (Some(length), Some(end)) = (length, end) else {
            return Err(too_large());
        };
        let doing = "writing a temporary file";
        self.names.write_all(&length.to_le_bytes()).during(doing)?;
        self.names.write_all(name).during(doing)?;
        self.names_length = end;
        self.last.0.clear();
        self.last.0.extend_from_slice(name);
        self.last.1 = at;
        Ok(at)
    }

    fn location(&mut self, name: u32, offset: u64, length: u64) -> Result<u32> {
        let at = u32::try_from(self.locations.len()).map_err(|_too_many| too_large())?;
        for number in [u64::from(name), offset, length] {
            push_varint(&mut self.locations, number);
        }
        Ok(at)
    }

    fn tag(&mut self, sum: [u8; 32], location: u32) -> Result<()> {
        let length = (self.tags.len() as u64 + 1) * TAG_LENGTH as u64;
        if length > MAX_TAGS_LENGTH {
            return Err(too_large());
        }
        if self.tags.len() == self.tags.capacity() {
            // Doubling would take twice the memory for a moment.
            self.tags.reserve_exact(self.tags.len() / 8 + 256);
        }
        self.tags.push(Tag { sum, location });
        Ok(())
    }

    fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        self.seen = HashSet::new();
        // The order of whole tags, of which the position is little-endian.
        self.tags.sort_unstable_by_key(|tag| {
            // As numbers, which are compared in a few instructions.
            let halves = tag.sum.as_chunks::<16>().0.first_chunk::<2>();
            (
                halves.map(|halves| halves.map(u128::from_be_bytes)),
                tag.location.swap_bytes(),
            )
        });
        let words = words_for(self.tags.len());
        let count = u32::try_from(words).map_err(io::Error::other)?;
        let mut filter = vec![0u64; words];
        for tag in &self.tags {
            for (word, bit) in Key::new(&tag.sum).bits(count) {
                if let Some(word) = filter.get_mut(word as usize) {
                    *word |= bit;
                }
            }
        }
        let (tag_length, digest_length) = match self.tags.is_empty() {
            true => (0, 0),
            false => (TAG_LENGTH, DIGEST_LENGTH),
        };
        let mut out = BufWriter::new(out);
        for number in [VERSION, tag_length as u64, digest_length as u64, words as u64] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.write_all(&HASHES.to_le_bytes())?;
        for word in filter {
            out.write_all(&word.to_le_bytes())?;
        }
        let tags_length = self.tags.len() * tag_length;
        for length in [
            tags_length as u64,
            self.locations.len() as u64,
            self.names_length.into(),
        ] {
            out.write_all(&length.to_le_bytes())?;
        }
        for tag in &self.tags {
            out.write_all(DIGEST_PREFIX)?;
            out.write_all(&tag.sum)?;
            out.write_all(&u64::from(tag.location).to_le_bytes())?;
            let length = location_length(&self.locations, tag.location as usize);
            out.write_all(&(length as u64).to_le_bytes())?;
        }
        out.write_all(&self.locations)?;
        let mut names = self.names.into_inner().map_err(io::IntoInnerError::into_error)?;
        names.seek(SeekFrom::Start(0))?;
        io::copy(
            &mut BufReader::new(names).take(self.names_length.into()),
            &mut out,
        )?;
        out.flush()
    }
}

impl<W: Read + Write + Seek> Sink for CacheWriter<W> {
    fn add(&mut self, raw: &RawEntry) -> Result<()> {
        let is_file = raw.kind == b"reg";
        let digest: &[u8] = match is_file && raw.size == 0 && raw.digest.is_empty() {
            true => SUM_OF_NOTHING.as_bytes(),
            false => &raw.digest,
        };
        let sum = sha256_sum(digest);
        let mut flat_name = Vec::new();
        if self.format == LayerFormat::Flat {
            // Of contents that are there several times, the first entry counts.
            let Some(sum) = sum.filter(|_| is_file) else {
                return Ok(());
            };
            if !self.is_first(&sum) {
                return Ok(());
            }
            let hex = hex(&sum);
            let (head, tail) = hex.split_at(2);
            flat_name = format!("{head}/{tail}").into_bytes();
        }
        let name = match self.format {
            LayerFormat::Tree => &raw.name,
            LayerFormat::Flat => &flat_name,
        };
        if let (Some(sum), Ok(size)) = (sum, u64::try_from(raw.size)) {
            let name = self.name(name)?;
            let location = self.location(name, 0, size)?;
            self.tag(sum, location)?;
            if let Some(fingerprint) = fingerprint_of(raw, digest) {
                self.tag(fingerprint, location)?;
            }
        }
        let place = u64::try_from(raw.chunk_offset)
            .ok()
            .zip(u64::try_from(raw.chunk_size).ok());
        if let (Some(sum), Some((offset, size))) = (sha256_sum(&raw.chunk_digest), place)
            && (!digest.is_empty() || self.is_first(&sum))
        {
            let name = self.name(name)?;
            let location = self.location(name, offset, size)?;
            self.tag(sum, location)?;
        }
        Ok(())
    }
}

fn fingerprint_of(raw: &RawEntry, digest: &[u8]) -> Option<[u8; 32]> {
    let number = |number: i64| u64::try_from(number).ok();
    let owner = (number(raw.uid)?, number(raw.gid)?);
    // The last one counts of those of one name, as in a map.
    let mut xattrs: Vec<(&[u8], &[u8])> = Vec::with_capacity(raw.xattrs.len());
    xattrs.extend(raw.xattrs.iter().rev().map(|(name, value)| (&**name, &**value)));
    xattrs.sort_by_key(|(name, _)| *name);
    xattrs.dedup_by_key(|(name, _)| *name);
    Some(fingerprint(digest, owner, number(raw.mode)?, xattrs.into_iter()))
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Bytes of the location at a position: those of three varints.
fn location_length(locations: &[u8], at: usize) -> usize {
    let rest = locations.get(at..).unwrap_or_default();
    let ends = rest.iter().enumerate().filter(|(_, byte)| **byte & 0x80 == 0);
    ends.map(|(index, _)| index + 1).nth(2).unwrap_or(0)
}

fn too_large() -> Error {
    ErrorKind::NotSupported.err("a table of contents that is too large for a cache file")
}
