//! Reads a tar stream and cuts it into jobs: headers and the chunks of files in frames of their own.
//!
//! This is the part that has to go through the stream in order. What takes most time, compressing and the sums of
//! chunks, is done with the jobs apart. A tar stream of which no table of contents can be made is cut into plain frames
//! from there on.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::stream::write::Encoder as ZstdEncoder;

use super::entry::{Unfit, push_head};
use super::job::{Event, Job, SumSource};
use super::paths::Paths;
use super::splitter::{Chunks, Splitter};
use crate::archive::compress::format::{Cutter, Filled};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::format::{MAX_SEGMENT, TarSplitLines};
use crate::bridge::{Producer, Progress};
use crate::error::{IoContext as _, Result};

/// Bytes of one job. A chunk that a job would end within goes into the next one unless it is as long.
pub(super) const JOB: usize = 1 << 20;

/// Bytes that a producer is asked for at a time.
const ROOM: usize = 256 * 1024;

/// Bytes that are there before a header is read, so that a step hardly ever has to wait for a producer within one.
const AHEAD: usize = 16 * 1024;

/// The tar stream as a producer makes it.
struct Feed<P> {
    /// `None` at the end.
    producer: Option<P>,
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl<P: Producer> Feed<P> {
    /// One step of the producer; whether it brought anything.
    fn pump(&mut self) -> Result<bool> {
        let Some(producer) = &mut self.producer else {
            return Ok(false);
        };
        let mut chunk = Vec::with_capacity(ROOM);
        if producer.step(&mut chunk, ROOM)? == Progress::End {
            self.producer = None;
        }
        let count = chunk.len();
        self.bytes += count;
        if count > 0 {
            self.chunks.push_back(chunk.into());
        }
        Ok(count > 0)
    }
}

impl<P: Producer> ChunkSource for Feed<P> {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                self.bytes -= chunk.len();
                return Ok(Some(chunk));
            }
            if self.producer.is_none() {
                return Ok(None);
            }
            self.pump()?;
        }
    }
}

/// Where in the stream the cutter is.
enum At {
    /// Before a header.
    Header,
    /// Within the content of the entry.
    Content(Box<Content>),
    /// After the end of the archive.
    Rest,
}

/// What is known of a file within its content.
struct Content {
    /// `None` without a table of contents.
    splitter: Option<Splitter>,
    crc: Crc,
    chunks: u64,
    /// Sum of what earlier jobs have of the file.
    file_sum: Option<Sha256>,
    /// Where in the job the part begins that is not in it.
    file_from: usize,
    /// Whether a chunk has begun.
    is_open: bool,
    chunk_size: u64,
    /// The same of the chunk.
    chunk_sum: Option<Sha256>,
    chunk_from: usize,
}

impl Content {
    /// Bytes that are not in the job yet, since it is still open what they are.
    fn held_back(&self) -> usize {
        self.splitter.as_ref().map_or(0, Splitter::held_back)
    }
}

/// See the module's head.
pub(crate) struct TarCutter<P> {
    reader: TarReader<Feed<P>>,
    entry: Entry,
    at: At,
    job: Job,
    /// What was read and is for the next job. Jobs end after a number of bytes, in whatever pieces these come, so that
    /// a tar always gives the same blob.
    piece: Bytes,
    /// Bytes that are no content and have no segment of their own yet.
    raw: Vec<u8>,
    /// `Err`: no table of contents is made.
    index: std::result::Result<Index, Unfit>,
}

/// What a table of contents goes with.
struct Index {
    tar_split: TarSplitLines<Counted>,
    paths: Paths,
}

/// Compresses and counts. A stream of which nothing was read costs no encoder.
struct Counted {
    level: i32,
    encoder: Option<ZstdEncoder<'static, Vec<u8>>>,
    count: u64,
}

