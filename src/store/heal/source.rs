//! Where the content of layers comes from.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};

use crate::chunked::BlobSource;
use crate::digest::Digest;
use crate::error::Result;
use crate::options::{BoxReader, DiffOptions};
use crate::store::Store;
use crate::store::image_manifest::Descriptor;

/// A layer that is to get its content anew.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct WantedContent {
    /// The layer's ID.
    pub layer: String,
    /// Digest of the uncompressed tar stream. What a source gives is compared with it.
    pub diff_id: Digest,
    /// Digest of the blob that the layer came from, if it is recorded.
    pub compressed_digest: Option<Digest>,
    /// The blobs that manifests of images in the store name for the layer.
    pub blobs: Vec<Descriptor>,
    /// The images that have it.
    pub images: Vec<WantedImage>,
}

/// An image that has a layer, or data, that is to be made anew.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedImage {
    /// Its names.
    pub names: Vec<String>,
    /// The digest of its manifest, if it is recorded.
    pub digest: Option<Digest>,
}

/// A manifest or a config of an image that is to be made anew.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct WantedDocument {
    /// Its digest. What a source gives is compared with it.
    pub digest: Digest,
    /// Its size, if it is recorded.
    pub size: Option<u64>,
    /// The image.
    pub image: WantedImage,
}

/// A blob of which parts can be read.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct BlobParts {
    /// How a manifest describes it; the annotations say where its table of contents is.
    pub blob: Descriptor,
    /// Its bytes.
    pub source: Arc<dyn BlobSource>,
}

impl BlobParts {
    /// The blob that a manifest describes so.
    pub fn new(blob: Descriptor, source: Arc<dyn BlobSource>) -> Self {
        Self { blob, source }
    }
}

/// Gives [`Store::heal`] the content of layers: another store, or a registry, layout or archive (feature `pull`).
///
/// What it gives is not trusted. It is asked without a lock of the store held, and may take its time.
pub trait HealSource: Send + Sync + fmt::Debug {
    /// What reports call it.
    fn name(&self) -> String;

    /// A stream of a layer, compressed or not; `None` if there is none. `attempt` says how many of this layer were asked for
    /// before and were of no use: where the content can be had in several ways, each of them is another one.
    ///
    /// # Errors
    /// Why it cannot be had in this way; an error of the stream counts as well.
    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>>;

    /// The blob of a layer, if parts of it can be read and it has a table of contents: of a layer of which few files are
    /// damaged, only the parts with those are fetched.
    ///
    /// # Errors
    /// As [`HealSource::layer_stream`], which is asked then.
    fn layer_parts<'a>(&'a self, _wanted: &'a WantedContent) -> BoxFuture<'a, Result<Option<BlobParts>>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// A manifest or config of an image; `None` if it does not have it.
    ///
    /// # Errors
    /// As [`HealSource::layer_stream`].
    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>>;
}

/// The layers of a store and of its additional stores, by the digest of their uncompressed stream, which is made again.
impl HealSource for Store {
    fn name(&self) -> String {
        self.graph_root().display().to_string()
    }

    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        async move {
            let layers = self.layers_by_uncompressed_digest(&wanted.diff_id).await?;
            let Some(layer) = layers.get(attempt) else {
                return Ok(None);
            };
            let stream = self.diff(None, layer.id(), DiffOptions::uncompressed()).await?;
            Ok(Some(Box::pin(stream) as BoxReader))
        }
        .boxed()
    }

    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        async move {
            for image in self.images().await? {
                let is_it = |key: &&String| image.big_data_digest(key).as_ref() == Some(&wanted.digest);
                for key in image.big_data_names().iter().filter(is_it) {
                    if let Ok(bytes) = self.image_big_data(image.id(), key).await
                        && wanted.digest.check(&bytes, "the item").is_ok()
                    {
                        return Ok(Some(bytes));
                    }
                }
            }
            Ok(None)
        }
        .boxed()
    }
}

/// One layer of a store.
#[derive(Debug)]
pub(super) struct OneLayer {
    pub(super) store: Store,
    pub(super) id: String,
}

impl HealSource for OneLayer {
    fn name(&self) -> String {
        format!("layer {} of this store", self.id)
    }

    fn layer_stream<'a>(
        &'a self,
        _wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        async move {
            if attempt > 0 {
                return Ok(None);
            }
            let stream = self
                .store
                .diff(None, &self.id, DiffOptions::uncompressed())
                .await?;
            Ok(Some(Box::pin(stream) as BoxReader))
        }
        .boxed()
    }

    fn document<'a>(&'a self, _wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        std::future::ready(Ok(None)).boxed()
    }
}
