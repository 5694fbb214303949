//! Reading a file without what are holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, Stat};
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

/// Whether a file with this status can have holes.
pub(crate) fn has_holes(stat: &Stat) -> bool {
    let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    on_disk < u64::try_from(stat.st_size).unwrap_or(0)
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
    /// A reader of a regular file with this status.
    pub(crate) fn new(file: File, stat: &Stat) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Self {
            file,
            position: 0,
            data_end: if has_holes(stat) { 0 } else { size },
            size,
        }
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
        let data = next_data(&self.file, self.position, self.size)?;
        self.data_end = data.end;
        Ok(data.start)
    }
}

/// The next part of a file that is no hole, from `position` on, up to `size`. It is empty if there is none.
pub(crate) fn next_data(file: &File, position: u64, size: u64) -> io::Result<Range<u64>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start.min(size),
        // A hole up to the end.
        Err(Errno::NXIO) => size,
        // The file system does not tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(position..size),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size);
    // What has become a hole meanwhile counts as data.
    let end = if end <= start { size } else { end.min(size) };
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, with zeros for holes, and how many bytes of that were holes.
    fn read(file: &File, size: usize) -> (Vec<u8>, u64) {
        let stat = rustix::fs::fstat(file).unwrap();
        let mut reader = SparseReader::new(file.try_clone().unwrap(), &stat);
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
