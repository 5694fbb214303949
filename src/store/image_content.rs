//! What an image consists of: its layers, its manifest, its config.
//!
//! Image programs keep manifest and config as big data of the image: the manifest under `manifest` and
//! `manifest-DIGEST`, the config under its digest.

use std::collections::HashSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::options::DiffOptions;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::image_config::ImageConfig;
use crate::store::image_manifest::{Descriptor, ImageManifest};
use crate::store::layers::view;
use crate::store::views::{Image, Layer};

/// The layer store is read again this often if layers are in another order of stores than their parents.
const MAX_READS: usize = 4;

/// # What an image consists of
impl Store {
    /// The layers of an image (an ID, name or ID prefix), the lowest first. An image without a layer has none.
    ///
    /// Takes the image lock, then the layer lock, shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`]; [`ErrorKind::LayerUnknown`] if a layer of it is missing;
    /// [`ErrorKind::CorruptMetadata`] for layers that are each other's parents.
    ///
    /// # Cancellation
    /// No effect.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// for layer in store.image_layers("localhost/demo:latest").await? {
    ///     println!("{:?}, {:?} bytes", layer.uncompressed_digest(), layer.uncompressed_size());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn image_layers(&self, id: &str) -> Result<Vec<Layer>> {
        let image = self.image(id).await?;
        self.layers_up_to(image.top_layer()).await
    }

    /// A layer (its exact ID) and all below it, the lowest first.
    pub(crate) async fn layers_up_to(&self, top: Option<&str>) -> Result<Vec<Layer>> {
        let mounts = self.mounts().await?;
        let mut found: Vec<Layer> = Vec::new();
        let mut seen = HashSet::new();
        let mut next = top.map(str::to_owned);
        let unknown = LayerRow::unknown;
        for _ in 0..MAX_READS {
            let circle: Option<Error> = self
                .read_all_layer_stores(|home, table| {
                    while let Some(row) = next.as_deref().and_then(|id| table.get(id)) {
                        if !seen.insert(row.id.to_string()) {
                            let what = format!("layer {:?} is an ancestor of itself", &*row.id);
                            return Ok(ControlFlow::Break(ErrorKind::CorruptMetadata.err(what)));
                        }
                        found.push(view(row, &mounts, home));
                        next = row.parent_id().map(str::to_owned);
                    }
                    Ok(ControlFlow::Continue(()))
                })
                .await?;
            if let Some(error) = circle {
                return Err(error);
            }
            if next.is_none() {
                found.reverse();
                return Ok(found);
            }
        }
        Err(unknown(&next.unwrap_or_default()))
    }

    /// The manifest of an image (an ID, name or ID prefix), as it was stored with it.
    ///
    /// It names the blobs that the image was pulled with. The store has their content, not their bytes: what it can
    /// give again is in [`Store::image_manifest_uncompressed`].
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`]; [`ErrorKind::NotFound`] for an image without a manifest;
    /// [`ErrorKind::NotSupported`] for one of schema version 1, and for a list of images;
    /// [`ErrorKind::InvalidInput`] for one that cannot be read.
    ///
    /// # Cancellation
    /// No effect.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// let manifest = store.image_manifest("localhost/demo:latest").await?;
    /// println!("{} ({}), {} layers", manifest.digest, manifest.media_type, manifest.layers.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn image_manifest(&self, id: &str) -> Result<ImageManifest> {
        let image = self.image(id).await?;
        self.manifest_of(&image).await
    }

    pub(crate) async fn manifest_of(&self, image: &Image) -> Result<ImageManifest> {
        let mut first_error = None;
        for key in manifest_keys(image) {
            match self
                .image_big_data(image.id(), &key)
                .await
                .and_then(ImageManifest::parse)
            {
                Ok(manifest) => return Ok(manifest),
                Err(error) => first_error.get_or_insert(error),
            };
        }
        let error = first_error.unwrap_or_else(|| ErrorKind::NotFound.err("no key for a manifest"));
        let has_one = image
            .big_data_names()
            .iter()
            .any(|name| name.starts_with("manifest"));
        let id = image.id();
        Err(error.context(match has_one {
            true => format!("reading the manifest of image {id:?}"),
            false => format!("image {id:?} has no manifest"),
        }))
    }

    /// The config of an image (an ID, name or ID prefix), as its manifest names it.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// As [`Store::image_manifest`]; [`ErrorKind::NotFound`] for an image without the config;
    /// [`ErrorKind::DigestMismatch`] if it is not the one that the manifest names.
    ///
    /// # Cancellation
    /// No effect.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// let config = store.image_config("localhost/demo:latest").await?;
    /// println!("{} runs {:?} in {:?}", config.digest, config.run.command(), config.run.working_dir);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn image_config(&self, id: &str) -> Result<ImageConfig> {
        let image = self.image(id).await?;
        let manifest = self.manifest_of(&image).await?;
        self.config_of(&image, &manifest).await
    }

    pub(crate) async fn config_of(&self, image: &Image, manifest: &ImageManifest) -> Result<ImageConfig> {
        let bytes = self.config_bytes(image, manifest).await?;
        ImageConfig::parse(bytes, manifest.config.digest.clone())
            .map_err(|error| error.context(reading_config(image)))
    }

    /// The config as it is stored, which is the one that the manifest names.
    pub(crate) async fn config_bytes(&self, image: &Image, manifest: &ImageManifest) -> Result<Bytes> {
        let digest = &manifest.config.digest;
        let read = async {
            let bytes = self.image_big_data(image.id(), digest.as_str()).await?;
            digest.check(&bytes, "the stored config")?;
            Ok(bytes)
        };
        read.await
            .map_err(|error: Error| error.context(reading_config(image)))
    }

    /// A manifest of an image (an ID, name or ID prefix) that names every layer as [`Store::diff`] gives it with
    /// [`DiffOptions::uncompressed`]: what a server of the store's images hands out, with `diff` for each of the
    /// layers.
    ///
    /// It is the stored manifest, byte for byte, if that names uncompressed layers, as those of images built or
    /// committed on the same machine do. For a layer without a recorded digest the whole diff is read to compute it.
    ///
    /// Locks are taken as by [`Store::image_manifest`], [`Store::image_layers`] and [`Store::diff`], one after the other.
    ///
    /// # Errors
    /// As [`Store::image_manifest`] and [`Store::image_layers`]; [`ErrorKind::InvalidInput`] if the manifest does not
    /// fit the layers.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_manifest_uncompressed(&self, id: &str) -> Result<ImageManifest> {
        let image = self.image(id).await?;
        let manifest = self.manifest_of(&image).await?;
        let layers = self.layers_up_to(image.top_layer()).await?;
        if layers.len() != manifest.layers.len() {
            let what = format!(
                "image {:?} has {} layers, its manifest {}",
                image.id(),
                layers.len(),
                manifest.layers.len()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let media_type = manifest.plain_layer_type();
        let mut plain = Vec::with_capacity(layers.len());
        for (layer, known) in layers.iter().zip(&manifest.layers) {
            let blob = self.plain_blob(layer, media_type).await?;
            plain.push(if blob.digest == known.digest {
                known.clone()
            } else {
                blob
            });
        }
        manifest.with_layers(&plain)
    }

    /// A layer as the uncompressed blob that [`Store::diff`] gives.
    pub(crate) async fn plain_blob(&self, layer: &Layer, media_type: &str) -> Result<Descriptor> {
        if let (Some(digest), Some(size)) = (layer.uncompressed_digest(), layer.uncompressed_size()) {
            return Ok(Descriptor::new(media_type, digest, size));
        }
        let (digest, size) = self.measure_diff(layer.id()).await?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Digest and size of the uncompressed diff of a layer that has none recorded.
    pub(crate) async fn measure_diff(&self, layer: &str) -> Result<(Digest, u64)> {
        let mut diff = self.diff(None, layer, DiffOptions::uncompressed()).await?;
        let mut hasher = Hasher::sha256();
        let mut size = 0;
        let mut buffer = bytes::BytesMut::with_capacity(crate::bridge::CHUNK);
        loop {
            buffer.clear();
            let read = diff.read_buf(&mut buffer).await;
            let read =
                read.map_err(|error| Error::io(format!("reading the diff of layer {layer:?}"), error))?;
            if read == 0 {
                return Ok((hasher.finish(), size));
            }
            hasher.update(&buffer);
            size += read as u64;
        }
    }
}

fn reading_config(image: &Image) -> String {
    format!("reading the config of image {:?}", image.id())
}

/// The keys under which the manifest of an image may be, the best first.
fn manifest_keys(image: &Image) -> Vec<String> {
    const KEY: &str = "manifest";
    let names = image.big_data_names();
    let mut keys: Vec<String> = names
        .iter()
        .filter(|name| name.starts_with("manifest-"))
        .cloned()
        .collect();
    if keys.is_empty() || names.iter().any(|name| name == KEY) {
        return vec![KEY.to_owned()];
    }
    // Only under digests: one of them may be the index that the image was pulled by.
    let own = image.digest().map(|digest| format!("manifest-{digest}"));
    keys.sort_by_key(|key| Some(key) != own.as_ref());
    keys
}
