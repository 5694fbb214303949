//! A layer's diff as a stream, and what its bytes are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Handle;

use crate::archive::apply::origins::Origins;
use crate::archive::compress::gzip::Gzip;
use crate::archive::compress::parallel::ParallelStream;
use crate::archive::compress::zstd_frames::ZstdFrames;
use crate::archive::diff::changes::{Change, UpperChanges};
use crate::archive::diff::export::Export;
use crate::archive::tar_split::replay::Replay;
use crate::bridge::{ByteStream, Producer, Progress};
use crate::chunked::writer::{self, Annotations};
use crate::compression::Compression;
use crate::driver::{Driver, OverlayDiff};
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::options::DiffOptions;
use crate::record::layer::LayerRow;
use crate::store::additional_blob::{BlobBytes, StoredBlob};
use crate::store::deleted::ReadLayers;
use crate::store::layer_store::new_layer::mappings_on_disk;
use crate::store::tree_search::{self, Tree, TreeSearch};
use crate::sys::btrfs::SnapshotChanges;

/// A layer's diff as a stream of bytes, made by [`Store::diff`](crate::Store::diff).
///
/// It is both an [`AsyncRead`] and a [`Stream`] of chunks: two views of the same bytes, which may be mixed. Nothing is
/// read before the first poll; later polls run short steps on the runtime's blocking pool, at most one step ahead of
/// the reader (compression: a few blocks ahead). An open stream that is not read holds
/// about three descriptors (a limit of the process, `RLIMIT_NOFILE`, applies), and a temporary mount where the driver
/// needs one; no thread and no lock. They are released at the end of the stream, or soon after it is dropped.
///
/// The steps run on the runtime that polls the stream, else on the one in which it was made; once that has shut down,
/// reading fails.
///
/// If the layer is deleted while it is read, the stream ends with an error of the kind
/// [`ErrorKind::LayerUnknown`].
pub struct DiffStream {
    stream: ByteStream,
    compression: Compression,
    annotations: Annotations,
    size: Option<u64>,
    remaining: Option<u64>,
    layers: ReadLayers,
    /// What is being found out: whether a failure, or what is missing at the end, comes from the deletion of a layer. The
    /// mutex makes it `Sync` and is not locked.
    question: Option<Mutex<BoxFuture<'static, Option<io::Error>>>>,
    /// Whether that is to be asked at the end.
    is_asked_at_end: bool,
}

impl DiffStream {
    /// How the bytes are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The annotations that the layer has to have in a manifest, for others to find the table of contents of a
    /// zstd:chunked blob.
    ///
    /// Empty before the stream was read to its end, for other compressions, and for layers that cannot have a table of
    /// contents, whose stream is plain zstd.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::{Compression, DiffOptions};
    /// let mut diff = store.diff(None, "base", DiffOptions::compressed(Compression::ZstdChunked)).await?;
    /// let mut file = tokio::fs::File::create("base.tar.zst").await.expect("a writable directory");
    /// tokio::io::copy(&mut diff, &mut file).await.expect("a sound layer");
    /// for (key, value) in diff.annotations() {
    ///     println!("{key}={value}"); // io.github.containers.zstd-chunked.manifest-checksum=sha256:…
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.get().cloned().unwrap_or_default()
    }

    /// Bytes of the whole diff, whatever offset this stream begins at; `None` if they are not known beforehand.
    ///
    /// Known is the recorded size of a layer that came in as a stream and goes out uncompressed.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Bytes that are still to come; `None` if they are not known beforehand, as for [`DiffStream::size`]. For a range,
    /// it is the `Content-Length` before the first read.
    pub fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    fn passed(&mut self, count: usize) {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(count as u64);
        }
    }

    /// Has an error looked into.
    fn fail(&mut self, error: io::Error) {
        let layers = self.layers.clone();
        self.question = Some(Mutex::new(match Handle::try_current() {
            Ok(_runtime) => Box::pin(async { Some(layers.explain_io(error).await) }),
            Err(_none) => Box::pin(std::future::ready(Some(error))),
        }));
    }

    /// Whether the stream has still to be looked into at its end.
    fn ask_at_end(&mut self) -> bool {
        if !std::mem::take(&mut self.is_asked_at_end) || Handle::try_current().is_err() {
            return false;
        }
        let layers = self.layers.clone();
        let question = async { layers.deletion().await.map(io::Error::from) };
        self.question = Some(Mutex::new(Box::pin(question)));
        true
    }

    /// The error that reading ends with, if there was one.
    fn poll_question(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        let Some(question) = &mut self.question else {
            return Poll::Ready(None);
        };
        let question = question.get_mut().unwrap_or_else(PoisonError::into_inner);
        let answer = ready!(question.as_mut().poll(cx));
        self.question = None;
        Poll::Ready(answer)
    }
}

