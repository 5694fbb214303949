//! The record of an image and its big data items, as Podman writes them.
//!
//! ```text
//! ID                          hexadecimal part of the config's digest; another one if layers are known by their tables
//!                             of contents
//! digest                      of the index that it was pulled by if there is one, else of the manifest
//! names                       added in front of those that the image has
//! metadata                    the sizes of signatures; {} if there are none
//! big data: sha256:CONFIG     the config
//!           manifest-sha256:X the index, if there is one; the manifest
//!           manifest          the manifest once more
//!           signatures, signature-X   all signatures, one behind the other, if there are some; X of the manifest
//! ```

use std::time::SystemTime;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::ImageOptions;
use crate::store::Store;
use crate::store::image_manifest::ImageManifest;
use crate::store::image_types;
use crate::store::views::Image;

/// The metadata of an image without signatures.
const NO_SIGNATURES: &str = "{}";

/// Everything about an image whose layers are in the store.
pub(crate) struct NewImage {
    pub(crate) id: String,
    pub(crate) layer: Option<String>,
    pub(crate) names: Vec<String>,
    pub(crate) created: Option<SystemTime>,
    pub(crate) config: (Digest, Bytes),
    /// What was pulled.
    pub(crate) top: (Digest, Bytes),
    /// The manifest for the platform; may be the same.
    pub(crate) instance: (Digest, Bytes),
    /// Signatures of that manifest, each as the Go library stores it.
    pub(crate) signatures: Vec<Vec<u8>>,
}

impl NewImage {
    fn items(&self) -> Vec<(String, Bytes)> {
        let manifest_key = |digest: &Digest| format!("manifest-{digest}");
        let mut items = vec![(self.config.0.to_string(), self.config.1.clone())];
        if self.top.0 != self.instance.0 {
            items.push((manifest_key(&self.top.0), self.top.1.clone()));
        }
        items.push((manifest_key(&self.instance.0), self.instance.1.clone()));
        items.push(("manifest".into(), self.instance.1.clone()));
        if !self.signatures.is_empty() {
            let all: Bytes = self.signatures.concat().into();
            let own = format!("signature-{}", self.instance.0.encoded());
            items.extend([("signatures".into(), all.clone()), (own, all)]);
        }
        items
    }

    /// The metadata as the Go library writes it.
    fn metadata(&self) -> String {
        if self.signatures.is_empty() {
            return NO_SIGNATURES.to_owned();
        }
        let sizes: Vec<String> = self.signatures.iter().map(|one| one.len().to_string()).collect();
        let sizes = sizes.join(",");
        format!(
            r#"{{"signature-sizes":[{sizes}],"signatures-sizes":{{"{}":[{sizes}]}}}}"#,
            self.instance.0
        )
    }
}

/// The image with exactly this ID in the primary store.
async fn existing(store: &Store, id: &str) -> Result<Option<Image>> {
    match store.image(id).await {
        Ok(image) if image.id() == id && !image.read_only() => Ok(Some(image)),
        Ok(_other) => Ok(None),
        Err(error) if error.kind() == ErrorKind::ImageUnknown => Ok(None),
        Err(error) => Err(error),
    }
}

/// The config of an image that the store has already.
#[cfg(feature = "pull")]
pub(crate) async fn known_config(store: &Store, digest: &Digest) -> Result<Option<Bytes>> {
    if existing(store, digest.encoded()).await?.is_none() {
        return Ok(None);
    }
    let bytes = match store.image_big_data(digest.encoded(), digest.as_str()).await {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::debug!(error = %error.chain(), "an image without its config");
            return Ok(None);
        }
    };
    let intact = digest.check(&bytes, "the stored config").is_ok();
    Ok(intact.then_some(bytes))
}

/// Writes the record with its names in one step, or completes the one that is there.
///
/// Names of other images are taken from them.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] and [`ErrorKind::NotSupported`] for an image that image programs cannot read.
pub(crate) async fn write(store: &Store, new: NewImage) -> Result<Image> {
    image_types::read_config::<IgnoredAny>(&new.config.1)?;
    ImageManifest::parse(new.instance.1.clone())?.check_readable()?;
    let items = new.items();
    let known = match existing(store, &new.id).await? {
        Some(image) => Some(image),
        None => match store
            .create_named_image(new.layer.as_deref(), options(&new, &items), new.names.clone())
            .await
        {
            Ok(image) => return Ok(image),
            // Another process has created it in the meantime.
            Err(error) if error.kind() == ErrorKind::DuplicateId => existing(store, &new.id).await?,
            Err(error) => return Err(error),
        },
    };
    if let Some(image) = known {
        complete(store, &image, &new, items).await?;
    }
    if !new.names.is_empty() {
        store.add_names(&new.id, &new.names).await?;
    }
    store.image(&new.id).await
}

fn options(new: &NewImage, items: &[(String, Bytes)]) -> ImageOptions {
    let mut options = ImageOptions::default().id(&new.id);
    options.creation_date = new.created;
    options.digest = Some(new.top.0.clone());
    options.metadata = new.metadata();
    for (key, data) in items {
        options = options.big_data(key, data.clone());
    }
    options
}

/// Adds what an existing image lacks.
async fn complete(store: &Store, image: &Image, new: &NewImage, items: Vec<(String, Bytes)>) -> Result<()> {
    let mapped = |layer: &str| image.mapped_top_layers().iter().any(|mapped| mapped == layer);
    if image.top_layer() != new.layer.as_deref() && !new.layer.as_deref().is_some_and(mapped) {
        let what = format!(
            "image {:?} has top layer {:?} already, not {:?}",
            new.id,
            image.top_layer().unwrap_or_default(),
            new.layer.as_deref().unwrap_or_default()
        );
        return Err(ErrorKind::DuplicateId.err(what));
    }
    for (key, data) in items {
        // The manifest itself changes with what was pulled last, as in Podman; what goes by digest is there or not.
        if image.big_data_digest(&key) != Some(Digest::sha256(&data)) {
            store
                .set_image_big_data(image.id(), &key, data, Some(|data| Ok(Digest::sha256(data))))
                .await?;
        }
    }
    if image.metadata() != new.metadata() {
        store.set_metadata(image.id(), new.metadata()).await?;
    }
    Ok(())
}
