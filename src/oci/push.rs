//! Pushing images: out of the store, to a registry, an OCI layout or an archive.
//!
//! A layer is sent as its tar stream, bit for bit as it was received (replayed from tar-split), and compressed again.
//! If the destination has the blob that the layer was made from, that blob is used and nothing is read; if it has the
//! newly compressed one, that is not sent. The manifest of the store is pushed unchanged unless a blob differs.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tracing::Instrument as _;

use super::destination::Destination;
use super::docker_archive;
use super::document::check;
use super::manifest::{self, Blob, Config, DOCKER_MANIFEST, Document, OCI_CONFIG, OCI_MANIFEST};
use super::options::PushOptions;
use super::progress::{BlobState, ImageState, Progress};
use super::reference::ImageRef;
use super::repository::Registries;
use super::spool::Spool;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::DiffOptions;
use crate::store::Store;
use crate::store::views::Layer;

/// The result of a push.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Digest of the manifest at the destination; for a `docker-archive:`, of the one that readers derive from it.
    pub manifest: Digest,
    /// Whether that is the manifest that the store has.
    pub unchanged: bool,
    /// Layers that were sent.
    pub sent: usize,
    /// Layers that the destination had.
    pub reused: usize,
}

/// Pushes an image of the store (an ID, name or ID prefix).
///
/// Takes the store's locks for moments only. Each layer is first written to a temporary file of the store, compressed.
/// An archive appears under its name when it is complete, and replaces one that is there. A layout that several tasks or processes push to at the same time lists the images of all of them.
///
/// # Errors
/// [`ErrorKind::ImageUnknown`]; [`ErrorKind::NotFound`] for an image without a manifest or config;
/// [`ErrorKind::InvalidInput`] if those do not fit the layers, or for a destination that names a digest;
/// [`ErrorKind::Registry`] if the registry cannot be reached or refuses; [`ErrorKind::NotSupported`] for an archive in
/// place of what is no regular file; and those of [`Store::diff`]. What was sent to a registry or layout stays there,
/// for the next attempt; of an archive nothing stays.
///
/// # Cancellation
/// As a failure.
pub async fn push(store: &Store, image: &str, to: &ImageRef, options: PushOptions) -> Result<Pushed> {
    let text: Arc<str> = to.to_string().into();
    let progress = options.progress.clone();
    let span = tracing::info_span!("push", image, to = &*text);
    let result = Box::pin(work(store, image, to, &text, options))
        .instrument(span)
        .await;
    match &result {
        Ok(pushed) => progress.image(&text, || ImageState::Done {
            id: pushed.manifest.to_string(),
        }),
        Err(error) => progress.image(&text, || ImageState::Failed { error: error.chain() }),
    }
    result.map_err(|error| error.context(format!("pushing {image:?} to {text}")))
}