impl fmt::Debug for DiffStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiffStream")
            .field("compression", &self.compression)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for DiffStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if let Some(error) = ready!(self.poll_question(cx)) {
                return Poll::Ready(Err(error));
            }
            match ready!(Pin::new(&mut self.stream).poll_read(cx, buffer)) {
                Ok(()) => {
                    let count = buffer.filled().len() - before;
                    let is_end = count == 0 && buffer.remaining() > 0;
                    if is_end && self.ask_at_end() {
                        continue;
                    }
                    self.passed(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => self.fail(error),
            }
        }
    }
}

impl Stream for DiffStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(error) = ready!(self.poll_question(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(chunk)) => {
                    self.passed(chunk.len());
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Some(Err(error)) => self.fail(error),
                None if self.ask_at_end() => {}
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Refuses a compression that can only be read, and a level that there is not.
pub(crate) fn check_compression(compression: Compression, level: Option<i32>) -> Result<()> {
    let levels = match compression {
        Compression::None => 0..=0,
        Compression::Gzip => 1..=9,
        Compression::Zstd | Compression::ZstdChunked => 1..=22,
        Compression::Bzip2 | Compression::Xz => {
            let what = format!(
                "making a diff with {compression}; DiffOptions can ask for gzip, zstd, zstd:chunked or none"
            );
            let extension = compression.extension();
            return Err(ErrorKind::NotSupported
                .err(what)
                .with_source(format!("unsupported compression format {extension}")));
        }
    };
    match level {
        Some(level) if compression != Compression::None && !levels.contains(&level) => {
            let (first, last) = levels.into_inner();
            let what = format!("compression level {level} with {compression}, which has {first} to {last}");
            Err(ErrorKind::InvalidInput.err(what))
        }
        _ => Ok(()),
    }
}

/// What the bytes of a diff are made of.
pub(super) enum DiffSource {
    /// The layer's tar-split file and its files, which give the stream that the layer came from. `size` is its size as
    /// recorded; the files are offered to `origins`.
    Replay {
        tar_split: File,
        trees: Vec<OwnedFd>,
        size: Option<u64>,
        origins: Option<Arc<Origins>>,
    },
    /// What the driver says has changed.
    Comparison(Comparison),
    /// The blob of a layer whose files are in an additional layer store. `size` is that of the tar stream as recorded.
    Blob { blob: StoredBlob, size: Option<u64> },
}

impl DiffSource {
    /// The part of the stream of a layer that the options want; `layers` are those that it is made of.
    pub(super) fn stream(
        self,
        layers: ReadLayers,
        compression: Compression,
        options: &DiffOptions,
    ) -> Result<DiffStream> {
        let &DiffOptions {
            offset, limit, level, ..
        } = options;
        check_compression(compression, level)?;
        let id = layers.first().to_owned();
        let plain = compression == Compression::None;
        let size = match &self {
            Self::Replay { size, .. } | Self::Blob { size, .. } if plain => *size,
            _ => None,
        };
        if let Some(size) = size
            && offset > size
        {
            let what = format!("offset {offset} in the diff of layer {id:?}, which has {size} bytes");
            return Err(ErrorKind::InvalidInput.err(what));
        }
        // What is compressed has to be made from the start; a blob is verified as a whole.
        let start = match self {
            Self::Replay { .. } | Self::Comparison(_) if plain => offset,
            _ => 0,
        };
        // What a replay lacks, it misses.
        let is_asked_at_end = matches!(self, Self::Comparison(_));
        let mut is_compressed = false;
        let bytes = match self {
            // Other levels, and other annotations, come from other bytes.
            Self::Blob { blob, .. } if blob.compression() == Some(compression) && level.is_none() => {
                is_compressed = true;
                DiffBytes::Blob(blob.raw())
            }
            Self::Blob { blob, .. } => DiffBytes::Blob(blob.decoded()),
            Self::Replay {
                tar_split,
                trees,
                origins,
                ..
            } => {
                let mut replay = Replay::new(tar_split, trees, start);
                if let Some(origins) = origins {
                    replay = replay.offering_to(origins);
                }
                DiffBytes::Replay(Box::new(replay))
            }
            Self::Comparison(comparison) => DiffBytes::Fresh(Fresh::Opened(comparison, start)),
        };
        let producer = DiffProducer { id, bytes };
        let mut annotations = Annotations::default();
        let stream = match compression {
            _ if is_compressed => ByteStream::of(producer),
            Compression::Gzip => ByteStream::new(ParallelStream::<Gzip, _>::of(producer, level)),
            Compression::Zstd => ByteStream::new(ParallelStream::<ZstdFrames, _>::of(producer, level)),
            Compression::ZstdChunked => {
                let (stream, of_stream) = writer::compressed(producer, level);
                annotations = of_stream;
                ByteStream::new(stream)
            }
            _ => ByteStream::of(producer),
        };
        // What begins at the offset already has nothing to be passed over.
        let stream = stream.skipping(offset - start);
        Ok(DiffStream {
            stream: stream.limited(limit),
            compression,
            annotations,
            size,
            remaining: size.map(|size| (size - offset).min(limit.unwrap_or(u64::MAX))),
            layers,
            question: None,
            is_asked_at_end,
        })
    }
}

/// How to find out what a layer changes.
pub(super) enum Comparison {
    /// The driver keeps changes apart.
    OverlayDiff(OverlayDiff, IdMappings),
    /// Two whole trees, the second one perhaps that of the direct parent.
    Trees {
        new: Tree,
        old: Option<Tree>,
        snapshot: Option<Box<SnapshotChanges>>,
    },
}

/// What is being found out about the changes of a layer, step by step.
pub(super) enum ChangeSearch {
    Upper(Box<UpperChanges>),
    Trees(TreeSearch),
}

impl ChangeSearch {
    /// One step; `false` at the end. Blocking.
    pub(super) fn step(&mut self) -> Result<bool> {
        match self {
            Self::Upper(search) => search.step(tree_search::COMPARED_ENTRIES),
            Self::Trees(search) => search.step(),
        }
    }

    /// What has changed, after the last step.
    pub(super) fn into_changes(self) -> Vec<Change> {
        match self {
            Self::Upper(search) => search.into_changes(),
            Self::Trees(search) => search.into_changes(),
        }
    }
}

impl Comparison {
    /// Opens the trees of two layers, and mounts what has to be mounted.
    pub(super) fn open(driver: &Arc<dyn Driver>, to: &LayerRow, from: Option<&LayerRow>) -> Result<Self> {
        if let Some(upper) = driver.overlay_diff(&to.id, from.map(|row| row.id.as_str()))? {
            let mappings = mappings_on_disk(&**driver, to, upper.dir.as_fd())?;
            return Ok(Self::OverlayDiff(upper, mappings));
        }
        let tree = |row: &LayerRow| -> Result<Tree> {
            let dir = driver.mount_private(&row.id)?;
            let mappings = mappings_on_disk(&**driver, row, dir.as_fd())?;
            Ok(Tree { dir, mappings })
        };
        let (new, old) = (tree(to)?, from.map(tree).transpose()?);
        let snapshot = match &old {
            // Other mappings have the same owners differ.
            Some(old) if old.mappings == new.mappings => {
                driver.snapshot_changes(new.dir.as_fd(), old.dir.as_fd())
            }
            _ => None,
        };
        Ok(Self::Trees {
            new,
            old,
            snapshot: snapshot.map(Box::new),
        })
    }

    /// The search for what has changed, and the tree with it. Blocking.
    pub(super) fn search(self) -> Result<(ChangeSearch, OwnedFd)> {
        match self {
            Self::OverlayDiff(upper, _) => {
                let search = UpperChanges::new(upper.dir.as_fd(), upper.lowers, upper.namespace)?;
                Ok((ChangeSearch::Upper(Box::new(search)), upper.dir))
            }
            Self::Trees { new, old, snapshot } => {
                let search = TreeSearch::new(&new, old.as_ref(), snapshot)?;
                Ok((ChangeSearch::Trees(search), new.dir))
            }
        }
    }
}

/// The uncompressed bytes of a diff, as a producer.
struct DiffProducer {
    /// Of the layer, for errors.
    id: String,
    bytes: DiffBytes,
}

enum DiffBytes {
    Replay(Box<Replay<File>>),
    Fresh(Fresh),
    Blob(BlobBytes),
}

/// A diff that is made of what has changed, step by step.
enum Fresh {
    /// Nothing was read yet. The stream begins at this offset.
    Opened(Comparison, u64),
    /// Two trees are being compared.
    Comparing {
        search: TreeSearch,
        new: Tree,
        offset: u64,
    },
    /// The stream is being written.
    Exporting(Box<Export>),
    Over,
}

impl Producer for DiffProducer {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        let progress = match &mut self.bytes {
            DiffBytes::Replay(replay) => replay.step(out, room),
            DiffBytes::Fresh(fresh) => fresh.step(out, room),
            DiffBytes::Blob(blob) => blob.step(out, room),
        };
        progress.context(|| format!("reading the diff of layer {:?}", self.id))
    }
}

impl Fresh {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        if let Self::Exporting(export) = self {
            return export.step(out, room);
        }
        let exporting = |export: Export| Self::Exporting(Box::new(export));
        *self = match std::mem::replace(self, Self::Over) {
            Self::Opened(Comparison::OverlayDiff(diff, mappings), offset) => {
                let export = Export::upper(diff.dir.as_fd(), diff.lowers, diff.namespace, &mappings, offset)?;
                exporting(export)
            }
            Self::Opened(Comparison::Trees { new, old: None, .. }, offset) => {
                let export = Export::tree(new.dir.as_fd(), &new.mappings, offset)?;
                exporting(export)
            }
            Self::Opened(Comparison::Trees { new, old, snapshot }, offset) => Self::Comparing {
                search: TreeSearch::new(&new, old.as_ref(), snapshot)?,
                new,
                offset,
            },
            Self::Comparing {
                mut search,
                new,
                offset,
            } => {
                if search.step()? {
                    Self::Comparing { search, new, offset }
                } else {
                    let changes = search.into_changes();
                    let export = Export::changes(new.dir, changes, &new.mappings, offset);
                    exporting(export)
                }
            }
            over => over,
        };
        Ok(Progress::More)
    }
}
