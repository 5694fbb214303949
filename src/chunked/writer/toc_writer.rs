//! The table of contents of a tar stream while that is unpacked, without a blob: offsets are those in the tar stream.
//!
//! It makes the files of a layer that came without a table known to later pulls. It says nothing of tar-split data, since no
//! blob has any.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use super::entry::{Chunk, Content, Unfit, push_entry, push_head};
use super::job::Sum;
use super::paths::Paths;
use super::splitter::{Chunks, Splitter};
use crate::archive::apply::pipeline::Inspect;
use crate::archive::path::show;
use crate::archive::tar::reader::Entry;
use crate::error::{IoContext as _, Result};

/// Bytes of the table: readers take no more.
const MAX_SIZE: u64 = 150 << 20;

/// Chunks of one file, which are kept in memory until it ends: a file of 16 GiB has so many.
const MAX_CHUNKS: usize = 1 << 18;

/// What the digests of holes are computed of.
const ZEROS: [u8; 4096] = [0; 4096];

/// The file with the table, once the archive has ended; none for one that cannot have a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct WrittenToc(Arc<OnceLock<File>>);

impl WrittenToc {
    /// The file.
    pub(crate) fn file(&self) -> Option<&File> {
        self.0.get()
    }
}

/// See the module's head.
pub(crate) struct TocWriter {
    written: WrittenToc,
    /// Why there is none.
    unfit: Option<Unfit>,
    out: BufWriter<File>,
    size: u64,
    paths: Paths,
    /// The entry that comes next in the table: the beginning of its text, and where its name ends in that.
    head: Option<(Vec<u8>, usize)>,
    line: Vec<u8>,
    content: Option<OpenContent>,
}

/// The content of the current file, as far as it has come.
struct OpenContent {
    splitter: Splitter,
    cut: Cut,
    declared: u64,
}

/// The chunks of a file.
struct Cut {
    /// Where in the tar stream the next bytes are.
    offset: u64,
    /// Where the chunk began.
    start: u64,
    chunks: Vec<Chunk>,
    /// Of the chunk; what is not known of the first one is that of the file too.
    chunk: Sha256,
    /// Of the file up to the chunk, from the second one on.
    file: Option<Sha256>,
}

impl fmt::Debug for TocWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TocWriter")
            .field("unfit", &self.unfit)
            .finish_non_exhaustive()
    }
}

impl Cut {
    fn hash(&mut self, bytes: &[u8]) {
        self.chunk.update(bytes);
        if let Some(file) = &mut self.file {
            file.update(bytes);
        }
        self.offset += bytes.len() as u64;
    }
}

impl Chunks for Cut {
    fn bytes(&mut self, bytes: &[u8]) {
        self.hash(bytes);
    }

    fn zeros(&mut self, count: u64) {
        let mut rest = count;
        while rest > 0 {
            let part = usize::try_from(rest).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            self.hash(ZEROS.get(..part).unwrap_or(&ZEROS));
            rest -= part as u64;
        }
    }

    fn end(&mut self, is_hole: bool) {
        if self.offset == self.start || self.chunks.len() > MAX_CHUNKS {
            return;
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.file.get_or_insert_with(|| chunk.clone());
        self.chunks.push(Chunk {
            offset: self.start,
            size: self.offset - self.start,
            is_hole,
            sum: chunk.finalize().into(),
        });
        self.start = self.offset;
    }
}

impl TocWriter {
    /// Writes to an empty file; the second value has the file when the archive has ended.
    pub(crate) fn new(file: File) -> (Self, WrittenToc) {
        let written = WrittenToc::default();
        let writer = Self {
            written: written.clone(),
            unfit: None,
            out: BufWriter::new(file),
            size: 0,
            paths: Paths::default(),
            head: None,
            line: Vec::new(),
            content: None,
        };
        (writer, written)
    }

    fn give_up(&mut self, reason: Unfit) {
        tracing::info!(reason = reason.0, "no table of contents is made of a layer");
        self.unfit = Some(reason);
        // What is there is not needed any more.
        self.paths = Paths::default();
        (self.head, self.content, self.line) = (None, None, Vec::new());
    }

    fn note(&mut self, entry: &Entry) -> Result<(), Unfit> {
        let mut text = Vec::new();
        let name_end = push_head(&mut text, entry)?;
        self.paths.note(entry)?;
        self.head = Some((text, name_end));
        Ok(())
    }

    /// Writes the entry that is waiting.
    fn flush(&mut self, content: Option<&Content>, chunks: &[Chunk]) -> io::Result<()> {
        let Some((text, name_end)) = self.head.take() else {
            return Ok(());
        };
        self.line.clear();
        match self.size {
            0 => self.line.extend_from_slice(b"{\"version\":1,\"entries\":["),
            _ => self.line.push(b','),
        }
        push_entry(&mut self.line, (&text, name_end), content, chunks);
        self.size += self.line.len() as u64;
        self.out.write_all(&self.line)
    }
}

impl Inspect for TocWriter {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        if self.unfit.is_some() {
            return Ok(());
        }
        self.content = None;
        let noted = match &self.head {
            // What was unpacked otherwise than as a file, such as a whiteout with content.
            Some((text, _)) => Err(Unfit(format!("the content of {} was not seen", show(text)))),
            None if self.size > MAX_SIZE => Err(Unfit("the table would be too large".to_owned())),
            None => self.note(entry),
        };
        match noted {
            Err(reason) => self.give_up(reason),
            Ok(()) if entry.kind == b'0' && entry.size > 0 => {}
            Ok(()) => self.flush(None, &[]).during("writing a table of contents")?,
        }
        Ok(())
    }

    fn content(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) {
        if self.unfit.is_some() {
            return;
        }
        let content = self.content.get_or_insert_with(|| OpenContent {
            splitter: Splitter::new(),
            cut: Cut {
                offset,
                start: offset,
                chunks: Vec::new(),
                chunk: Sha256::new(),
                file: None,
            },
            declared: offset.saturating_add(entry.size),
        });
        content.splitter.push(bytes, &mut content.cut);
    }

    fn content_end(&mut self) -> Result<Option<Sum>> {
        let Some(content) = self.content.take() else {
            return Ok(None);
        };
        let OpenContent {
            splitter,
            mut cut,
            declared,
        } = content;
        splitter.finish(&mut cut);
        if cut.offset != declared || cut.chunks.len() > MAX_CHUNKS {
            self.give_up(Unfit("a file has too many chunks".to_owned()));
            return Ok(None);
        }
        let sum = match (&*cut.chunks, cut.file) {
            ([only], _) => only.sum,
            (_, file) => file.unwrap_or_default().finalize().into(),
        };
        let content = Content { sum, end: cut.offset };
        self.flush(Some(&content), &cut.chunks)
            .during("writing a table of contents")?;
        Ok(Some(sum))
    }

    fn end(&mut self) -> Result<()> {
        if self.unfit.is_none()
            && let Some((text, _)) = &self.head
        {
            let reason = Unfit(format!("the content of {} was not seen", show(text)));
            self.give_up(reason);
        }
        if self.unfit.is_some() {
            return Ok(());
        }
        let tail: &[u8] = match self.size {
            0 => b"{\"version\":1,\"entries\":null}",
            _ => b"]}",
        };
        let finished = self.out.write_all(tail).and_then(|()| self.out.flush());
        let file = finished.and_then(|()| self.out.get_ref().try_clone());
        let file: File = file.during("writing a table of contents")?;
        // The only one that sets it.
        self.written.0.get_or_init(|| file);
        Ok(())
    }
}
