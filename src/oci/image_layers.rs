//! The layers of images elsewhere as a source of what is damaged in the store.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};

use super::context::PullContext;
use super::manifest::{Config, Document, parse};
use super::meter::Meter;
use super::reference::ImageRef;
use super::source::ImageSource;
use crate::chunked::TocLocation;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::BoxReader;
use crate::store::heal::source::{BlobParts, HealSource, WantedContent, WantedDocument, WantedImage};
use crate::store::image_manifest::{Descriptor, ImageManifest};

/// Made by [`Puller::layers_of`](super::Puller::layers_of) and
/// [`Puller::layers_by_name`](super::Puller::layers_by_name).
///
/// A layer is asked for by the digests that manifests in the store name for it; then by the manifests at the source: that
/// with the recorded digest, and the one that the reference names. In those the layer is at the place at which the config
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
    /// What the manifest with this digest names.
    ByDigest(Digest),
    /// What the manifest names that the reference names.
    ByName,
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
            // Names that image programs give what was built here.
            let names = wanted.names.iter().filter(|name| !name.starts_with("localhost/"));
            for name in names {
                // What is no name of a registry's image cannot be asked for.
                if let Ok(reference) = name.parse() {
                    images.push((ImageRef::Registry(reference), wanted.digest.clone()));
                }
            }
        }
        images
    }

    /// The manifest with this digest, or the one that the reference names.
    async fn manifest(&self, source: &ImageSource, digest: Option<&Digest>) -> Result<ImageManifest> {
        let Some(digest) = digest else {
            let (_top, _instance, manifest) = self.context.resolve(source).await?;
            return Ok(manifest);
        };
        let fetched = source.manifest(digest).await?;
        digest.check(&fetched.bytes, "the manifest")?;
        match parse(&fetched.bytes)? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => Err(ErrorKind::NotSupported.err("an index in the place of a manifest")),
        }
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

    /// A manifest, or else a config, with the digest.
    async fn document_of(&self, image: &ImageRef, wanted: &WantedDocument) -> Result<Bytes> {
        let source = self.context.open_for_layers(image).await?;
        let error = match source.manifest(&wanted.digest).await {
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
            let mut ways = images.into_iter().flat_map(|(image, digest)| {
                let blobs = wanted.blobs.iter().cloned().map(Way::Blob);
                let ways = blobs.chain(digest.map(Way::ByDigest)).chain([Way::ByName]);
                ways.map(move |way| (image.clone(), way))
            });
            let Some((image, way)) = ways.nth(attempt) else {
                return Ok(None);
            };
            let source = self.context.open_for_layers(&image).await?;
            let blob = match way {
                Way::Blob(blob) => blob,
                Way::ByDigest(digest) => self.find(&source, Some(&digest), wanted).await?,
                Way::ByName => self.find(&source, None, wanted).await?,
            };
            let stream = source.blob(&blob, &self.context.options.progress, None);
            stream.await.map(Some)
        }
        .boxed()
    }

    fn layer_parts<'a>(&'a self, wanted: &'a WantedContent) -> BoxFuture<'a, Result<Option<BlobParts>>> {
        async move {
            let has_table = |blob: &&Descriptor| {
                matches!(
                    TocLocation::from_annotations(&blob.annotations, blob.size),
                    Ok(Some(_))
                )
            };
            let blob = wanted.blobs.iter().find(has_table);
            let images = self.images(&wanted.images);
            let (Some(blob), Some((image, _digest))) = (blob, images.first()) else {
                return Ok(None);
            };
            let source = self.context.open_for_layers(image).await?;
            let meter = Meter::start(&self.context.options.progress, &blob.digest, blob.size, 0);
            let source = source.ranges(blob, meter).await?;
            Ok(Some(BlobParts::new(blob.clone(), source)))
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
