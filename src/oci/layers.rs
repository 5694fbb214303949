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
//!
//! The ID of a layer that is known by its table of contents is a guess until the table was read: it names the flight, and is
//! computed again when the layer is committed. Two that make one layer under two guesses find out then.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::context::PullContext;
use super::layer_job::{Failure, Job, Ready};
use super::manifest;
use super::progress::BlobState;
use super::source::ImageSource;
use super::wanted::WantedLayer;
use crate::error::{ErrorKind, Result};
use crate::store::layer_identity::LayerIdentity;

/// How many layers were transferred and reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) transferred: usize,
    pub(crate) reused: usize,
}

/// The layers of an image in the store.
#[derive(Debug)]
pub(crate) struct Ensured {
    /// ID of the top one.
    pub(crate) top: Option<String>,
    /// What they are known by, the lowest first.
    pub(crate) identities: Vec<LayerIdentity>,
    pub(crate) tally: Tally,
}

/// Brings all layers into the store.
pub(crate) async fn ensure(
    context: &Arc<PullContext>,
    source: &ImageSource,
    reference: Option<&Arc<str>>,
    wanted: Vec<WantedLayer>,
) -> Result<Ensured> {
    let mut tally = Tally::default();
    let mut top = None;
    for layer in &wanted {
        let Some(found) = layer.find(&context.store, top.as_deref()).await? else {
            break;
        };
        let item = found.id().to_owned();
        context
            .options
            .progress
            .blob(&layer.blob.digest, || BlobState::Reused { item });
        top = Some(found.id().to_owned());
        tally.reused += 1;
    }
    let base = top.clone();
    let mut tasks = JoinSet::new();
    let mut ready: Vec<Option<Ready>> = vec![None; tally.reused];
    let mut expected = top.clone();
    let mut below = None;
    let repeated = manifest::repeated(wanted.iter().map(|layer| &layer.diff_id));
    for (layer, same) in wanted.iter().zip(repeated).skip(tally.reused) {
        let (done, is_ready) = watch::channel(None);
        let id = layer
            .likely_identity(context)
            .await?
            .layer_id(expected.as_deref());
        let job = Job {
            context: Arc::clone(context),
            source: source.clone(),
            reference: reference.cloned(),
            wanted: layer.clone(),
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
    let identities = identities(context, top.as_deref(), &wanted).await?;
    Ok(Ensured {
        top,
        identities,
        tally,
    })
}

/// What the layers are known by up to `top`, which are those that are wanted.
async fn identities(
    context: &PullContext,
    top: Option<&str>,
    wanted: &[WantedLayer],
) -> Result<Vec<LayerIdentity>> {
    if wanted.iter().all(|layer| layer.location.is_none()) {
        let by_diff_id = |layer: &WantedLayer| LayerIdentity::DiffId(layer.diff_id.clone());
        return Ok(wanted.iter().map(by_diff_id).collect());
    }
    let layers = context.store.layers_up_to(top).await?;
    let found = layers
        .iter()
        .zip(wanted)
        .map(|(layer, wanted)| wanted.identity_of(layer));
    let found: Option<Vec<_>> = found.collect();
    match found {
        Some(found) if found.len() == wanted.len() && layers.len() == wanted.len() => Ok(found),
        _ => {
            let what = format!(
                "the layers below {:?} were changed meanwhile",
                top.unwrap_or_default()
            );
            Err(ErrorKind::LayerUnknown.err(what))
        }
    }
}
