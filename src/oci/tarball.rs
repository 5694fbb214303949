//! A tar file as a set of named pieces: read once from header to header, then wherever it is asked for.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::files;
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::bridge::{self, ChunkStream};
use crate::compression::Compression;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};

/// More entries than any image archive has.
const MAX_ENTRIES: usize = 100_000;

/// Bytes that are read at once where a header is expected.
const HEADER_CHUNK: u64 = 4096;

/// Steps from a link to what it means.
const MAX_LINKS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Offset and size.
    Data(u64, u64),
    /// Another name.
    Link(String),
}

/// A tar file and where its entries lie. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tarball {
    file: Arc<File>,
    path: Arc<Path>,
    pieces: Arc<HashMap<String, Piece>>,
}

/// A file from some place on, in pieces for headers.
struct FileSource<'a> {
    file: &'a File,
    path: &'a Path,
    at: u64,
}

impl ChunkSource for FileSource<'_> {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let bytes = files::read_part(self.file, self.at, HEADER_CHUNK, self.path)?;
        self.at += bytes.len() as u64;
        Ok(if bytes.is_empty() {
            None
        } else {
            Some(bytes.into())
        })
    }
}

/// A name relative to the archive's root, without `.` and `..`.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Tarball {
    /// Reads the headers of an archive.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        bridge::run(move || {
            let what = format!("reading archive {}", path.display());
            Self::read(path).context(|| what)
        })
        .await
    }

    fn read(path: PathBuf) -> Result<Self> {
        let file = files::open_regular(&path)?;
        let size = file.metadata().at("looking at", &path)?.len();
        let start = files::read_part(&file, 0, 10, &path)?;
        let compression = Compression::detect(&start);
        if compression != Compression::None {
            return Err(ErrorKind::NotSupported
                .err(format!("a {compression} archive as a whole, decompress it first")));
        }
        let mut pieces = HashMap::new();
        let mut entry = Entry::default();
        let mut at = 0;
        while at < size {
            let source = FileSource {
                file: &file,
                path: &path,
                at,
            };
            let mut reader = TarReader::new(source);
            if !reader.next(&mut entry, &mut |_| Ok(()))? {
                break;
            }
            let (offset, length) = reader.payload_place();
            let offset = at + offset;
            let end = offset.saturating_add(length);
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            if end > size {
                return Err(ErrorKind::InvalidArchive.err(format!("entry {name:?} is cut off")));
            }
            if entry.sparse.is_some() {
                return Err(ErrorKind::NotSupported.err(format!("sparse entry {name:?}")));
            }
            let link = String::from_utf8_lossy(&entry.link);
            match entry.kind {
                b'0' | b'7' => drop(pieces.insert(clean(&name), Piece::Data(offset, length))),
                b'1' => drop(pieces.insert(clean(&name), Piece::Link(clean(&link)))),
                b'2' => {
                    let beside = format!("{name}/../{link}");
                    pieces.insert(clean(&name), Piece::Link(clean(&beside)));
                }
                _ => {}
            }
            if pieces.len() > MAX_ENTRIES {
                return Err(ErrorKind::InvalidArchive.err(format!("more than {MAX_ENTRIES} entries")));
            }
            at = end.next_multiple_of(512);
        }
        Ok(Self {
            file: Arc::new(file),
            path: path.into(),
            pieces: Arc::new(pieces),
        })
    }

    /// Offset and size of an entry's content.
    pub(crate) fn place(&self, name: &str) -> Result<(u64, u64)> {
        let mut key = clean(name);
        for _ in 0..MAX_LINKS {
            match self.pieces.get(&key) {
                Some(Piece::Data(offset, size)) => return Ok((*offset, *size)),
                Some(Piece::Link(target)) => key.clone_from(target),
                None => break,
            }
        }
        Err(ErrorKind::NotFound.err(format!("entry {name:?} of archive {}", self.path.display())))
    }

    /// The content of a short entry.
    pub(crate) async fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (offset, size) = self.place(name)?;
        if size > limit {
            return Err(files::too_long(Path::new(name), limit));
        }
        self.part(offset, size).await
    }

    /// Some bytes of the file.
    pub(crate) async fn part(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let this = self.clone();
        bridge::run(move || files::read_part(&this.reopen()?, offset, size, &this.path)).await
    }

    /// A stream of some bytes of the file.
    pub(crate) async fn stream(&self, offset: u64, size: u64) -> Result<ChunkStream> {
        let this = self.clone();
        let file = bridge::run(move || this.reopen()).await?;
        Ok(files::stream(file, offset, size))
    }

    /// The same file with a position of its own.
    fn reopen(&self) -> Result<File> {
        use std::os::fd::AsRawFd as _;
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::open(link).at("opening again", &*self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        assert_eq!(clean("./a//b/../c/"), "a/c");
        assert_eq!(clean("../../x"), "x");
        assert_eq!(clean("dir/layer.tar/../../x.tar"), "x.tar");
    }
}
