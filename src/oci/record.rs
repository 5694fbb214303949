//! The image record, as Podman writes it.
//!
//! ```text
//! ID                          hexadecimal part of the config's digest
//! digest                      of what was pulled: the index if there is one, else the manifest
//! names                       added before those that the image has
//! metadata                    {"signatures-sizes":{"sha256:MANIFEST":[]}}
//! big data: sha256:CONFIG     the config
//!           manifest-sha256:X the index, if there is one; the manifest
//!           manifest          the manifest once more
//!           signature-MANIFEST  signatures, one after the other: none
//! ```

use std::time::SystemTime;

use bytes::Bytes;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::ImageOptions;
use crate::store::Store;
use crate::store::views::Image;

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
        items.push((format!("signature-{}", self.instance.0.encoded()), Bytes::new()));
        items
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
    let intact = super::document::check(&bytes, digest, "the stored config").is_ok();
    Ok(intact.then_some(bytes))
}

/// Writes the record, or completes the one that is there.
pub(crate) async fn write(store: &Store, new: NewImage) -> Result<Image> {
    let items = new.items();
    let known = match existing(store, &new.id).await? {
        Some(image) => Some(image),
        None => match store
            .create_image(new.layer.as_deref(), options(&new, &items))
            .await
        {
            Ok(_image) => None,
            // Another program has created it meanwhile.
            Err(error) if error.kind() == ErrorKind::DuplicateId => existing(store, &new.id).await?,
            Err(error) => return Err(error),
        },
    };
    if let Some(image) = known {
        complete(store, &image, &new, items).await?;
    }
    if !new.names.is_empty() {
        let names: Vec<&str> = new.names.iter().map(String::as_str).collect();
        store.add_names(&new.id, &names).await?;
    }
    store.image(&new.id).await
}

fn options(new: &NewImage, items: &[(String, Bytes)]) -> ImageOptions {
    let mut options = ImageOptions::default().id(&new.id);
    options.creation_date = new.created;
    options.digest = Some(new.top.0.clone());
    options.metadata = metadata(&new.instance.0);
    for (key, data) in items {
        options = options.big_data(key, data.clone());
    }
    options
}

fn metadata(manifest: &Digest) -> String {
    format!(r#"{{"signatures-sizes":{{"{manifest}":[]}}}}"#)
}

/// Adds missing parts to an existing image.
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
    let metadata = metadata(&new.instance.0);
    if image.metadata() != metadata {
        store.set_metadata(image.id(), metadata).await?;
    }
    Ok(())
}
