//! Writing a file with holes in the place of zeros.
//!
//! A hole takes no space, but splits the file on disk: only long runs of zeros become one. What is no run of zeros is hardly
//! looked at.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};

/// Zeros that make a hole.
pub(super) const MIN_HOLE: usize = 16 * 1024;

/// Every run that makes a hole has two of the bytes that lie so far from each other.
const STRIDE: usize = MIN_HOLE / 2;

/// What zeros are compared with, and what is written of them.
static ZEROS: [u8; MIN_HOLE] = [0; MIN_HOLE];

/// Writes to a new file, from its start on.
pub(super) struct HoleWriter<'a> {
    file: &'a File,
    /// Zeros that came last and are not written.
    zeros: u64,
    /// Whether the file ends with a hole so far.
    is_short: bool,
}

impl<'a> HoleWriter<'a> {
    /// A writer to the empty file `file`.
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            zeros: 0,
            is_short: false,
        }
    }

    /// Takes the next bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let zeros = zeros_at_start(bytes);
            self.zeros += zeros as u64;
            bytes = bytes.get(zeros..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            self.settle()?;
            let (data, rest) = bytes.split_at_checked(data_length(bytes)).unwrap_or((bytes, &[]));
            self.file.write_all(data)?;
            self.is_short = false;
            bytes = rest;
        }
        Ok(())
    }

    /// Passes over the zeros that are waiting, or writes them.
    fn settle(&mut self) -> io::Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        match usize::try_from(zeros).ok().and_then(|zeros| ZEROS.get(..zeros)) {
            Some(zeros) if zeros.len() < MIN_HOLE => self.file.write_all(zeros),
            _ => {
                let zeros = i64::try_from(zeros).map_err(|_too_many| io::ErrorKind::FileTooLarge)?;
                self.file.seek(SeekFrom::Current(zeros))?;
                self.is_short = true;
                Ok(())
            }
        }
    }

    /// After the last bytes.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.settle()?;
        if self.is_short {
            let size = self.file.stream_position()?;
            self.file.set_len(size)?;
        }
        Ok(())
    }
}

/// How many bytes go up to the next run of zeros that may make a hole.
fn data_length(bytes: &[u8]) -> usize {
    // One at the end may go on with the next bytes.
    let end = bytes.len() - zeros_at_end(bytes);
    let mut at = STRIDE;
    while at < end {
        if bytes.get(at) == Some(&0) {
            let start = at - zeros_at_end(bytes.get(..at).unwrap_or_default());
            let after = at + zeros_at_start(bytes.get(at..end).unwrap_or_default());
            if after - start >= MIN_HOLE {
                return start;
            }
            at = (after / STRIDE + 1) * STRIDE;
        } else {
            at += STRIDE;
        }
    }
    end
}

fn zeros_at_start(bytes: &[u8]) -> usize {
    let (mut rest, block) = (bytes, ZEROS.get(..64).unwrap_or_default());
    while let Some(next) = rest.strip_prefix(&ZEROS[..]).or_else(|| rest.strip_prefix(block)) {
        rest = next;
    }
    bytes.len() - rest.len() + rest.iter().take_while(|byte| **byte == 0).count()
}

fn zeros_at_end(bytes: &[u8]) -> usize {
    let (mut rest, block) = (bytes, ZEROS.get(..64).unwrap_or_default());
    while let Some(next) = rest.strip_suffix(&ZEROS[..]).or_else(|| rest.strip_suffix(block)) {
        rest = next;
    }
    bytes.len() - rest.len() + rest.iter().rev().take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    fn written(pieces: &[&[u8]]) -> (Vec<u8>, u64) {
        let named = tempfile::NamedTempFile::new().unwrap();
        let mut writer = HoleWriter::new(named.as_file());
        for piece in pieces {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap();
        let blocks = named.as_file().metadata().unwrap().blocks();
        (std::fs::read(named.path()).unwrap(), blocks * 512)
    }

    #[test]
    fn long_runs_of_zeros_take_no_space() {
        let data = [&[1; 5000][..], &[0; 1 << 20], &[2; 3], &[0; 1 << 20], &[0]].concat();
        for size in [1000, 4096, 100_003, 1 << 22] {
            let pieces: Vec<&[u8]> = data.chunks(size).collect();
            let (content, taken) = written(&pieces);
            assert!(content == data, "{size}");
            assert!(taken <= 64 * 1024, "{taken} bytes in pieces of {size}");
        }
        assert_eq!(written(&[]).0, b"");
        assert_eq!(written(&[&[0; 3], &[0; 4]]).0, [0; 7]);
        let zeros = vec![0; 3 << 20];
        let (content, taken) = written(&[&zeros]);
        assert!(content == zeros && taken <= 4096, "{taken}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_content_is_what_came(
            parts in prop::collection::vec((0usize..40_000, 0usize..40_000), 0..8),
            size in 1usize..70_000,
        ) {
            let mut data = Vec::new();
            for (zeros, others) in parts {
                data.resize(data.len() + zeros, 0);
                data.resize(data.len() + others, 7);
            }
            let pieces: Vec<&[u8]> = data.chunks(size).collect();
            prop_assert!(written(&pieces).0 == data);
        }
    }
}
