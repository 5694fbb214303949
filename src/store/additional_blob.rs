//! The blob of a layer in an additional layer store, as a producer of bytes that are verified.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures::executor::block_on;
use tokio::io::{AsyncRead, ReadBuf};

use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::bridge::{CHUNK, Producer, Progress, read_spare};
use crate::compression::Compression;
use crate::digest::{Digest, Hasher};
use crate::driver::LayerUse;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::record::layer::LayerRow;

/// Bytes that tell how a blob is compressed.
const START: usize = 10;

/// A digest that bytes are to have.
pub(crate) struct Check {
    /// `None` from the end on.
    hasher: Option<Box<Hasher>>,
    expected: Digest,
    what: &'static str,
}

impl Check {
    fn new(expected: Option<&Digest>, what: &'static str) -> Option<Self> {
        expected.map(|digest| Self {
            hasher: Some(Box::new(Hasher::like(digest))),
            expected: digest.clone(),
            what,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    fn end(&mut self) -> Result<()> {
        let (what, expected) = (self.what, &self.expected);
        match self.hasher.take().map(|hasher| hasher.finish()) {
            Some(found) if found != *expected => {
                let what =
                    format!("{what} in an additional layer store has digest {found}, expected {expected}");
                Err(ErrorKind::DigestMismatch.err(what))
            }
            _ => Ok(()),
        }
    }
}

/// A blob that is open.
pub(crate) struct StoredBlob {
    file: CheckedFile,
    /// How it is compressed, if that is how it is recorded.
    compression: Option<Compression>,
    decoded: Option<Check>,
}

impl StoredBlob {
    /// Opens the blob of a layer of which `row` has the digests. Blocking.
    pub(crate) fn open(used: LayerUse, row: &LayerRow) -> Result<Self> {
        let file = used.blob()?;
        let mut start = [0; START];
        let mut length = 0;
        while let Some(room) = start.get_mut(length..).filter(|room| !room.is_empty()) {
            let read = file.read_at(room, length as u64);
            match read.at("reading", used.dir().join("blob"))? {
                0 => break,
                count => length += count,
            }
        }
        let compression = Compression::detect(start.get(..length).unwrap_or_default());
        Ok(Self {
            file: CheckedFile {
                file,
                check: Check::new(row.compressed_digest.valid(), "the blob of a layer"),
                used,
            },
            compression: Some(compression)
                .filter(|found| Some(*found) == Compression::from_i64(row.compression)),
            decoded: Check::new(row.diff_digest.valid(), "the tar stream of a layer"),
        })
    }

    /// How it is compressed; `None` if it is compressed in another way than is recorded.
    pub(crate) fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// The bytes as they are.
    pub(crate) fn raw(self) -> BlobBytes {
        BlobBytes::Raw(self.file)
    }

    /// The tar stream.
    pub(crate) fn decoded(self) -> BlobBytes {
        BlobBytes::Unread(self.file, self.decoded)
    }
}

/// What is read of a blob.
pub(crate) enum BlobBytes {
    /// The bytes as they are.
    Raw(CheckedFile),
    /// The tar stream, of which nothing was read.
    Unread(CheckedFile, Option<Check>),
    /// The tar stream.
    Decoded(Box<Decoded>),
    /// Nothing more.
    Over,
}

/// A tar stream that is being decoded.
pub(crate) struct Decoded {
    decoder: Decoder<CheckedFile>,
    /// What has no room yet.
    rest: Bytes,
    check: Option<Check>,
}

impl Producer for BlobBytes {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        match self {
            Self::Raw(file) => file.fill(out, room),
            Self::Decoded(decoded) => decoded.fill(out, room),
            Self::Over => Ok(Progress::End),
            Self::Unread(..) => {
                if let Self::Unread(file, check) = std::mem::replace(self, Self::Over) {
                    let mut blob = BlobReader::new(file);
                    let compression =
                        block_on(blob.detect()).map_err(|error| Error::io("decompressing a blob", error))?;
                    *self = Self::Decoded(Box::new(Decoded {
                        decoder: Decoder::new(blob, compression, CHUNK),
                        rest: Bytes::new(),
                        check,
                    }));
                }
                Ok(Progress::More)
            }
        }
    }
}

impl Decoded {
    fn fill(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        if self.rest.is_empty() {
            let Some(chunk) = block_on(self.decoder.next_chunk())? else {
                return match &mut self.check {
                    Some(check) => check.end().map(|()| Progress::End),
                    None => Ok(Progress::End),
                };
            };
            if let Some(check) = &mut self.check {
                check.update(&chunk);
            }
            self.rest = chunk;
        }
        let part = self.rest.len().min(room);
        out.extend_from_slice(self.rest.get(..part).unwrap_or_default());
        self.rest.advance(part);
        Ok(Progress::More)
    }
}

/// A file whose digest is verified at its end.
pub(crate) struct CheckedFile {
    file: File,
    check: Option<Check>,
    /// Ends when the file is closed.
    used: LayerUse,
}

impl CheckedFile {
    fn fill(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        let before = out.len();
        let count = read_spare(self.file.as_fd(), out, room).at("reading", self.used.dir().join("blob"))?;
        if count == 0 && room > 0 {
            return self.end().map(|()| Progress::End);
        }
        if let Some(check) = &mut self.check {
            check.update(out.get(before..).unwrap_or_default());
        }
        Ok(Progress::More)
    }

    fn end(&mut self) -> Result<()> {
        self.check.as_mut().map_or(Ok(()), Check::end)
    }
}

/// Blocking: for decoders that run in steps.
impl AsyncRead for CheckedFile {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = buffer.initialize_unfilled();
        let is_full = room.is_empty();
        let count = loop {
            match this.file.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if count == 0 && !is_full {
            this.end()?;
        } else if let Some(check) = &mut this.check {
            check.update(room.get(..count).unwrap_or_default());
        }
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}
