//! The differ for blobs without a table of contents.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncRead;

use crate::archive::apply::origins::{FindContent, Origins};
use crate::archive::apply::pipeline::{ApplyOptions, Inflow};
use crate::bridge;
use crate::chunked::cache::{FORMAT_KEY, TOC_KEY};
use crate::chunked::writer::TocWriter;
use crate::digest::Digest;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::store::Store;
use crate::store::chunked_differ::AS_NAMED;
use crate::store::stage::area::{ItemFile, StagedContent};
use crate::store::stage::differ::{Differ, StagingArea};
use crate::store::stage::differ_output::DifferOutput;
use crate::sys::{at, make_private_subdir, unnamed};

/// Makes a layer of a blob that has no table of contents, and the table while it is unpacked: later pulls find its files. What
/// the pull option [`convert_images`](crate::PartialPullOptions::convert_images) asks for.
///
/// The blob is read once, as [`Store::put_layer`] does, and nothing of it is kept. A file whose content another layer has shares
/// it, where the file system can or
/// [`use_hard_links`](crate::PartialPullOptions::use_hard_links) is set. A layer that can have no table, since a name is there
/// twice for example, is made without one.
///
/// ```no_run
/// # async fn demo(store: graphroot::Store, layer: graphroot::Descriptor, diff_id: graphroot::Digest) -> graphroot::Result<()> {
/// use graphroot::{ConvertingDiffer, LayerOptions, StagingOptions};
/// let blob = tokio::fs::File::open("layer.tar.gz").await.expect("a layer");
/// let differ = ConvertingDiffer::new(&store, blob)
///     .expect_blob(layer.digest, layer.size)
///     .expect(diff_id);
/// let staged = store.prepare_staged_layer(StagingOptions::default(), differ).await?;
/// let layer = store.apply_staged_layer(None, LayerOptions::default(), staged).await?;
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ConvertingDiffer<R> {
    store: Store,
    /// `None` once it was read.
    blob: Option<R>,
    digest: Option<(Digest, u64)>,
    diff_id: Option<Digest>,
}

impl<R: AsyncRead + Send> ConvertingDiffer<R> {
    /// Of a tar stream, compressed or not.
    pub fn new(store: &Store, blob: R) -> Self {
        Self {
            store: store.clone(),
            blob: Some(blob),
            digest: None,
            diff_id: None,
        }
    }

    /// Demands that the blob has this digest; `size` is how many bytes it has.
    #[must_use]
    pub fn expect_blob(mut self, digest: Digest, size: u64) -> Self {
        self.digest = Some((digest, size));
        self
    }

    /// Demands this diff ID.
    #[must_use]
    pub fn expect(mut self, diff_id: Digest) -> Self {
        self.diff_id = Some(diff_id);
        self
    }
}

impl<R: AsyncRead + Send> Differ for ConvertingDiffer<R> {
    async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
        let Some(blob) = self.blob.take() else {
            return Err(ErrorKind::InvalidInput.err("a blob that was read already"));
        };
        let local = self.store.local_content().await?;
        let links = local.links() && area.0.may_link();
        let finder = (!local.is_empty()).then(|| Box::new(local) as Box<dyn FindContent>);
        let dir = self.store.inner.dirs.layers_tmp();
        let file = bridge::run(move || {
            make_private_subdir(&dir)?;
            let open = at::open_dir(&dir).at("opening the directory", &dir)?;
            unnamed::create(open.as_fd()).at("making a temporary file in", &dir)
        })
        .await?;
        let (writer, written) = TocWriter::new(file);
        let (original_digest, original_size) = self.digest.clone().unzip();
        let options = ApplyOptions {
            original_digest,
            original_size,
            uncompressed_digest: self.diff_id.clone(),
            verify: true,
            origins: Some(Arc::new(Origins::new(links, finder))),
            inspect: Some(Box::new(writer)),
            ..ApplyOptions::default()
        };
        let content = area.0.unpack_with(Inflow::Blob(Box::pin(blob)), options).await?;
        let Some(file) = written.file() else {
            return Ok(content);
        };
        let file = file.try_clone().during("duplicating a file handle")?;
        let applied = &content.unpacked.applied;
        let output = DifferOutput::default()
            .uncompressed(applied.diff_digest.clone(), applied.diff_size)
            .compressed_digest(applied.compressed_digest.clone())
            .owners(applied.uids.iter().copied(), applied.gids.iter().copied())
            .big_data(FORMAT_KEY, Bytes::from_static(AS_NAMED));
        content
            .describe(
                output,
                true,
                vec![ItemFile {
                    key: TOC_KEY.into(),
                    file,
                }],
            )
            .await
    }
}
