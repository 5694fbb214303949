//! Manifests and configs of images.

use std::sync::Arc;

use crate::digest::Digest;
use crate::store::Store;
use crate::store::heal::report::NotHealed;
use crate::store::heal::source::{HealSource, WantedDocument};
use crate::store::heal::usage::wanted_image;
use crate::store::views::Image;

/// The digest that an item of an image must have: the recorded one, or the one that its key or the image says.
fn digest_of(image: &Image, key: &str) -> Option<Digest> {
    let named = || key.strip_prefix("manifest-").unwrap_or(key).parse().ok();
    let of_image = || image.digest().filter(|_| key == "manifest");
    image.big_data_digest(key).or_else(named).or_else(of_image)
}

impl Store {
    /// Writes an item of an image anew. Returns which source gave it.
    pub(super) async fn heal_image_item(
        &self,
        image: &Image,
        key: &str,
        sources: &[Arc<dyn HealSource>],
    ) -> Result<String, NotHealed> {
        if image.read_only() {
            return Err(NotHealed::ReadOnly);
        }
        let digest = digest_of(image, key).ok_or(NotHealed::UnknownContent)?;
        let wanted = WantedDocument {
            digest,
            size: image.big_data_size(key),
            image: wanted_image(image),
        };
        let mut failed = Vec::new();
        // Other images have the same, or this one under another key.
        let own: Arc<dyn HealSource> = Arc::new(self.clone());
        for source in std::iter::once(&own).chain(sources) {
            let given = source.document(&wanted).await;
            let checked = given.and_then(|given| {
                given
                    .map(|bytes| wanted.digest.check(&bytes, "the item").map(|()| bytes))
                    .transpose()
            });
            match checked {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    let put = self.set_image_big_data(image.id(), key, bytes, None).await;
                    return put.map(|()| source.name()).map_err(NotHealed::Failed);
                }
                Err(error) => failed.push((source.name(), error)),
            }
        }
        Err(NotHealed::NoSource { failed })
    }
}
