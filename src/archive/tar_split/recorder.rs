//! The tar-split recorder: records a tar stream as it passes, so that it can be replayed bit for bit from the tree.
//!
//! A file's payload is recorded by reference where the tree can give it back, else as it is. References that become
//! wrong because a later entry replaces the file are repaired: before the file goes, [`TarSplitRecorder::spill`] copies it
//! to an unnamed temporary file, and [`TarSplitRecorder::finish`] rewrites the tar-split data with these payloads in place. So memory stays
//! bounded, and archives without repetitions (all but a few) cost nothing extra.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use crate::archive::tar_split::format::{Entry, GzipTarSplitReader, TarSplitWriter};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::unnamed;

/// How much is gathered before a segment is written, unless a file's line comes first.
const SEGMENT: usize = 256 * 1024;

const BUFFER: usize = 64 * 1024;

/// A payload that has left the tree.
#[derive(Clone, Copy, Debug)]
struct Spilled {
    /// Position of the line that referred to it.
    line: u64,
    /// Where in the temporary file.
    offset: u64,
    size: u64,
}

/// See the module's head. Without a file to write to it records nothing.
pub(crate) struct TarSplitRecorder {
    writer: Option<TarSplitWriter<BufWriter<File>>>,
    segment: Vec<u8>,
    spill: Option<File>,
    spill_size: u64,
    spilled: Vec<Spilled>,
}

impl TarSplitRecorder {
    /// A recorder that writes to `file`, which must be empty.
    pub(crate) fn new(file: Option<File>) -> Self {
        Self {
            writer: file.map(|file| TarSplitWriter::new(BufWriter::with_capacity(BUFFER, file))),
            segment: Vec::new(),
            spill: None,
            spill_size: 0,
            spilled: Vec::new(),
        }
    }

    /// Whether anything is recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    /// Records bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        if self.writer.is_some() {
            self.segment.extend_from_slice(bytes);
            if self.segment.len() >= SEGMENT {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.segment(&self.segment)?;
        }
        self.segment.clear();
        Ok(())
    }

    /// Records a payload by reference; returns the position of its line.
    pub(crate) fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> Result<u64> {
        self.flush()?;
        let Some(writer) = &mut self.writer else {
            return Ok(0);
        };
        let position = writer.position();
        writer.file(name, size, crc)?;
        Ok(position)
    }

    /// Keeps what `file` holds, for the line at position `line`; `dir` is where a temporary file can be made.
    pub(crate) fn spill(&mut self, line: u64, file: &mut File, dir: BorrowedFd<'_>) -> Result<()> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(temporary(dir)?),
        };
        let size = std::io::copy(file, spill).during("keeping a replaced file for the tar-split data")?;
        self.spilled.push(Spilled {
            line,
            offset: self.spill_size,
            size,
        });
        self.spill_size += size;
        Ok(())
    }

    /// Completes the file and hands it back.
    pub(crate) fn finish(mut self, dir: BorrowedFd<'_>) -> Result<Option<File>> {
        self.flush()?;
        let Some(writer) = self.writer.take() else {
            return Ok(None);
        };
        let buffered = writer.finish()?;
        let mut file = buffered
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .during("writing tar-split data")?;
        if !self.spilled.is_empty() {
            self.rewrite(&mut file, dir)?;
        }
        Ok(Some(file))
    }

    /// Writes the tar-split data anew with the spilled payloads in place of the lines that referred to them.
    fn rewrite(&mut self, file: &mut File, dir: BorrowedFd<'_>) -> Result<()> {
        // Of several copies for one line the first is the right one; the sort keeps their order.
        self.spilled.sort_by_key(|spilled| spilled.line);
        self.spilled.dedup_by_key(|spilled| spilled.line);
        // The file may be open for writing only.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let old = File::open(&path).at("reopening tar-split data at", &path)?;
        let mut reader = GzipTarSplitReader::new(BufReader::with_capacity(BUFFER, old));
        let mut writer = TarSplitWriter::new(BufWriter::with_capacity(BUFFER, temporary(dir)?));
        let mut spilled = self.spilled.iter().peekable();
        let mut position = 0;
        while let Some(entry) = reader.next()? {
            match (entry, spilled.next_if(|spilled| spilled.line == position)) {
                (Entry::Segment(data), _) => writer.segment(&data)?,
                (Entry::File { name, size, crc }, None) => writer.file(&name, size, crc)?,
                (Entry::File { .. }, Some(spilled)) => self.replay(*spilled, &mut writer)?,
            }
            position += 1;
        }
        let mut new = writer
            .finish()?
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .during("writing tar-split data")?;
        let doing = "rewriting tar-split data";
        new.seek(SeekFrom::Start(0)).during(doing)?;
        file.set_len(0).during(doing)?;
        file.seek(SeekFrom::Start(0)).during(doing)?;
        std::io::copy(&mut new, file).during(doing)?;
        Ok(())
    }

    fn replay(&self, spilled: Spilled, writer: &mut TarSplitWriter<BufWriter<File>>) -> Result<()> {
        let doing = "reading back a replaced file";
        let Some(file) = &self.spill else {
            return Err(ErrorKind::NotFound.err(doing));
        };
        let mut buffer = vec![0; SEGMENT];
        let (mut offset, end) = (spilled.offset, spilled.offset + spilled.size);
        while offset < end {
            let count = usize::try_from(end - offset).unwrap_or(SEGMENT).min(SEGMENT);
            let Some(part) = buffer.get_mut(..count) else {
                break;
            };
            file.read_exact_at(part, offset).during(doing)?;
            writer.segment(part)?;
            offset += count as u64;
        }
        Ok(())
    }
}

