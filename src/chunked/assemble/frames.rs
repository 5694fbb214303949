//! Decompresses single members of a blob: Zstandard frames, gzip members.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation as _, OutBuffer};

use super::super::location::TocFormat;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// A decompressor of one member after the other.
pub(super) enum Frames {
    Zstd(Box<Decoder<'static>>),
    Gzip(Box<Decompress>),
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frames")
    }
}

/// The largest window of gzip, with its head and trailer.
const GZIP_WINDOW: u8 = 15;

impl Frames {
    pub(super) fn new(format: TocFormat) -> Result<Self> {
        Ok(match format {
            TocFormat::ZstdChunked => Self::Zstd(Box::new(Decoder::new().during("starting to decompress")?)),
            TocFormat::EStargz => Self::Gzip(Box::new(Decompress::new_gzip(GZIP_WINDOW))),
        })
    }

    /// Begins a member, whatever has become of the one before.
    pub(super) fn restart(&mut self) -> Result<()> {
        match self {
            Self::Zstd(decoder) => decoder.reinit().during("starting to decompress"),
            Self::Gzip(decoder) => {
                **decoder = Decompress::new_gzip(GZIP_WINDOW);
                Ok(())
            }
        }
    }

    /// Appends at most `limit` bytes to `out`. Returns how many bytes of `input` were used up; if none were and nothing was
    /// appended, there has to be more of it. A member that ends is followed by the next one.
    pub(super) fn decode(&mut self, input: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<usize> {
        let start = out.len();
        let decoded = match self {
            Self::Zstd(decoder) => zstd(decoder, input, out, limit),
            Self::Gzip(decoder) => gzip(decoder, input, out, limit),
        };
        decoded.inspect_err(|_error| out.truncate(start))
    }
}

/// Writes to the capacity of `out`, of which nothing has to be cleared first.
fn zstd(decoder: &mut Decoder<'static>, input: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<usize> {
    let start = out.len();
    let end = start + limit;
    out.reserve(limit);
    let mut input = InBuffer::around(input);
    let mut output = OutBuffer::around_pos(out, start);
    while input.pos() < input.src.len() && output.pos() < end {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output).map_err(damaged)?;
        if before == (input.pos(), output.pos()) {
            break;
        }
    }
    // What the decoder holds back of bytes that it has taken already.
    if output.pos() == start && limit > 0 {
        decoder.run(&mut input, &mut output).map_err(damaged)?;
    }
    // What the member has beyond them belongs to nothing.
    out.truncate(end);
    Ok(input.pos())
}

fn gzip(decoder: &mut Decompress, input: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<usize> {
    let start = out.len();
    out.resize(start + limit, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    let (taken, given) = (decoder.total_in(), decoder.total_out());
    let status = decoder
        .decompress(input, room, FlushDecompress::None)
        .map_err(|error| damaged(error.into()))?;
    let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(0);
    let used = count(decoder.total_in(), taken);
    out.truncate(start + count(decoder.total_out(), given));
    if status == Status::StreamEnd {
        *decoder = Decompress::new_gzip(GZIP_WINDOW);
    }
    Ok(used)
}

fn damaged(error: std::io::Error) -> Error {
    ErrorKind::InvalidArchive.err("decompressing").with_source(error)
}
