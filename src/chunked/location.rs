//! Where the parts of a chunked blob are: as annotations of a layer in a manifest, and in a blob's footer. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::chunked::estargz;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// What the names of annotations about zstd:chunked begin with.
pub(crate) const ZSTD: &str = "io.github.containers.zstd-chunked.";

/// The same before 2021. Blobs of that time have no tar-split data.
const OLD_ZSTD: &str = "io.containers.zstd-chunked.";

/// Digest of the compressed table of contents.
pub(crate) const TOC_CHECKSUM: &str = "manifest-checksum";
/// `OFFSET:LENGTH:UNCOMPRESSED LENGTH:TYPE` of the table of contents.
pub(crate) const TOC_POSITION: &str = "manifest-position";
/// `OFFSET:LENGTH:UNCOMPRESSED LENGTH` of the tar-split data.
pub(crate) const TAR_SPLIT_POSITION: &str = "tarsplit-position";

/// Digest of the uncompressed table of contents of an eStargz blob.
const ESTARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// The one type of a table of contents.
pub(crate) const TYPE: u64 = 1;

/// What a footer ends with.
pub(crate) const MAGIC: [u8; 8] = *b"GNUlInUx";

/// Bytes of a skippable frame before its payload.
pub(crate) const SKIPPABLE_HEAD: u64 = 8;

/// What a skippable frame begins with. There are 15 others, which no writer uses.
pub(crate) const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Bytes of a footer, with its skippable frame's head; in the old form without tar-split data.
const FOOTER: usize = 72;
const OLD_FOOTER: usize = 48;

/// The largest table of contents, compressed or not: what the Go library takes.
const MAX_TOC: u64 = 150 << 20;

/// Compressed data within a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Where its bytes are in the blob.
    pub(crate) range: Range<u64>,
    /// Bytes after decompression, as declared.
    pub(crate) size: u64,
}

impl Section {
    pub(crate) fn length(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// A section that a manifest or footer declares.
    fn declared(offset: u64, length: u64, size: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (offset > 0 && length > 0).then_some(Self {
            range: offset..end,
            size,
        })
    }
}

/// How a blob has its table of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TocFormat {
    /// In a skippable frame of a Zstandard stream.
    ZstdChunked,
    /// In a gzip member at the end of a gzip stream.
    EStargz,
}

/// Where the table of contents of a layer blob is, and what tells that it is the right one.
///
/// Made of the annotations that the image's manifest has for the layer; then
/// [`TocLocation::read_toc`] reads the table from the blob's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocLocation {
    pub(crate) format: TocFormat,
    /// `None`: the blob itself says where the table is, and nothing vouches for it.
    pub(crate) digest: Option<Digest>,
    /// `None` before the footer of an eStargz blob is known.
    pub(crate) toc: Option<Section>,
    pub(crate) tar_split: Option<Section>,
    pub(crate) blob_size: u64,
}

