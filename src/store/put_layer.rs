//! The way in: a layer stream becomes a layer.
//!
//! ```text
//! shared locks:     parent known? ID and names free?
//! no store lock:    stream → decode → frame → unpack under a locked staging directory; tar-split beside it
//! exclusive lock:   checked again → record (incomplete) → renames → record (complete)
//! ```
//!
//! Dropped or killed at any point, the staging directories are unlocked and the next open removes them; a record
//! that is already there is marked incomplete and removed by the next user of the lock.

use tokio::io::AsyncRead;
use tracing::Instrument as _;

use crate::archive::apply::pipeline::Source;
use crate::bridge;
use crate::driver::NewOwners;
use crate::error::{ErrorKind, Result};
use crate::options::{BoxReader, IdMappingOptions, LayerOptions};
use crate::store::Store;
use crate::store::access::{Batch, Needs};
use crate::store::layer_steps::create_layer;
use crate::store::layer_store::new_layer::{Start, Unpacked};
use crate::store::stage::area::LayerOwners;
use crate::store::stage::plan::{LayerPlan, new_layer};
use crate::store::stage::staged_diff::StagedDiff;
use crate::store::views::Layer;

/// What [`Store::put_layer`] made.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PutLayer {
    /// The new layer.
    pub layer: Layer,
    /// Bytes in the files that the stream brought, hard links counted once.
    pub size: u64,
}

