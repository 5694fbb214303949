//! Reads a table of contents out of a blob: fetched bytes become a verified table.
//!
//! The compressed bytes go to a temporary file first, and are not decompressed before their digest is known to be right.
//! The text goes to a second one: it is what a layer keeps, and decompressing Zstandard as the Go library writes it
//! takes a window of 32 MiB, which is free again before the table takes memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::format::TarSplitReader;
use crate::bridge;
use crate::chunked::assemble::Lines;
use crate::chunked::location::{Section, TAR_SPLIT_POSITION, TocFormat, TocLocation, ZSTD};
use crate::chunked::toc::{self, Bounds, MAX_MEMORY, Toc};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::{at, unnamed};

/// Bytes that are written in one step.
const STEP: usize = 1 << 20;

/// Size of the buffer between a decoder and a file.
const BUFFER: usize = 128 * 1024;

/// The file with the table of contents in the tar of an eStargz blob.
const ESTARGZ_TOC: &[u8] = b"stargz.index.json";

impl TocLocation {
    /// Reads the table of contents from `bytes`, which are those of [`TocLocation::toc_range`] and may be followed by
    /// others.
    ///
    /// Memory grows with the table, to some 200 bytes for each file, and by what decompressing takes (at most the
    /// window of the data, 32 MiB where the Go library has written it). The text itself goes to a file without a name
    /// in the directory for temporary files.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] for a table that is not the one of the annotations; [`ErrorKind::InvalidArchive`]
    /// for one that is malformed, contradicts itself, or names what no layer can have; [`ErrorKind::NotSupported`] for
    /// one that is too large, or of a version that is not known (the layer can be pulled as a whole);
    /// [`ErrorKind::InvalidInput`] before the footer of an eStargz blob is known; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing remains.
    ///
    /// ```no_run
    /// # async fn demo(layer: graphroot::Descriptor, blob: std::path::PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    /// use graphroot::chunked::TocLocation;
    /// use tokio::io::AsyncSeekExt as _;
    ///
    /// // What a manifest says of a layer; for a registry, the range is that of an HTTP request.
    /// let Some(location) = TocLocation::from_annotations(&layer.annotations, layer.size)? else {
    ///     return Ok(()); // an ordinary layer
    /// };
    /// let range = location.toc_range().expect("zstd:chunked");
    /// let mut file = tokio::fs::File::open(blob).await?;
    /// file.seek(std::io::SeekFrom::Start(range.start)).await?;
    /// let toc = location.read_toc(file).await?;
    /// for entry in toc.entries() {
    ///     println!("{:?} {} bytes", String::from_utf8_lossy(entry.name()), entry.size());
    ///     for chunk in entry.chunks() {
    ///         println!("    {:?} is in bytes {:?} of the blob", chunk.file, chunk.blob);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn read_toc(&self, bytes: impl AsyncRead + Send + Unpin) -> Result<Toc> {
        let dir = std::env::temp_dir();
        let (toc, _text) = read(self, bytes, dir)
            .await
            .map_err(|error| error.context("reading the table of contents of a layer"))?;
        Ok(toc)
    }
}

/// The tar-split data of a blob, compressed as it is there; its digest is right.
#[derive(Clone, Debug)]
pub(crate) struct TarSplitText {
    compressed: Arc<File>,
    /// Bytes after decompression, as declared.
    size: u64,
}

impl TarSplitText {
    /// Its lines, from the first on.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] without memory for a decompressor.
    pub(crate) fn lines(&self) -> Result<Box<dyn Lines>> {
        let file = FromStart {
            file: Arc::clone(&self.compressed),
            offset: 0,
        };
        let decoder = zstd::Decoder::new(file).during("starting to decompress")?;
        let text = Declared {
            text: decoder,
            size: self.size,
            left: self.size,
        };
        let text = BufReader::with_capacity(BUFFER, text);
        Ok(Box::new(TarSplitReader::of_text(text)))
    }
}

/// Reads no more than is declared; what cannot be decompressed is invalid input.
struct Declared<R> {
    text: R,
    size: u64,
    left: u64,
}

impl<R: Read> Read for Declared<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(out).map_err(|error| {
            let is_of_text = error.raw_os_error().is_none() && error.kind() == io::ErrorKind::Other;
            match is_of_text {
                true => io::Error::new(io::ErrorKind::InvalidInput, error),
                false => error,
            }
        })?;
        let Some(left) = self.left.checked_sub(count as u64) else {
            let what = format!("over {} bytes after decompression", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        self.left = left;
        Ok(count)
    }
}

