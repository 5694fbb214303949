//! The stream of a blob: jobs in their order, then the table of contents.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::{Arc, OnceLock};

use zstd::bulk::Compressor;
use zstd::stream::write::Encoder as ZstdEncoder;

use super::cutter::{JOB, TarCutter, TarSplit};
use super::entry::{Chunk, Content, Unfit, push_entry};
use super::job::{Encoder, Event, Job, Packed, Sum, SumSource};
use crate::archive::compress::format::{Format, Tools};
use crate::archive::compress::parallel::ParallelStream;
use crate::bridge::Producer;
use crate::chunked::location::Section;
use crate::chunked::positions::{Positions, push_skippable};
use crate::digest::Digest;
use crate::error::{IoContext as _, Result};

/// A frame of nothing: magic, one segment of size 0, an empty last block.
const EMPTY: [u8; 9] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];

/// A compressed stream of the tar that a producer makes.
pub(crate) type ChunkedStream<P> = ParallelStream<ZstdChunked, TarCutter<P>>;

/// The annotations of a blob, once it is complete; never for one without a table of contents.
pub(crate) type Annotations = Arc<OnceLock<BTreeMap<String, String>>>;

/// Compresses the tar stream that `producer` makes, at the usual level if none is given.
pub(crate) fn compressed<P: Producer>(producer: P, level: Option<i32>) -> (ChunkedStream<P>, Annotations) {
    let annotations = Annotations::default();
    let format = ZstdChunked::new(Arc::clone(&annotations));
    let cutter = TarCutter::new(producer, level.unwrap_or(ZstdChunked::LEVEL));
    (ParallelStream::new(format, cutter, level), annotations)
}

/// What is known of the blob so far.
#[derive(Default)]
pub(crate) struct ZstdChunked {
    offset: u64,
    /// The beginnings of the entries, as JSON, one after the other.
    text: Vec<u8>,
    entries: Vec<Entry>,
    chunks: Vec<Chunk>,
    annotations: Annotations,
}

/// An entry, as far as it is not in the text.
struct Entry {
    text_end: usize,
    name_end: usize,
    /// The first of its chunks; they go up to the first of the next entry.
    first_chunk: usize,
    /// `None` without content.
    file: Option<Content>,
}

impl Format for ZstdChunked {
    const BLOCK: usize = JOB;
    const HEAD: &'static [u8] = &[];
    /// As small as what the Go library writes by default, in a fifth of its time.
    const LEVEL: i32 = 7;
    type Encoder = Encoder;
    type Input = Job;
    type Block = Packed;
    type Rest = std::result::Result<TarSplit, Unfit>;

    fn encoder(level: i32) -> io::Result<Encoder> {
        let mut compressor = Compressor::new(level)?;
        compressor.include_checksum(true)?;
        Ok(Encoder {
            compressor,
            room: Vec::new(),
        })
    }

    fn tools() -> &'static Tools<Self> {
        static TOOLS: Tools<ZstdChunked> = Tools::new();
        &TOOLS
    }

    fn compress(encoder: &mut Encoder, job: &mut Job) -> io::Result<Packed> {
        encoder.pack(job)
    }

    fn follow(&mut self, block: Packed) -> Vec<u8> {
        let base = self.offset;
        let start_of = |frame: usize| {
            let before = frame.checked_sub(1).and_then(|before| block.frames.get(before));
            before.map_or(base, |end| base + *end as u64)
        };
        let known = |source: SumSource| match source {
            SumSource::Known(sum) => sum,
            SumSource::Job(index) => block.sums.get(index).copied().unwrap_or_default(),
        };
        self.text.extend_from_slice(&block.text);
        let mut text_end = self.text.len() - block.text.len();
        for event in block.events {
            match event {
                Event::Entry { text, name_end } => {
                    text_end += text;
                    self.entries.push(Entry {
                        text_end,
                        name_end,
                        first_chunk: self.chunks.len(),
                        file: None,
                    });
                }
                Event::ChunkStart { frame } => self.chunks.push(Chunk {
                    offset: start_of(frame),
                    size: 0,
                    is_hole: false,
                    sum: Sum::default(),
                }),
                Event::ChunkEnd {
                    frame,
                    size,
                    is_hole,
                    sum,
                } => {
                    let sum = known(sum);
                    if let Some(chunk) = self.chunks.last_mut() {
                        (chunk.size, chunk.is_hole, chunk.sum) = (size, is_hole, sum);
                    }
                    if let Some(entry) = self.entries.last_mut() {
                        let file = entry.file.get_or_insert_default();
                        (file.end, file.sum) = (start_of(frame), sum);
                    }
                }
                Event::FileEnd { sum } => {
                    let file = self.entries.last_mut().and_then(|entry| entry.file.as_mut());
                    if let (Some(sum), Some(file)) = (sum, file) {
                        file.sum = known(sum);
                    }
                }
            }
        }
        self.offset += block.bytes.len() as u64;
        block.bytes
    }

    fn finish(self, rest: Self::Rest) -> Result<Vec<u8>> {
        let mut out = if self.offset == 0 {
            EMPTY.to_vec()
        } else {
            Vec::new()
        };
        let tar_split = match rest {
            Ok(tar_split) => tar_split,
            Err(Unfit(reason)) => {
                tracing::warn!(reason, "a layer is compressed without a table of contents");
                return Ok(out);
            }
        };
        let (toc, size) = self.toc(&tar_split).during("compressing the table of contents")?;
        let positions = Positions {
            digest: Digest::sha256(&toc),
            toc: Section {
                range: push_skippable(&mut out, self.offset, &toc)?,
                size,
            },
            tar_split: Section {
                range: push_skippable(&mut out, self.offset, &tar_split.bytes)?,
                size: tar_split.size,
            },
        };
        push_skippable(&mut out, self.offset, &positions.footer())?;
        // The only one that sets it.
        self.annotations.get_or_init(|| positions.annotations());
        Ok(out)
    }
}

impl ZstdChunked {
    /// A blob that is still empty.
    pub(super) fn new(annotations: Annotations) -> Self {
        Self {
            annotations,
            ..Self::default()
        }
    }

    /// The compressed table of contents, and how long it was.
    fn toc(&self, tar_split: &TarSplit) -> io::Result<(Vec<u8>, u64)> {
        let mut encoder = ZstdEncoder::new(Vec::new(), tar_split.level)?;
        encoder.include_checksum(true)?;
        let (mut line, mut size) = (b"{\"version\":1,\"entries\":".to_vec(), 0);
        let mut text_start = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            line.push(if index == 0 { b'[' } else { b',' });
            let text = self.text.get(text_start..entry.text_end).unwrap_or_default();
            text_start = entry.text_end;
            let next = self.entries.get(index + 1);
            let end = next.map_or(self.chunks.len(), |next| next.first_chunk);
            let chunks = self.chunks.get(entry.first_chunk..end).unwrap_or_default();
            push_entry(&mut line, (text, entry.name_end), entry.file.as_ref(), chunks);
            encoder.write_all(&line)?;
            size += line.len() as u64;
            line.clear();
        }
        line.extend_from_slice(if self.entries.is_empty() { b"null" } else { b"]" });
        let digest = Digest::sha256(&tar_split.bytes);
        line.extend_from_slice(format!(",\"tarSplitDigest\":\"{digest}\"}}").as_bytes());
        encoder.write_all(&line)?;
        size += line.len() as u64;
        Ok((encoder.finish()?, size))
    }
}