impl Counted {
    fn encoder(&mut self) -> io::Result<&mut ZstdEncoder<'static, Vec<u8>>> {
        match &mut self.encoder {
            Some(encoder) => Ok(encoder),
            none => Ok(none.insert(ZstdEncoder::new(Vec::new(), self.level)?)),
        }
    }

    fn finish(mut self) -> io::Result<TarSplit> {
        self.encoder()?;
        let bytes = self.encoder.map(ZstdEncoder::finish).transpose()?;
        Ok(TarSplit {
            bytes: bytes.unwrap_or_default(),
            size: self.count,
            level: self.level,
        })
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.encoder()?.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder()?.flush()
    }
}

/// Compressed tar-split data, and how long it was.
pub(crate) struct TarSplit {
    pub(super) bytes: Vec<u8>,
    pub(super) size: u64,
    pub(super) level: i32,
}

impl<P: Producer> TarCutter<P> {
    /// A cutter of the tar stream that `producer` makes.
    pub(super) fn new(producer: P, level: i32) -> Self {
        let feed = Feed {
            producer: Some(producer),
            chunks: VecDeque::new(),
            bytes: 0,
        };
        let tar_split = Counted {
            level,
            encoder: None,
            count: 0,
        };
        Self {
            reader: TarReader::new(feed),
            entry: Entry::default(),
            at: At::Header,
            job: Job::default(),
            piece: Bytes::new(),
            raw: Vec::new(),
            index: Ok(Index {
                tar_split: TarSplitLines::new(tar_split),
                paths: Paths::default(),
            }),
        }
    }

    /// Gets enough bytes to go on with; `false` if a step brought nothing.
    fn feed(&mut self) -> Result<bool> {
        let wanted = match self.at {
            At::Header => AHEAD,
            At::Content(_) | At::Rest if self.piece.is_empty() => 1,
            At::Content(_) | At::Rest => 0,
        };
        while self.reader.buffered() + self.reader.source().bytes < wanted
            && self.reader.source().producer.is_some()
        {
            if !self.reader.source().pump()? {
                return Ok(self.reader.source().producer.is_none());
            }
        }
        Ok(true)
    }

    /// Reads one header or one piece; `false` at the end of the stream.
    fn step(&mut self) -> Result<bool> {
        match std::mem::replace(&mut self.at, At::Header) {
            At::Header => {
                let (reader, raw) = (&mut self.reader, &mut self.raw);
                let is_entry = reader.next(&mut self.entry, &mut |bytes| {
                    raw.extend_from_slice(bytes);
                    Ok(())
                })?;
                self.job.data.extend_from_slice(&self.raw);
                if is_entry {
                    self.start_entry()?;
                } else {
                    self.at = At::Rest;
                }
            }
            At::Content(mut content) => {
                if self.piece.is_empty() {
                    self.piece = self.reader.payload()?.unwrap_or_default();
                }
                if self.piece.is_empty() {
                    return self.end_content(content).map(|()| true);
                }
                let piece = self.take_piece(content.held_back());
                content.crc.update(&piece);
                let mut chunks = OpenChunks {
                    content: &mut content,
                    job: &mut self.job,
                };
                chunks.push(&piece);
                self.at = At::Content(content);
            }
            At::Rest => {
                self.at = At::Rest;
                if self.piece.is_empty() {
                    self.piece = self.reader.rest()?.unwrap_or_default();
                }
                if self.piece.is_empty() {
                    return Ok(false);
                }
                let piece = self.take_piece(0);
                if piece.iter().any(|byte| *byte != 0) {
                    self.give_up(Unfit("the archive is followed by other data".to_owned()));
                }
                self.job.data.extend_from_slice(&piece);
                self.raw.extend_from_slice(&piece);
                // Readers look for headers where a segment begins, so it begins where a block does.
                if self.raw.len() > MAX_SEGMENT {
                    let rest = self.raw.split_off(MAX_SEGMENT);
                    self.segment()?;
                    self.raw = rest;
                }
            }
        }
        Ok(true)
    }

