//! The differ for blobs with a table of contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
#[cfg(feature = "pull")]
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
#[cfg(feature = "pull")]
use futures::future::{BoxFuture, FutureExt as _};
use tokio::io::AsyncReadExt as _;

use crate::archive::apply::pipeline::{ApplyOptions, Inflow};
use crate::bridge;
use crate::chunked::assemble::{self, Assembler, HeaderCheck, Headers, Lines, Plan};
use crate::chunked::cache::{FORMAT_KEY, TOC_KEY};
use crate::chunked::{self, BlobSource, TarSplitText, Toc, TocFormat, TocLocation};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::options::{BoxReader, PartialPullOptions};
use crate::store::Store;
use crate::store::stage::area::{ItemFile, StagedContent};
use crate::store::stage::differ::{Differ, StagingArea};
use crate::store::stage::differ_output::DifferOutput;

/// What [`FORMAT_KEY`] says of a layer whose files lie as they are named.
pub(crate) const AS_NAMED: &[u8] = b"{\"format\":0}";

/// Puts a layer together from the parts of a zstd:chunked (or eStargz) blob, of which it fetches what the store does not have.
///
/// The result is the layer that [`Store::put_layer`] makes of the whole blob: the same tree, the same diff ID, the same
/// refusals. It also has the table of contents, so that other pulls find its files.
///
/// ```no_run
/// # async fn demo(store: graphroot::Store, blob: std::sync::Arc<dyn graphroot::chunked::BlobSource>,
/// #     layer: graphroot::Descriptor, diff_id: graphroot::Digest) -> graphroot::Result<()> {
/// use graphroot::{ChunkedDiffer, ErrorKind, LayerOptions, StagingOptions};
/// let differ = match ChunkedDiffer::open(&store, &layer.annotations, layer.size, blob).await {
///     Ok(differ) => differ.expect(diff_id),
///     Err(error) if error.kind() == ErrorKind::NotSupported => return Ok(()), // put_layer takes the whole blob
///     Err(error) => return Err(error),
/// };
/// let staged = store.prepare_staged_layer(StagingOptions::default(), differ).await?;
/// let layer = store.apply_staged_layer(None, LayerOptions::default(), staged).await?;
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ChunkedDiffer {
    store: Store,
    location: TocLocation,
    source: Arc<dyn BlobSource>,
    toc: Arc<Toc>,
    /// The text of the table.
    text: File,
    /// Without, nobody knows which tar stream the layer was made of.
    tar_split: Option<TarSplitText>,
    diff_id: Option<Digest>,
    /// Whether content of other layers is used.
    reuse: bool,
    /// Files of a layer that have other content than they should.
    wrong: Option<(String, BTreeSet<Vec<u8>>)>,
    /// Whether some was used.
    has_reused: bool,
    report: Option<Report>,
}

/// Is told what is fetched and what is not.
struct Report(Box<dyn Fn(Savings) + Send + Sync>);

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

/// Where nothing can be read of.
#[cfg(feature = "pull")]
#[derive(Debug)]
struct NoSource;

#[cfg(feature = "pull")]
impl BlobSource for NoSource {
    fn read(&self, _ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        let what = "a file of a layer, which no layer of the store has";
        std::future::ready(Err(ErrorKind::NotFound.err(what))).boxed()
    }
}

/// How much of a blob is fetched, in bytes of the blob. The rest of it is needed for nothing.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Savings {
    /// Bytes that are fetched, the table of contents and the tar-split data left out.
    pub fetched: u64,
    /// Bytes that are not, since the files that they hold are in other layers.
    pub reused: u64,
}

impl ChunkedDiffer {
    /// Reads what the annotations of a layer in its manifest speak of, of a blob of `blob_size` bytes: the table of contents
    /// and the tar-split data. Takes no store lock.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] where the layer has to be, and can be, pulled as a whole: without a table of contents,
    /// with one that is too large, from a source that cannot give parts of the blob; without tar-split data, as all of
    /// eStargz, unless
    /// [`insecure_allow_unpredictable_image_contents`](PartialPullOptions::insecure_allow_unpredictable_image_contents) is set
    /// (then the layer has no diff ID).
    /// [`ErrorKind::InvalidArchive`] and [`ErrorKind::DigestMismatch`] for a table that is wrong; those of `source`;
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing remains.
    pub async fn open(
        store: &Store,
        annotations: &BTreeMap<String, String>,
        blob_size: u64,
        source: Arc<dyn BlobSource>,
    ) -> Result<Self> {
        let reading = Self::read(store, annotations, blob_size, source).await;
        reading.map_err(|error| error.context("reading the table of contents of a layer"))
    }

