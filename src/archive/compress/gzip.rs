//! gzip on all processors, see [`parallel`](crate::archive::compress::parallel).
//!
//! The result is one ordinary gzip member. The deflate blocks come from libdeflate, which is faster than zlib and makes
//! blocks as small without the previous block as a window. It writes complete deflate streams only: [`deflate_blocks`]
//! removes the end marks so that the streams can follow each other in one member. The checksums of the blocks are
//! combined.

use std::io;

use flate2::Crc;
use libdeflater::{CompressionLvl, Compressor};

use crate::archive::compress::deflate_blocks;
use crate::archive::compress::format::{Format, Tools};
use crate::error::Result;

/// An empty final block.
const END: [u8; 2] = [3, 0];

/// One gzip member.
#[derive(Default)]
pub(crate) struct Gzip {
    /// Of everything so far.
    crc: Crc,
}

/// A part of a deflate stream, and the checksum of what is in it.
pub(crate) struct Block {
    bytes: Vec<u8>,
    crc: Crc,
}

impl Format for Gzip {
    /// Becomes two deflate streams, whose last blocks are searched for together. Longer ones would be smaller by a few
    /// per mille only, and take longer to search.
    const BLOCK: usize = 384 * 1024;
    /// Identification, deflate, no flags, no time, no hint, unknown system.
    const HEAD: &'static [u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    /// With the search for the ends of blocks, 85 % of the work of zlib-rs's level 3, for 1 % fewer bytes.
    const LEVEL: i32 = 2;
    type Encoder = Encoder;
    type Input = Vec<u8>;
    type Block = Block;
    type Rest = ();

    fn encoder(level: i32) -> io::Result<Encoder> {
        let level = CompressionLvl::new(level)
            .map_err(|_reason| io::Error::other(format!("no compression level {level}")))?;
        Ok(Encoder {
            compressor: Compressor::new(level),
            room: Vec::new(),
        })
    }

    fn tools() -> &'static Tools<Self> {
        static TOOLS: Tools<Gzip> = Tools::new();
        &TOOLS
    }

    fn compress(encoder: &mut Encoder, data: &mut Vec<u8>) -> io::Result<Block> {
        let mut crc = Crc::new();
        crc.update(data);
        let (first, second) = data.split_at(data.len() / 2);
        let mut streams = [encoder.stream(first)?, encoder.stream(second)?];
        let [one, other] = &mut streams;
        let bytes = match deflate_blocks::open_ends([one, other]) {
            Some(()) => streams.concat(),
            None => stored(data),
        };
        Ok(Block { bytes, crc })
    }

    fn follow(&mut self, block: Block) -> Vec<u8> {
        self.crc.combine(&block.crc);
        block.bytes
    }

    fn finish(self, _rest: ()) -> Result<Vec<u8>> {
        let mut tail = END.to_vec();
        tail.extend_from_slice(&self.crc.sum().to_le_bytes());
        // The format has the size modulo 2^32, which is what the checksum counts.
        tail.extend_from_slice(&self.crc.amount().to_le_bytes());
        Ok(tail)
    }
}

/// What compresses blocks, with room for the result.
pub(crate) struct Encoder {
    compressor: Compressor,
    room: Vec<u8>,
}

impl Encoder {
    /// A whole deflate stream.
    fn stream(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let bound = self.compressor.deflate_compress_bound(data.len());
        if self.room.len() < bound {
            self.room.resize(bound, 0);
        }
        let size = self
            .compressor
            .deflate_compress(data, &mut self.room)
            .map_err(|error| io::Error::other(format!("compressing: {error}")))?;
        Ok(self.room.get(..size).unwrap_or_default().to_vec())
    }
}

/// Stored deflate blocks with the data uncompressed: the fallback for a stream whose last block cannot be found.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.len() + data.len() / 1000 + 5);
    for chunk in data.chunks(usize::from(u16::MAX)) {
        let length = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        bytes.push(0);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&(!length).to_le_bytes());
        bytes.extend_from_slice(chunk);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::compress::parallel::tests::{check_program, check_sizes, compressed, sample};
    use proptest::prelude::*;
    use std::io::{Read as _, Write as _};

    const BLOCK: usize = Gzip::BLOCK;

    /// Reads one member only, as some readers do.
    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).unwrap();
        assert!(decoder.into_inner().is_empty(), "something after the member");
        out
    }

    #[test]
    fn one_member_with_everything_whatever_the_sizes() {
        check_sizes::<Gzip>(gunzip);
    }

    #[test]
    fn seams_cost_little() {
        let text: Vec<u8> = sample(12 * BLOCK, BLOCK)
            .chunks(BLOCK)
            .enumerate()
            .filter(|(index, _)| index % 3 != 0)
            .flat_map(|(_, chunk)| chunk.to_vec())
            .collect();
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
        whole.write_all(&text).unwrap();
        let whole = whole.finish().unwrap().len();
        let cut = compressed::<Gzip>(&[&text], 2).len();
        assert!(cut * 100 < whole * 102, "{cut} bytes instead of {whole}");
    }

    #[test]
    fn real_files_come_back_and_get_small() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = program.get(..6 * BLOCK + 1).unwrap_or(&program);
        let compressed = compressed::<Gzip>(&[program], 2);
        assert!(gunzip(&compressed) == program);
        assert!(
            compressed.len() * 10 < program.len() * 9,
            "{} bytes",
            compressed.len()
        );
    }

    #[test]
    fn what_is_stored_is_a_stream_too() {
        for size in [0, 1, 65_535, 65_536, 200_000] {
            let data = sample(size, BLOCK);
            let stream = [stored(&data), END.to_vec()].concat();
            let mut out = Vec::new();
            flate2::read::DeflateDecoder::new(&*stream)
                .read_to_end(&mut out)
                .unwrap();
            assert!(out == data, "{size}");
        }
    }

    #[test]
    fn the_gzip_program_finds_it_in_order() {
        check_program("gzip", &compressed::<Gzip>(&[&sample(5 * BLOCK, BLOCK)], 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_bytes_come_back(
            data in prop::collection::vec(any::<u8>(), 0..3000),
            times in 0usize..400,
            threads in 0usize..3,
        ) {
            let pieces: Vec<&[u8]> = std::iter::repeat_n(&*data, times).collect();
            prop_assert!(gunzip(&compressed::<Gzip>(&pieces, threads)) == pieces.concat());
        }
    }
}
