//! Checks entries and puts them into a table.
//!
//! What is refused:
//!
//! * names without bytes or with a NUL byte, paths that are too long or there twice; `..` leads no further up than the
//!   root, as in every layer;
//! * links without a target; owners, modes, device numbers and times that no file can have;
//! * contents without a sha256 digest, or of an empty file with another one than that of nothing;
//! * chunks without their file before them, with gaps, overlaps or sizes that are not those of the file;
//! * positions outside of the blob's content, descending within a file, or that give two files the same bytes: a small
//!   blob would become any number of fetched ones;
//! * more than is reasonable to hold in memory.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::raw_entry::{RawEntry, SUM_OF_NOTHING, Sink};
use super::table::{ChunkRecord, EntryKind, Extra, Moment, Record, Span, Sum, Toc};
use crate::archive::path::{MAX_PATH, clean, show};
use crate::digest::{Digest, sha256_sum};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Time;

/// Bytes of memory that a table usually may take; one with as many files as fit into 150 MiB of JSON takes about half of it.
pub(crate) const MAX_MEMORY: usize = 128 << 20;

/// Bytes of a name, an attribute or a target, after decoding. No file system takes longer ones.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// What a table is held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Where the table of contents begins.
    pub(crate) end: u64,
    /// Entries of these names belong to the format and to no layer.
    pub(crate) ignored: &'static [&'static [u8]],
    /// Bytes of memory that the table may take.
    pub(crate) memory: usize,
}

/// See the module's head.
pub(super) struct Builder {
    toc: Toc,
    bounds: Bounds,
    /// Hashes of the paths so far.
    paths: HashSet<u64>,
    hasher: RandomState,
    /// Scratch: the path of an entry.
    path: Vec<u8>,
    /// Bytes of the current file that chunks have been given for.
    covered: u64,
    /// Whether chunk entries may follow.
    is_file: bool,
    /// Whether the current file's own entry says which chunk it is.
    is_first_given: bool,
    /// Attributes, of all entries.
    xattrs: usize,
}

