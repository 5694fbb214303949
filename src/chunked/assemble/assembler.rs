//! The tar stream of a layer in the making, as a state machine whose steps block for a moment each.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::super::location::TocFormat;
use super::super::toc::{Toc, TocEntry};
use super::check::{missing_in_tar_split, missing_in_toc};
use super::contents::{Begun, Contents};
use super::frames::Frames;
use super::input::Input;
use super::plan::{Origin, PartOrigin, Plan, has_content};
use crate::archive::apply::origins::{LocalFile, Origins};
use crate::archive::compress::stream_hash;
use crate::archive::path::show;
use crate::archive::tar_split::format::{Entry, TarSplitReader};
use crate::bridge::read_spare;
use crate::chunked::local::{LocalContent, Place};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};

/// Lines of tar-split data without bytes that one step passes over at the most.
const MAX_EMPTY_LINES: usize = 4096;

/// Bytes of a local file that are read at a time.
const READ_PART: usize = 128 * 1024;

/// What a tar stream is made of, contents by name.
pub(crate) trait Lines: Send + Sync {
    /// The next bytes, or the next content; `None` at the end.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for what cannot be read; [`ErrorKind::Io`].
    fn next(&mut self) -> Result<Option<Entry>>;
}

impl<R: BufRead + Send + Sync> Lines for TarSplitReader<R> {
    fn next(&mut self) -> Result<Option<Entry>> {
        Self::next(self).map_err(|error| match error.kind() {
            ErrorKind::CorruptMetadata => ErrorKind::InvalidArchive
                .err("reading tar-split data")
                .with_source(error),
            _ => error,
        })
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more.
    More,
    /// There is more once more bytes of the blob are there.
    NeedInput,
    /// That was all.
    End,
}

/// See the module's head.
pub(crate) struct Assembler {
    toc: Arc<Toc>,
    plan: Plan,
    local: Option<LocalContent>,
    lines: Box<dyn Lines>,
    frames: Frames,
    /// Whether the digests of files that come from elsewhere on this machine are to be verified. Those of others always are:
    /// later pulls, also of other programs, believe the table of contents that is kept with the layer.
    verify_local: bool,
    /// The files whose digests are verified.
    begun: Begun,
    current: Current,
    /// The next file of the plan, and the entry that it is, or one before that.
    next_file: usize,
    next_entry: usize,
    position: Position,
    /// Where in the tar stream the next line lies.
    offset: u64,
    /// Gets the local files whose content is that of a whole file.
    origins: Arc<Origins>,
}

/// Where in the stream of all requested ranges the next byte lies.
struct Position {
    /// Which range it is in.
    request: usize,
    /// Which byte of the blob it is.
    offset: u64,
    /// Bytes to be passed over.
    skip: u64,
}

/// What is being produced.
enum Current {
    Nothing,
    Segment { bytes: Vec<u8>, position: usize },
    Content(Content),
}

/// The content of one file.
struct Content {
    entry: usize,
    /// The parts that are to come.
    parts: Range<usize>,
    /// Whether those are the one that the table of contents has, else they are some of the plan.
    as_in_toc: bool,
    part: Source,
}

/// Where the current part comes from; the number is how many bytes are still to come.
enum Source {
    Ended,
    Zeros(u64),
    Local(File, u64),
    /// Compressed bytes; behind them come those from this offset of the blob on.
    Blob(u64, u64),
}

impl fmt::Debug for Assembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembler")
            .field("next_file", &self.next_file)
            .finish_non_exhaustive()
    }
}

impl Position {
    /// At the start of the first range.
    fn new(requests: &[Range<u64>]) -> Self {
        Self {
            request: 0,
            offset: requests.first().map_or(0, |range| range.start),
            skip: 0,
        }
    }

    /// Goes on to byte `target` of the blob, which is in a range and not behind.
    fn go_to(&mut self, target: u64, requests: &[Range<u64>]) {
        while let Some(range) = requests.get(self.request) {
            if target < range.end {
                break;
            }
            self.skip += range.end.saturating_sub(self.offset);
            self.request += 1;
            self.offset = requests.get(self.request).map_or(target, |next| next.start);
        }
        self.skip += target.saturating_sub(self.offset);
        self.offset = target;
    }

    /// Passes over what is to be passed over; whether all of it was there.
    fn pass(&mut self, input: &mut Input) -> bool {
        let count = usize::try_from(self.skip).map_or(input.len(), |skip| skip.min(input.len()));
        input.advance(count);
        self.skip -= count as u64;
        self.skip == 0
    }
}