async fn work(
    store: &Store,
    image: &str,
    to: &ImageRef,
    text: &Arc<str>,
    options: PushOptions,
) -> Result<Pushed> {
    let image = store.image(image).await?;
    let bytes = stored_manifest(store, image.id()).await?;
    let Document::Image(manifest) = manifest::parse(&bytes, None)? else {
        return Err(ErrorKind::NotSupported.err("an index as an image's manifest"));
    };
    let config = store
        .image_big_data(image.id(), manifest.config.digest.as_str())
        .await?;
    check(&config, &manifest.config.digest, "the stored config")?;
    let layers = store.image_layers(image.id()).await?;
    let diff_ids = Config::parse(&config)?.diff_ids;
    let fit = diff_ids.len() == layers.len()
        && manifest.layers.len() == layers.len()
        && layers
            .iter()
            .zip(&diff_ids)
            .all(|(layer, diff_id)| layer.diff_digest().as_ref() == Some(diff_id));
    if !fit {
        return Err(ErrorKind::InvalidInput.err("the image's config does not describe its layers"));
    }
    let registries = Registries::new(options.registry.clone());
    let destination = Destination::open(to, &registries).await?;
    let progress = &options.progress;
    progress.image(text, || ImageState::Resolved {
        manifest: Digest::sha256(&bytes),
        blobs: manifest
            .layers
            .iter()
            .map(|blob| (blob.digest.clone(), blob.size))
            .collect(),
    });
    let docker_archive = destination.is_docker_archive();
    let oci = destination.is_oci_only() || manifest.media_type != DOCKER_MANIFEST;
    let job = Job {
        store,
        destination: &destination,
        progress,
        compression: match docker_archive {
            true => Compression::None,
            false => options.compression,
        },
        oci,
    };
    // Boxed one by one, so that the whole is `Send` for every lifetime: callers spawn it.
    let jobs: Vec<BoxFuture<'_, Result<Prepared>>> = layers
        .iter()
        .zip(&manifest.layers)
        .map(|(layer, blob)| job.layer(layer, blob).boxed())
        .collect();
    let mut prepared = futures::stream::iter(jobs).buffered(options.uploads.max(1));
    let (mut blobs, mut sent) = (Vec::new(), 0);
    while let Some(Prepared { blob, state }) = prepared.try_next().await? {
        let is_sent = match state {
            LayerState::Reused => false,
            LayerState::Sent => true,
            LayerState::Waiting(spool) => job.put(&spool).await?,
        };
        sent += usize::from(is_sent);
        blobs.push(blob);
    }
    drop(prepared);
    if !destination.has(&manifest.config.digest).await? {
        destination.put_small(&config, &manifest.config.digest).await?;
    }
    let (pushed, media_type) = if docker_archive {
        let manifest = docker_archive::manifest(&config, &blobs)?;
        (manifest.bytes, DOCKER_MANIFEST.to_owned())
    } else if oci == (manifest.media_type != DOCKER_MANIFEST) && blobs == manifest.layers {
        (bytes.clone(), manifest.media_type.clone())
    } else {
        rewrite(&bytes, &manifest.layers, &blobs, oci)?
    };
    let digest = Digest::sha256(&pushed);
    let config = &manifest.config.digest;
    destination
        .finish(&pushed, &digest, &media_type, config, &blobs)
        .await?;
    Ok(Pushed {
        manifest: digest,
        unchanged: pushed == bytes,
        sent,
        reused: layers.len() - sent,
    })
}

struct Job<'a> {
    store: &'a Store,
    destination: &'a Destination,
    progress: &'a Progress,
    compression: Compression,
    /// Whether media types are those of OCI.
    oci: bool,
}

/// A layer for the destination.
struct Prepared {
    blob: Blob,
    state: LayerState,
}

enum LayerState {
    /// The destination had it.
    Reused,
    Sent,
    /// It is compressed. Archives get their layers in order, so that equal images make equal archives.
    Waiting(Spool),
}

impl Job<'_> {
    /// Compresses and sends a layer unless the destination has it.
    async fn layer(&self, layer: &Layer, known: &Blob) -> Result<Prepared> {
        if self.destination.has(&known.digest).await? {
            reused(self.progress, &known.digest);
            let media_type = if self.oci {
                oci_type(&known.media_type)
            } else {
                known.media_type.clone()
            };
            return Ok(Prepared {
                blob: Blob {
                    media_type,
                    ..known.clone()
                },
                state: LayerState::Reused,
            });
        }
        let diff = self
            .store
            .diff(None, layer.id(), DiffOptions::compressed(self.compression))
            .await?;
        let spool = Spool::fill(self.store, layer.id(), diff).await?;
        if self.compression == Compression::None
            && let Some(expected) = layer.diff_digest().filter(|digest| *digest != spool.digest)
        {
            let what = format!(
                "layer {} now has digest {}, expected {expected}",
                layer.id(),
                spool.digest
            );
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        let blob = Blob {
            digest: spool.digest.clone(),
            size: spool.size,
            media_type: layer_type(self.compression, self.oci).into(),
        };
        let state = if self.destination.is_archive() {
            LayerState::Waiting(spool)
        } else if self.put(&spool).await? {
            LayerState::Sent
        } else {
            LayerState::Reused
        };
        Ok(Prepared { blob, state })
    }

    /// Sends a compressed layer unless the destination has it. Returns whether it was sent.
    async fn put(&self, spool: &Spool) -> Result<bool> {
        if self.destination.has(&spool.digest).await? {
            reused(self.progress, &spool.digest);
            return Ok(false);
        }
        self.destination.put_layer(spool, self.progress).await?;
        self.progress.blob(&spool.digest, || BlobState::Committed {
            layer: spool.layer.clone(),
        });
        Ok(true)
    }
}

