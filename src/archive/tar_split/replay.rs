//! Puts a layer's tar stream together again, bit for bit: segments from its tar-split file, content from its tree.
//!
//! A file is looked for in the given trees in order, since the content of a layer that was copied from a template
//! lies in the template. Names come from the archive: they are cleaned as when they were unpacked and resolved inside
//! the tree; the file itself must be a regular one and no link. Nothing is produced of a file whose size is not the
//! recorded one, and never more bytes than recorded. A wrong checksum shows only after the bytes were handed out:
//! a reader of the stream has to treat an error at any point as fatal.
//!
//! A check of a layer goes on instead ([`Replay::examining`]): it collects what is wrong with files and puts zeros in
//! their place. Headers can also be read alone, with zeros for all files ([`Replay::headers`]). These zeros need not be
//! produced ([`Replay::pass_zeros`]): how many they are is what the tar-split file says, which may be anything.

use std::borrow::Cow;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use crate::bridge::{Producer, Progress, read_spare};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::sys::at;

use crate::archive::apply::origins::Origins;
use crate::archive::lookup::Lookup;
use crate::archive::path;
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::format::{Entry, GzipTarSplitReader};

/// Bytes of the compressed tar-split file that are read at a time.
const READ_SIZE: usize = 64 * 1024;

/// Bytes of a file that are read at a time, so that they are in the processor's cache when the checksum is taken.
const READ_PART: usize = 128 * 1024;

/// Entries without bytes that one step passes over at the most.
const MAX_EMPTY_ENTRIES: usize = 4096;

/// The stream that a tar-split file describes, as a producer.
///
/// Fails with [`ErrorKind::LayerContentModified`] naming the entry where a file is missing or has another size or
/// content than recorded.
pub(crate) struct Replay<R: Read> {
    tar_split: TarSplit<R>,
    trees: Vec<Lookup<OwnedFd>>,
    /// Bytes of the stream that are passed over. Files that lie in them as a whole are not opened.
    skip: u64,
    /// Bytes of all entries that were taken up.
    total: u64,
    current: Current,
    /// Of the current file.
    crc: Crc,
    clean: Vec<u8>,
    contents: Contents,
    damaged: Vec<DamagedFile>,
    offered_to: Option<Arc<Origins>>,
    /// Bytes of the stream before what is produced next; counted from its start on.
    position: u64,
}

/// What becomes of the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// Their bytes; anything wrong with one ends the stream.
    Restored,
    /// Their bytes, or zeros in the place of what is damaged.
    Examined,
    /// Zeros.
    Omitted,
}

/// A file that is not as recorded.
#[derive(Debug)]
pub(crate) struct DamagedFile {
    /// Its name in the archive, not cleaned.
    pub(crate) name: Vec<u8>,
    /// The recorded checksum.
    pub(crate) crc: [u8; 8],
    /// What is wrong with it.
    pub(crate) error: Error,
}

/// Where bytes of the stream come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The tar-split file.
    TarSplit,
    /// A file with this recorded checksum.
    File([u8; 8]),
}

/// The tar-split file. Its reader has buffers, which a stream that is not read does not need.
enum TarSplit<R: Read> {
    Unread(Option<R>),
    Open(Box<GzipTarSplitReader<BufReader<R>>>),
}

/// What is being produced.
enum Current {
    Nothing,
    Segment {
        bytes: Vec<u8>,
        position: usize,
    },
    File {
        name: Vec<u8>,
        file: OwnedFd,
        rest: u64,
        /// The recorded checksum.
        crc: [u8; 8],
        /// Whether the file is read from its start; else there is nothing to compare with.
        whole: bool,
    },
    /// Zeros in the place of a file.
    Zeros {
        rest: u64,
        crc: [u8; 8],
    },
}

impl<R: Read> TarSplit<R> {
    fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            match self {
                Self::Open(reader) => return reader.next(),
                Self::Unread(file) => {
                    let Some(file) = file.take() else {
                        return Ok(None);
                    };
                    let buffered = BufReader::with_capacity(READ_SIZE, file);
                    *self = Self::Open(Box::new(GzipTarSplitReader::new(buffered)));
                }
            }
        }
    }
}

impl<R: Read> Replay<R> {
    /// The stream from its byte `offset` on. `tar_split` is the compressed file; `trees` are where the files are found,
    /// the layer's own first.
    pub(crate) fn new(tar_split: R, trees: Vec<OwnedFd>, offset: u64) -> Self {
        Self {
            tar_split: TarSplit::Unread(Some(tar_split)),
            trees: trees.into_iter().map(Lookup::new).collect(),
            skip: offset,
            total: 0,
            current: Current::Nothing,
            crc: Crc::new(),
            clean: Vec::new(),
            contents: Contents::Restored,
            damaged: Vec::new(),
            offered_to: None,
            position: 0,
        }
    }

