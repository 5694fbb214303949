//! One missing layer of an image: made of a layer of the store that has the content, of what an additional layer store
//! offers, of parts of its blob, or of the whole of it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use tokio_util::io::{ReaderStream, StreamReader};

use super::context::PullContext;
use super::meter::Meter;
use super::offered;
use super::progress::BlobState;
use super::source::ImageSource;
use super::wanted::{Known, WantedLayer};
use crate::bridge::CHUNK;
use crate::chunked::TocLocation;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{BoxReader, DiffOptions, LayerOptions};
use crate::store::additional_layer::AdditionalLayer;
use crate::store::chunked_differ::ChunkedDiffer;
use crate::store::converting_differ::ConvertingDiffer;
use crate::store::layer_identity::{EXPECTED_DIFF_ID, LayerIdentity};
use crate::store::stage::staged_diff::StagedDiff;
use crate::store::views::Layer;

/// The ID of a layer as soon as it is in the store.
pub(super) type Ready = watch::Receiver<Option<String>>;

/// Why a task ended without a layer.
pub(super) enum Failure {
    Own(Error),
    /// A layer that it waited for failed; the error of that one is reported.
    Below,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

/// One missing layer.
pub(super) struct Job {
    pub(super) context: Arc<PullContext>,
    pub(super) source: ImageSource,
    /// The image's reference in a registry.
    pub(super) reference: Option<Arc<str>>,
    pub(super) wanted: WantedLayer,
    /// The highest layer of the image that the store had at the start.
    pub(super) base: Option<String>,
    /// The expected ID of the layer below.
    pub(super) parent: Option<String>,
    /// The expected ID of this layer.
    pub(super) id: String,
    /// The layer below, if it is being made.
    pub(super) below: Option<Ready>,
    /// A lower layer of the image with the same diff.
    pub(super) same: Option<Ready>,
}

async fn wait(ready: &Ready) -> Result<Option<String>, Failure> {
    let mut ready = ready.clone();
    let id = ready.wait_for(Option::is_some).await;
    id.map(|id| id.clone()).map_err(|_sender_gone| Failure::Below)
}

impl Job {
    /// Makes the layer unless another task or process does. Returns whether its blob was transferred.
    pub(super) async fn run(self, done: watch::Sender<Option<String>>) -> Result<bool, Failure> {
        let store = &self.context.store;
        let _flight = self.context.flight(&format!("layer-{}", self.id)).await?;
        if let Some(layer) = self.wanted.find(store, self.parent.as_deref()).await? {
            return Ok(self.reused(&layer, &done));
        }
        if let Some(reference) = &self.reference
            && let Some(offered) = offered::find(store, reference, &self.wanted).await
            && let Some(layer) = self.take(&offered).await?
        {
            return Ok(self.reused(&layer, &done));
        }
        if let Some(same) = &self.same {
            wait(same).await?;
        }
        // A driver that keeps whole trees needs the layer below first.
        let on = if store.stages_apart() {
            self.base.clone()
        } else {
            self.place().await?
        };
        let diff_id = &self.wanted.diff_id;
        let key = format!("diff-{}-{}", diff_id.algorithm(), diff_id.encoded());
        let mut diff_flight = Some(self.context.flight(&key).await?);
        let (staged, transferred) = self.unpack(on.as_deref()).await?;
        let progress = &self.context.options.progress;
        if self.below.as_ref().is_some_and(|below| below.borrow().is_none()) {
            drop(diff_flight.take());
        }
        let parent = self.place().await?;
        let identity = self
            .wanted
            .identity(staged.uncompressed_digest())
            .ok_or_else(|| {
                let found = staged.uncompressed_digest().map_or("no digest", Digest::as_str);
                let what = format!("a layer with {found} in place of {}", self.wanted.diff_id);
                ErrorKind::DigestMismatch.err(what)
            })?;
        let id = identity.layer_id(parent.as_deref());
        let options = self.committing(&identity).id(&id);
        match store.commit_diff(parent.as_deref(), options, staged).await {
            Ok(_put) => {}
            // A program that does not take flights has committed it meanwhile.
            Err(error) if error.kind() == ErrorKind::DuplicateId => {
                let known = self.wanted.with_id(store, &identity, parent.as_deref());
                match known.await? {
                    Some(layer) => return Ok(self.reused(&layer, &done)),
                    None => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(partials) = &self.context.partials {
            partials.discard(&self.wanted.blob.digest).await;
        }
        let layer = id.clone();
        progress.blob(&self.wanted.blob.digest, || BlobState::Committed { layer });
        done.send_replace(Some(id));
        Ok(transferred)
    }

    /// Makes the layer of one in an additional layer store. `None` if that cannot be done.
    async fn take(&self, offered: &AdditionalLayer) -> Result<Option<Layer>, Failure> {
        let parent = self.place().await?;
        let id = LayerIdentity::DiffId(self.wanted.diff_id.clone()).layer_id(parent.as_deref());
        let no_names: [&str; 0] = [];
        match offered.put_as(&id, parent.as_deref(), no_names).await {
            Ok(layer) => Ok(Some(layer)),
            Err(error) => {
                tracing::warn!(blob = %self.wanted.blob.digest, error = %error.chain(), "cannot use an additional layer store");
                Ok(self.wanted.find(&self.context.store, parent.as_deref()).await?)
            }
        }
    }

    fn reused(&self, layer: &Layer, done: &watch::Sender<Option<String>>) -> bool {
        let item = layer.id().to_owned();
        let progress = &self.context.options.progress;
        progress.blob(&self.wanted.blob.digest, || BlobState::Reused { item });
        done.send_replace(Some(layer.id().to_owned()));
        false
    }

    /// The ID of the layer below, once the store has it.
    async fn place(&self) -> Result<Option<String>, Failure> {
        match &self.below {
            Some(below) => wait(below).await,
            None => Ok(self.base.clone()),
        }
    }

    /// How a stream of the layer is unpacked.
    fn options(&self) -> LayerOptions {
        let wanted = &self.wanted;
        let mut options = LayerOptions::default().verify_uncompressed_digest(wanted.diff_id.clone());
        options.original_digest = Some(wanted.blob.digest.clone());
        options.original_size = Some(wanted.blob.size);
        options
    }

    /// How the layer is recorded.
    fn committing(&self, identity: &LayerIdentity) -> LayerOptions {
        match identity {
            LayerIdentity::DiffId(_) => self.options(),
            LayerIdentity::Toc(_) => {
                LayerOptions::default().flag(EXPECTED_DIFF_ID, self.wanted.diff_id.to_string())
            }
        }
    }

    /// Unpacks the diff, from a layer that has it or from the source. Returns whether it was transferred.
    async fn unpack(&self, on: Option<&str>) -> Result<(StagedDiff, bool)> {
        let known = self.wanted.known(&self.context.store).await?;
        let copied = match &known {
            Known::ByDiffId(layers) => layers.first().map(|layer| (layer, None)),
            Known::ByToc { layers, .. } => layers
                .first()
                .zip(self.wanted.location.as_ref())
                .map(|(layer, location)| (layer, Some(location))),
            Known::Nothing | Known::Nowhere { .. } => None,
        };
        if let Some((layer, location)) = copied {
            let copied = match location {
                None => self.copy(on, layer.id()).await,
                Some(location) => self.copy_by_toc(on, layer.id(), location).await,
            };
            match copied {
                Ok(staged) => {
                    self.unpacked();
                    return Ok((staged, false));
                }
                // Its files may have been changed, or it has been deleted meanwhile.
                Err(error) => {
                    tracing::warn!(layer = layer.id(), error = %error.chain(), "cannot copy a layer, fetching it");
                }
            }
        }
        let may_be_unverified = !matches!(known, Known::Nothing);
        let _download = self.context.download(&self.source).await?;
        let _unpacker = self.context.unpacker().await?;
        let staged = self.transfer(on, may_be_unverified).await?;
        self.unpacked();
        Ok((staged, true))
    }

    fn unpacked(&self) {
        let progress = &self.context.options.progress;
        progress.blob(&self.wanted.blob.digest, || BlobState::Unpacked);
    }

    async fn copy(&self, on: Option<&str>, layer: &str) -> Result<StagedDiff> {
        let _unpacker = self.context.unpacker().await?;
        let store = &self.context.store;
        let stream = store.diff(None, layer, DiffOptions::uncompressed()).await?;
        // The record names the blob's digest, which a copy cannot verify; the diff's digest is verified instead.
        let mut options = self.options();
        options.verify = false;
        let checked = verified(Box::pin(stream), self.wanted.diff_id.clone());
        store.stage_diff(on, &options, checked).await
    }

    /// Copies a layer of which nobody knows the diff ID. Each file is verified by the table of contents.
    async fn copy_by_toc(&self, on: Option<&str>, layer: &str, location: &TocLocation) -> Result<StagedDiff> {
        let _unpacker = self.context.unpacker().await?;
        let store = &self.context.store;
        let differ = ChunkedDiffer::of_layer(store, location.clone(), layer).await?;
        let staged = store.stage_with(on, &LayerOptions::default(), differ).await?;
        Ok(staged.into())
    }

    /// Fetches of the blob what the store does not have; `None` if it has to be pulled as a whole.
    async fn fetch_parts(&self, on: Option<&str>, may_be_unverified: bool) -> Result<Option<StagedDiff>> {
        let (context, blob) = (&self.context, &self.wanted.blob);
        let store = &context.store;
        if !context.takes_parts() {
            return Ok(None);
        }
        let staged: Result<Option<StagedDiff>> = async {
            if TocLocation::from_annotations(&blob.annotations, blob.size)?.is_none() {
                return Ok(None);
            }
            let meter = Meter::start(&context.options.progress, &blob.digest, blob.size, 0);
            let source = self.source.ranges(blob, meter.clone()).await?;
            let mut differ = ChunkedDiffer::open(store, &blob.annotations, blob.size, source).await?;
            if differ.has_diff_id() || !may_be_unverified {
                differ = differ.expect(self.wanted.diff_id.clone());
            }
            let differ = differ.report(move |savings| meter.reuse(savings.reused));
            let staged = store.stage_with(on, &LayerOptions::default(), differ).await?;
            Ok(Some(staged.into()))
        }
        .await;
        match staged {
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                tracing::info!(blob = %blob.digest, reason = %error.chain(), "pulling a layer as a whole");
                Ok(None)
            }
            staged => staged.map_err(|error| error.context(format!("layer {}", blob.digest))),
        }
    }

    /// Unpacks the whole blob.
    async fn stage(&self, on: Option<&str>, blob: BoxReader) -> Result<StagedDiff> {
        let (context, store) = (&self.context, &self.context.store);
        if !(context.takes_parts() && context.in_part.convert_images) {
            return store.stage_diff(on, &self.options(), blob).await;
        }
        let wanted = &self.wanted;
        let differ = ConvertingDiffer::new(store, blob)
            .expect_blob(wanted.blob.digest.clone(), wanted.blob.size)
            .expect(wanted.diff_id.clone());
        let staged = store.stage_with(on, &LayerOptions::default(), differ).await?;
        Ok(staged.into())
    }

    async fn transfer(&self, on: Option<&str>, may_be_unverified: bool) -> Result<StagedDiff> {
        if let Some(staged) = self.fetch_parts(on, may_be_unverified).await? {
            return Ok(staged);
        }
        let blob = &self.wanted.blob;
        loop {
            let partial = match &self.context.partials {
                Some(partials) if self.source.is_remote() => partials.open(&blob.digest, blob.size).await,
                _ => None,
            };
            let kept = partial.as_ref().map_or(0, |partial| partial.kept());
            let stream = self
                .source
                .blob(blob, &self.context.options.progress, partial)
                .await?;
            let staged = self.stage(on, stream).await;
            let error = match staged {
                Ok(staged) => return Ok(staged),
                Err(error) => error,
            };
            let wrong = matches!(
                error.kind(),
                ErrorKind::DigestMismatch | ErrorKind::InvalidArchive
            );
            if wrong && let Some(partials) = &self.context.partials {
                partials.discard(&blob.digest).await;
                if kept > 0 {
                    tracing::warn!(blob = %blob.digest, error = %error.chain(), "the partial blob is wrong, downloading it again");
                    continue;
                }
            }
            return Err(error.context(format!("layer {}", blob.digest)));
        }
    }
}

/// A stream that fails at its end unless its bytes have this digest.
fn verified(inner: BoxReader, expected: Digest) -> BoxReader {
    let hasher = Arc::new(Mutex::new(Hasher::like(&expected)));
    let seen = Arc::clone(&hasher);
    let chunks = ReaderStream::with_capacity(inner, CHUNK).inspect_ok(move |chunk| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).update(chunk);
    });
    let verdict = futures::stream::once(async move {
        let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = hasher.finish();
        if found == expected {
            return Ok(Bytes::new());
        }
        let what = format!("the copied diff has digest {found}, expected {expected}");
        Err(ErrorKind::DigestMismatch.err(what).into())
    });
    Box::pin(StreamReader::new(chunks.chain(Box::pin(verdict))))
}
