//! What the fuzz targets of `tests/fuzz` reach in by. Only with the feature `fuzz`; not part of the API.
//!
//! Each function takes arbitrary bytes, and panics if a promise of the part that reads them is broken.

use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::format::{Entry as Line, TarSplitLines, TarSplitReader};
use crate::chunked::assemble::Plan;
use crate::chunked::cache::{CacheFile, Key, ReadAt};
use crate::chunked::{Bounds, MAX_MEMORY, parse};
use crate::error::Result;

/// Bytes in pieces.
struct Pieces {
    rest: Bytes,
    size: usize,
}

impl ChunkSource for Pieces {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let count = self.rest.len().min(self.size);
        Ok((count > 0).then(|| self.rest.split_to(count)))
    }
}

/// A tar stream, and the tar-split data that is recorded of it: both are the stream again.
pub fn tar(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
    let mut reader = TarReader::new(Pieces {
        rest: Bytes::copy_from_slice(stream),
        size: 1 + usize::from(*size) * 5,
    });
    let (mut seen, mut contents) = (Vec::new(), Vec::new());
    let mut lines = TarSplitLines::new(Vec::new());
    let mut read = || -> Result<()> {
        let mut entry = Entry::default();
        loop {
            let mut segment = Vec::new();
            let next = reader.next(&mut entry, &mut |raw| {
                segment.extend_from_slice(raw);
                Ok(())
            });
            seen.extend_from_slice(&segment);
            lines.segment(&segment)?;
            if !next? {
                break;
            }
            let (mut crc, mut content) = (Crc::new(), Vec::new());
            while let Some(piece) = reader.payload()? {
                crc.update(&piece);
                content.extend_from_slice(&piece);
            }
            seen.extend_from_slice(&content);
            lines.file(&entry.name, content.len() as u64, crc.take())?;
            contents.push(content);
        }
        let mut segment = Vec::new();
        reader.drain(&mut |raw| {
            segment.extend_from_slice(raw);
            Ok(())
        })?;
        seen.extend_from_slice(&segment);
        lines.segment(&segment)
    };
    match read() {
        Ok(()) => assert!(seen == stream, "what was read is not the stream"),
        Err(_refused) => {
            return assert!(
                stream.starts_with(&seen),
                "what was read is not the stream's start"
            );
        }
    }
    let mut replayed = Vec::new();
    let mut contents = contents.into_iter();
    let text = lines.into_inner();
    let mut lines = TarSplitReader::of_text(&text[..]);
    while let Ok(Some(line)) = lines.next() {
        match line {
            Line::Segment(bytes) => replayed.extend_from_slice(&bytes),
            Line::File { size, .. } => {
                let content = contents.next().unwrap_or_default();
                assert_eq!(content.len() as u64, size, "the size of a recorded file");
                replayed.extend_from_slice(&content);
            }
        }
    }
    assert!(replayed == stream, "what was recorded is not the stream");
}

/// The text of tar-split data: what is read of it, written and read again, is the same.
pub fn tar_split(data: &[u8]) {
    let (mut reader, mut lines) = (TarSplitReader::of_text(data), Vec::new());
    while let Ok(Some(line)) = reader.next() {
        lines.push(line);
    }
    let mut writer = TarSplitLines::new(Vec::new());
    for line in &lines {
        let written = match line {
            Line::Segment(bytes) => writer.segment(bytes),
            Line::File { name, size, crc } => writer.file(name, *size, *crc),
        };
        assert!(written.is_ok(), "a line that was read is written");
    }
    let text = writer.into_inner();
    let mut again = TarSplitReader::of_text(&text[..]);
    for line in lines {
        let read = again.next().ok().flatten();
        assert_eq!(read, Some(line), "a line that was written is read");
    }
}

/// A table of contents: what of a blob is read for it lies in the blob, in ascending order.
pub fn table(data: &[u8]) {
    const END: u64 = 1 << 20;
    let bounds = Bounds {
        end: END,
        ignored: &[],
        memory: MAX_MEMORY,
    };
    let Ok(toc) = parse(data, bounds) else { return };
    for entry in toc.entries() {
        let parts: u64 = entry
            .chunks()
            .map(|chunk| chunk.file.end - chunk.file.start)
            .sum();
        assert!(
            parts == 0 || parts == entry.size(),
            "the chunks of a file are the file"
        );
    }
    let Ok(plan) = Plan::new(&toc, None) else { return };
    let mut end = 0;
    for range in plan.requests() {
        assert!(
            end <= range.start && range.start < range.end,
            "ranges ascend and are not empty"
        );
        end = range.end;
    }
    assert!(end <= END, "ranges are those of the blob");
}

/// Bytes as a file.
struct Memory<'a>(&'a [u8]);

impl ReadAt for Memory<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A cache file, of which the first bytes are looked for.
pub fn cache(data: &[u8]) {
    let Some((sum, bytes)) = data.split_first_chunk::<32>() else {
        return;
    };
    let (file, key) = (Memory(bytes), Key::new(sum));
    let Ok(mut cache) = CacheFile::open(&file, bytes.len() as u64) else {
        return;
    };
    let look = |cache: &CacheFile| {
        let mut found = Vec::new();
        if !cache.may_have(&key) {
            return (true, found);
        }
        let visited = cache.visit(&file, &key, |location| {
            found.push(location);
            ControlFlow::<()>::Continue(())
        });
        (visited.is_ok(), found)
    };
    let (read, found) = look(&cache);
    for location in &found {
        // Whatever it says.
        let _name = cache.name(&file, location.name);
    }
    if cache.load_filter(&file).is_ok() && read {
        assert_eq!(
            look(&cache).1,
            found,
            "with the filter in memory the same is found"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{TarBuilder, TarEntry};

    #[test]
    fn promises_hold_for_what_is_usual() {
        let long = TarEntry::file("long/".repeat(30) + "name", "a long name").gnu();
        let stream = TarBuilder::new().dir("d/").file("d/a", "x").entry(long).build();
        for size in [0, 1, 200] {
            tar(&[&[size], &stream[..]].concat());
            tar(&[&[size], &stream[..700]].concat());
        }
        let file = r#"{"type":1,"name":"d/a","size":1,"payload":"AAAAAAAAAAA=","position":1}"#;
        tar_split(format!("{{\"type\":2,\"payload\":\"AAAA\",\"position\":0}}\n{file}\n").as_bytes());
        let entry = r#"{"type":"reg","name":"a","size":1,"offset":5,"endOffset":20,"digest":"sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}"#;
        table(format!(r#"{{"version":1,"entries":[{entry}]}}"#).as_bytes());
        cache(&[&[7; 32][..], include_bytes!("chunked/cache/fixtures/tree.cache")].concat());
    }
}
