//! Pushing images: out of the store, to a registry, an OCI layout, a directory or an archive.
//!
//! A layer is sent as its tar stream, bit for bit as it was received (replayed from tar-split), and compressed again.
//! If the destination has the blob that the layer was made from, that blob is used and nothing is read; if it has the
//! newly compressed one, that is not sent. The manifest of the store is pushed unchanged unless a blob differs.
//!
//! A layer that is known by its table of contents alone can be sent only if its tar stream turns out to be the one that the
//! image's config names.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tracing::Instrument as _;

use super::destination::Destination;
use super::docker_archive;
use super::manifest::Config;
use super::options::PushOptions;
use super::progress::{BlobState, ImageState, Progress};
use super::reference::{ImageRef, RegistryRef};
use super::repository::Registries;
use super::spool::Spool;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::DiffOptions;
use crate::store::Store;
use crate::store::diff_stream::check_compression;
use crate::store::image_manifest::{Descriptor, ImageManifest};
use crate::store::views::Layer;

/// Other repositories of a registry that are asked for blobs at the most.
const MAX_MOUNTS: usize = 3;

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
    /// Whether the store has signatures of the image. They are not pushed.
    pub has_signatures: bool,
}

/// Pushes an image of the store (an ID, name or ID prefix).
///
/// Takes the store's locks for moments only. Each layer is first written to a temporary file of the store, compressed.
/// An archive appears under its name when it is complete, and replaces one that is there. A layout that several tasks or
/// processes push to at the same time lists the images of all of them. A directory (`dir:`) holds one image: what it held is
/// there until the new one is complete, pushes to it wait for each other, and its signatures are removed.
///
/// Signatures that the image was pulled with stay behind ([`Pushed::has_signatures`]), and none are made: another program signs what was
/// pushed.
///
/// # Errors
/// [`ErrorKind::ImageUnknown`]; [`ErrorKind::NotFound`] for an image without a manifest or config;
/// [`ErrorKind::InvalidInput`] if those do not fit the layers, for a destination that names a digest, or for a directory in
/// which something else is;
/// [`ErrorKind::Registry`] if the registry cannot be reached or refuses; [`ErrorKind::NotSupported`] for an archive in
/// place of what is no regular file; [`ErrorKind::DigestMismatch`] for a layer without diff ID
/// ([`PartialPullOptions::insecure_allow_unpredictable_image_contents`](crate::PartialPullOptions::insecure_allow_unpredictable_image_contents))
/// that the destination does not have, since its tar stream is another one than the config names; and those of
/// [`Store::diff`]. What was sent to a registry, layout or directory stays there,
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
    let compression = match to {
        ImageRef::DockerArchive { .. } => Compression::None,
        _ => options.compression,
    };
    check_compression(compression, options.level)?;
    let image = store.image(image).await?;
    let manifest = store.manifest_of(&image).await?;
    let config = store.config_bytes(&image, &manifest).await?;
    let layers = store.layers_up_to(image.top_layer()).await?;
    let diff_ids = Config::parse(&config)?.diff_ids;
    let fit = diff_ids.len() == layers.len()
        && manifest.layers.len() == layers.len()
        && layers
            .iter()
            .zip(&diff_ids)
            .all(|(layer, diff_id)| match layer.uncompressed_digest() {
                Some(digest) => digest == *diff_id,
                // It is computed before the layer is sent.
                None => layer.toc_digest().is_some(),
            });
    if !fit {
        return Err(ErrorKind::InvalidInput.err("the image's config does not describe its layers"));
    }
    let registries = Arc::new(Registries::new(options.registry.clone()));
    let destination = Destination::open(to, &registries, mounts(image.names(), to)).await?;
    let progress = &options.progress;
    progress.image(text, || ImageState::Resolved {
        manifest: manifest.digest.clone(),
        blobs: manifest
            .layers
            .iter()
            .map(|blob| (blob.digest.clone(), blob.size))
            .collect(),
    });
    let docker_archive = destination.is_docker_archive();
    // Manifests of Docker's format have no annotations of layers.
    let oci = destination.is_oci_only() || !manifest.is_docker() || compression == Compression::ZstdChunked;
    let job = Job {
        store,
        destination: &destination,
        progress,
        compression,
        level: options.level,
        oci,
    };
    // Boxed one by one, so that the whole is `Send` for every lifetime: callers spawn it.
    let jobs: Vec<BoxFuture<'_, Result<Prepared>>> = layers
        .iter()
        .zip(&manifest.layers)
        .zip(&diff_ids)
        .map(|((layer, blob), diff_id)| job.layer(layer, blob, diff_id).boxed())
        .collect();
    let mut prepared = futures::stream::iter(jobs).buffered(options.uploads.max(1));
    let (mut blobs, mut sent) = (Vec::new(), 0);
    while let Some(Prepared { blob, state }) = prepared.try_next().await? {
        let is_sent = match state {
            LayerState::Reused => false,
            LayerState::Sent => true,
            LayerState::Waiting(spool) => job.put(&spool, None).await?,
        };
        sent += usize::from(is_sent);
        blobs.push(blob);
    }
    drop(prepared);
    destination.put_small(&config, &manifest.config.digest).await?;
    let (stored, config_digest) = (manifest.digest.clone(), manifest.config.digest.clone());
    let pushed = match (docker_archive, oci) {
        (true, _) => ImageManifest::parse(docker_archive::manifest(&config, &blobs)?.bytes)?,
        (false, true) => manifest.with_oci_layers(&blobs)?,
        (false, false) => manifest.with_layers(&blobs)?,
    };
    destination.finish(&pushed, &config_digest, &blobs).await?;
    Ok(Pushed {
        unchanged: pushed.digest == stored,
        manifest: pushed.digest,
        sent,
        reused: layers.len() - sent,
        has_signatures: image.big_data_names().iter().any(|name| name == "signatures"),
    })
}

