//! A part of a stream that is compressed apart: bytes, where frames end in them, and what there is to say about them in
//! the table of contents.

use std::io;
use std::ops::Range;

use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

use crate::archive::compress::format::Input;

/// A sha256 sum.
pub(crate) type Sum = [u8; 32];

/// A part of the stream before it is compressed.
#[derive(Default)]
pub(crate) struct Job {
    pub(super) data: Vec<u8>,
    /// Where frames end in `data`, ascending. The last one is the end of the data in a complete job.
    pub(super) frames: Vec<usize>,
    /// Parts of `data` whose sums are wanted.
    pub(super) sums: Vec<Range<usize>>,
    /// The beginnings of new entries of the table of contents, as JSON.
    pub(super) text: Vec<u8>,
    pub(super) events: Vec<Event>,
}

/// What happens in a job, in order.
#[derive(Debug)]
pub(crate) enum Event {
    /// An entry begins: so many bytes of `text`, up to `name_end` of which its name goes.
    Entry { text: usize, name_end: usize },
    /// A chunk begins with this frame.
    ChunkStart { frame: usize },
    /// It ends before this frame, perhaps at the start of the job.
    ChunkEnd {
        frame: usize,
        size: u64,
        is_hole: bool,
        sum: SumSource,
    },
    /// The file ends. `None`: it has one chunk, whose sum is the file's.
    FileEnd { sum: Option<SumSource> },
}

/// Where a sum comes from.
#[derive(Debug)]
pub(crate) enum SumSource {
    /// It is computed with the job, this one of its sums.
    Job(usize),
    /// It was computed before, of what more than one job holds.
    Known(Sum),
}

impl Job {
    /// Ends the frame that is open, if one is.
    pub(super) fn end_frame(&mut self) {
        if self.frames.last().copied().unwrap_or(0) < self.data.len() {
            self.frames.push(self.data.len());
        }
    }

    /// Asks for the sum of a part of the data.
    pub(super) fn want_sum(&mut self, range: Range<usize>) -> SumSource {
        self.sums.push(range);
        SumSource::Job(self.sums.len() - 1)
    }
}

impl Input for Job {
    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.events.is_empty()
    }

    fn clear(&mut self) {
        self.data.clear();
        self.frames.clear();
        self.sums.clear();
        self.text.clear();
        self.events.clear();
    }
}

/// A part of the stream after it is compressed.
pub(crate) struct Packed {
    pub(super) bytes: Vec<u8>,
    /// Where frames end in `bytes`.
    pub(super) frames: Vec<usize>,
    pub(super) sums: Vec<Sum>,
    pub(super) text: Vec<u8>,
    pub(super) events: Vec<Event>,
}

/// What compresses frames, with room for one.
pub(crate) struct Encoder {
    pub(super) compressor: Compressor<'static>,
    pub(super) room: Vec<u8>,
}

impl Encoder {
    /// Compresses a job.
    pub(super) fn pack(&mut self, job: &mut Job) -> io::Result<Packed> {
        let mut bytes = Vec::with_capacity(job.data.len() / 2);
        let mut frames = Vec::with_capacity(job.frames.len());
        let mut start = 0;
        for &end in &job.frames {
            let frame = job.data.get(start..end).unwrap_or_default();
            self.room.clear();
            self.room.reserve(zstd::zstd_safe::compress_bound(frame.len()));
            self.compressor.compress_to_buffer(frame, &mut self.room)?;
            bytes.extend_from_slice(&self.room);
            frames.push(bytes.len());
            start = end;
        }
        let sum =
            |range: &Range<usize>| Sha256::digest(job.data.get(range.clone()).unwrap_or_default()).into();
        Ok(Packed {
            bytes,
            frames,
            sums: job.sums.iter().map(sum).collect(),
            text: std::mem::take(&mut job.text),
            events: std::mem::take(&mut job.events),
        })
    }
}