impl Builder {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            toc: Toc::default(),
            bounds,
            paths: HashSet::new(),
            hasher: RandomState::new(),
            path: Vec::new(),
            covered: 0,
            is_file: false,
            is_first_given: false,
            xattrs: 0,
        }
    }

    fn check_memory(&self) -> Result<()> {
        let toc = &self.toc;
        let taken = toc.text.len()
            + toc.records.len() * size_of::<Record>()
            + toc.chunks.len() * size_of::<ChunkRecord>()
            + toc.sums.len() * size_of::<(u32, Sum)>()
            + toc.extras.len() * size_of::<Extra>()
            + self.xattrs * size_of::<(Span, Span)>()
            + self.paths.len() * 2 * size_of::<u64>();
        if taken > self.bounds.memory {
            let what = format!(
                "a table of contents that is too big to process in memory ({} entries)",
                toc.records.len() + toc.chunks.len()
            );
            return Err(ErrorKind::NotSupported.err(what));
        }
        Ok(())
    }

    fn add_entry(&mut self, kind: EntryKind, raw: &RawEntry) -> Result<()> {
        self.check_name(&raw.name)?;
        if raw.inner_offset != 0 {
            return Err(ErrorKind::NotSupported.err("several files in one compressed member (innerOffset)"));
        }
        let is_link = matches!(kind, EntryKind::HardLink | EntryKind::Symlink);
        if is_link && raw.link.is_empty() {
            return Err(bad("a link without a target"));
        }
        if raw.link.contains(&0) {
            return Err(bad("a target with a NUL byte"));
        }
        let declared = in_range(raw.size, "size")?;
        let size = if kind == EntryKind::File { declared } else { 0 };
        let (time, extra) = self.extra(kind, raw)?;
        let name = self.push_text(&raw.name)?;
        let link = if is_link {
            self.push_text(&raw.link)?
        } else {
            Span::default()
        };
        let first_chunk = index(self.toc.chunks.len())?;
        let end = self.content(raw, size)?;
        let number = index(self.toc.extras.len())?;
        let mode: u32 = in_range(raw.mode, "mode")?;
        let Moment { seconds, nanoseconds } = time.unwrap_or_default();
        let record = Record {
            kind,
            has_extra: extra.is_some(),
            has_time: time.is_some(),
            mode: u16::try_from(mode & 0o7777).unwrap_or_default(),
            text: name.start,
            name_length: name.length,
            link_length: link.length,
            uid: in_range(raw.uid, "user ID")?,
            gid: in_range(raw.gid, "group ID")?,
            nanoseconds,
            seconds,
            size,
            end,
            first_chunk,
            extra: number,
        };
        if let Some(extra) = extra {
            push(&mut self.toc.extras, extra);
        }
        push(&mut self.toc.records, record);
        self.is_file = size > 0;
        Ok(())
    }

    fn check_name(&mut self, name: &[u8]) -> Result<()> {
        if name.is_empty() {
            return Err(bad("an entry without a name"));
        }
        if name.contains(&0) {
            return Err(bad("a name with a NUL byte"));
        }
        clean(name, &mut self.path);
        if self.path.len() > MAX_PATH {
            return Err(bad("a path that is too long"));
        }
        // Two paths of one hash are as good as never two different ones: the hashes cannot be foreseen.
        if !self.paths.insert(self.hasher.hash_one(&self.path)) {
            return Err(bad("a path that is there twice"));
        }
        Ok(())
    }

    /// The time of last modification, and what few entries have.
    fn extra(&mut self, kind: EntryKind, raw: &RawEntry) -> Result<(Option<Moment>, Option<Extra>)> {
        let time = moment(&raw.time, "modtime")?;
        let device = (
            in_range(raw.dev_major, "major device number")?,
            in_range(raw.dev_minor, "minor device number")?,
        );
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let mut extra = Extra {
            access_time: moment(&raw.access_time, "accesstime")?,
            change_time: moment(&raw.change_time, "changetime")?,
            device: if is_device { device } else { (0, 0) },
            xattrs: Vec::with_capacity(raw.xattrs.len()),
        };
        for (name, value) in &raw.xattrs {
            if name.is_empty() || name.contains(&0) {
                return Err(bad(format!("an attribute of the name {}", show(name))));
            }
            let value = BASE64.decode(value).map_err(|error| {
                bad(format!("the attribute {} is no base64", show(name))).with_source(error)
            })?;
            let pair = (self.push_text(name)?, self.push_text(&value)?);
            extra.xattrs.push(pair);
        }
        self.xattrs += extra.xattrs.len();
        let is_needed = extra.access_time.is_some()
            || extra.change_time.is_some()
            || is_device
            || !extra.xattrs.is_empty();
        Ok((time, is_needed.then_some(extra)))
    }

    /// Checks what an entry says of its content, and begins the chunks of a file; returns its end.
    fn content(&mut self, raw: &RawEntry, size: u64) -> Result<u64> {
        self.covered = 0;
        self.is_first_given = false;
        if size == 0 {
            if !raw.digest.is_empty() && raw.digest != SUM_OF_NOTHING.as_bytes() && raw.kind == b"reg" {
                return Err(bad("an empty file with the digest of another one"));
            }
            return Ok(0);
        }
        let sum = sum(&raw.digest, "digest")?;
        let (offset, end) = (self.position(raw.offset, "offset")?, self.end(raw)?);
        if raw.chunk_offset != 0 {
            return Err(bad("a first chunk that is not at the start of the file"));
        }
        self.is_first_given = raw.chunk_size != 0;
        let length = if self.is_first_given {
            in_range(raw.chunk_size, "chunkSize")?
        } else {
            size
        };
        // The only chunk of a file is its content.
        let file_sum = (length == size).then_some(sum);
        self.push_chunk(raw, offset, (length, size), file_sum)?;
        if file_sum.is_none() {
            let entry = index(self.toc.records.len())?;
            push(&mut self.toc.sums, (entry, sum));
        }
        Ok(end)
    }

    fn end(&self, raw: &RawEntry) -> Result<u64> {
        match raw.end_offset {
            0 => Ok(0),
            end => match u64::try_from(end) {
                Ok(end) if end <= self.bounds.end => Ok(end),
                _ => Err(bad(format!(
                    "an endOffset of {end}, outside of the blob's content"
                ))),
            },
        }
    }

    /// A position that content begins at, which is never the very start of a blob.
    fn position(&self, offset: i64, what: &str) -> Result<u64> {
        match u64::try_from(offset) {
            Ok(offset) if offset > 0 && offset < self.bounds.end => Ok(offset),
            _ => Err(bad(format!(
                "an {what} of {offset}, outside of the blob's content"
            ))),
        }
    }

    fn push_chunk(
        &mut self,
        raw: &RawEntry,
        offset: u64,
        (length, size): (u64, u64),
        file_sum: Option<Sum>,
    ) -> Result<()> {
        let is_hole = match &*raw.chunk_type {
            b"" => false,
            b"zeros" => true,
            other => return Err(bad(format!("a chunk of the unknown type {}", show(other)))),
        };
        if length == 0 || length > size - self.covered {
            return Err(bad(format!("chunks that are not the {size} bytes of the file")));
        }
        let sum = match file_sum {
            Some(file_sum) if raw.chunk_digest.is_empty() => file_sum,
            file_sum => {
                let sum = sum(&raw.chunk_digest, "chunkDigest")?;
                file_sum.unwrap_or(sum)
            }
        };
        self.covered += length;
        push(
            &mut self.toc.chunks,
            ChunkRecord::new(offset, length, is_hole, sum),
        );
        Ok(())
    }

    /// Takes in a chunk behind the first one of a file.
    fn add_chunk(&mut self, raw: &RawEntry) -> Result<()> {
        let Some(file) = self.toc.records.last().filter(|_| self.is_file) else {
            return Err(bad("chunk type without a regular file"));
        };
        if self.toc.bytes(file.name()) != raw.name {
            return Err(bad("a chunk that follows another file"));
        }
        if !self.is_first_given {
            return Err(bad("the first chunk has no size"));
        }
        let size = file.size;
        let start: u64 = in_range(raw.chunk_offset, "chunkOffset")?;
        if start != self.covered {
            return Err(bad(format!(
                "it begins at byte {start} instead of {}",
                self.covered
            )));
        }
        let offset = self.position(raw.offset, "offset")?;
        if self
            .toc
            .chunks
            .last()
            .is_some_and(|before| before.offset >= offset)
        {
            return Err(bad("its offset is not behind that of the chunk before"));
        }
        let length = match raw.chunk_size {
            // The last one may leave it out.
            0 => size - self.covered,
            length => in_range(length, "chunkSize")?,
        };
        self.push_chunk(raw, offset, (length, size), None)?;
        self.check_memory()
    }

    /// Checks that the last file has all its chunks.
    fn end_file(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_file)
            && let Some(file) = self.toc.records.last()
            && self.covered != file.size
        {
            let what = format!(
                "{}: chunks of {} bytes in a file of {}",
                show(self.toc.bytes(file.name())),
                self.covered,
                file.size
            );
            return Err(bad(what));
        }
        Ok(())
    }

    /// After the last entry.
    pub(super) fn finish(mut self) -> Result<Toc> {
        self.end_file()?;
        self.paths = HashSet::new();
        self.settle()?;
        self.toc.text.shrink_to_fit();
        self.toc.records.shrink_to_fit();
        self.toc.chunks.shrink_to_fit();
        self.toc.sums.shrink_to_fit();
        self.toc.extras.shrink_to_fit();
        Ok(self.toc)
    }

    /// Finds the ends that the text does not say, and checks that contents do not overlap.
    fn settle(&mut self) -> Result<()> {
        let mut files: Vec<u32> = Vec::new();
        for (number, record) in self.toc.records.iter().enumerate() {
            if record.size > 0 {
                files.push(index(number)?);
            }
        }
        let first = |toc: &Toc, file: u32| {
            let chunks = toc.chunks_of(file as usize);
            let start = chunks.first().map_or(0, |chunk| chunk.offset);
            (start, chunks.last().map_or(0, |chunk| chunk.offset))
        };
        files.sort_unstable_by_key(|file| first(&self.toc, *file).0);
        for (place, &file) in files.iter().enumerate() {
            let (_, last) = first(&self.toc, file);
            let next = files
                .get(place + 1)
                .map_or(self.bounds.end, |next| first(&self.toc, *next).0);
            let Some(record) = self.toc.records.get_mut(file as usize) else {
                continue;
            };
            if record.end == 0 {
                record.end = next;
            }
            let (name, end) = (record.name(), record.end);
            if end <= last || end > next {
                let what = format!(
                    "{}: its content ends at {end}, but begins at {last} or is that of another file from {next} on",
                    show(self.toc.bytes(name))
                );
                return Err(bad(what));
            }
        }
        Ok(())
    }

    fn push_text(&mut self, text: &[u8]) -> Result<Span> {
        if text.len() > MAX_TEXT {
            return Err(bad(format!("a text of {} bytes", text.len())));
        }
        let all = &mut self.toc.text;
        let span = Span {
            start: index(all.len())?,
            length: index(text.len())?,
        };
        if all.capacity() - all.len() < text.len() {
            all.reserve_exact(text.len() + all.len() / GROWTH + MIN_GROWTH);
        }
        all.extend_from_slice(text);
        Ok(span)
    }
}