/// The repositories of the destination's registry that have had the image, by its names.
fn mounts(names: &[String], to: &ImageRef) -> Vec<String> {
    let ImageRef::Registry(to) = to else {
        return Vec::new();
    };
    let known = names.iter().filter_map(|name| name.parse::<RegistryRef>().ok());
    let mut repositories: Vec<String> = known
        .filter(|name| name.registry() == to.registry() && name.repository() != to.repository())
        .map(|name| name.repository().to_owned())
        .collect();
    repositories.dedup();
    repositories.truncate(MAX_MOUNTS);
    repositories
}

struct Job<'a> {
    store: &'a Store,
    destination: &'a Destination,
    progress: &'a Progress,
    compression: Compression,
    level: Option<i32>,
    /// Whether media types are those of OCI.
    oci: bool,
}

/// A layer for the destination.
struct Prepared {
    blob: Descriptor,
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
    async fn layer(&self, layer: &Layer, known: &Descriptor, diff_id: &Digest) -> Result<Prepared> {
        if self.destination.has(&known.digest, known.size).await?
            || self.destination.take_over(&known.digest).await
        {
            reused(self.progress, &known.digest);
            let media_type = if self.oci {
                oci_type(&known.media_type)
            } else {
                known.media_type.clone()
            };
            return Ok(Prepared {
                blob: Descriptor {
                    media_type,
                    ..known.clone()
                },
                state: LayerState::Reused,
            });
        }
        if layer.uncompressed_digest().is_none() {
            let (found, _size) = self.store.measure_diff(layer.id()).await?;
            if found != *diff_id {
                let what = format!(
                    "layer {}, which was put together by its table of contents, has digest {found}, expected {diff_id}",
                    layer.id()
                );
                return Err(ErrorKind::DigestMismatch.err(what));
            }
        }
        let options = DiffOptions::compressed(self.compression).level(self.level);
        let mut diff = self.store.diff(None, layer.id(), options).await?;
        let spool = Spool::fill(self.store, layer.id(), &mut diff).await?;
        if self.compression == Compression::None
            && let Some(expected) = layer
                .uncompressed_digest()
                .filter(|digest| *digest != spool.digest)
        {
            let what = format!(
                "layer {} now has digest {}, expected {expected}",
                layer.id(),
                spool.digest
            );
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        let media_type = layer_type(self.compression, self.oci);
        let blob = Descriptor {
            annotations: diff.annotations(),
            ..Descriptor::new(media_type, spool.digest.clone(), spool.size)
        };
        let state = if self.destination.is_archive() {
            LayerState::Waiting(spool)
        } else if self.put(&spool, Some(&known.digest)).await? {
            LayerState::Sent
        } else {
            LayerState::Reused
        };
        Ok(Prepared { blob, state })
    }

    /// Sends a compressed layer unless the destination has it. Returns whether it was sent. `missing` is known not to be
    /// there.
    async fn put(&self, spool: &Spool, missing: Option<&Digest>) -> Result<bool> {
        if missing != Some(&spool.digest) && self.destination.has(&spool.digest, spool.size).await? {
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

/// The media type of a layer with this compression.
fn layer_type(compression: Compression, oci: bool) -> &'static str {
    match (compression, oci) {
        (Compression::Gzip, true) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Compression::Zstd | Compression::ZstdChunked, true) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (_, true) => "application/vnd.oci.image.layer.v1.tar",
        (Compression::Gzip, false) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Compression::Zstd | Compression::ZstdChunked, false) => {
            "application/vnd.docker.image.rootfs.diff.tar.zstd"
        }
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