    /// As much of the current piece as the job has room for beside bytes that are held back.
    fn take_piece(&mut self, held_back: usize) -> Bytes {
        let room = JOB.saturating_sub(self.job.data.len() + held_back).max(1);
        self.piece.split_to(self.piece.len().min(room))
    }

    /// Whether the job is long enough.
    fn is_full(&self) -> bool {
        let held_back = match &self.at {
            At::Content(content) => content.held_back(),
            At::Header | At::Rest => 0,
        };
        self.job.data.len() + held_back >= JOB
    }

    /// Writes what is no content to the tar-split data, as one segment: readers want one for each header.
    fn segment(&mut self) -> Result<()> {
        if let Ok(index) = &mut self.index
            && !self.raw.is_empty()
        {
            index.tar_split.segment(&self.raw)?;
        }
        self.raw.clear();
        Ok(())
    }

    fn give_up(&mut self, reason: Unfit) {
        if self.index.is_ok() {
            self.index = Err(reason);
        }
    }

    fn start_entry(&mut self) -> Result<()> {
        self.segment()?;
        if let Err(reason) = self.note_entry() {
            self.give_up(reason);
        }
        let is_indexed = self.index.is_ok();
        if self.reader.remaining() == 0 {
            if let Ok(index) = &mut self.index {
                index.tar_split.file(&self.entry.name, 0, [0; 8])?;
            }
            return Ok(());
        }
        if is_indexed {
            self.job.end_frame();
        }
        let start = self.job.data.len();
        self.at = At::Content(Box::new(Content {
            splitter: is_indexed.then(Splitter::new),
            crc: Crc::new(),
            chunks: 0,
            file_sum: None,
            file_from: start,
            is_open: false,
            chunk_size: 0,
            chunk_sum: None,
            chunk_from: start,
        }));
        Ok(())
    }

    /// Adds the entry to the table of contents.
    fn note_entry(&mut self) -> std::result::Result<(), Unfit> {
        let Ok(index) = &mut self.index else {
            return Ok(());
        };
        let before = self.job.text.len();
        let name_end = match push_head(&mut self.job.text, &self.entry) {
            Ok(name_end) => name_end,
            Err(reason) => {
                self.job.text.truncate(before);
                return Err(reason);
            }
        };
        if let Err(reason) = index.paths.note(&self.entry) {
            self.job.text.truncate(before);
            return Err(reason);
        }
        self.job.events.push(Event::Entry {
            text: self.job.text.len() - before,
            name_end,
        });
        Ok(())
    }

    fn end_content(&mut self, mut content: Box<Content>) -> Result<()> {
        let splitter = content.splitter.take();
        let is_indexed = splitter.is_some();
        let mut chunks = OpenChunks {
            content: &mut content,
            job: &mut self.job,
        };
        if let Some(splitter) = splitter {
            splitter.finish(&mut chunks);
        }
        if is_indexed {
            let sum = (content.chunks > 1).then(|| {
                let range = content.file_from..self.job.data.len();
                sum_of(content.file_sum.take(), &mut self.job, range)
            });
            self.job.events.push(Event::FileEnd { sum });
        }
        if let Ok(index) = &mut self.index {
            index
                .tar_split
                .file(&self.entry.name, self.entry.size, content.crc.take())?;
        }
        Ok(())
    }

