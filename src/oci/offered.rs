//! Layers of an image that an additional layer store offers: nothing is transferred for them.

use crate::chunked::TocLocation;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::store::Store;
use crate::store::additional_layer::AdditionalLayer;
use crate::store::image_manifest::Descriptor;

/// Looks for a layer of the image with this reference. It must say that it has the same content: the diff ID, and the digest of
/// the blob if it says one.
pub(super) async fn find(
    store: &Store,
    reference: &str,
    blob: &Descriptor,
    diff_id: &Digest,
) -> Option<AdditionalLayer> {
    let location = TocLocation::from_annotations(&blob.annotations, blob.size);
    let toc_digest = location.ok().flatten()?.toc_digest()?.clone();
    let found = match store.lookup_additional_layer(&toc_digest, reference).await {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::LayerUnknown => return None,
        Err(error) => {
            tracing::warn!(blob = %blob.digest, error = %error.chain(), "cannot use an additional layer store");
            return None;
        }
    };
    let same_blob = found
        .compressed_digest()
        .is_none_or(|digest| *digest == blob.digest);
    if same_blob && found.uncompressed_digest() == Some(diff_id) {
        return Some(found);
    }
    tracing::warn!(
        blob = %blob.digest, %diff_id, offered = ?found,
        "what an additional layer store offers is not said to be the layer of the image"
    );
    None
}
