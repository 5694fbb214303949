//! Reading a file without what are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// What is next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes at the start of the buffer.
    Data(usize),
    /// So many zeros that are not on disk.
    Hole(u64),
    /// The end.
    End,
}

/// Reads a file from its start to the end that it had in the beginning.
#[derive(Debug)]
pub(crate) struct SparseReader {
    file: File,
    position: u64,
    /// Up to where there is no hole.
    data_end: u64,
    size: u64,
}

impl SparseReader {
    /// A reader of a regular file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let status = file.metadata()?;
        let size = status.len();
        let has_holes = status.blocks().saturating_mul(512) < size;
        Ok(Self {
            file,
            position: 0,
            data_end: if has_holes { 0 } else { size },
            size,
        })
    }

    /// Reads on. A file that has become shorter ends early.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        if self.position >= self.size {
            return Ok(Piece::End);
        }
        if self.position >= self.data_end {
            let start = self.data_start()?;
            if start > self.position {
                let length = start - self.position;
                self.position = start;
                return Ok(Piece::Hole(length));
            }
        }
        let room = (self.data_end - self.position).min(buffer.len() as u64);
        let room = usize::try_from(room).unwrap_or(buffer.len());
        let count = self
            .file
            .read_at(buffer.get_mut(..room).unwrap_or_default(), self.position)?;
        if count == 0 {
            self.size = self.position;
            return Ok(Piece::End);
        }
        self.position += count as u64;
        Ok(Piece::Data(count))
    }

    /// Where the next data starts, from `position` on; the end of the file if there is none.
    fn data_start(&mut self) -> io::Result<u64> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start.min(self.size),
            // A hole up to the end.
            Err(Errno::NXIO) => return Ok(self.size),
            // The file system does not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.data_end = self.size;
                return Ok(self.position);
            }
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.size);
        self.data_end = end.clamp(start, self.size);
        if self.data_end == start {
            self.data_end = self.size;
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, with zeros for holes, and how many bytes of that were holes.
    fn read(file: &File, size: usize) -> (Vec<u8>, u64) {
        let mut reader = SparseReader::new(file.try_clone().unwrap()).unwrap();
        let (mut content, mut holes, mut buffer) = (Vec::new(), 0, vec![0xff; size]);
        loop {
            match reader.next(&mut buffer).unwrap() {
                Piece::Data(count) => content.extend_from_slice(&buffer[..count]),
                Piece::Hole(length) => {
                    holes += length;
                    content.resize(content.len() + usize::try_from(length).unwrap(), 0);
                }
                Piece::End => return (content, holes),
            }
        }
    }

    #[test]
    fn holes_are_told_of_and_not_read() {
        for parts in [
            &[][..],
            &[(0, 3)],
            &[(0, 70_000)],
            &[(1 << 20, 5)],
            &[(0, 5), (1 << 20, 5), (3 << 20, 9000)],
        ] {
            let file = tempfile::tempfile().unwrap();
            let end = parts.last().map_or(0, |(offset, length)| offset + *length as u64);
            for tail in [0, 1 << 20] {
                for (offset, length) in parts {
                    file.write_all_at(&vec![7; *length], *offset).unwrap();
                }
                file.set_len(end + tail).unwrap();
                let (content, holes) = read(&file, 4000);
                let mut expected = vec![0; usize::try_from(end + tail).unwrap()];
                for (offset, length) in parts {
                    let offset = usize::try_from(*offset).unwrap();
                    expected[offset..offset + length].fill(7);
                }
                assert!(content == expected, "{parts:?} {tail}");
                assert!(
                    holes >= tail.saturating_sub(64 * 1024),
                    "{parts:?} {tail}: {holes}"
                );
            }
        }
    }
}