    /// Hands the job out that is long enough. A chunk that is open goes into the next one.
    fn hand_out(&mut self, block: &mut Job) {
        let mut next = std::mem::take(block);
        let job = &mut self.job;
        if let At::Content(content) = &mut self.at
            && content.splitter.is_some()
        {
            let is_moved = content.is_open && content.chunk_sum.is_none() && content.chunk_from > 0;
            if is_moved {
                if content.file_from < content.chunk_from {
                    let part = job.data.get(content.file_from..content.chunk_from);
                    let sum = content.file_sum.get_or_insert_with(Sha256::new);
                    sum.update(part.unwrap_or_default());
                }
                next.data
                    .extend_from_slice(job.data.get(content.chunk_from..).unwrap_or_default());
                job.data.truncate(content.chunk_from);
                // Its beginning is told again.
                if matches!(job.events.last(), Some(Event::ChunkStart { .. })) {
                    job.events.pop();
                }
                next.events.push(Event::ChunkStart { frame: 0 });
            } else {
                let part = job.data.get(content.file_from..).unwrap_or_default();
                content.file_sum.get_or_insert_with(Sha256::new).update(part);
                if content.is_open {
                    let part = job.data.get(content.chunk_from..).unwrap_or_default();
                    content.chunk_sum.get_or_insert_with(Sha256::new).update(part);
                }
            }
            content.file_from = 0;
            content.chunk_from = 0;
        }
        job.end_frame();
        *block = std::mem::replace(job, next);
    }
}

/// The sum of a part of a job and of what came before it.
fn sum_of(before: Option<Sha256>, job: &mut Job, range: std::ops::Range<usize>) -> SumSource {
    match before {
        Some(mut sum) => {
            sum.update(job.data.get(range).unwrap_or_default());
            SumSource::Known(sum.finalize().into())
        }
        None => job.want_sum(range),
    }
}

/// The chunks of a file on their way into a job.
struct OpenChunks<'a> {
    content: &'a mut Content,
    job: &'a mut Job,
}

impl OpenChunks<'_> {
    fn push(&mut self, piece: &[u8]) {
        match self.content.splitter.take() {
            Some(mut splitter) => {
                splitter.push(piece, self);
                self.content.splitter = Some(splitter);
            }
            None => self.job.data.extend_from_slice(piece),
        }
    }

    fn grow(&mut self, count: u64) {
        if !std::mem::replace(&mut self.content.is_open, true) {
            self.content.chunk_from = self.job.data.len();
            let frame = self.job.frames.len();
            self.job.events.push(Event::ChunkStart { frame });
        }
        self.content.chunk_size += count;
    }
}

impl Chunks for OpenChunks<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.grow(bytes.len() as u64);
        self.job.data.extend_from_slice(bytes);
    }

    fn zeros(&mut self, count: u64) {
        self.grow(count);
        let length = usize::try_from(count).map_or(usize::MAX, |count| self.job.data.len() + count);
        self.job.data.resize(length, 0);
    }

    fn end(&mut self, is_hole: bool) {
        let content = &mut *self.content;
        if !std::mem::replace(&mut content.is_open, false) {
            return;
        }
        self.job.end_frame();
        content.chunks += 1;
        let range = content.chunk_from..self.job.data.len();
        let sum = sum_of(content.chunk_sum.take(), self.job, range);
        self.job.events.push(Event::ChunkEnd {
            frame: self.job.frames.len(),
            size: std::mem::take(&mut content.chunk_size),
            is_hole,
            sum,
        });
    }
}

impl<P: Producer> Cutter for TarCutter<P> {
    type Input = Job;
    type Rest = std::result::Result<TarSplit, Unfit>;

    fn fill(&mut self, block: &mut Job) -> Result<Filled> {
        loop {
            if self.is_full() {
                self.hand_out(block);
                return Ok(Filled::Full);
            }
            if !self.feed()? {
                return Ok(Filled::Partly);
            }
            if !self.step()? {
                self.hand_out(block);
                return Ok(Filled::End);
            }
        }
    }

    fn finish(mut self) -> Result<Self::Rest> {
        self.segment()?;
        let index = match self.index {
            Ok(index) => index,
            Err(reason) => return Ok(Err(reason)),
        };
        let compressed = index.tar_split.into_inner().finish();
        Ok(Ok(compressed.during("compressing tar-split data")?))
    }
}