impl TocLocation {
    /// What the annotations of a layer say whose blob has so many bytes; `None` for one without a table of contents.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for annotations that contradict themselves or each other, or name bytes that the
    /// blob does not have; [`ErrorKind::NotSupported`] for a table over 150 MiB: such a layer can be pulled as a whole.
    pub fn from_annotations(annotations: &BTreeMap<String, String>, blob_size: u64) -> Result<Option<Self>> {
        let get = |prefix: &str, key: &str| annotations.get(&format!("{prefix}{key}"));
        let prefix = [ZSTD, OLD_ZSTD]
            .into_iter()
            .find(|prefix| get(prefix, TOC_CHECKSUM).is_some());
        let (prefix, checksum) = match (prefix, annotations.get(ESTARGZ_DIGEST)) {
            (Some(_), Some(_)) => return Err(bad("both zstd:chunked and eStargz TOC found")),
            (None, None) => return Ok(None),
            (None, Some(digest)) => {
                return Ok(Some(Self {
                    format: TocFormat::EStargz,
                    digest: Some(parse_digest(digest, ESTARGZ_DIGEST)?),
                    toc: None,
                    tar_split: None,
                    blob_size,
                }));
            }
            (Some(prefix), None) => (prefix, get(prefix, TOC_CHECKSUM)),
        };
        let digest = parse_digest(checksum.map_or("", String::as_str), TOC_CHECKSUM)?;
        let position = get(prefix, TOC_POSITION)
            .ok_or_else(|| bad(format!("\"{prefix}{TOC_POSITION}\" annotation missing")))?;
        let [offset, length, size, kind] = numbers(position, TOC_POSITION)?;
        if kind != TYPE {
            return Err(bad(format!("invalid manifest type {kind}")));
        }
        let toc = Section::declared(offset, length, size).ok_or_else(|| misplaced(position))?;
        let tar_split = match get(prefix, TAR_SPLIT_POSITION) {
            None => None,
            Some(position) => {
                let [offset, length, size] = numbers(position, TAR_SPLIT_POSITION)?;
                Some(Section::declared(offset, length, size).ok_or_else(|| misplaced(position))?)
            }
        };
        Self {
            format: TocFormat::ZstdChunked,
            digest: Some(digest),
            toc: Some(toc),
            tar_split,
            blob_size,
        }
        .checked()
        .map(Some)
    }

    /// What the last bytes of a zstd:chunked or eStargz blob say, of which there should be at least 72; `None` if they
    /// are no footer.
    ///
    /// Nothing vouches for such a table of contents: it is good for looking into a blob, not for using it in place of
    /// one whose digest is known.
    ///
    /// # Errors
    /// As [`TocLocation::from_annotations`].
    pub fn from_footer(end: &[u8], blob_size: u64) -> Result<Option<Self>> {
        let new = Self {
            format: TocFormat::ZstdChunked,
            digest: None,
            toc: None,
            tar_split: None,
            blob_size,
        };
        for size in [FOOTER, OLD_FOOTER] {
            let Some((_, footer)) = end.split_at_checked(end.len().saturating_sub(size)) else {
                continue;
            };
            let Some(words) = footer_words(footer, size) else {
                continue;
            };
            let (toc, tar_split) = match words[..] {
                [offset, length, size, TYPE] => (Section::declared(offset, length, size), None),
                [offset, length, size, TYPE, split_offset, split_length, split_size] => (
                    Section::declared(offset, length, size),
                    Section::declared(split_offset, split_length, split_size),
                ),
                _ => (None, None),
            };
            let toc = toc.ok_or_else(|| bad("a footer that does not say where the table of contents is"))?;
            let found = Self {
                toc: Some(toc),
                tar_split,
                ..new
            };
            return found.checked().map(Some);
        }
        let Some(offset) = estargz::toc_offset(end) else {
            return Ok(None);
        };
        let estargz = Self {
            format: TocFormat::EStargz,
            ..new
        };
        estargz.at_offset(offset, estargz::footer_length(end)).map(Some)
    }

    /// Bytes at the end of an eStargz blob that have to be read first, for [`TocLocation::with_footer`]; `None` if the
    /// place of the table is known.
    pub fn footer_range(&self) -> Option<Range<u64>> {
        let start = self.blob_size.saturating_sub(estargz::FOOTER as u64);
        self.toc.is_none().then_some(start..self.blob_size)
    }

    /// The same with what the footer says.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for bytes that are no footer of eStargz.
    pub fn with_footer(self, footer: &[u8]) -> Result<Self> {
        if self.toc.is_some() {
            return Ok(self);
        }
        let offset = estargz::toc_offset(footer).ok_or_else(|| bad("an eStargz blob without a footer"))?;
        self.at_offset(offset, estargz::footer_length(footer))
    }

    fn at_offset(mut self, offset: u64, footer: usize) -> Result<Self> {
        let end = self.blob_size.saturating_sub(footer as u64);
        if offset == 0 || offset >= end {
            return Err(bad(format!(
                "a table of contents at byte {offset} of a blob of {} bytes",
                self.blob_size
            )));
        }
        self.toc = Some(Section {
            range: offset..end,
            size: MAX_TOC,
        });
        self.checked()
    }