/// Reads a file that others may read, too.
#[derive(Debug)]
struct FromStart {
    file: Arc<File>,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(out, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The tar-split data that belongs to a table of contents, out of the bytes of its section. `None` if there is none, or
/// the table does not vouch for it. A temporary file is in `dir`.
///
/// # Errors
/// [`ErrorKind::DigestMismatch`] for other data; [`ErrorKind::InvalidArchive`] without the data that the table speaks of;
/// [`ErrorKind::Io`].
pub(crate) async fn read_tar_split(
    location: &TocLocation,
    toc: &Toc,
    bytes: impl AsyncRead + Send + Unpin,
    dir: PathBuf,
) -> Result<Option<TarSplitText>> {
    let (digest, section) = match (toc.tar_split_digest(), &location.tar_split) {
        (None, _) => return Ok(None),
        (Some(digest), Some(section)) => (digest, section),
        (Some(_), None) => {
            let what = format!("\"{ZSTD}{TAR_SPLIT_POSITION}\" annotation missing");
            return Err(ErrorKind::InvalidArchive.err(what));
        }
    };
    let what = "tar-split data";
    let compressed = spool(section, bytes, Some((digest.clone(), what)), dir.into()).await?;
    Ok(Some(TarSplitText {
        compressed: Arc::new(compressed),
        size: section.size,
    }))
}

/// The table, and a file with its text. Temporary files are in `dir`.
pub(crate) async fn read(
    location: &TocLocation,
    bytes: impl AsyncRead + Send + Unpin,
    dir: PathBuf,
) -> Result<(Toc, File)> {
    let Some(section) = location.toc.clone() else {
        return Err(ErrorKind::InvalidInput.err("an eStargz blob whose footer was not read"));
    };
    let dir: Arc<Path> = dir.into();
    let of_compressed = match location.format {
        TocFormat::ZstdChunked => location.digest.clone().map(|digest| (digest, "table")),
        TocFormat::EStargz => None,
    };
    let compressed = spool(&section, bytes, of_compressed, Arc::clone(&dir)).await?;
    let location = location.clone();
    bridge::run(move || {
        let mut text = match location.format {
            TocFormat::ZstdChunked => inflate(compressed, &section, temporary(&dir)?)?,
            TocFormat::EStargz => {
                let text = temporary(&dir)?;
                extract(compressed, section.size, location.digest.as_ref(), text)?
            }
        };
        rewind(&mut text)?;
        let toc = toc::parse(&mut text, bounds(&location))?;
        Ok((toc, text))
    })
    .await
}

/// As [`read`], of a text that a layer has kept. Its digest is verified where it is known: that of zstd:chunked is of the
/// compressed table.
#[cfg(feature = "pull")]
pub(crate) async fn read_text(location: &TocLocation, mut text: File) -> Result<(Toc, File)> {
    let location = location.clone();
    bridge::run(move || {
        if let (TocFormat::EStargz, Some(expected)) = (location.format, &location.digest) {
            let mut hasher = Hasher::like(expected);
            let mut piece = vec![0; BUFFER];
            loop {
                let count = text.read(&mut piece).during("reading a table of contents")?;
                match piece.get(..count) {
                    Some(read) if !read.is_empty() => hasher.update(read),
                    _ => break,
                }
            }
            let found = hasher.finish();
            if found != *expected {
                let what = format!("the table has digest {found}, expected {expected}");
                return Err(ErrorKind::DigestMismatch.err(what));
            }
            rewind(&mut text)?;
        }
        let toc = toc::parse(&mut text, bounds(&location))?;
        Ok((toc, text))
    })
    .await
}

fn bounds(location: &TocLocation) -> Bounds {
    Bounds {
        end: location.content_end(),
        ignored: match location.format {
            TocFormat::ZstdChunked => &[],
            TocFormat::EStargz => &[ESTARGZ_TOC, b".prefetch.landmark", b".no.prefetch.landmark"],
        },
        memory: MAX_MEMORY,
    }
}

/// Writes the bytes of a section to a file; verifies their digest if one is given, with what it is the digest of.
async fn spool(
    section: &Section,
    bytes: impl AsyncRead + Send + Unpin,
    expected: Option<(Digest, &str)>,
    dir: Arc<Path>,
) -> Result<File> {
    let mut file = bridge::run(move || temporary(&dir)).await?;
    let mut hasher = expected
        .as_ref()
        .map_or_else(Hasher::sha256, |(digest, _)| Hasher::like(digest));
    let length = section.length();
    let mut bytes = bytes.take(length);
    let mut buffer = BytesMut::new();
    let mut count = 0;
    loop {
        buffer.reserve(STEP.min(usize::try_from(length - count).unwrap_or(STEP)).max(1));
        let read = bytes
            .read_buf(&mut buffer)
            .await
            .map_err(|error| Error::io("reading the blob", error))?;
        count += read as u64;
        if read == 0 || buffer.len() >= STEP {
            let chunk = buffer.split().freeze();
            (file, hasher) = bridge::run(move || {
                hasher.update(&chunk);
                file.write_all(&chunk).during("writing a temporary file")?;
                Ok((file, hasher))
            })
            .await?;
        }
        if read == 0 {
            break;
        }
    }
    if count < length {
        let what = format!("the blob ends after {count} of {length} bytes");
        return Err(ErrorKind::InvalidArchive.err(what).with_source("unexpected EOF"));
    }
    let found = hasher.finish();
    match expected {
        Some((expected, of)) if expected != found => {
            let what = format!("the compressed {of} has digest {found}, expected {expected}");
            Err(ErrorKind::DigestMismatch.err(what))
        }
        _ => Ok(file),
    }
}

/// Decompresses Zstandard into `out`, to exactly as many bytes as are declared.
fn inflate(mut compressed: File, section: &Section, out: File) -> Result<File> {
    rewind(&mut compressed)?;
    let decoder = zstd::Decoder::new(compressed).during("starting to decompress")?;
    let (file, count) = copy(decoder, section.size, out)?;
    if count != section.size {
        let what = format!("{count} bytes after decompression, declared are {}", section.size);
        return Err(ErrorKind::InvalidArchive.err(what));
    }
    Ok(file)
}

/// Copies to the end; fails as soon as there are more than `limit` bytes.
fn copy(from: impl Read, limit: u64, out: File) -> Result<(File, u64)> {
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let failed = |error: io::Error| match error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        true => Error::io("decompressing", error),
        false => ErrorKind::InvalidArchive.err("decompressing").with_source(error),
    };
    let count = io::copy(&mut from.take(limit.saturating_add(1)), &mut out).map_err(failed)?;
    if count > limit {
        return Err(ErrorKind::InvalidArchive.err(format!("over {limit} bytes after decompression")));
    }
    let file = out
        .into_inner()
        .map_err(io::IntoInnerError::into_error)
        .during("writing a temporary file")?;
    Ok((file, count))
}

/// A compressed tar in pieces.
struct Pieces<R>(R);

impl<R: Read> ChunkSource for Pieces<R> {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let mut piece = vec![0; BUFFER];
        let count = self
            .0
            .read(&mut piece)
            .map_err(|error| ErrorKind::InvalidArchive.err("decompressing").with_source(error))?;
        piece.truncate(count);
        Ok((count > 0).then(|| piece.into()))
    }
}

