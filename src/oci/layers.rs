//! The layers of one image: those that the store has are reused, the others are transferred and unpacked concurrently.
//!
//! Each missing layer has a task of its own. It takes, in this order:
//!
//! 1. the flight of the *layer*, by its ID: its holder makes the layer. The ID of a layer depends on all layers below
//!    it, never on those above, so holders wait for each other only downwards;
//! 2. the flight of the *diff*: its holder transfers the blob, others copy the layer afterwards. It is held while
//!    waiting for the layer below only if that exists already. So two images with the same diffs in another order
//!    cannot deadlock; at worst a blob is transferred twice;
//! 3. a permit to download, then one to unpack. A task with a permit never waits for a flight.
//!
//! Once it is unpacked, it waits for the layer below and is committed to the store.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::io::{ReaderStream, StreamReader};
use tracing::Instrument as _;

use super::context::PullContext;
use super::manifest;
use super::meter::Meter;
use super::offered;
use super::progress::BlobState;
use super::source::ImageSource;
use crate::bridge::CHUNK;
use crate::chunked::TocLocation;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{BoxReader, DiffOptions, IdMappingOptions, LayerOptions};
use crate::store::Store;
use crate::store::additional_layer::AdditionalLayer;
use crate::store::chunked_differ::ChunkedDiffer;
use crate::store::image_manifest::Descriptor;
use crate::store::image_record::layer_id;
use crate::store::stage::staged_diff::StagedDiff;
use crate::store::views::Layer;

/// How many layers were transferred and reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) transferred: usize,
    pub(crate) reused: usize,
}

/// The ID of a layer as soon as it is in the store.
type Ready = watch::Receiver<Option<String>>;

/// Why a task ended without a layer.
enum Failure {
    Own(Error),
    /// A layer that it waited for failed; the error of that one is reported.
    Below,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

/// Brings all layers into the store. Returns the ID of the top one.
pub(crate) async fn ensure(
    context: &Arc<PullContext>,
    source: &ImageSource,
    reference: Option<&Arc<str>>,
    blobs: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
) -> Result<(Option<String>, Tally)> {
    let mut tally = Tally::default();
    let mut top = None;
    for (blob, diff_id) in blobs.iter().zip(&diff_ids) {
        let Some(layer) = find(&context.store, top.as_deref(), diff_id).await? else {
            break;
        };
        let item = layer.id().to_owned();
        context
            .options
            .progress
            .blob(&blob.digest, || BlobState::Reused { item });
        top = Some(layer.id().to_owned());
        tally.reused += 1;
    }
    let base = top.clone();
    let mut tasks = JoinSet::new();
    let mut ready: Vec<Option<Ready>> = vec![None; tally.reused];
    let mut expected = top.clone();
    let mut below = None;
    let repeated = manifest::repeated(&diff_ids);
    for ((blob, diff_id), same) in blobs.into_iter().zip(diff_ids).zip(repeated).skip(tally.reused) {
        let (done, is_ready) = watch::channel(None);
        let id = layer_id(expected.as_deref(), &diff_id);
        let job = Job {
            context: Arc::clone(context),
            source: source.clone(),
            reference: reference.cloned(),
            blob,
            diff_id,
            base: base.clone(),
            parent: expected.replace(id.clone()),
            id,
            below: below.replace(is_ready.clone()),
            same: same.and_then(|index| ready.get(index).cloned().flatten()),
        };
        ready.push(Some(is_ready));
        tasks.spawn(Box::pin(async move { job.run(done).await }.in_current_span()));
    }
    // The set aborts what is left in it when this future is dropped or fails.
    let mut failed = false;
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(Ok(transferred)) if transferred => tally.transferred += 1,
            Ok(Ok(_reused)) => tally.reused += 1,
            Ok(Err(Failure::Own(error))) => return Err(error),
            Ok(Err(Failure::Below)) => failed = true,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_aborted) => failed = true,
        }
    }
    if failed {
        return Err(ErrorKind::Cancelled.err("the runtime is shutting down"));
    }
    if let Some(ready) = below {
        top.clone_from(&ready.borrow());
    }
    Ok((top, tally))
}

/// The layer with this diff on exactly this parent, with the owners that a new one would have.
async fn find(store: &Store, parent: Option<&str>, diff_id: &Digest) -> Result<Option<Layer>> {
    let id = layer_id(parent, diff_id);
    let mut found = store.layers_by_uncompressed_digest(diff_id).await?;
    found.retain(|layer| layer.parent() == parent);
    if let Some(layer) = found.iter().find(|layer| layer.id() == id) {
        return Ok(Some(layer.clone()));
    }
    // Copies for containers with other owners have the same parent and diff.
    let owners = store.choose_mappings(&IdMappingOptions::default(), None)?;
    Ok(found
        .into_iter()
        .find(|layer| layer.uid_map() == owners.uids && layer.gid_map() == owners.gids))
}

/// One missing layer.
struct Job {
    context: Arc<PullContext>,
    source: ImageSource,
    /// The image's reference in a registry.
    reference: Option<Arc<str>>,
    blob: Descriptor,
    diff_id: Digest,
    /// The highest layer of the image that the store had at the start.
    base: Option<String>,
    /// The expected ID of the layer below.
    parent: Option<String>,
    /// The expected ID of this layer.
    id: String,
    /// The layer below, if it is being made.
    below: Option<Ready>,
    /// A lower layer of the image with the same diff.
    same: Option<Ready>,
}

async fn wait(ready: &Ready) -> Result<Option<String>, Failure> {
    let mut ready = ready.clone();
    let id = ready.wait_for(Option::is_some).await;
    id.map(|id| id.clone()).map_err(|_sender_gone| Failure::Below)
}

