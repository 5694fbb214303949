//! Tar framing: divides a stream of chunks into entries, and passes every byte that is not payload to a sink.
//!
//! Blocking and pull driven: [`TarReader::next`] reads up to the next entry's payload, [`TarReader::payload`] hands that out
//! in pieces of the chunks in which it arrived, uncopied. What the caller leaves of a payload goes to the sink too, so
//! that sink and payloads together always are the whole stream; the tar-split recorder relies on that.
//!
//! `tokio-tar` builds archives elsewhere but does not frame them here. It refuses archives that the Go library reads
//! and real images contain (a `ustar` magic with another version, negative numbers, the signed checksum, old headers
//! without magic, repeated extended headers), and its async reader costs several polls and allocations per entry
//! where this costs none. The layout comes from `tar-core`; its parser is not used either, since it wants a header
//! with everything before it in one piece of memory and is as strict.
//!
//! Sizes in the stream are never trusted: long names, extended headers and sparse maps are bounded, and memory grows
//! only with what really arrives.

use bytes::{Buf as _, Bytes};
use tar_core::Header;

use crate::archive::tar::header::{self, BLOCK, Format, Timestamp, is_header_only};
use crate::archive::tar::pax::{self, Records};
use crate::archive::tar::sparse::{self, Fragment, GnuMap, PaxForm, TextMap};
use crate::error::{Error, ErrorKind, Result};

/// The largest long name, extended header or textual sparse map.
const MAX_SPECIAL: u64 = 1 << 20;

/// Where chunks come from.
pub(crate) trait ChunkSource {
    /// The next chunk, `None` at the end of the stream. Empty chunks are allowed.
    fn next_chunk(&mut self) -> Result<Option<Bytes>>;

    /// Whether what comes next, the payload of a sparse file, is the whole file with its holes as zeros, and no map. That is
    /// so in what the Go library records of a stream, which is not the stream itself then.
    fn is_expanded(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Passes over at most `limit` bytes that nobody has to see. Returns how many.
    fn pass(&mut self, _limit: u64) -> Result<u64> {
        Ok(0)
    }
}

/// One entry of an archive, extended headers applied. Reused from entry to entry for its allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The type: a digit or letter of the header. Never NUL, which stands for a file or directory.
    pub(crate) kind: u8,
    /// The name as it is, not cleaned.
    pub(crate) name: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits and set-ID, set-group-ID, sticky.
    pub(crate) mode: u32,
    /// The mode field of the header with all its bits.
    pub(crate) declared_mode: i64,
    /// Owner; may be out of the range of IDs.
    pub(crate) uid: i64,
    /// Group; may be out of the range of IDs.
    pub(crate) gid: i64,
    /// Size of the file as it will be, holes included; 0 for types that never have data.
    pub(crate) size: u64,
    /// The size field of the header, for whatever type.
    pub(crate) declared_size: i64,
    /// Time of last modification.
    pub(crate) mtime: Timestamp,
    /// Time of last access, if given.
    pub(crate) atime: Option<Timestamp>,
    /// Time of last change of metadata, if given.
    pub(crate) ctime: Option<Timestamp>,
    /// Device number.
    pub(crate) dev_major: i64,
    /// Device number.
    pub(crate) dev_minor: i64,
    /// Where the payload belongs in a sparse file.
    pub(crate) sparse: Option<Vec<Fragment>>,
    /// The pax records that apply to this entry.
    pub(crate) records: Records,
}

impl Entry {
    fn start(&mut self, fields: &header::Fields) {
        self.kind = fields.kind;
        self.mode = u32::try_from(fields.mode & 0o7777).unwrap_or(0);
        self.declared_mode = fields.mode;
        self.uid = fields.uid;
        self.gid = fields.gid;
        self.declared_size = fields.size;
        self.mtime = fields.mtime;
        self.atime = fields.atime;
        self.ctime = fields.ctime;
        self.dev_major = fields.dev_major;
        self.dev_minor = fields.dev_minor;
        self.sparse = None;
        self.size = 0;
    }