impl Sink for Builder {
    fn set_tar_split_digest(&mut self, digest: Digest) {
        self.toc.tar_split_digest = Some(digest);
    }

    fn add(&mut self, raw: &RawEntry) -> Result<()> {
        let kind = match &*raw.kind {
            b"chunk" => {
                return self
                    .add_chunk(raw)
                    .map_err(|error| error.context(format!("a chunk of {}", show(&raw.name))));
            }
            b"reg" => EntryKind::File,
            b"hardlink" => EntryKind::HardLink,
            b"symlink" => EntryKind::Symlink,
            b"char" => EntryKind::CharDevice,
            b"block" => EntryKind::BlockDevice,
            b"dir" => EntryKind::Directory,
            b"fifo" => EntryKind::Fifo,
            other => {
                return Err(bad(format!(
                    "{} is of the unknown type {}",
                    show(&raw.name),
                    show(other)
                )));
            }
        };
        self.end_file()?;
        if self.bounds.ignored.contains(&&*raw.name) {
            return Ok(());
        }
        self.add_entry(kind, raw)
            .map_err(|error| error.context(show(&raw.name)))?;
        self.check_memory()
    }
}

/// By which part of itself a list grows: doubling would take twice the memory for a moment.
const GROWTH: usize = 8;
const MIN_GROWTH: usize = 256;

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / GROWTH + MIN_GROWTH);
    }
    list.push(item);
}

pub(super) fn bad(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    ErrorKind::InvalidArchive.err(what)
}

fn index(number: usize) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_too_many| ErrorKind::NotSupported.err("a table of contents of over 4 GiB"))
}

fn in_range<T: TryFrom<i64>>(number: i64, what: &str) -> Result<T> {
    T::try_from(number).map_err(|_reason| bad(format!("a {what} of {number}")))
}

fn sum(text: &[u8], key: &str) -> Result<Sum> {
    sha256_sum(text).ok_or_else(|| bad(format!("{key} {} is no sha256 digest", show(text))))
}

/// A time; `None` for none, and for the first moment of Go's calendar, which stands for none.
fn moment(text: &[u8], key: &str) -> Result<Option<Moment>> {
    if text.is_empty() {
        return Ok(None);
    }
    let time: Option<Time> = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    let Some(time) = time else {
        return Err(bad(format!("{key} {} is not a time as in RFC 3339", show(text))));
    };
    let (seconds, nanoseconds) = time.since_epoch();
    Ok((!time.is_go_zero()).then_some(Moment { seconds, nanoseconds }))
}