impl Assembler {
    /// Puts together what `plan` says, of what `lines` names. [`Assembler::contents`] verify the digest of each file that does
    /// not come as a whole from elsewhere on this machine; with `verify_local` that of those files too, else the caller has to
    /// know the digest of the whole stream.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] without memory for a decompressor.
    pub(crate) fn new(
        toc: Arc<Toc>,
        plan: Plan,
        local: Option<LocalContent>,
        lines: Box<dyn Lines>,
        (format, verify_local): (TocFormat, bool),
    ) -> Result<Self> {
        let links = local.as_ref().is_some_and(LocalContent::links);
        Ok(Self {
            frames: Frames::new(format)?,
            position: Position::new(plan.requests()),
            toc,
            plan,
            local,
            lines,
            verify_local,
            begun: Begun::default(),
            current: Current::Nothing,
            next_file: 0,
            next_entry: 0,
            offset: 0,
            origins: Arc::new(Origins::new(links, None)),
        })
    }

    /// The local files whose content is that of a whole file, while the stream is made.
    pub(crate) fn origins(&self) -> Arc<Origins> {
        Arc::clone(&self.origins)
    }

    /// Verifies the digests of files, for whoever hashes the stream.
    pub(crate) fn contents(&self) -> Contents {
        Contents::new(Arc::clone(&self.toc), self.begun.clone())
    }

    /// The ranges of the blob whose bytes it needs, one after the other.
    pub(super) fn requests(&self) -> &[Range<u64>] {
        self.plan.requests()
    }

    /// Appends at most `room` bytes to `out`; takes bytes of the blob from `input`. Returns when `room` is used up, when
    /// bytes are missing, or when some bounded amount of work has brought none.
    pub(super) fn step(&mut self, input: &mut Input, out: &mut Vec<u8>, room: usize) -> Result<Step> {
        let end = out.len() + room;
        let mut empty = 0;
        while out.len() < end && empty < MAX_EMPTY_LINES {
            let room = end - out.len();
            match &mut self.current {
                Current::Nothing => {
                    if !self.next()? {
                        return Ok(Step::End);
                    }
                    empty += 1;
                    continue;
                }
                Current::Segment { bytes, position } => {
                    let rest = bytes.get(*position..).unwrap_or_default();
                    let part = rest.get(..room).unwrap_or(rest);
                    out.extend_from_slice(part);
                    *position += part.len();
                    if *position >= bytes.len() {
                        self.current = Current::Nothing;
                    }
                }
                Current::Content(_) => {
                    if !self.content(input, out, room)? {
                        return Ok(Step::NeedInput);
                    }
                }
            }
            empty = 0;
        }
        Ok(Step::More)
    }

    /// Takes up the next line of the tar-split data; `false` at the end.
    fn next(&mut self) -> Result<bool> {
        let line = self.lines.next()?;
        let (name, size) = match line {
            None => return self.end().map(|()| false),
            Some(Entry::Segment(bytes)) if bytes.is_empty() => return Ok(true),
            Some(Entry::Segment(bytes)) => {
                self.offset = self.offset.saturating_add(bytes.len() as u64);
                self.current = Current::Segment { bytes, position: 0 };
                return Ok(true);
            }
            Some(Entry::File { size: 0, .. }) => return Ok(true),
            Some(Entry::File { name, size, .. }) => (name, size),
        };
        let toc = Arc::clone(&self.toc);
        let origin = self.plan.origin(self.next_file);
        let planned = self.next_content(&toc);
        let (Some(origin), Some((index, entry))) = (origin, planned) else {
            return Err(missing_in_toc(&name));
        };
        if entry.name() != name {
            // Elsewhere in the table or not at all: the headers, which are compared by name, decide.
            let what = format!(
                "{} comes where the table of contents has {}",
                show(&name),
                show(entry.name())
            );
            return Err(ErrorKind::NotSupported.err(what));
        }
        if entry.size() != size {
            let what = format!(
                "{} has {} bytes in the table of contents and {size} in the tar-split data",
                show(&name),
                entry.size()
            );
            return Err(ErrorKind::InvalidArchive.err(what));
        }
        let (parts, part) = match origin {
            Origin::Blob => (0..1, Source::Ended),
            Origin::Local(place) => {
                let file = self.open(place, &entry, size)?;
                let may_link = self.local.as_ref().is_some_and(|local| local.may_link(place));
                let local = LocalFile { file, may_link };
                self.origins.offer(self.offset, size, &local)?;
                (0..0, Source::Local(local.file, size))
            }
            Origin::Parts(first) => {
                let first = first as usize;
                (first..first + entry.parts().len(), Source::Ended)
            }
        };
        let is_local = matches!(origin, Origin::Local(_));
        if self.verify_local || !is_local {
            self.begun.add(stream_hash::Content {
                start: self.offset,
                size,
                number: index,
            });
        }
        self.next_file += 1;
        self.next_entry = index + 1;
        self.offset = self.offset.saturating_add(size);
        self.current = Current::Content(Content {
            entry: index,
            as_in_toc: matches!(origin, Origin::Blob),
            parts,
            part,
        });
        Ok(true)
    }