    /// Has each file be offered for its payload, when that is taken up: whoever unpacks the stream can share its content.
    pub(crate) fn offering_to(mut self, origins: Arc<Origins>) -> Self {
        self.offered_to = Some(origins);
        self
    }

    /// The whole stream, with zeros in the place of what is damaged: see [`Replay::damaged`].
    pub(crate) fn examining(tar_split: R, trees: Vec<OwnedFd>) -> Self {
        Self {
            contents: Contents::Examined,
            ..Self::new(tar_split, trees, 0)
        }
    }

    /// The whole stream with zeros in the place of all files, none of which is opened.
    pub(crate) fn headers(tar_split: R) -> Self {
        Self {
            contents: Contents::Omitted,
            ..Self::new(tar_split, Vec::new(), 0)
        }
    }

    /// What was found to be wrong with files so far.
    pub(crate) fn damaged(&self) -> &[DamagedFile] {
        &self.damaged
    }

    /// The same, handed over.
    pub(crate) fn take_damaged(&mut self) -> Vec<DamagedFile> {
        std::mem::take(&mut self.damaged)
    }

    /// Takes up the next entry; `false` at the end.
    fn next(&mut self) -> Result<bool> {
        let Some(entry) = self.tar_split.next()? else {
            if self.skip > 0 {
                let what = format!(
                    "an offset that lies {} bytes beyond the end of the layer stream",
                    self.skip
                );
                return Err(ErrorKind::InvalidInput.err(what));
            }
            return Ok(false);
        };
        let size = match &entry {
            Entry::Segment(bytes) => bytes.len() as u64,
            Entry::File { size, .. } => *size,
        };
        let total = self.total.checked_add(size);
        self.total = total
            .filter(|total| i64::try_from(*total).is_ok())
            .ok_or_else(|| {
                ErrorKind::CorruptMetadata.err("tar-split data of more bytes than a stream can have")
            })?;
        let skipped = self.skip.min(size);
        self.skip -= skipped;
        let start = self.position;
        self.position = start.saturating_add(size);
        if skipped == size {
            return Ok(true);
        }
        self.current = match entry {
            Entry::Segment(bytes) => Current::Segment {
                bytes,
                position: usize::try_from(skipped).unwrap_or(usize::MAX),
            },
            Entry::File { name, size, crc } => {
                let rest = size - skipped;
                let opened = match self.contents {
                    Contents::Omitted => Ok(None),
                    _ => self.open(&name, size, skipped).map(Some),
                };
                if let (Some(origins), Ok(Some(file)), 0) = (&self.offered_to, &opened, skipped) {
                    origins.offer_content(start, size, file.as_fd())?;
                }
                match opened {
                    Ok(Some(file)) => Current::File {
                        name,
                        file,
                        rest,
                        crc,
                        whole: skipped == 0,
                    },
                    Ok(None) => Current::Zeros { rest, crc },
                    Err(error) => {
                        self.note(name, crc, error)?;
                        Current::Zeros { rest, crc }
                    }
                }
            }
        };
        Ok(true)
    }

    /// Opens the file of an entry at an offset.
    fn open(&mut self, name: &[u8], size: u64, offset: u64) -> Result<OwnedFd> {
        path::clean(name, &mut self.clean);
        let file = open(&mut self.trees, &self.clean, size).context(|| of(name))?;
        if offset > 0 {
            let sought = rustix::fs::seek(&file, SeekFrom::Start(offset));
            sought.during("seeking in it").context(|| of(name))?;
        }
        Ok(file)
    }

    /// What is wrong with a file: noted, or the end of the stream.
    fn note(&mut self, name: Vec<u8>, crc: [u8; 8], error: Error) -> Result<()> {
        // What says nothing of the file is not wrong with it.
        if self.contents != Contents::Examined || error.is_passing() {
            return Err(error);
        }
        self.damaged.push(DamagedFile { name, crc, error });
        Ok(())
    }

    /// Whether a file comes next, and not bytes of the tar-split file.
    pub(crate) fn is_at_file(&mut self) -> Result<bool> {
        while matches!(self.current, Current::Nothing) {
            if !self.next()? {
                return Ok(false);
            }
        }
        Ok(matches!(
            self.current,
            Current::File { .. } | Current::Zeros { .. }
        ))
    }

    /// Passes over at most `limit` of the zeros in the place of a file. Returns where the stream has them from and how many they
    /// are; `None` if something else comes next.
    pub(crate) fn pass_zeros(&mut self, limit: u64) -> Result<Option<(Origin, u64)>> {
        if !self.is_at_file()? {
            return Ok(None);
        }
        let Current::Zeros { rest, crc } = &mut self.current else {
            return Ok(None);
        };
        let (count, origin) = (limit.min(*rest), Origin::File(*crc));
        *rest -= count;
        if *rest == 0 {
            self.current = Current::Nothing;
        }
        Ok(Some((origin, count)))
    }

