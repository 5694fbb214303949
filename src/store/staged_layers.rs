//! Layers that a differ puts together: prepared outside of every store lock, then committed as any other.

use std::path::{Path, PathBuf};

use crate::bridge::Detached;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::{IdMappingOptions, LayerOptions};
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::layer_store::locked::files_of;
use crate::store::layer_store::new_layer::{Unpacked, mappings_of};
use crate::store::stage::area::Area;
use crate::store::stage::differ::{Differ, StagingArea};
use crate::store::stage::staged_diff::StagedDiff;
use crate::store::views::Layer;

/// What [`Store::prepare_staged_layer`] prepares a layer for.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StagingOptions {
    /// A layer that the new one will lie on or above (an ID, name or ID prefix): it gives the owners, if
    /// [`StagingOptions::id_mappings`] does not.
    pub above: Option<String>,
    /// Owner mapping; the default is that of the layer below, or of the store.
    pub id_mappings: IdMappingOptions,
    /// SELinux label of the layer.
    pub mount_label: Option<String>,
}

impl StagingOptions {
    /// Sets [`StagingOptions::above`].
    #[must_use]
    pub fn above(mut self, layer: impl Into<String>) -> Self {
        self.above = Some(layer.into());
        self
    }

    /// Sets [`StagingOptions::id_mappings`].
    #[must_use]
    pub fn id_mappings(mut self, id_mappings: IdMappingOptions) -> Self {
        self.id_mappings = id_mappings;
        self
    }

    /// Sets [`StagingOptions::mount_label`].
    #[must_use]
    pub fn mount_label(mut self, mount_label: impl Into<String>) -> Self {
        self.mount_label = Some(mount_label.into());
        self
    }

    pub(crate) fn layer(&self) -> LayerOptions {
        let mut options = LayerOptions::default().id_mappings(self.id_mappings.clone());
        options.mount_label.clone_from(&self.mount_label);
        options
    }
}

/// Content that waits for [`Store::apply_staged_layer`]. Dropped, it is removed; so it is by the next process that opens the
/// store, if this one is killed.
#[derive(Debug)]
pub struct StagedLayer {
    pub(crate) unpacked: Detached<Unpacked>,
    pub(crate) mappings: IdMappings,
    pub(crate) target: PathBuf,
}

impl StagedLayer {
    /// The directory with the content.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Digest of the layer as an uncompressed tar stream (the diff ID), if it is known.
    pub fn uncompressed_digest(&self) -> Option<&Digest> {
        self.unpacked.uncompressed_digest()
    }

    /// Bytes of that stream.
    pub fn size(&self) -> Option<u64> {
        match &self.unpacked.from_differ {
            Some(differ) => differ.size,
            None => Some(self.unpacked.applied.diff_size),
        }
    }

    /// Digest of the blob, if all of it was seen.
    pub fn compressed_digest(&self) -> Option<&Digest> {
        match &self.unpacked.from_differ {
            Some(differ) => differ.compressed_digest.as_ref(),
            None => Some(&self.unpacked.applied.compressed_digest),
        }
    }

    /// Digest of the table of contents that the content was put together by.
    pub fn toc_digest(&self) -> Option<&Digest> {
        self.unpacked.from_differ.as_ref()?.toc_digest.as_ref()
    }

    /// The user IDs of the layer's files, inside the container.
    pub fn uids(&self) -> &[u32] {
        &self.unpacked.applied.uids
    }

    /// The group IDs of the layer's files, inside the container.
    pub fn gids(&self) -> &[u32] {
        &self.unpacked.applied.gids
    }

    /// The keys of the big data items that the layer will have.
    pub fn big_data_keys(&self) -> impl Iterator<Item = &str> {
        self.unpacked.items().iter().map(|item| item.key.as_str())
    }
}

impl From<StagedLayer> for StagedDiff {
    fn from(staged: StagedLayer) -> Self {
        Self {
            unpacked: staged.unpacked,
            mappings: staged.mappings,
        }
    }
}

/// # Layers put together from parts
impl Store {
    /// Has `differ` put the content of a new layer together, in a staging directory and outside every store lock; as many at
    /// once as [`StoreOptions::max_unpacks`](crate::StoreOptions::max_unpacks) allows.
    ///
    /// The lock of the layers is taken for a moment first, to find the layer below.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] with a driver without [`DriverCapabilities::differ`](crate::DriverCapabilities::differ);
    /// [`ErrorKind::LayerUnknown`] for the layer below; [`ErrorKind::InvalidMappings`]; those of the differ. Nothing remains.
    ///
    /// # Cancellation
    /// Nothing remains.
    pub async fn prepare_staged_layer(
        &self,
        options: StagingOptions,
        differ: impl Differ,
    ) -> Result<StagedLayer> {
        self.require_differ()?;
        let layer = options.layer();
        self.stage_with(options.above.as_deref(), &layer, differ).await
    }

