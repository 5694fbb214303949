//! Tar framing: cuts a stream of chunks into entries, and hands every byte that is not payload to a sink.
//!
//! Blocking and pull driven: [`Framer::next`] reads up to the next entry's payload, [`Framer::payload`] hands that out
//! in pieces of the chunks in which it arrived, uncopied. What the caller leaves of a payload goes to the sink too, so
//! that sink and payloads together always are the whole stream; the tar-split tape relies on that.
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

use super::header::{self, BLOCK, Format, Timestamp, is_header_only};
use super::pax::{self, Records};
use super::sparse::{self, Fragment, GnuMap, PaxForm, TextMap};
use crate::error::{Error, ErrorKind, Result};

/// The largest long name, extended header or textual sparse map.
const MAX_SPECIAL: u64 = 1 << 20;

/// Where chunks come from.
pub(crate) trait Source {
    /// The next chunk, `None` at the end of the stream. Empty chunks are allowed.
    fn next_chunk(&mut self) -> Result<Option<Bytes>>;
}

/// One entry of an archive, extended headers applied. Reused from entry to entry for its allocations.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The type: a digit or letter of the header. Never NUL, which stands for a file or directory.
    pub(crate) kind: u8,
    /// The name as it is, not cleaned.
    pub(crate) name: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits and set-ID, set-group-ID, sticky.
    pub(crate) mode: u32,
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
        self.mode = fields.mode;
        self.uid = fields.uid;
        self.gid = fields.gid;
        self.declared_size = fields.size;
        self.mtime = fields.mtime;
        self.atime = fields.atime;
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
                b"ctime" => drop(pax::time(value)?),
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
pub(crate) struct Framer<S> {
    source: S,
    chunk: Bytes,
    /// Bytes taken from the stream so far.
    offset: u64,
    /// Payload bytes of the current entry that nobody has taken yet.
    payload: u64,
    /// Padding after the payload.
    padding: u64,
    block: [u8; BLOCK],
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<S: Source> Framer<S> {
    /// A framer at the start of `source`.
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

    /// After the end of the archive: hands everything up to the end of the stream to the sink.
    pub(crate) fn drain(&mut self, raw: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.skip_payload(raw)?;
        while self.fill()? {
            let chunk = std::mem::take(&mut self.chunk);
            self.offset += chunk.len() as u64;
            raw(&chunk)?;
        }
        Ok(())
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
        let bad = |framer: &Self| framer.invalid("malformed sparse map");
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
        let bad = |framer: &Self| framer.invalid("malformed sparse map");
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
        ErrorKind::InvalidArchive.err(format!("tar header before byte {} ({why})", self.offset))
    }

    fn cut_off(&self) -> Error {
        ErrorKind::InvalidArchive.err(format!(
            "unexpected end after {} bytes of the tar stream",
            self.offset
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_tar::{Item, TarBuilder};
    use super::*;

    /// An archive in chunks of one size.
    struct Chunks {
        bytes: Bytes,
        size: usize,
    }

    impl Source for Chunks {
        fn next_chunk(&mut self) -> Result<Option<Bytes>> {
            let count = self.bytes.len().min(self.size);
            Ok((count > 0).then(|| self.bytes.split_to(count)))
        }
    }

    struct Frame {
        kind: u8,
        name: String,
        link: String,
        size: u64,
        payload: Vec<u8>,
        entry: Entry,
    }

    /// Frames the whole archive and checks that raw bytes and payloads in order are the stream.
    fn frame_in(bytes: &[u8], size: usize) -> Result<Vec<Frame>> {
        let mut framer = Framer::new(Chunks {
            bytes: Bytes::copy_from_slice(bytes),
            size,
        });
        let mut all = Vec::new();
        let mut frames = Vec::new();
        loop {
            let mut entry = Entry::default();
            if !framer.next(&mut entry, &mut |raw| {
                all.extend_from_slice(raw);
                Ok(())
            })? {
                break;
            }
            let mut payload = Vec::new();
            // Every third payload is left to the framer.
            if frames.len() % 3 != 2 {
                while let Some(piece) = framer.payload()? {
                    payload.extend_from_slice(&piece);
                }
                all.extend_from_slice(&payload);
            }
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (kind, name, link) = (entry.kind, text(&entry.name), text(&entry.link));
            frames.push(Frame {
                kind,
                name,
                link,
                size: entry.size,
                payload,
                entry,
            });
        }
        framer.drain(&mut |raw| {
            all.extend_from_slice(raw);
            Ok(())
        })?;
        assert!(all == bytes, "raw bytes and payloads are the stream");
        Ok(frames)
    }

    fn frame(bytes: &[u8]) -> Result<Vec<Frame>> {
        let frames = frame_in(bytes, 1 << 20);
        for size in [1, 100, 513] {
            match (&frames, frame_in(bytes, size)) {
                (Ok(a), Ok(b)) => assert_eq!(a.len(), b.len()),
                (Err(a), Err(b)) => assert_eq!(a.chain(), b.chain()),
                _ => panic!("the cut of the chunks changes the outcome"),
            }
        }
        frames
    }

    fn only(item: Item) -> Frame {
        let mut frames = frame(&TarBuilder::new().add(item).end()).unwrap();
        assert_eq!(frames.len(), 1);
        frames.remove(0)
    }

    #[test]
    fn every_dialect_is_read() {
        let star = only(
            Item::file("n", "x")
                .patch(345, "pre")
                .patch(476, "00000000017")
                .patch(508, "tar\0"),
        );
        assert_eq!(
            (star.name.as_str(), star.entry.atime.unwrap().secs),
            ("pre/n", 0o17)
        );
        assert_eq!(only(Item::file("n", "x").patch(345, "pre")).name, "pre/n");
        assert_eq!(
            only(Item::file("n", "x").magic(b"ustar\0\0\0").patch(345, "pre")).name,
            "pre/n"
        );
        let gnu = only(Item::file("n", "x").gnu().patch(345, "00000000021"));
        assert_eq!((gnu.name.as_str(), gnu.entry.atime.unwrap().secs), ("n", 0o21));
        assert_eq!(
            only(Item::file("n", "x").gnu().patch(345, "old/go/prefix")).name,
            "old/go/prefix/n"
        );
        assert_eq!(
            only(
                Item::file("n", "x")
                    .magic(&[0; 8])
                    .patch(345, "pre")
                    .patch(329, "junk")
            )
            .name,
            "n"
        );
        let signed = only(Item::file(b"\xfc\xfd", "x").signed_checksum());
        assert_eq!(
            (signed.entry.name.as_slice(), signed.payload.as_slice()),
            (&b"\xfc\xfd"[..], &b"x"[..])
        );
        let negative = only(Item::file("n", "").mtime(-5));
        assert_eq!(negative.entry.mtime, Timestamp { secs: -5, nanos: 0 });
        assert_eq!(
            only(Item::file("n", "").owner(3_000_000_000, 1)).entry.uid,
            3_000_000_000
        );
        assert_eq!(only(Item::typed(0, "d/")).kind, b'5');
        assert_eq!(only(Item::typed(0, "f")).kind, b'0');
        assert_eq!(only(Item::file("f/", "")).kind, b'0');
        let frames = frame(
            &TarBuilder::new()
                .add(Item::dir("d").size_field("00000010000"))
                .end(),
        )
        .unwrap();
        assert_eq!((frames[0].size, frames[0].entry.declared_size), (0, 4096));
    }

    #[test]
    fn extended_headers_change_the_entry() {
        let frame = only(
            Item::file("short", "12345")
                .pax("path", "first")
                .pax("path", "last")
                .pax("uid", "70000")
                .pax("gid", "")
                .pax("mtime", "-1.5")
                .pax("atime", "7.25")
                .xattr("user.x", b"\0\xff"),
        );
        let entry = &frame.entry;
        assert_eq!((frame.name.as_str(), entry.uid, entry.gid), ("last", 70000, 0));
        assert_eq!(
            entry.mtime,
            Timestamp {
                secs: -2,
                nanos: 500_000_000
            }
        );
        assert_eq!(entry.records.xattrs().count(), 1);
        let long = "x/".repeat(300);
        let mut archive =
            TarBuilder::new().add(Item::symlink(long.clone() + "name", long.clone() + "target"));
        archive = archive.add(Item::file("next", "y"));
        let frames = self::frame(&archive.end()).unwrap();
        assert_eq!(frames[0].name, long.clone() + "name");
        assert_eq!(frames[0].link, long + "target");
        assert_eq!((frames[1].name.as_str(), frames[1].link.as_str()), ("next", ""));
        // A GNU long name wins over a pax path; of two extended headers the second replaces the first.
        let archive = TarBuilder::new()
            .add(Item::typed(b'x', "p").content(crate::archive::test_tar::pax_record(b"uid", b"1")))
            .add(Item::typed(b'L', "l").content("gnu\0junk"))
            .add(Item::file("n", "z").pax("path", "pax").pax("gid", "2"))
            .end();
        let frames = self::frame(&archive).unwrap();
        assert_eq!(
            (frames[0].name.as_str(), frames[0].entry.uid, frames[0].entry.gid),
            ("gnu", 0, 2)
        );
    }

    #[test]
    fn the_size_in_a_pax_record_counts() {
        let archive = TarBuilder::new()
            .add(
                Item::file("a", "0123456789")
                    .size_field("00000000003")
                    .pax("size", "10"),
            )
            .add(Item::file("b", "x"))
            .end();
        let frames = frame(&archive).unwrap();
        assert_eq!(
            (frames[0].size, frames[0].payload.as_slice()),
            (10, &b"0123456789"[..])
        );
        assert_eq!(frames[1].name, "b");
    }

    #[test]
    fn global_headers_are_entries_and_change_nothing() {
        let record = crate::archive::test_tar::pax_record(b"uid", b"77");
        let archive = TarBuilder::new()
            .add(Item::typed(b'x', "lost").content(crate::archive::test_tar::pax_record(b"path", b"lost")))
            .add(Item::typed(b'g', "global").content(record))
            .add(Item::file("a", "x"))
            .end();
        let frames = frame(&archive).unwrap();
        assert_eq!(
            (frames[0].kind, frames[0].name.as_str(), frames[0].size),
            (b'g', "global", 0)
        );
        assert_eq!((frames[1].name.as_str(), frames[1].entry.uid), ("a", 0));
    }

    #[test]
    fn sparse_maps_in_every_form() {
        let expected = [
            Fragment { offset: 2, length: 3 },
            Fragment {
                offset: 100,
                length: 2,
            },
        ];
        let check = |frame: &Frame| {
            assert_eq!(frame.entry.sparse.as_deref(), Some(&expected[..]));
            assert_eq!(
                (frame.size, frame.payload.as_slice(), frame.name.as_str()),
                (1000, &b"abcde"[..], "real")
            );
        };
        let pax = |item: Item| item.pax("GNU.sparse.name", "real").pax("GNU.sparse.size", "1000");
        check(&only(
            pax(Item::file("x", "abcde"))
                .pax("GNU.sparse.numblocks", "2")
                .pax("GNU.sparse.offset", "2")
                .pax("GNU.sparse.numbytes", "3")
                .pax("GNU.sparse.offset", "100")
                .pax("GNU.sparse.numbytes", "2"),
        ));
        let in_header = |map: &str, count: &str| {
            pax(Item::file("x", "abcde"))
                .pax("GNU.sparse.numblocks", count)
                .pax("GNU.sparse.map", map)
        };
        check(&only(in_header("2,3,100,2", "2")));
        let mut content = b"2\n2\n3\n100\n2\n".to_vec();
        content.resize(BLOCK, 0);
        content.extend_from_slice(b"abcde");
        check(&only(
            Item::file("x", content)
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.name", "real")
                .pax("GNU.sparse.realsize", "1000"),
        ));
        let gnu = Item::typed(b'S', "real").gnu().patch(483, "00000001750");
        check(&only(
            gnu.clone()
                .content("abcde")
                .patch(386, "00000000002\x0000000000003")
                .patch(410, "00000000144\x0000000000002"),
        ));
        // One entry in the header, one in a block of its own.
        let mut block = [0; BLOCK];
        block[..23].copy_from_slice(b"00000000144\x0000000000002");
        let archive = TarBuilder::new()
            .add(
                gnu.clone()
                    .size_field("00000000005")
                    .patch(386, "00000000002\x0000000000003")
                    .patch(482, [1]),
            )
            .raw(block)
            .raw("abcde")
            .raw([0; BLOCK - 5])
            .add(Item::file("next", ""))
            .end();
        let frames = frame(&archive).unwrap();
        check(&frames[0]);
        assert_eq!(frames[1].name, "next");
        for bad in [
            in_header("2,3,100", "2"),
            in_header("2,3,100,2", "1"),
            in_header("2,3,100,2000", "2"),
            in_header("2,3,4,2", "2"),
            in_header("2,3,100,1", "2"),
            in_header("-2,3,100,2", "2"),
            in_header("2,3,100,2", "x"),
            in_header("2,3,100,2", "2").kind(b'5'),
            gnu.clone().content("abcde"),
            gnu.magic(b"ustar\x0000"),
        ] {
            let error = frame(&TarBuilder::new().add(bad).end()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidArchive);
        }
    }

    #[test]
    fn odd_endings() {
        let one = || TarBuilder::new().add(Item::file("a", "12345"));
        let cut = |bytes: Vec<u8>, by: usize| bytes[..bytes.len() - by].to_vec();
        let good: Vec<(&str, Vec<u8>, usize)> = vec![
            ("empty", Vec::new(), 0),
            ("one zero block", vec![0; 512], 0),
            ("two zero blocks", vec![0; 1024], 0),
            ("many zero blocks", vec![0; 10240], 0),
            ("no end blocks", one().unfinished(), 1),
            ("no padding", cut(one().unfinished(), 507), 1),
            ("half the padding", cut(one().unfinished(), 300), 1),
            ("one end block", one().raw([0; 512]).unfinished(), 1),
            (
                "junk after the end",
                one().raw([0; 1024]).raw("junk").unfinished(),
                1,
            ),
            (
                "an archive after the end",
                one().raw([0; 1024]).raw(one().end()).unfinished(),
                1,
            ),
        ];
        for (what, bytes, count) in good {
            assert_eq!(
                frame(&bytes).map_err(|e| panic!("{what}: {e}")).unwrap().len(),
                count,
                "{what}"
            );
        }
        let bad: Vec<(&str, Vec<u8>, &str)> = vec![
            ("short", vec![b'x'; 511], "unexpected end"),
            ("100 zeros", vec![0; 100], "unexpected end"),
            ("junk", vec![b'x'; 600], "checksum"),
            (
                "zero block and junk",
                one().raw([0; 512]).raw([7; 512]).unfinished(),
                "end block",
            ),
            (
                "zero block and a partial one",
                one().raw([0; 600]).unfinished(),
                "unexpected end",
            ),
            ("ends in data", cut(one().unfinished(), 508), "unexpected end"),
            ("ends in a header", cut(one().unfinished(), 600), "unexpected end"),
            (
                "negative size",
                one().add(Item::file("b", "").size_field([0xff; 12])).end(),
                "negative size",
            ),
            (
                "negative pax size",
                one().add(Item::file("b", "").pax("size", "-1")).end(),
                "negative size",
            ),
            (
                "huge size",
                one()
                    .add(Item::file("b", "").size_field(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"))
                    .end(),
                "unexpected end",
            ),
            (
                "too huge",
                one()
                    .add(Item::file("b", "").size_field(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"))
                    .end(),
                "malformed number",
            ),
            (
                "huge long name",
                one().add(Item::typed(b'L', "b").size_field("77777777777")).end(),
                "over 1 MiB",
            ),
            (
                "bad pax",
                one().add(Item::typed(b'x', "b").content("5 a=b\n")).end(),
                "malformed extended header",
            ),
            (
                "bad pax uid",
                one().add(Item::file("b", "").pax("uid", "x")).end(),
                "malformed extended record",
            ),
            (
                "bad global uid",
                one().add(Item::typed(b'g', "b").content("8 uid=x\n")).end(),
                "malformed global",
            ),
            (
                "bad mode",
                one().add(Item::file("b", "").patch(100, "junk")).end(),
                "malformed number",
            ),
        ];
        for (what, bytes, reason) in bad {
            let error = frame(&bytes)
                .err()
                .unwrap_or_else(|| panic!("{what} is accepted"));
            assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{what}");
            assert!(error.chain().contains(reason), "{what}: {}", error.chain());
        }
    }
}