    /// Puts zeros in the place of the file that comes next if more than `room` bytes of it are left. Returns whether it did.
    pub(crate) fn omit_beyond(&mut self, room: u64) -> Result<bool> {
        if !self.is_at_file()? {
            return Ok(false);
        }
        match self.current {
            Current::File { rest, crc, .. } if rest > room => {
                self.crc = Crc::new();
                self.current = Current::Zeros { rest, crc };
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Appends at most `room` bytes that come from one place. `None` at the end; perhaps nothing was appended otherwise.
    pub(crate) fn part(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Option<Origin>> {
        if matches!(self.current, Current::Nothing) && !self.next()? {
            return Ok(None);
        }
        let origin = match self.current {
            Current::File { crc, .. } | Current::Zeros { crc, .. } => Origin::File(crc),
            Current::Nothing | Current::Segment { .. } => Origin::TarSplit,
        };
        self.fill(out, room)?;
        Ok(Some(origin))
    }

    /// Appends at most `room` bytes of the current entry.
    fn fill(&mut self, out: &mut Vec<u8>, room: usize) -> Result<()> {
        match &mut self.current {
            Current::Nothing => {}
            Current::Segment { bytes, position } => {
                let rest = bytes.get(*position..).unwrap_or_default();
                let part = rest.get(..room).unwrap_or(rest);
                out.extend_from_slice(part);
                *position += part.len();
                if *position >= bytes.len() {
                    self.current = Current::Nothing;
                }
            }
            Current::Zeros { rest, .. } => {
                let count = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                out.resize(out.len() + count, 0);
                *rest = rest.saturating_sub(count as u64);
                if *rest == 0 {
                    self.current = Current::Nothing;
                }
            }
            Current::File {
                name,
                file,
                rest,
                crc,
                whole,
            } => {
                let room = room.min(READ_PART);
                let limit = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                let start = out.len();
                out.reserve(limit);
                let read = read_spare(file.as_fd(), out, limit)
                    .during("copying its content")
                    .context(|| of(name));
                let early = || modified(format!("it ends {rest} bytes early")).context(of(name));
                let count = match read.and_then(|count| if count == 0 { Err(early()) } else { Ok(count) }) {
                    Ok(count) => count,
                    Err(error) => {
                        let (name, crc) = (std::mem::take(name), *crc);
                        let zeros = Current::Zeros { rest: *rest, crc };
                        self.crc = Crc::new();
                        self.current = zeros;
                        return self.note(name, crc, error);
                    }
                };
                *rest = rest.saturating_sub(count as u64);
                let mut damage = None;
                if *whole {
                    self.crc.update(out.get(start..).unwrap_or_default());
                    if *rest == 0 && self.crc.take() != *crc {
                        let what = format!("file integrity checksum failed for {}", path::show(name));
                        damage = Some((std::mem::take(name), *crc, modified(what)));
                    }
                }
                if *rest == 0 {
                    self.current = Current::Nothing;
                }
                if let Some((name, crc, error)) = damage {
                    self.note(name, crc, error)?;
                }
            }
        }
        Ok(())
    }
}

impl<R: Read + Send + Sync + 'static> Producer for Replay<R> {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        let end = out.len() + room;
        let mut empty = 0;
        while out.len() < end && empty < MAX_EMPTY_ENTRIES {
            if let Current::Nothing = self.current {
                if !self.next()? {
                    return Ok(Progress::End);
                }
                empty += 1;
            } else {
                self.fill(out, end - out.len())?;
                empty = 0;
            }
        }
        Ok(Progress::More)
    }
}

fn of(name: &[u8]) -> String {
    format!("restoring entry {}", path::show(name))
}

fn modified(what: impl Into<Cow<'static, str>>) -> Error {
    ErrorKind::LayerContentModified.err(what)
}

/// Opens the regular file at the clean path `clean` in the first tree that has something there.
///
/// It is looked at before it is opened: opening a device or a FIFO can have effects.
fn open(trees: &mut [Lookup<OwnedFd>], clean: &[u8], size: u64) -> Result<OwnedFd> {
    let (parent, name) = path::split(clean);
    if name.is_empty() {
        return Err(modified("content was recorded for the root directory"));
    }
    for tree in trees {
        let Some(dir) = tree.dir(parent).during("opening its directory")? else {
            continue;
        };
        let Some(stat) = at::lstat_at(dir, name).during("looking at it")? else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(modified("it is not a regular file"));
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(modified(format!(
                "it has {} bytes, {size} were recorded",
                stat.st_size
            )));
        }
        return at::open_file_at(dir, name).during("opening it");
    }
    Err(modified("it is missing").with_source(std::io::Error::from(Errno::NOENT)))
}
