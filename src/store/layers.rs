//! Finding layers.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::record::layer::LayerRow;
use crate::record::record_trait::DigestKind;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::{Mounts, hit};
use crate::store::inner::StoreOrigin;
use crate::store::views::{Layer, MountState};

/// Joins a record with its mount count.
pub(crate) fn view(row: &Arc<LayerRow>, mounts: &Mounts, home: StoreOrigin) -> Layer {
    let mount = mounts.of(home).get(&row.id).map(|row| {
        Arc::new(MountState {
            path: row.path.clone().into(),
            count: row.count.unsigned_abs(),
        })
    });
    Layer::new(row, mount, home.read_only())
}

/// # Finding layers
impl Store {
    /// The layer with this ID, name or ID prefix, of the primary store or an additional one.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer(&self, id: &str) -> Result<Layer> {
        let found = self
            .read_all_layer_stores(|home, table| Ok(hit(table.find(id).map(|row| (Arc::clone(row), home)))))
            .await?;
        let Some((row, home)) = found else {
            return Err(LayerRow::unknown(id));
        };
        Ok(view(&row, &self.mounts().await?, home))
    }

    /// All layers, those of additional stores last.
    ///
    /// Takes the layer lock, and that of `mountpoints.json`, shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layers(&self) -> Result<Vec<Layer>> {
        let mounts = self.mounts().await?;
        let mut all = Vec::new();
        let nothing: Option<()> = self
            .read_all_layer_stores(|home, table| {
                all.extend(table.rows().map(|row| view(row, &mounts, home)));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        debug_assert!(nothing.is_none(), "the visit never breaks");
        Ok(all)
    }

    async fn layers_by_digest(&self, kind: DigestKind, digest: &Digest) -> Result<Vec<Layer>> {
        let mounts = self.mounts().await?;
        let mut all = Vec::new();
        let _none: Option<()> = self
            .read_all_layer_stores(|home, table| {
                all.extend(
                    table
                        .by_digest(kind, digest)
                        .iter()
                        .map(|row| view(row, &mounts, home)),
                );
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(all)
    }

    /// The layers made from a blob with this digest, an empty list if there are none.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layers_by_compressed_digest(&self, digest: &Digest) -> Result<Vec<Layer>> {
        self.layers_by_digest(DigestKind::Compressed, digest).await
    }

    /// The layers whose uncompressed stream has this digest (the diff ID), an empty list if there are none.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layers_by_uncompressed_digest(&self, digest: &Digest) -> Result<Vec<Layer>> {
        self.layers_by_digest(DigestKind::Uncompressed, digest).await
    }

    /// The layers made from a table of contents with this digest, an empty list if there are none.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layers_by_toc_digest(&self, digest: &Digest) -> Result<Vec<Layer>> {
        self.layers_by_digest(DigestKind::Toc, digest).await
    }

    /// The ID of the layer, image or container with this ID, name or ID prefix, looked for in this order.
    ///
    /// Takes the layer, image and container locks shared for a moment, one after the other.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is none.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn lookup(&self, name: &str) -> Result<String> {
        let found = self
            .find_any(
                name,
                |row| row.id.to_string(),
                |row| row.id.to_string(),
                |row| row.id.to_string(),
            )
            .await?;
        found.ok_or_else(|| ErrorKind::LayerUnknown.err(format!("looking up {name:?}")))
    }

    /// Whether there is a layer, image or container with this ID, name or ID prefix.
    ///
    /// Takes the layer, image and container locks shared for a moment, one after the other.
    ///
    /// # Errors
    /// Failures to read the records. A missing item is `false`, no error.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn exists(&self, id: &str) -> Result<bool> {
        match self.lookup(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::LayerUnknown => Ok(false),
            Err(error) => Err(error),
        }
    }
}