/// Writes the first file of a compressed tar to `out`, and verifies its digest.
fn extract(mut compressed: File, limit: u64, expected: Option<&Digest>, mut out: File) -> Result<File> {
    rewind(&mut compressed)?;
    // The headers of a table of the largest size are far below its bytes.
    let text = MultiGzDecoder::new(compressed).take(limit.saturating_add(STEP as u64));
    let mut reader = TarReader::new(Pieces(text));
    let mut entry = Entry::default();
    if !reader.next(&mut entry, &mut |_| Ok(()))? || entry.name != ESTARGZ_TOC || entry.kind != b'0' {
        return Err(ErrorKind::InvalidArchive.err("no stargz.index.json where the footer says"));
    }
    if entry.size > limit {
        let what = format!("manifest too big to process in memory ({} bytes)", entry.size);
        return Err(ErrorKind::NotSupported.err(what));
    }
    let mut hasher = expected.map_or_else(Hasher::sha256, Hasher::like);
    while let Some(piece) = reader.payload()? {
        hasher.update(&piece);
        out.write_all(&piece).during("writing a temporary file")?;
    }
    let found = hasher.finish();
    match expected {
        Some(expected) if *expected != found => {
            let what = format!("the table has digest {found}, expected {expected}");
            Err(ErrorKind::DigestMismatch.err(what))
        }
        _ => Ok(out),
    }
}

fn temporary(dir: &Path) -> Result<File> {
    let open = at::open_dir(dir).at("opening the directory", dir)?;
    unnamed::create(open.as_fd()).at("making a temporary file in", dir)
}

fn rewind(file: &mut File) -> Result<()> {
    file.seek(SeekFrom::Start(0)).during("reading a temporary file")?;
    Ok(())
}
