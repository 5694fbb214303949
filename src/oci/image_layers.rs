//! The layers of images elsewhere as a source of what is damaged in the store.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};

use super::context::PullContext;
use super::manifest::{Config, Document, parse};
use super::reference::ImageRef;
use super::source::ImageSource;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::BoxReader;
use crate::store::heal::source::{HealSource, WantedContent, WantedDocument, WantedImage};
use crate::store::image_manifest::{Descriptor, ImageManifest};

/// Made by [`Puller::layers_of`](super::Puller::layers_of) and
/// [`Puller::layers_by_name`](super::Puller::layers_by_name).
///
/// A layer is asked for by the digests that manifests in the store name for it; then by the manifest at the source: that
/// with the recorded digest, else the one that the reference names, in which the layer is at the place at which the config
/// has its diff ID.
#[derive(Clone, Debug)]
pub struct ImageLayers {
    context: Arc<PullContext>,
    /// `None`: the names of the damaged images.
    image: Option<ImageRef>,
}

/// A way to get a layer.
enum Way {
    /// This blob.
    Blob(Descriptor),
    /// What a manifest names.
    Manifest,
}

impl ImageLayers {
    pub(super) fn new(context: Arc<PullContext>, image: Option<ImageRef>) -> Self {
        Self { context, image }
    }

    /// The images to look in, each with the digest of its manifest, if that is known.
    fn images(&self, wanted: &[WantedImage]) -> Vec<(ImageRef, Option<Digest>)> {
        if let Some(image) = &self.image {
            // Which of the images it is nobody has said.
            let mut digests = wanted.iter().map(|wanted| wanted.digest.clone());
            let digest = match (digests.next(), digests.next()) {
                (Some(digest), None) => digest,
                _ => None,
            };
            return vec![(image.clone(), digest)];
        }
        let mut images = Vec::new();
        for wanted in wanted {
            for name in &wanted.names {
                // What is no name of a registry's image cannot be asked for.
                if let Ok(reference) = name.parse() {
                    images.push((ImageRef::Registry(reference), wanted.digest.clone()));
                }
            }
        }
        images
    }

    async fn open(&self, image: &ImageRef) -> Result<ImageSource> {
        ImageSource::open(image, &self.context.registries).await
    }

    /// The manifest with this digest, else the one that the reference names.
    async fn manifest(&self, source: &ImageSource, digest: Option<&Digest>) -> Result<ImageManifest> {
        if let Some(digest) = digest {
            let by_digest = async {
                let fetched = source.manifest(digest).await?;
                digest.check(&fetched.bytes, "the manifest")?;
                parse(&fetched.bytes, fetched.media_type.as_deref())
            };
            if let Ok(Document::Image(manifest)) = by_digest.await {
                return Ok(manifest);
            }
        }
        let (_top, _instance, manifest) = self.context.resolve(source).await?;
        Ok(manifest)
    }

    /// The blob of the layer, by a manifest and the config that it names.
    async fn find(
        &self,
        source: &ImageSource,
        digest: Option<&Digest>,
        wanted: &WantedContent,
    ) -> Result<Descriptor> {
        let manifest = self.manifest(source, digest).await?;
        let config = Config::parse(&source.small(&manifest.config).await?)?;
        let lacks = || {
            let what = format!("the image has no layer with diff ID {}", wanted.diff_id);
            ErrorKind::NotFound.err(what)
        };
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(lacks());
        }
        let mut layers = config.diff_ids.iter().zip(&manifest.layers);
        let found = layers.find(|(diff_id, _)| **diff_id == wanted.diff_id);
        found.map(|(_, blob)| blob.clone()).ok_or_else(lacks)
    }
}

impl HealSource for ImageLayers {
    fn name(&self) -> String {
        match &self.image {
            Some(image) => image.to_string(),
            None => "the registry of the image's name".to_owned(),
        }
    }

    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        async move {
            let images = self.images(&wanted.images);
            let ways = images.into_iter().flat_map(|(image, digest)| {
                let blobs = wanted.blobs.iter().cloned().map(Way::Blob);
                let ways = blobs.chain([Way::Manifest]);
                ways.map(move |way| (image.clone(), digest.clone(), way))
            });
            let Some((image, digest, way)) = ways.skip(attempt).take(1).last() else {
                return Ok(None);
            };
            let source = self.open(&image).await?;
            let blob = match way {
                Way::Blob(blob) => blob,
                Way::Manifest => self.find(&source, digest.as_ref(), wanted).await?,
            };
            let stream = source.blob(&blob, &self.context.options.progress, None);
            stream.await.map(Some)
        }
        .boxed()
    }

    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        async move {
            let mut failed = None;
            for (image, _digest) in self.images(std::slice::from_ref(&wanted.image)) {
                match self.document_of(&image, wanted).await {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok(None), Err)
        }
        .boxed()
    }
}

impl ImageLayers {
    /// A manifest, or else a config, with the digest.
    async fn document_of(&self, image: &ImageRef, wanted: &WantedDocument) -> Result<Bytes> {
        let source = self.open(image).await?;
        let manifest = source.manifest(&wanted.digest).await;
        let error = match manifest {
            Ok(fetched) => return Ok(fetched.bytes),
            Err(error) => error,
        };
        let Some(size) = wanted.size else {
            return Err(error);
        };
        let blob = Descriptor::new("", wanted.digest.clone(), size);
        source.small(&blob).await
    }
}
