//! A part of an open file as a producer of bytes.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, BorrowedFd};

use crate::bridge::outgoing::{Producer, Progress};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys;

/// Produces some bytes of a file.
pub(crate) struct FilePart {
    file: File,
    /// Where to begin; `None` once the file is there.
    offset: Option<u64>,
    rest: u64,
}

impl FilePart {
    /// The `size` bytes of `file` from `offset` on. A file that ends before makes it fail.
    pub(crate) fn new(file: File, offset: u64, size: u64) -> Self {
        Self {
            file,
            offset: Some(offset),
            rest: size,
        }
    }
}

impl Producer for FilePart {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        if let Some(offset) = self.offset.take() {
            self.file
                .seek(SeekFrom::Start(offset))
                .during("seeking in a file")?;
        }
        let mut room = room;
        while self.rest > 0 && room > 0 {
            let limit = usize::try_from(self.rest).map_or(room, |rest| rest.min(room));
            let count = read_spare(self.file.as_fd(), out, limit).during("reading a file")?;
            if count == 0 {
                let what = format!("a file that ends {} bytes early", self.rest);
                return Err(ErrorKind::InvalidInput.err(what));
            }
            room -= count;
            self.rest = self.rest.saturating_sub(count as u64);
        }
        Ok(match self.rest {
            0 => Progress::End,
            _ => Progress::More,
        })
    }
}

/// Reads once into the spare capacity of `buffer`, no more than `limit` bytes, and returns how many came.
pub(crate) fn read_spare(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    limit: usize,
) -> rustix::io::Result<usize> {
    sys::read_spare(file, buffer, limit, None)
}

/// As [`read_spare`], from a place in the file; its position is neither used nor moved.
pub(crate) fn read_spare_at(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    limit: usize,
    offset: u64,
) -> rustix::io::Result<usize> {
    sys::read_spare(file, buffer, limit, Some(offset))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::bridge::outgoing::run_to_end;

    #[test]
    fn the_part_that_was_asked_for_comes_and_no_more() {
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for room in [1 << 20, 64 * 1024, 10_007] {
            for (offset, size) in [(0, content.len()), (5, 0), (77, 500_000), (content.len() - 1, 1)] {
                let part = FilePart::new(file.try_clone().unwrap(), offset as u64, size as u64);
                let mut out = Vec::new();
                run_to_end(part, room, &mut out).unwrap();
                assert!(out == content[offset..offset + size], "{room} {offset} {size}");
            }
            let beyond = FilePart::new(file, content.len() as u64 - 10, 11);
            let mut out = Vec::new();
            let error = run_to_end(beyond, room, &mut out).unwrap_err();
            assert!(error.to_string().contains("ends 1 bytes early"), "{error}");
            assert_eq!(out, content[content.len() - 10..]);
            file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
        }
    }
}
