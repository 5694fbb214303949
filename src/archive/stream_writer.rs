//! Where a produced stream goes: a writer that takes file content without a copy in between where it can.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::bridge::{CHUNK, ChunkWriter};

/// A writer that can read from a file by itself.
pub(crate) trait StreamWriter: Write {
    /// Reads once from `file`, at most `limit` bytes, as the next bytes of the stream. Returns them, for checksums;
    /// empty at the end of the file (or for `limit` 0).
    fn fill(&mut self, file: BorrowedFd<'_>, limit: usize) -> io::Result<&[u8]>;
}

/// Reads into the spare room of `buffer`, no more than `limit`, and returns how much.
pub(crate) fn read_spare(file: BorrowedFd<'_>, buffer: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
    if limit == 0 || buffer.capacity() == buffer.len() {
        return Ok(0);
    }
    loop {
        let result = if limit >= buffer.capacity() - buffer.len() {
            rustix::io::read(file, spare_capacity(buffer))
        } else {
            // Short reads are for the end of a file and small files: clearing their room costs next to nothing.
            let start = buffer.len();
            buffer.resize(start + limit, 0);
            let result = rustix::io::read(file, buffer.get_mut(start..).unwrap_or_default());
            buffer.truncate(start + result.unwrap_or(0));
            result
        };
        match result {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

impl StreamWriter for ChunkWriter {
    fn fill(&mut self, file: BorrowedFd<'_>, limit: usize) -> io::Result<&[u8]> {
        self.fill_with(|buffer| read_spare(file, buffer, limit))
    }
}

impl StreamWriter for Vec<u8> {
    fn fill(&mut self, file: BorrowedFd<'_>, limit: usize) -> io::Result<&[u8]> {
        let start = self.len();
        let limit = limit.min(CHUNK);
        self.reserve(limit);
        read_spare(file, self, limit)?;
        Ok(self.get(start..).unwrap_or_default())
    }
}

#[cfg(test)]
/// Makes a [`Sink`] of any writer, with a buffer for what is read from files.
pub(crate) struct Plain<W> {
    inner: W,
    buffer: Vec<u8>,
}

#[cfg(test)]
impl<W: Write> Plain<W> {
    /// A sink that hands everything on to `inner`.
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            buffer: Vec::new(),
        }
    }

    /// The writer.
    pub(crate) fn into_inner(self) -> W {
        self.inner
    }
}

#[cfg(test)]
impl<W: Write> Write for Plain<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.inner.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
impl<W: Write> StreamWriter for Plain<W> {
    fn fill(&mut self, file: BorrowedFd<'_>, limit: usize) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.buffer.reserve(CHUNK);
        read_spare(file, &mut self.buffer, limit)?;
        self.inner.write_all(&self.buffer)?;
        Ok(&self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, SeekFrom};
    use std::os::fd::AsFd as _;
    use tokio::io::AsyncReadExt as _;

    /// Fills `sink` with the whole file in bites of `limit`, some written bytes before and after each.
    fn feed(sink: &mut dyn StreamWriter, file: &std::fs::File, limit: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        loop {
            sink.write_all(b"<").unwrap();
            let part = sink.fill(file.as_fd(), limit).unwrap().to_vec();
            assert!(part.len() <= limit);
            sink.write_all(b">").unwrap();
            if part.is_empty() {
                return seen;
            }
            seen.extend(part);
        }
    }

    #[tokio::test]
    async fn every_sink_takes_the_same_bytes() {
        let content: Vec<u8> = (0..700_000u32)
            .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for limit in [1 << 30, CHUNK, 10_007, CHUNK - 1] {
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut memory = Vec::new();
            assert!(feed(&mut memory, &file, limit) == content);
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut plain = Plain::new(Vec::new());
            assert!(feed(&mut plain, &file, limit) == content);
            let strip = |bytes: Vec<u8>| {
                bytes
                    .into_iter()
                    .filter(|b| !b"<>".contains(b))
                    .collect::<Vec<u8>>()
            };
            let expected = strip(content.clone());
            assert!(strip(plain.into_inner()) == expected);
            assert!(strip(memory) == expected);

            file.seek(SeekFrom::Start(0)).unwrap();
            let (mut writer, mut stream) = crate::bridge::chunks_out();
            let input = file.try_clone().unwrap();
            crate::bridge::spawn_detached(move || {
                feed(&mut writer, &input, limit);
                writer.finish(Ok(()));
            });
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert!(strip(all) == expected, "limit {limit}");
        }
    }
}
