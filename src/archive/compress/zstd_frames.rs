//! Zstandard on all processors, see [`parallel`](crate::archive::compress::parallel).
//!
//! Each block becomes a frame of its own, as RFC 8878 has it for streams of several. A frame's window is as large as
//! the frame, twice what the level has by itself: that makes up for what a frame cannot refer to in those before.

use std::io;

use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use crate::archive::compress::format::{Format, Tools};
use crate::error::Result;

/// Binary logarithm of the block's size.
const WINDOW: u32 = 22;

/// A frame of nothing: magic, one segment of size 0, an empty last block.
const EMPTY: [u8; 9] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];

/// A sequence of frames.
#[derive(Default)]
pub(crate) struct ZstdFrames {
    any: bool,
}

impl Format for ZstdFrames {
    const BLOCK: usize = 1 << WINDOW;
    const HEAD: &'static [u8] = &[];
    /// What libzstd and the Go library have for the usual one.
    const LEVEL: i32 = 3;
    type Encoder = Compressor<'static>;
    type Input = Vec<u8>;
    type Block = Vec<u8>;
    type Rest = ();

    fn encoder(level: i32) -> io::Result<Self::Encoder> {
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::WindowLog(WINDOW))?;
        compressor.include_checksum(true)?;
        Ok(compressor)
    }

    fn tools() -> &'static Tools<Self> {
        static TOOLS: Tools<ZstdFrames> = Tools::new();
        &TOOLS
    }

    fn compress(encoder: &mut Self::Encoder, data: &mut Vec<u8>) -> io::Result<Vec<u8>> {
        encoder.compress(data)
    }

    fn follow(&mut self, frame: Vec<u8>) -> Vec<u8> {
        self.any = true;
        frame
    }

    fn finish(self, _rest: ()) -> Result<Vec<u8>> {
        // No frame at all would be no Zstandard stream.
        Ok(if self.any { Vec::new() } else { EMPTY.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::compress::parallel::tests::{check_program, check_sizes, compressed, sample};
    use proptest::prelude::*;

    const BLOCK: usize = ZstdFrames::BLOCK;

    fn unzstd(bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.starts_with(b"\x28\xb5\x2f\xfd"));
        zstd::decode_all(bytes).unwrap()
    }

    #[test]
    fn everything_comes_back_whatever_the_sizes() {
        check_sizes::<ZstdFrames>(unzstd);
    }

    #[test]
    fn frames_cost_next_to_nothing() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = program.get(..5 * BLOCK + 1).unwrap_or(&program);
        let whole = zstd::encode_all(program, ZstdFrames::LEVEL).unwrap().len();
        let cut = compressed::<ZstdFrames>(&[program], 2);
        assert!(unzstd(&cut) == program);
        assert!(
            cut.len() * 100 < whole * 101,
            "{} bytes instead of {whole}",
            cut.len()
        );
    }

    #[test]
    fn damage_is_found() {
        let mut bytes = compressed::<ZstdFrames>(&[&sample(10_000, 1000)], 1);
        // In the part that is kept as it is, where only the checksum can tell.
        bytes[500] ^= 1;
        assert!(zstd::decode_all(&*bytes).is_err());
    }

    #[test]
    fn the_zstd_program_finds_it_in_order() {
        check_program("zstd", &compressed::<ZstdFrames>(&[&sample(3 * BLOCK, BLOCK)], 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_bytes_come_back(
            data in prop::collection::vec(any::<u8>(), 0..3000),
            times in 0usize..3000,
            threads in 0usize..3,
        ) {
            let pieces: Vec<&[u8]> = std::iter::repeat_n(&*data, times).collect();
            prop_assert!(unzstd(&compressed::<ZstdFrames>(&pieces, threads)) == pieces.concat());
        }
    }
}
