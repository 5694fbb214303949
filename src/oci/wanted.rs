//! A layer that an image wants, and which layers of the store are it.

use super::context::PullContext;
use crate::chunked::TocLocation;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::IdMappingOptions;
use crate::store::Store;
use crate::store::image_manifest::Descriptor;
use crate::store::layer_identity::LayerIdentity;
use crate::store::views::Layer;

/// A layer of an image, as the image's documents describe it.
#[derive(Clone, Debug)]
pub(super) struct WantedLayer {
    pub(super) blob: Descriptor,
    /// What the config says.
    pub(super) diff_id: Digest,
    /// Where the blob has its table of contents, if it has one that can be used.
    pub(super) location: Option<TocLocation>,
}

/// Layers of a store with the content that is wanted, wherever they lie.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// None is known, nor can there be one that is known by its table of contents.
    Nothing,
    /// None is known.
    Nowhere { toc_digest: Digest },
    /// Some with the diff ID.
    ByDiffId(Vec<Layer>),
    /// Some that are known by their table of contents.
    ByToc { toc_digest: Digest, layers: Vec<Layer> },
}

impl WantedLayer {
    pub(super) fn new(blob: Descriptor, diff_id: Digest) -> Self {
        let location = TocLocation::from_annotations(&blob.annotations, blob.size);
        Self {
            location: location.ok().flatten(),
            blob,
            diff_id,
        }
    }

    pub(super) fn toc_digest(&self) -> Option<&Digest> {
        self.location.as_ref()?.toc_digest()
    }

    /// What a layer is known by that was made of the blob.
    pub(super) fn identity(&self, diff_id: Option<&Digest>) -> Option<LayerIdentity> {
        match diff_id {
            Some(digest) => (*digest == self.diff_id).then(|| LayerIdentity::DiffId(digest.clone())),
            None => self.toc_digest().cloned().map(LayerIdentity::Toc),
        }
    }

    /// What this layer of the store is known by; `None` if it is another one.
    pub(super) fn identity_of(&self, layer: &Layer) -> Option<LayerIdentity> {
        let by_diff_id = LayerIdentity::DiffId(self.diff_id.clone());
        let by_toc = self.toc_digest().cloned().map(LayerIdentity::Toc);
        [Some(by_diff_id), by_toc]
            .into_iter()
            .flatten()
            .find(|identity| identity.is_of(layer))
    }

    /// What the layer is likely to be known by. Where the table of contents turns out to be of no use, it is the diff ID
    /// after all.
    pub(super) async fn likely_identity(&self, context: &PullContext) -> Result<LayerIdentity> {
        let is_by_toc = |location: &TocLocation| {
            context.takes_parts()
                && context.in_part.insecure_allow_unpredictable_image_contents
                && location.tar_split_range().is_none()
        };
        Ok(match self.known(&context.store).await? {
            Known::ByToc { toc_digest, .. } => LayerIdentity::Toc(toc_digest),
            Known::Nowhere { toc_digest } if self.location.as_ref().is_some_and(is_by_toc) => {
                LayerIdentity::Toc(toc_digest)
            }
            _ => LayerIdentity::DiffId(self.diff_id.clone()),
        })
    }

    /// The layers with the content. What is known of a table of contents counts only where no layer has the diff ID: that
    /// was verified. And where the same table came with another diff ID, the layer that is wanted has to be verified.
    pub(super) async fn known(&self, store: &Store) -> Result<Known> {
        let found = store.layers_by_uncompressed_digest(&self.diff_id).await?;
        if !found.is_empty() {
            return Ok(Known::ByDiffId(found));
        }
        let Some(toc_digest) = self.toc_digest().cloned() else {
            return Ok(Known::Nothing);
        };
        let layers = store.layers_by_toc_digest(&toc_digest).await?;
        if let Some(other) = layers.iter().find(|layer| layer.uncompressed_digest().is_some()) {
            tracing::warn!(
                blob = %self.blob.digest, diff_id = %self.diff_id, layer = other.id(),
                "the table of contents of a layer is that of a layer with another diff ID"
            );
            return Ok(Known::Nothing);
        }
        match layers.is_empty() {
            true => Ok(Known::Nowhere { toc_digest }),
            false => Ok(Known::ByToc { toc_digest, layers }),
        }
    }

    /// The layer with the content on exactly this parent, with the owners that a new one would have.
    pub(super) async fn find(&self, store: &Store, parent: Option<&str>) -> Result<Option<Layer>> {
        let mut found = match self.known(store).await? {
            Known::Nothing => return Ok(None),
            Known::ByDiffId(layers) => {
                let id = LayerIdentity::DiffId(self.diff_id.clone()).layer_id(parent);
                let is_it = |layer: &&Layer| layer.id() == id && layer.parent() == parent;
                if let Some(layer) = layers.iter().find(is_it) {
                    return Ok(Some(layer.clone()));
                }
                layers
            }
            Known::ByToc { toc_digest, layers } => {
                let identity = LayerIdentity::Toc(toc_digest);
                if let Some(layer) = self.with_id(store, &identity, parent).await? {
                    return Ok(Some(layer));
                }
                layers
            }
            Known::Nowhere { toc_digest } => {
                return self.with_id(store, &LayerIdentity::Toc(toc_digest), parent).await;
            }
        };
        found.retain(|layer| layer.parent() == parent);
        // Copies for containers with other owners have the same parent and diff.
        let owners = store.choose_mappings(&IdMappingOptions::default(), None)?;
        Ok(found
            .into_iter()
            .find(|layer| layer.uid_map() == owners.uids && layer.gid_map() == owners.gids))
    }

    /// The layer with the ID that one with this identity has on `parent`.
    pub(super) async fn with_id(
        &self,
        store: &Store,
        identity: &LayerIdentity,
        parent: Option<&str>,
    ) -> Result<Option<Layer>> {
        let id = identity.layer_id(parent);
        match store.layer(&id).await {
            Ok(layer) => {
                let is_it = layer.id() == id && layer.parent() == parent && identity.is_of(&layer);
                Ok(is_it.then_some(layer))
            }
            Err(error) if error.kind() == ErrorKind::LayerUnknown => Ok(None),
            Err(error) => Err(error),
        }
    }
}