    /// Applies the pax records to the fields; `None` if a value is malformed.
    fn apply_records(&mut self) -> Option<()> {
        for (key, value) in self.records.iter() {
            if value.is_empty() {
                continue;
            }
            match key {
                b"path" => {
                    self.name.clear();
                    self.name.extend_from_slice(value);
                }
                b"linkpath" => {
                    self.link.clear();
                    self.link.extend_from_slice(value);
                }
                b"uid" => self.uid = pax::decimal(value)?,
                b"gid" => self.gid = pax::decimal(value)?,
                b"size" => self.declared_size = pax::decimal(value)?,
                b"mtime" => self.mtime = pax::time(value)?,
                b"atime" => self.atime = Some(pax::time(value)?),
                b"ctime" => self.ctime = Some(pax::time(value)?),
                _ => {}
            }
        }
        Some(())
    }
}

/// What reading one block came to.
enum Read {
    Block,
    End,
}

/// Reads a tar stream. See the module's head.
pub(crate) struct TarReader<S> {
    source: S,
    chunk: Bytes,
    /// Bytes taken from the stream so far.
    offset: u64,
    /// Payload bytes of the current entry that were not taken yet.
    payload: u64,
    /// Padding after the payload.
    padding: u64,
    block: [u8; BLOCK],
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<S: ChunkSource> TarReader<S> {
    /// A reader at the start of `source`.
    pub(crate) fn new(source: S) -> Self {
        Self {
            source,
            chunk: Bytes::new(),
            offset: 0,
            payload: 0,
            padding: 0,
            block: [0; BLOCK],
            long_name: Vec::new(),
            long_link: Vec::new(),
        }
    }

    /// Reads up to the payload of the next entry; `false` at the end of the archive.
    pub(crate) fn next(
        &mut self,
        entry: &mut Entry,
        raw: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<bool> {
        self.long_name.clear();
        self.long_link.clear();
        entry.records.clear();
        loop {
            self.skip_payload(raw)?;
            let Some((header, format)) = self.header(raw)? else {
                return Ok(false);
            };
            let fields = header::read(&header, format, &mut entry.name, &mut entry.link)
                .ok_or_else(|| self.invalid("malformed number"))?;
            entry.start(&fields);
            self.expect_payload(entry)?;
            match entry.kind {
                b'x' => self.records(entry, raw)?,
                b'g' => {
                    // Global records apply to nothing here; the header is an entry of its own.
                    self.records(entry, raw)?;
                    entry
                        .apply_records()
                        .ok_or_else(|| self.invalid("malformed global record"))?;
                    (entry.uid, entry.gid, entry.declared_size) = (0, 0, 0);
                    return Ok(true);
                }
                b'L' | b'K' => {
                    let mut text = std::mem::take(if entry.kind == b'L' {
                        &mut self.long_name
                    } else {
                        &mut self.long_link
                    });
                    text.clear();
                    self.special(&mut text, raw)?;
                    text.truncate(header::text(&text).len());
                    *(if entry.kind == b'L' {
                        &mut self.long_name
                    } else {
                        &mut self.long_link
                    }) = text;
                }
                _ => {
                    self.complete(entry, &header, format, raw)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Bytes taken from the stream so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Payload bytes of the current entry that were not taken yet.
    pub(crate) fn remaining(&self) -> u64 {
        self.payload
    }

    /// The next piece of the current entry's payload, `None` at its end.
    pub(crate) fn payload(&mut self) -> Result<Option<Bytes>> {
        if self.payload == 0 {
            return Ok(None);
        }
        if !self.fill()? {
            return Err(self.cut_off());
        }
        let count = self
            .chunk
            .len()
            .min(usize::try_from(self.payload).unwrap_or(usize::MAX));
        let piece = self.chunk.split_to(count);
        let count = count as u64;
        self.payload -= count;
        self.offset += count;
        Ok(Some(piece))
    }

    /// Passes over what comes next of the current entry's payload and nobody has to see. Returns how many bytes.
    pub(crate) fn pass_payload(&mut self) -> Result<u64> {
        let count = match self.payload {
            0 => 0,
            payload => self.pass(payload)?,
        };
        self.payload -= count;
        Ok(count)
    }

    /// Likewise after the end of the archive.
    pub(crate) fn pass_rest(&mut self) -> Result<u64> {
        self.pass(u64::MAX)
    }

    fn pass(&mut self, limit: u64) -> Result<u64> {
        if !self.chunk.is_empty() {
            return Ok(0);
        }
        let count = self.source.pass(limit)?.min(limit);
        self.offset = self.offset.saturating_add(count);
        Ok(count)
    }

    /// After the end of the archive: the next piece of what follows it, `None` at the end of the stream.
    pub(crate) fn rest(&mut self) -> Result<Option<Bytes>> {
        if !self.fill()? {
            return Ok(None);
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.offset += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// After the end of the archive: hands everything up to the end of the stream to the sink.
    pub(crate) fn drain(&mut self, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.skip_payload(raw)?;
        while let Some(chunk) = self.rest()? {
            raw(&chunk)?;
        }
        Ok(())
    }

    /// Where chunks come from.
    pub(crate) fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// Bytes that were taken from the source and not handed out yet.
    pub(crate) fn buffered(&self) -> usize {
        self.chunk.len()
    }

    /// Everything after the headers of a real entry: names, size, sparse map.
    fn complete(
        &mut self,
        entry: &mut Entry,
        header: &Header,
        format: Format,
        raw: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        entry
            .apply_records()
            .ok_or_else(|| self.invalid("malformed extended record"))?;
        if !self.long_name.is_empty() {
            std::mem::swap(&mut entry.name, &mut self.long_name);
        }
        if !self.long_link.is_empty() {
            std::mem::swap(&mut entry.link, &mut self.long_link);
        }
        if entry.kind == 0 {
            entry.kind = if entry.name.last() == Some(&b'/') {
                b'5'
            } else {
                b'0'
            };
        }
        self.expect_payload(entry)?;
        let map = if entry.kind == b'S' {
            Some(self.gnu_map(entry, header, format, raw)?)
        } else {
            self.pax_map(entry, raw)?
        };
        match map {
            None => entry.size = self.payload,
            Some(map) => {
                let bad = || self.invalid("malformed sparse map");
                let size = u64::try_from(entry.declared_size).map_err(|_reason| bad())?;
                if is_header_only(entry.kind) || sparse::check(&map, size) != Some(self.payload) {
                    return Err(bad());
                }
                entry.size = size;
                entry.sparse = Some(map);
            }
        }
        Ok(())
    }

    fn gnu_map(
        &mut self,
        entry: &mut Entry,
        header: &Header,
        format: Format,
        raw: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Vec<Fragment>> {
        // STAR has the same type letter with another layout.
        if format != Format::Gnu {
            return Err(self.invalid("sparse file in an unknown format"));
        }
        let header = header.as_gnu();
        let bad = |reader: &Self| reader.invalid("malformed sparse map");
        entry.declared_size = header::number(&header.realsize).ok_or_else(|| bad(self))?;
        let mut map = GnuMap::default();
        let mut more = map.header(header).ok_or_else(|| bad(self))?;
        while more {
            if matches!(self.read_block(raw)?, Read::End) {
                return Err(self.cut_off());
            }
            more = map.block(&self.block).ok_or_else(|| bad(self))?;
        }
        Ok(map.into_map())
    }

    fn pax_map(
        &mut self,
        entry: &mut Entry,
        raw: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<Vec<Fragment>>> {
        let Some(form) = sparse::pax_form(&entry.records) else {
            return Ok(None);
        };
        let bad = |reader: &Self| reader.invalid("malformed sparse map");
        let name = entry.records.get(b"GNU.sparse.name");
        if !name.is_empty() {
            entry.name.clear();
            entry.name.extend_from_slice(name);
        }
        let mut size = entry.records.get(b"GNU.sparse.size");
        if size.is_empty() {
            size = entry.records.get(b"GNU.sparse.realsize");
        }
        if !size.is_empty() {
            entry.declared_size = pax::decimal(size).ok_or_else(|| bad(self))?;
        }
        if self.chunk.is_empty() && self.source.is_expanded()? {
            // The padding is that of the stream.
            self.payload = u64::try_from(entry.declared_size).map_err(|_reason| bad(self))?;
            return Ok(None);
        }
        if form == PaxForm::InHeader {
            return sparse::pax_map(&entry.records).map(Some).ok_or_else(|| bad(self));
        }
        let mut map = TextMap::default();
        let mut total = 0;
        loop {
            total += BLOCK as u64;
            if self.payload < BLOCK as u64 || total > MAX_SPECIAL {
                return Err(bad(self));
            }
            self.payload -= BLOCK as u64;
            if matches!(self.read_block(raw)?, Read::End) {
                return Err(self.cut_off());
            }
            if map.block(&self.block).ok_or_else(|| bad(self))? {
                return Ok(Some(map.into_map()));
            }
        }
    }

    /// Reads a header block; `None` at the end of the archive.
    fn header(&mut self, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(Header, Format)>> {
        if matches!(self.read_block(raw)?, Read::End) {
            return Ok(None);
        }
        if self.block == [0; BLOCK] {
            // Two blocks of zeros end an archive; the end of the stream may stand for the second.
            return match self.read_block(raw)? {
                Read::Block if self.block != [0; BLOCK] => Err(self.invalid("data after an end block")),
                Read::Block | Read::End => Ok(None),
            };
        }
        let header = *Header::from_bytes(&self.block);
        match header::format(&header) {
            Some(format) => Ok(Some((header, format))),
            None => Err(self.invalid("wrong checksum")),
        }
    }

    /// Sets what follows the header that was just read.
    fn expect_payload(&mut self, entry: &Entry) -> Result<()> {
        self.payload = if is_header_only(entry.kind) {
            0
        } else {
            u64::try_from(entry.declared_size).map_err(|_reason| self.invalid("negative size"))?
        };
        self.padding = self.payload.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// Reads the payload of a long name or extended header.
    fn special(&mut self, text: &mut Vec<u8>, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.payload > MAX_SPECIAL {
            return Err(self.invalid("long name or extended header over 1 MiB"));
        }
        while let Some(piece) = self.payload()? {
            raw(&piece)?;
            text.extend_from_slice(&piece);
        }
        Ok(())
    }

    fn records(&mut self, entry: &mut Entry, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.special(entry.records.buffer(), raw)?;
        entry
            .records
            .parse()
            .ok_or_else(|| self.invalid("malformed extended header"))
    }

    /// Hands what is left of the payload, and its padding (which may be cut off), to the sink.
    fn skip_payload(&mut self, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while let Some(piece) = self.payload()? {
            raw(&piece)?;
        }
        self.payload = std::mem::take(&mut self.padding);
        while self.payload > 0 && self.fill()? {
            if let Some(piece) = self.payload()? {
                raw(&piece)?;
            }
        }
        self.payload = 0;
        Ok(())
    }

    /// Reads one whole block and hands it to the sink.
    fn read_block(&mut self, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<Read> {
        let mut have = 0;
        while have < BLOCK {
            if !self.fill()? {
                return if have == 0 {
                    Ok(Read::End)
                } else {
                    Err(self.cut_off())
                };
            }
            let count = self.chunk.len().min(BLOCK - have);
            self.block[have..have + count].copy_from_slice(&self.chunk[..count]);
            self.chunk.advance(count);
            have += count;
            self.offset += count as u64;
        }
        raw(&self.block)?;
        Ok(Read::Block)
    }

    /// Makes sure that the current chunk has something; `false` at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        while self.chunk.is_empty() {
            match self.source.next_chunk()? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn invalid(&self, why: &str) -> Error {
        ErrorKind::InvalidArchive.err(format!("invalid tar header before byte {} ({why})", self.offset))
    }

    fn cut_off(&self) -> Error {
        ErrorKind::InvalidArchive.err(format!(
            "unexpected EOF after {} bytes of the tar stream",
            self.offset
        ))
    }
}