/// # Making layers
impl Store {
    /// Creates a layer on `parent` (an ID, name or ID prefix) without content.
    ///
    /// Takes the layer and container locks for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateId`], [`ErrorKind::DuplicateName`], [`ErrorKind::LayerUnknown`] (the parent or the
    /// template), [`ErrorKind::ParentIsContainer`], [`ErrorKind::UnsafePath`] (an impossible ID),
    /// [`ErrorKind::InvalidMappings`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn create_layer(&self, parent: Option<&str>, options: LayerOptions) -> Result<Layer> {
        let plan = self.plan_layer(parent, &options).await?;
        let start_from = options.template.clone();
        let row = self
            .in_batch(Needs::LAYERS, async move |batch: Batch| {
                let new = batch.with(|held| {
                    let layers = held.layers()?;
                    let parent = plan.recheck(layers.table())?;
                    let start = match start_from {
                        Some(template) => Start::Template(layers.find_complete(&template)?),
                        None => Start::Empty,
                    };
                    Ok(new_layer(options, parent, plan.mappings, start))
                })?;
                create_layer(&batch, new).await
            })
            .await?;
        Ok(Layer::new(&row, None, false))
    }

    /// Creates a layer on `parent` (an ID, name or ID prefix) from a tar stream, compressed or not (gzip, zstd,
    /// bzip2, xz; told apart by their first bytes).
    ///
    /// The stream is unpacked while it arrives, outside every store lock; as many layers at once as
    /// [`StoreOptions::max_unpacks`](crate::StoreOptions::max_unpacks) allows. The returned future polls `diff`, which
    /// may borrow; the unpacking itself runs on a thread of its own and needs no place in tokio's blocking pool. The
    /// layer becomes visible as a whole at the end. With [`Durability::Default`](crate::Durability::Default) its
    /// content is on disk before it does.
    ///
    /// An empty stream is an archive without entries, as it is for the Go library: the layer has no content, and the
    /// digest of nothing for its diff ID. A stream that breaks off within a block of a tar is an error; whoever must not take
    /// a stream that was cut off for a whole one gives [`LayerOptions::verify_original_digest`].
    ///
    /// With every driver, and whatever the order of the entries, what is mounted follows the rules of the OCI image
    /// specification: whiteouts and opaque markers hide what the layers below have, and nothing of the stream itself;
    /// a directory merges with a directory and replaces everything else; a directory without an entry of its own is
    /// as it is below. Nothing goes through a symbolic link of a layer below; the stream's own links are followed
    /// inside the layer. A hard link to what the stream has not brought before is refused, even if a layer below has
    /// it.
    ///
    /// # Errors
    /// As [`Store::create_layer`], and [`ErrorKind::InvalidArchive`] naming the entry, [`ErrorKind::DigestMismatch`]
    /// (with [`LayerOptions::verify`]), [`ErrorKind::Io`] for what `diff` or the disk reports. The store is then as
    /// before.
    ///
    /// # Cancellation
    /// Nothing remains, except that a commit that has begun finishes in the background.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::LayerOptions;
    /// let blob = tokio::fs::File::open("layer.tar.gz").await.expect("a layer blob");
    /// let put = store.put_layer(None, LayerOptions::default().name("base"), blob).await?;
    /// println!("{} has diff ID {:?}", put.layer.id(), put.layer.uncompressed_digest());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_layer(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        diff: impl AsyncRead + Send,
    ) -> Result<PutLayer> {
        let span = tracing::info_span!("put_layer", parent, id = options.id.as_deref());
        self.put_layer_boxed(parent, options, Box::pin(diff))
            .instrument(span)
            .await
    }

    async fn put_layer_boxed(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        diff: Source<'_>,
    ) -> Result<PutLayer> {
        if options.template.is_some() {
            return Err(ErrorKind::InvalidInput.err("a layer cannot have both a template and a diff"));
        }
        let plan = self.plan_layer(parent, &options).await?;
        let below = plan.parent_id();
        let unpacked = self.unpack(below, plan.owners(), &options, diff).await?;
        self.commit_unpacked(plan, options, unpacked.into_inner()).await
    }

    /// Stacks several layers on `parent` (an ID, name or ID prefix), the first one lowest, each as
    /// [`Store::put_layer`] would.
    ///
    /// All streams are unpacked at the same time where the driver keeps layers apart (overlay); a driver whose layers
    /// are whole trees (btrfs, vfs) takes one after the other. Either way a layer becomes visible only after its
    /// parent.
    ///
    /// Locks as [`Store::put_layer`], for each layer.
    ///
    /// # Errors
    /// As [`Store::put_layer`]. Layers below the one that failed may have been created; they are named in
    /// [`Store::layers`] and can be deleted.
    ///
    /// # Cancellation
    /// As [`Store::put_layer`]; layers that are there already stay.
    pub async fn put_layers(
        &self,
        parent: Option<&str>,
        layers: Vec<(LayerOptions, BoxReader)>,
    ) -> Result<Vec<PutLayer>> {
        let mut below = parent.map(str::to_owned);
        let mut done = Vec::with_capacity(layers.len());
        if !self.inner.driver().capabilities().stages_apart {
            for (options, diff) in layers {
                let put = self.put_layer_boxed(below.as_deref(), options, diff).await?;
                below = Some(put.layer.id().to_owned());
                done.push(put);
            }
            return Ok(done);
        }
        let first = layers
            .first()
            .map(|(options, _)| options.clone())
            .unwrap_or_default();
        let base = self.plan_layer(below.as_deref(), &first).await?;
        // A layer inherits the mapping of its parent, so all mappings are known before the layers exist.
        let mut mappings = base.mappings.clone();
        let mut unpacking = tokio::task::JoinSet::new();
        for (index, (options, diff)) in layers.into_iter().enumerate() {
            if index > 0 && options.id_mappings != IdMappingOptions::default() {
                mappings = self.choose_mappings(&options.id_mappings, None)?;
            }
            let (store, mappings) = (self.clone(), mappings.clone());
            let on = base.parent_id();
            unpacking.spawn(
                async move {
                    // What lies below may not be there yet: the owners of its files are changed later.
                    let owners = LayerOwners {
                        mappings,
                        ..LayerOwners::default()
                    };
                    let unpacked = store.unpack(on, owners, &options, diff).await;
                    unpacked.map(|unpacked| (index, options, unpacked))
                }
                .in_current_span(),
            );
        }
        // The set aborts what is left in it when this future is dropped or fails.
        let mut waiting = std::collections::BTreeMap::new();
        while let Some(joined) = unpacking.join_next().await {
            let (index, options, unpacked) = match joined {
                Ok(result) => result?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_aborted) => return Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
            };
            waiting.insert(index, (options, unpacked));
            while let Some((options, unpacked)) = waiting.remove(&done.len()) {
                let plan = self.plan_layer(below.as_deref(), &options).await?;
                let put = self.commit_unpacked(plan, options, unpacked.into_inner()).await?;
                below = Some(put.layer.id().to_owned());
                done.push(put);
            }
        }
        Ok(done)
    }

    /// Makes an unpacked diff a layer.
    pub(crate) async fn commit_unpacked(
        &self,
        plan: LayerPlan,
        options: LayerOptions,
        unpacked: Unpacked,
    ) -> Result<PutLayer> {
        let size = unpacked.applied.content_size;
        let fitted = self.fit_to_parent(plan.parent_id(), plan.owners(), &options, unpacked);
        let unpacked = fitted.await?;
        let row = self
            .in_batch(Needs::LAYERS, async move |batch: Batch| {
                let new = batch.with(|held| plan.layer(held.layers()?, options, unpacked))?;
                create_layer(&batch, new).await
            })
            .await?;
        Ok(PutLayer {
            layer: Layer::new(&row, None, false),
            size,
        })
    }

    /// Fits what was unpacked to the parent of the layer that it becomes.
    pub(crate) async fn fit_to_parent(
        &self,
        parent: Option<String>,
        owners: LayerOwners,
        options: &LayerOptions,
        mut unpacked: Unpacked,
    ) -> Result<Unpacked> {
        if !unpacked.depends_on_parent() && owners.parent.is_none() {
            return Ok(unpacked);
        }
        let durable = self.inner.sync_content() && !options.volatile;
        let driver = self.inner.driver();
        bridge::run(move || {
            let to = &owners.mappings;
            let new = owners.parent.as_ref().map(|from| NewOwners { from, to });
            unpacked.fit(&*driver, parent.as_deref(), new, durable)?;
            Ok(unpacked)
        })
        .await
    }

    /// Whether a layer can be unpacked before the one below it is there.
    pub(crate) fn stages_apart(&self) -> bool {
        self.inner.driver().capabilities().stages_apart
    }

    /// Unpacks a stream for a layer that will lie somewhere above `on`, or directly on it if the driver does not
    /// keep layers apart.
    pub(crate) async fn stage_diff(
        &self,
        on: Option<&str>,
        options: &LayerOptions,
        diff: Source<'_>,
    ) -> Result<StagedDiff> {
        let plan = self.plan_layer(on, options).await?;
        let below = plan.parent_id();
        let owners = plan.owners();
        let unpacked = self.unpack(below, owners, options, diff).await?;
        let mappings = plan.mappings;
        Ok(StagedDiff { unpacked, mappings })
    }

    /// Makes an unpacked stream the layer that `options` describe, on `parent`.
    pub(crate) async fn commit_diff(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        staged: StagedDiff,
    ) -> Result<PutLayer> {
        let plan = self.plan_layer(parent, &options).await?;
        if plan.mappings != staged.mappings {
            let what = format!(
                "layer {:?} was unpacked for other owners than its parent has",
                options.id
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        self.commit_unpacked(plan, options, staged.unpacked.into_inner())
            .await
    }
}