    /// As [`Store::prepare_staged_layer`], for a layer as `options` describe it.
    pub(crate) async fn stage_with(
        &self,
        above: Option<&str>,
        options: &LayerOptions,
        mut differ: impl Differ,
    ) -> Result<StagedLayer> {
        let plan = self.plan_layer(above, options).await?;
        let below = plan.parent_id();
        loop {
            let area = Area::make(&self.inner, below.clone(), plan.owners(), options).await?;
            match differ.apply(StagingArea(area)).await {
                Ok(content) => {
                    return Ok(StagedLayer {
                        unpacked: content.unpacked,
                        mappings: plan.mappings,
                        target: content.path,
                    });
                }
                Err(error) if differ.retry(&error) => {
                    tracing::warn!(error = %error.chain(), "putting a layer together once more");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes prepared content a layer on `parent` (an ID, name or ID prefix), as [`Store::put_layer`] does with what it has
    /// unpacked. If there is a layer with the ID that `options` give, that one gets the content, and the big data items that
    /// come with it, instead of its own, and the rest of `options` is ignored. Big data items that do not tell of the content
    /// stay.
    ///
    /// Takes the layer and container locks for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// As [`Store::create_layer`]; [`Error::is_busy`](crate::Error::is_busy) says so if the layer that is there is mounted,
    /// itself or below another one; [`ErrorKind::InvalidMappings`] if the content was prepared for other owners than the
    /// layer has; [`ErrorKind::DigestMismatch`] if `options` name a diff ID and the content has another one, or one that is
    /// not known. The content is removed.
    ///
    /// # Cancellation
    /// Nothing has happened and the content is removed, or the step finishes in the background.
    pub async fn apply_staged_layer(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        staged: StagedLayer,
    ) -> Result<Layer> {
        if let Some(expected) = &options.uncompressed_digest
            && staged.uncompressed_digest() != Some(expected)
        {
            let found = staged
                .uncompressed_digest()
                .map_or("none that is known", Digest::as_str);
            let what = format!("the uncompressed layer has digest {found}, expected {expected}");
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        let staged = StagedDiff::from(staged);
        if let Some(id) = &options.id
            && let Ok(layer) = self.layer(id).await
            && layer.id() == id
            && !layer.read_only()
        {
            return self.replace_content(id.clone(), staged).await;
        }
        Ok(self.commit_diff(parent, options, staged).await?.layer)
    }

    /// Gives a layer other content.
    async fn replace_content(&self, id: String, staged: StagedDiff) -> Result<Layer> {
        let StagedDiff { unpacked, mappings } = staged;
        // Alone: it takes as long as there are files.
        let row = self.step_alone(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            let row = layers.get(&id)?;
            if mappings_of(&row) != mappings {
                let what = format!("layer {id:?} has other owners than its content was prepared for");
                return Err(ErrorKind::InvalidMappings.err(what));
            }
            layers.replace(&row, unpacked.into_inner())
        });
        Ok(Layer::new(&row.await?, None, false))
    }

    /// Removes content that was prepared and is not wanted. Dropping it does the same, in the background.
    ///
    /// Takes no store lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be removed: the next process that opens the store tries again.
    ///
    /// # Cancellation
    /// It is removed in the background.
    pub async fn cleanup_staged_layer(&self, staged: StagedLayer) -> Result<()> {
        crate::bridge::run(move || {
            let unpacked = staged.unpacked.into_inner();
            drop(unpacked.staged);
            unpacked.tar_split.temp.remove()
        })
        .await
    }

    /// The directory with a layer's own files (of an ID, name or ID prefix), from which differs take content.
    ///
    /// Takes the lock of the layers for a moment. The path is good for as long as the layer is there.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`]; [`ErrorKind::NotSupported`] with a driver without
    /// [`DriverCapabilities::differ`](crate::DriverCapabilities::differ).
    ///
    /// # Cancellation
    /// Nothing has happened.
    pub async fn differ_target(&self, id: &str) -> Result<PathBuf> {
        self.require_differ()?;
        let layer = self.layer(id).await?;
        let driver = self.inner.driver();
        crate::bridge::run(move || {
            if let Some(dir) = files_of(layer.id(), driver.additional_layer(layer.id()))? {
                return Ok(dir.join("diff"));
            }
            let paths = files_of(layer.id(), driver.metadata(layer.id()))?;
            paths.get("UpperDir").map(PathBuf::from).ok_or_else(|| {
                ErrorKind::NotSupported.err(format!("the directory of layer {:?}", layer.id()))
            })
        })
        .await
    }

    /// Whether the driver can make layers that are put together from parts.
    pub(crate) fn has_differ(&self) -> bool {
        self.inner.driver().capabilities().differ
    }

    fn require_differ(&self) -> Result<()> {
        if self.has_differ() {
            return Ok(());
        }
        let driver = self.inner.driver();
        let what = format!(
            "layers that are put together from parts, with the {} driver",
            driver.name()
        );
        Err(ErrorKind::NotSupported.err(what))
    }
}