    /// The next regular file that is not empty, and which entry it is.
    fn next_content<'a>(&self, toc: &'a Toc) -> Option<(usize, TocEntry<'a>)> {
        let mut entries = (self.next_entry..toc.len()).filter_map(|index| Some((index, toc.entry(index)?)));
        entries.find(|(_, entry)| has_content(entry))
    }

    /// All lines were read.
    fn end(&self) -> Result<()> {
        match self.next_content(&self.toc) {
            Some((left, _)) => Err(missing_in_tar_split(&self.toc, left)),
            None => Ok(()),
        }
    }

    fn open(&self, place: Place, entry: &TocEntry<'_>, size: u64) -> Result<File> {
        let opened = self.local.as_ref().and_then(|local| local.open(place, size));
        let (mut file, start) = opened.ok_or_else(|| gone(entry))?;
        if start > 0 {
            file.seek(SeekFrom::Start(start))
                .during("seeking in a file of a layer")?;
        }
        Ok(file)
    }

    /// Appends bytes of the current file; `false` if that takes more of the blob.
    fn content(&mut self, input: &mut Input, out: &mut Vec<u8>, room: usize) -> Result<bool> {
        let Current::Content(content) = &mut self.current else {
            return Ok(true);
        };
        let toc = Arc::clone(&self.toc);
        let Some(entry) = toc.entry(content.entry) else {
            return Ok(true);
        };
        if let Source::Ended = content.part {
            let Some(index) = content.parts.next() else {
                self.current = Current::Nothing;
                return Ok(true);
            };
            let part = match content.as_in_toc {
                true => entry
                    .parts()
                    .next()
                    .map(|part| (part.size, PartOrigin::Blob(part.blob))),
                false => self
                    .plan
                    .parts
                    .get(index)
                    .map(|part| (part.size, part.from.clone())),
            };
            let Some((size, from)) = part else {
                return Err(missing_in_toc(entry.name()));
            };
            let part = match from {
                PartOrigin::Hole => Source::Zeros(size),
                PartOrigin::Local(place) => Source::Local(self.open(place, &entry, size)?, size),
                PartOrigin::Blob(range) => {
                    self.position.go_to(range.start, self.plan.requests());
                    self.frames.restart()?;
                    Source::Blob(size, range.end)
                }
            };
            if let Current::Content(content) = &mut self.current {
                content.part = part;
            }
            return Ok(true);
        }
        let start = out.len();
        let is_there = match &mut content.part {
            Source::Ended => true,
            Source::Zeros(rest) => {
                let count = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                out.resize(start + count, 0);
                *rest -= count as u64;
                true
            }
            Source::Local(file, rest) => {
                let room = room.min(READ_PART);
                let limit = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                let read = read_spare(file.as_fd(), out, limit);
                let count = read
                    .during("reading a file of another layer")
                    .context(|| of(&entry))?;
                if count == 0 {
                    return Err(gone(&entry));
                }
                *rest -= count as u64;
                true
            }
            Source::Blob(rest, end) => {
                if !self.position.pass(input) {
                    return Ok(false);
                }
                let limit = usize::try_from(*rest).map_or(room, |rest| rest.min(room));
                let available = end.saturating_sub(self.position.offset);
                let first = input.first();
                let part = usize::try_from(available)
                    .ok()
                    .and_then(|available| first.get(..available))
                    .unwrap_or(first);
                let is_all = part.len() as u64 == available;
                let used = self.frames.decode(part, out, limit).context(|| of(&entry))?;
                input.advance(used);
                self.position.offset += used as u64;
                let count = out.len() - start;
                *rest = rest.saturating_sub(count as u64);
                if used == 0 && count == 0 && is_all {
                    let what = format!("the content of {} ends {rest} bytes early", show(entry.name()));
                    return Err(ErrorKind::InvalidArchive.err(what));
                }
                used > 0 || count > 0
            }
        };
        let ended = match &content.part {
            Source::Zeros(rest) | Source::Local(_, rest) | Source::Blob(rest, _) => *rest == 0,
            Source::Ended => false,
        };
        if ended {
            content.part = Source::Ended;
        }
        Ok(is_there)
    }
}

fn of(entry: &TocEntry<'_>) -> String {
    format!("restoring entry {}", show(entry.name()))
}

/// A local file that is not there any more.
fn gone(entry: &TocEntry<'_>) -> Error {
    let what = format!("the file with the content of {} is gone", show(entry.name()));
    ErrorKind::LayerContentModified.err(what)
}