/// Reports that the destination has a blob.
fn reused(progress: &Progress, digest: &Digest) {
    progress.blob(digest, || BlobState::Reused {
        item: digest.to_string(),
    });
}

/// The manifest of an image of the store.
async fn stored_manifest(store: &Store, image: &str) -> Result<Bytes> {
    match store.image_big_data(image, "manifest").await {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.context(format!("image {image:?} has no manifest to push"))),
    }
}

/// The media type of a layer with this compression.
fn layer_type(compression: Compression, oci: bool) -> &'static str {
    match (compression, oci) {
        (Compression::Gzip, true) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Compression::Zstd, true) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (_, true) => "application/vnd.oci.image.layer.v1.tar",
        (Compression::Gzip, false) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Compression::Zstd, false) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        (_, false) => "application/vnd.docker.image.rootfs.diff.tar",
    }
}

/// What OCI calls the media type of a layer.
fn oci_type(media_type: &str) -> String {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        if media_type == layer_type(compression, false) {
            return layer_type(compression, true).into();
        }
    }
    media_type.to_owned()
}

/// The manifest with other layers; whatever else it says stays.
fn rewrite(bytes: &[u8], old: &[Blob], new: &[Blob], oci: bool) -> Result<(Bytes, String)> {
    let unreadable = |error| {
        ErrorKind::InvalidInput
            .err("the manifest cannot be read")
            .with_source(error)
    };
    let mut value: Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    let media_type = if oci { OCI_MANIFEST } else { DOCKER_MANIFEST };
    let listed = value
        .get("layers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let layers: Vec<Value> = new
        .iter()
        .enumerate()
        .map(|(index, blob)| {
            // Annotations may speak of the blob that it was.
            let kept = listed
                .get(index)
                .filter(|_| old.get(index).is_some_and(|old| old.digest == blob.digest));
            let mut entry = kept.cloned().unwrap_or_else(|| json!({}));
            entry["mediaType"] = json!(blob.media_type);
            entry["digest"] = json!(blob.digest);
            entry["size"] = json!(blob.size);
            entry
        })
        .collect();
    value["mediaType"] = json!(media_type);
    value["layers"] = json!(layers);
    if oci && let Some(config) = value.get_mut("config") {
        config["mediaType"] = json!(OCI_CONFIG);
    }
    let bytes = serde_json::to_vec(&value).map_err(unreadable)?;
    Ok((bytes.into(), media_type.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_keeps_what_is_not_about_other_blobs() {
        let blob = |name: &str| Blob {
            digest: Digest::sha256(name),
            size: 1,
            media_type: layer_type(Compression::Gzip, true).into(),
        };
        let (kept, old, new) = (blob("kept"), blob("old"), blob("new"));
        let text = json!({
            "schemaVersion": 2,
            "annotations": {"a": "b"},
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json"},
            "layers": [
                {"digest": kept.digest, "size": 1, "annotations": {"of": "kept"}},
                {"digest": old.digest, "size": 1, "annotations": {"of": "old"}},
            ],
        });
        let bytes = serde_json::to_vec(&text).unwrap();
        let (bytes, media_type) =
            rewrite(&bytes, &[kept.clone(), old], &[kept.clone(), new.clone()], true).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            (media_type.as_str(), &value["mediaType"]),
            (OCI_MANIFEST, &json!(OCI_MANIFEST))
        );
        assert_eq!(value["annotations"]["a"], "b");
        assert_eq!(value["config"]["mediaType"], OCI_CONFIG);
        assert_eq!(value["layers"][0]["annotations"]["of"], "kept");
        assert_eq!(value["layers"][1].get("annotations"), None);
        assert_eq!(value["layers"][1]["digest"], json!(new.digest));
    }
}