    /// Refuses what the blob does not have, and what is too large.
    fn checked(self) -> Result<Self> {
        let Some(toc) = &self.toc else {
            return Ok(self);
        };
        let range = |section: &Section| (section.range.start, section.range.end);
        for section in [Some(toc), self.tar_split.as_ref()].into_iter().flatten() {
            if section.range.end > self.blob_size {
                let (start, end) = range(section);
                let what = format!("bytes {start} to {end} of a blob that has {}", self.blob_size);
                return Err(bad(what));
            }
        }
        if let Some(tar_split) = &self.tar_split {
            let ((start, end), (split_start, split_end)) = (range(toc), range(tar_split));
            if start < split_end && split_start < end {
                return Err(bad("a table of contents and tar-split data in the same bytes"));
            }
        }
        if toc.length() > MAX_TOC || toc.size > MAX_TOC {
            let what = format!(
                "manifest too big to process in memory ({} bytes compressed, {} bytes uncompressed)",
                toc.length(),
                toc.size
            );
            return Err(ErrorKind::NotSupported.err(what));
        }
        Ok(self)
    }

    /// How the blob has its table of contents.
    pub fn format(&self) -> TocFormat {
        self.format
    }

    /// The digest that identifies the table of contents, and with it the layer; `None` if only the blob's footer was
    /// looked at.
    ///
    /// That of zstd:chunked is of the compressed table, that of eStargz of the uncompressed one.
    pub fn toc_digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Which bytes of the blob [`TocLocation::read_toc`] needs; `None` as long as the footer is not known.
    pub fn toc_range(&self) -> Option<Range<u64>> {
        self.toc.as_ref().map(|toc| toc.range.clone())
    }

    /// Which bytes of the blob are its tar-split data.
    pub(crate) fn tar_split_range(&self) -> Option<Range<u64>> {
        self.tar_split.as_ref().map(|section| section.range.clone())
    }

    /// Where the content of files ends in the blob.
    pub(crate) fn content_end(&self) -> u64 {
        let start = |section: &Option<Section>| section.as_ref().map(|section| section.range.start);
        let head = match self.format {
            TocFormat::ZstdChunked => SKIPPABLE_HEAD,
            TocFormat::EStargz => 0,
        };
        let ends = [start(&self.toc), start(&self.tar_split)].into_iter().flatten();
        ends.min().unwrap_or(self.blob_size).saturating_sub(head)
    }
}

fn bad(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    ErrorKind::InvalidArchive.err(what)
}

fn misplaced(position: &str) -> Error {
    bad(format!("a position of {position:?}"))
}

fn parse_digest(text: &str, key: &str) -> Result<Digest> {
    text.parse()
        .map_err(|error: Error| bad(format!("the annotation {key}")).with_source(error))
}

/// So many numbers with colons between them.
fn numbers<const COUNT: usize>(text: &str, key: &str) -> Result<[u64; COUNT]> {
    let malformed = || bad(format!("annotation {key} {text:?} is not {COUNT} numbers"));
    let mut found = [0; COUNT];
    let mut parts = text.split(':');
    for number in &mut found {
        let part = parts.next().ok_or_else(malformed)?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        *number = part.parse().map_err(|_reason| malformed())?;
    }
    match parts.next() {
        None => Ok(found),
        Some(_) => Err(malformed()),
    }
}

/// The numbers of a footer of so many bytes with its head.
fn footer_words(footer: &[u8], size: usize) -> Option<Vec<u64>> {
    let (head, payload) = footer.split_at_checked(8)?;
    let length = u32::try_from(size - 8).ok()?.to_le_bytes();
    let is_footer = footer.len() == size
        && head.starts_with(&SKIPPABLE_MAGIC)
        && head.ends_with(&length)
        && payload.ends_with(&MAGIC);
    let (words, _) = payload.as_chunks::<8>();
    is_footer.then(|| {
        let (_magic, words) = words.split_last().unwrap_or((&MAGIC, &[]));
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    })
}
