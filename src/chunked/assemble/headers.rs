//! The tar stream that a table of contents describes, for blobs without tar-split data. It is one that gives the same files;
//! which stream the layer was made of nobody knows.

use std::sync::Arc;

use tar_core::EntryType;

use super::super::toc::{EntryKind, Moment, Toc, TocEntry};
use super::assembler::Lines;
use crate::archive::path::show;
use crate::archive::tar::header::BLOCK;
use crate::archive::tar::writer::{Item, TarWriter};
use crate::archive::tar_split::format::Entry;
use crate::error::{ErrorKind, Result};
use crate::idmap::Owner;

/// See the module's head.
pub(crate) struct Headers {
    toc: Arc<Toc>,
    writer: TarWriter,
    /// The next entry; one behind the last for the end of the archive.
    next: usize,
    /// The content that has to follow.
    content: Option<Entry>,
    /// Bytes that fill up its last block.
    padding: usize,
}

impl Headers {
    pub(crate) fn new(toc: Arc<Toc>) -> Self {
        Self {
            toc,
            writer: TarWriter::new(0),
            next: 0,
            content: None,
            padding: 0,
        }
    }
}

impl Lines for Headers {
    fn next(&mut self) -> Result<Option<Entry>> {
        if let Some(content) = self.content.take() {
            return Ok(Some(content));
        }
        let mut segment = vec![0; std::mem::take(&mut self.padding)];
        let toc = Arc::clone(&self.toc);
        match toc.entry(self.next) {
            Some(entry) => {
                header(&mut self.writer, &entry)?;
                if entry.size() > 0 {
                    let rest = entry.size() % BLOCK as u64;
                    self.padding = usize::try_from(rest).map_or(0, |rest| (BLOCK - rest) % BLOCK);
                    self.content = Some(Entry::File {
                        name: entry.name().to_vec(),
                        size: entry.size(),
                        crc: [0; 8],
                    });
                }
            }
            None if self.next == toc.len() => self.writer.finish(),
            None => return Ok(None),
        }
        self.next += 1;
        while !self.writer.is_empty() {
            segment.reserve(BLOCK);
            self.writer.take(&mut segment, BLOCK)?;
        }
        Ok(Some(Entry::Segment(segment)))
    }
}

fn header(writer: &mut TarWriter, entry: &TocEntry<'_>) -> Result<()> {
    let xattrs = entry.xattrs().map(|(name, value)| {
        let name = std::str::from_utf8(name).map_err(|_not_text| {
            let what = format!("an attribute of {} whose name is no text", show(entry.name()));
            ErrorKind::NotSupported.err(what)
        })?;
        Ok((name.to_owned(), value.to_vec()))
    });
    let xattrs: Vec<_> = xattrs.collect::<Result<_>>()?;
    let Moment { seconds, nanoseconds } = entry.time().unwrap_or_default();
    writer.header(&Item {
        kind: match entry.kind() {
            EntryKind::File => EntryType::Regular,
            EntryKind::HardLink => EntryType::Link,
            EntryKind::Symlink => EntryType::Symlink,
            EntryKind::CharDevice => EntryType::Char,
            EntryKind::BlockDevice => EntryType::Block,
            EntryKind::Directory => EntryType::Directory,
            EntryKind::Fifo => EntryType::Fifo,
        },
        mode: entry.mode(),
        owner: Owner {
            uid: entry.uid(),
            gid: entry.gid(),
        },
        size: entry.size(),
        mtime: seconds,
        nanoseconds,
        link: entry.link(),
        device: entry.device(),
        xattrs: &xattrs,
        ..Item::mark(entry.name())
    })
}