    async fn read(
        store: &Store,
        annotations: &BTreeMap<String, String>,
        blob_size: u64,
        source: Arc<dyn BlobSource>,
    ) -> Result<Self> {
        let location = TocLocation::from_annotations(annotations, blob_size)?
            .ok_or_else(|| ErrorKind::NotSupported.err("no TOC found"))?;
        let options = PartialPullOptions::new(&store.inner.options.pull_options);
        let accepts_unpredictable = options.insecure_allow_unpredictable_image_contents;
        let unpredictable = match location.format() {
            TocFormat::EStargz => "estargz layers don't support",
            _ => "zstd:chunked layers without tar-split data don't support",
        };
        let refuse = || {
            let what =
                format!("{unpredictable} partial pulls with guaranteed consistency with non-partial pulls");
            ErrorKind::NotSupported.err(what)
        };
        if location.tar_split_range().is_none() && !accepts_unpredictable {
            return Err(refuse());
        }
        // What other layers have is found out before the table is read: making their cache files takes memory, and so does the
        // table. It is asked for meanwhile.
        let first = match (
            location.footer_range(),
            location.toc_range(),
            location.tar_split_range(),
        ) {
            (Some(footer), _, _) => vec![footer],
            (None, Some(toc), Some(tar_split)) if toc.start < tar_split.start => vec![toc, tar_split],
            (None, Some(toc), _) => vec![toc],
            (None, None, _) => return Err(refuse()),
        };
        let (_local, mut bytes) = futures::try_join!(store.local_content(), source.read(first))?;
        // Not where memory may be the disk: a table can be large.
        let dir = store.inner.dirs.layers_tmp();
        let made = dir.clone();
        bridge::run(move || crate::sys::make_private_subdir(&made)).await?;
        let location = match location.footer_range() {
            None => location,
            Some(_range) => {
                let mut footer = Vec::new();
                let read = bytes.read_to_end(&mut footer).await;
                read.map_err(|error| Error::io("reading the footer of the blob", error))?;
                let location = location.with_footer(&footer)?;
                bytes = source
                    .read(vec![location.toc_range().ok_or_else(refuse)?])
                    .await?;
                location
            }
        };
        let toc = location.toc_range().ok_or_else(refuse)?;
        let (toc, text, tar_split) = match location.tar_split_range() {
            Some(tar_split) if toc.start < tar_split.start => {
                let (toc, text) = chunked::read(&location, &mut bytes, dir.clone()).await?;
                let tar_split = chunked::read_tar_split(&location, &toc, bytes, dir).await?;
                (toc, text, tar_split)
            }
            tar_split => {
                let (toc, text) = chunked::read(&location, bytes, dir.clone()).await?;
                let bytes: BoxReader = match tar_split {
                    Some(range) => source.read(vec![range]).await?,
                    None => Box::pin(tokio::io::empty()),
                };
                let tar_split = chunked::read_tar_split(&location, &toc, bytes, dir).await?;
                (toc, text, tar_split)
            }
        };
        if tar_split.is_none() && !accepts_unpredictable {
            return Err(refuse());
        }
        Ok(Self {
            store: store.clone(),
            location,
            source,
            toc: Arc::new(toc),
            text,
            tar_split,
            diff_id: None,
            reuse: true,
            wrong: None,
            has_reused: false,
            report: None,
        })
    }

    /// The differ for a copy of a layer of the store, which was put together by the table at `location`. It takes all content
    /// from the layers of the store.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the table; [`ErrorKind::LayerUnknown`]; [`ErrorKind::InvalidArchive`] and
    /// [`ErrorKind::DigestMismatch`] for another one; [`ErrorKind::Io`].
    #[cfg(feature = "pull")]
    pub(crate) async fn of_layer(store: &Store, location: TocLocation, layer: &str) -> Result<Self> {
        store.local_content().await?;
        let text = store.layer_item_file(layer, TOC_KEY).await?;
        let (toc, text) = chunked::read_text(&location, text).await?;
        Ok(Self {
            store: store.clone(),
            location,
            source: Arc::new(NoSource),
            toc: Arc::new(toc),
            text,
            tar_split: None,
            diff_id: None,
            reuse: true,
            wrong: None,
            has_reused: false,
            report: None,
        })
    }

    /// Whether it finds out the diff ID of the layer.
    #[cfg(feature = "pull")]
    pub(crate) fn has_diff_id(&self) -> bool {
        self.tar_split.is_some()
    }