/// A file without a name on the file system of `dir`.
fn temporary(dir: BorrowedFd<'_>) -> Result<File> {
    unnamed::create(dir).during("making a temporary file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    #[test]
    fn spilled_payloads_take_the_place_of_their_lines() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = crate::sys::at::open_dir(tmp.path()).unwrap();
        let path = tmp.path().join("split");
        // Open for writing only, as callers have it.
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let mut recorder = TarSplitRecorder::new(Some(file));
        let mut expected = Vec::new();
        recorder.raw(b"head").unwrap();
        let first = recorder.file(b"a", 3, [1; 8]).unwrap();
        recorder.raw(b"mid").unwrap();
        let second = recorder.file(b"b", 4, [2; 8]).unwrap();
        let big = vec![9; SEGMENT * 3 + 5];
        recorder.raw(&big).unwrap();
        for (line, content) in [
            (second, "four"),
            (first, "one"),
            (first, "later copies are not used"),
        ] {
            let mut file = temporary(dir.as_fd()).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            recorder.spill(line, &mut file, dir.as_fd()).unwrap();
        }
        recorder.file(b"c", 1, [3; 8]).unwrap();
        assert!(recorder.finish(dir.as_fd()).unwrap().is_some());
        let mut reader = GzipTarSplitReader::new(File::open(&path).unwrap());
        let mut last = None;
        while let Some(entry) = reader.next().unwrap() {
            match entry {
                Entry::Segment(data) => expected.extend(data),
                file => assert!(last.replace(file).is_none(), "only the last line is left"),
            }
        }
        assert_eq!(
            last,
            Some(Entry::File {
                name: b"c".into(),
                size: 1,
                crc: [3; 8]
            })
        );
        assert!(expected == [&b"headonemidfour"[..], &big].concat());
        let names: Vec<_> = std::fs::read_dir(tmp.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["split"], "temporary files have no name");
    }

    #[test]
    fn a_recorder_without_a_file_takes_everything() {
        let mut recorder = TarSplitRecorder::new(None);
        assert!(!recorder.is_on());
        recorder.raw(b"x").unwrap();
        recorder.file(b"a", 3, [1; 8]).unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let dir = crate::sys::at::open_dir(tmp.path()).unwrap();
        assert!(recorder.finish(dir.as_fd()).unwrap().is_none());
    }
}