impl Job {
    /// Makes the layer unless another task or process does. Returns whether its blob was transferred.
    async fn run(self, done: watch::Sender<Option<String>>) -> Result<bool, Failure> {
        let store = &self.context.store;
        let _flight = self.context.flight(&format!("layer-{}", self.id)).await?;
        if let Some(layer) = find(store, self.parent.as_deref(), &self.diff_id).await? {
            return Ok(self.reused(&layer, &done));
        }
        if let Some(reference) = &self.reference
            && let Some(offered) = offered::find(store, reference, &self.blob, &self.diff_id).await
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
        let key = format!("diff-{}-{}", self.diff_id.algorithm(), self.diff_id.encoded());
        let mut diff_flight = Some(self.context.flight(&key).await?);
        let (staged, transferred) = self.unpack(on.as_deref()).await?;
        let progress = &self.context.options.progress;
        if self.below.as_ref().is_some_and(|below| below.borrow().is_none()) {
            drop(diff_flight.take());
        }
        let parent = self.place().await?;
        let id = layer_id(parent.as_deref(), &self.diff_id);
        match store
            .commit_diff(parent.as_deref(), self.options(Some(&id)), staged)
            .await
        {
            Ok(_put) => {}
            // A program that does not take flights has committed it meanwhile.
            Err(error) if error.kind() == ErrorKind::DuplicateId => {
                match find(store, parent.as_deref(), &self.diff_id).await? {
                    Some(layer) => return Ok(self.reused(&layer, &done)),
                    None => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(partials) = &self.context.partials {
            partials.discard(&self.blob.digest).await;
        }
        let layer = id.clone();
        progress.blob(&self.blob.digest, || BlobState::Committed { layer });
        done.send_replace(Some(id));
        Ok(transferred)
    }

    /// Makes the layer of one in an additional layer store. `None` if that cannot be done.
    async fn take(&self, offered: &AdditionalLayer) -> Result<Option<Layer>, Failure> {
        let parent = self.place().await?;
        let id = layer_id(parent.as_deref(), &self.diff_id);
        let no_names: [&str; 0] = [];
        match offered.put_as(&id, parent.as_deref(), no_names).await {
            Ok(layer) => Ok(Some(layer)),
            Err(error) => {
                tracing::warn!(blob = %self.blob.digest, error = %error.chain(), "cannot use an additional layer store");
                Ok(find(&self.context.store, parent.as_deref(), &self.diff_id).await?)
            }
        }
    }

    fn reused(&self, layer: &Layer, done: &watch::Sender<Option<String>>) -> bool {
        let item = layer.id().to_owned();
        let progress = &self.context.options.progress;
        progress.blob(&self.blob.digest, || BlobState::Reused { item });
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

    fn options(&self, id: Option<&str>) -> LayerOptions {
        let mut options = LayerOptions::default().verify_uncompressed_digest(self.diff_id.clone());
        options.id = id.map(str::to_owned);
        options.original_digest = Some(self.blob.digest.clone());
        options.original_size = Some(self.blob.size);
        options
    }

    /// Unpacks the diff, from a layer that has it or from the source. Returns whether it was transferred.
    async fn unpack(&self, on: Option<&str>) -> Result<(StagedDiff, bool)> {
        if let Some(layer) = self
            .context
            .store
            .layers_by_uncompressed_digest(&self.diff_id)
            .await?
            .first()
        {
            match self.copy(on, layer.id()).await {
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
        let _download = self.context.download(&self.source).await?;
        let _unpacker = self.context.unpacker().await?;
        let staged = self.transfer(on).await?;
        self.unpacked();
        Ok((staged, true))
    }

    fn unpacked(&self) {
        let progress = &self.context.options.progress;
        progress.blob(&self.blob.digest, || BlobState::Unpacked);
    }

    async fn copy(&self, on: Option<&str>, layer: &str) -> Result<StagedDiff> {
        let _unpacker = self.context.unpacker().await?;
        let store = &self.context.store;
        let stream = store.diff(None, layer, DiffOptions::uncompressed()).await?;
        // The record names the blob's digest, which a copy cannot verify; the diff's digest is verified instead.
        let mut options = self.options(None);
        options.verify = false;
        let checked = verified(Box::pin(stream), self.diff_id.clone());
        store.stage_diff(on, &options, checked).await
    }

    /// Fetches of the blob what the store does not have; `None` if it has to be pulled as a whole.
    async fn fetch_parts(&self, on: Option<&str>) -> Result<Option<StagedDiff>> {
        let (context, blob) = (&self.context, &self.blob);
        let store = &context.store;
        if !context.in_part.enable_partial_images || !store.has_differ() {
            return Ok(None);
        }
        let staged: Result<Option<StagedDiff>> = async {
            if TocLocation::from_annotations(&blob.annotations, blob.size)?.is_none() {
                return Ok(None);
            }
            let meter = Meter::start(&context.options.progress, &blob.digest, blob.size, 0);
            let source = self.source.ranges(blob, meter.clone()).await?;
            let differ = ChunkedDiffer::open(store, &blob.annotations, blob.size, source).await?;
            let differ = differ
                .expect(self.diff_id.clone())
                .report(move |savings| meter.reuse(savings.reused));
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

    async fn transfer(&self, on: Option<&str>) -> Result<StagedDiff> {
        if let Some(staged) = self.fetch_parts(on).await? {
            return Ok(staged);
        }
        let blob = &self.blob;
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
            let staged = self
                .context
                .store
                .stage_diff(on, &self.options(None), stream)
                .await;
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