    /// Demands this diff ID. Files that other layers have are verified by it; without, by their own digests, as all others
    /// are in any case.
    #[must_use]
    pub fn expect(mut self, diff_id: Digest) -> Self {
        self.diff_id = Some(diff_id);
        self
    }

    /// Whether content of other layers of the store is used (the default). What is used is verified as what is fetched.
    #[must_use]
    pub fn reuse(mut self, reuse: bool) -> Self {
        self.reuse = reuse;
        self
    }

    /// Takes nothing from these files of a layer.
    pub(crate) fn without(mut self, layer: &str, names: BTreeSet<Vec<u8>>) -> Self {
        self.wrong = Some((layer.to_owned(), names));
        self
    }

    /// Calls `report` when it is known what has to be fetched; again for each further attempt.
    #[must_use]
    pub fn report(mut self, report: impl Fn(Savings) + Send + Sync + 'static) -> Self {
        self.report = Some(Report(Box::new(report)));
        self
    }

    /// The digest of the table of contents, if the annotations have it, and its text.
    pub(crate) fn into_text(self) -> (Option<Digest>, File) {
        (self.location.toc_digest().cloned(), self.text)
    }

    /// The table of contents.
    pub fn toc(&self) -> &Toc {
        &self.toc
    }

    async fn assemble(&mut self, area: StagingArea) -> Result<StagedContent> {
        if self.diff_id.is_some() && self.tar_split.is_none() {
            let what = "verifying the diff ID of a layer without tar-split data";
            return Err(ErrorKind::NotSupported.err(what));
        }
        let local = match self.reuse {
            true => Some(self.store.local_content().await?),
            false => None,
        };
        let local = match (local, self.wrong.clone()) {
            (Some(local), Some((layer, names))) => Some(local.without(layer, names)),
            (local, _) => local,
        };
        let may_link = area.0.may_link();
        let local = local.filter(|local| !local.is_empty()).map(|local| {
            let links = local.links() && may_link;
            local.with_links(links)
        });
        let (toc, tar_split) = (Arc::clone(&self.toc), self.tar_split.clone());
        let how = (self.location.format(), self.diff_id.is_none());
        let (assembler, savings) = bridge::run(move || {
            let plan = Plan::new(&toc, local.as_ref())?;
            let savings = Savings {
                fetched: plan.fetched(),
                reused: plan.reused(),
            };
            let lines: Box<dyn Lines> = match tar_split {
                Some(tar_split) => tar_split.lines()?,
                None => Box::new(Headers::new(Arc::clone(&toc))),
            };
            let assembler = Assembler::new(toc, plan, local, lines, how)?;
            Ok((assembler, savings))
        })
        .await?;
        tracing::debug!(?savings, "putting a layer together");
        self.has_reused = savings.reused > 0;
        if let Some(report) = &self.report {
            (report.0)(savings);
        }
        let (origins, contents) = (assembler.origins(), assembler.contents());
        let stream = assemble::stream(assembler, Arc::clone(&self.source));
        let mut options = ApplyOptions {
            uncompressed_digest: self.diff_id.clone(),
            verify: true,
            origins: Some(origins),
            contents: Some(Box::new(contents)),
            ..ApplyOptions::default()
        };
        let has_tar_split = self.tar_split.is_some();
        if has_tar_split {
            options.inspect = Some(Box::new(HeaderCheck::new(Arc::clone(&self.toc))));
        }
        let content = area.0.unpack_with(Inflow::Tar(stream), options).await?;
        let applied = &content.unpacked.applied;
        let mut output = DifferOutput::default()
            .owners(applied.uids.iter().copied(), applied.gids.iter().copied())
            .big_data(FORMAT_KEY, Bytes::from_static(AS_NAMED));
        if has_tar_split {
            output = output.uncompressed(applied.diff_digest.clone(), applied.diff_size);
        }
        output.toc_digest = self.location.toc_digest().cloned();
        let file = self.text.try_clone().during("duplicating a file handle")?;
        let table = ItemFile {
            key: TOC_KEY.into(),
            file,
        };
        content.describe(output, has_tar_split, vec![table]).await
    }
}

impl Differ for ChunkedDiffer {
    async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
        self.assemble(area).await
    }

    fn retry(&mut self, error: &Error) -> bool {
        // What was changed on disk, or has gone meanwhile, is fetched.
        let wrong = matches!(
            error.kind(),
            ErrorKind::DigestMismatch | ErrorKind::InvalidArchive | ErrorKind::LayerContentModified
        );
        self.reuse = false;
        wrong && std::mem::take(&mut self.has_reused)
    }
}
