//! Puts a layer's tar stream together again, bit for bit: segments from its tar-split file, content from its tree.
//!
//! A file is looked for in the given trees in order, since the content of a layer that was copied from a template
//! lies in the template. Names come from the archive: they are cleaned as when they were unpacked and resolved inside
//! the tree; the file itself must be a regular one and no link. Nothing is produced of a file whose size is not the
//! recorded one, and never more bytes than recorded. A wrong checksum shows only after the bytes were handed out:
//! a reader of the stream has to treat an error at any point as fatal.

use std::borrow::Cow;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::bridge::{Producer, Progress, read_spare};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::sys::at;

use crate::archive::lookup::Lookup;
use crate::archive::path;
use crate::archive::tar_split::format::{Crc, Entry, GzipTarSplitReader};

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
    current: Current,
    /// Of the current file.
    crc: Crc,
    clean: Vec<u8>,
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
        /// `None` if the start of the file was passed over, which leaves nothing to compare with.
        crc: Option<[u8; 8]>,
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
            current: Current::Nothing,
            crc: Crc::new(),
            clean: Vec::new(),
        }
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
        let skipped = self.skip.min(size);
        self.skip -= skipped;
        if skipped == size {
            return Ok(true);
        }
        self.current = match entry {
            Entry::Segment(bytes) => Current::Segment {
                bytes,
                position: usize::try_from(skipped).unwrap_or(usize::MAX),
            },
            Entry::File { name, size, crc } => {
                path::clean(&name, &mut self.clean);
                let file = open(&mut self.trees, &self.clean, size).context(|| of(&name))?;
                if skipped > 0 {
                    let sought = rustix::fs::seek(&file, SeekFrom::Start(skipped));
                    sought.during("seeking in it").context(|| of(&name))?;
                }
                Current::File {
                    name,
                    file,
                    rest: size - skipped,
                    crc: (skipped == 0).then_some(crc),
                }
            }
        };
        Ok(true)
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
            Current::File {
                name,
                file,
                rest,
                crc,
            } => {
                let room = room.min(READ_PART);
                let limit = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                let start = out.len();
                let count = read_spare(file.as_fd(), out, limit)
                    .during("copying its content")
                    .context(|| of(name))?;
                if count == 0 {
                    return Err(modified(format!("it ends {rest} bytes early")).context(of(name)));
                }
                *rest = rest.saturating_sub(count as u64);
                if let Some(recorded) = crc {
                    self.crc.update(out.get(start..).unwrap_or_default());
                    if *rest == 0 && self.crc.take() != *recorded {
                        let name = path::show(name);
                        return Err(modified(format!("file integrity checksum failed for {name}")));
                    }
                }
                if *rest == 0 {
                    self.current = Current::Nothing;
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
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        return rustix::fs::openat(dir, name, flags, Mode::empty()).during("opening it");
    }
    Err(modified("it is missing").with_source(std::io::Error::from(Errno::NOENT)))
}
