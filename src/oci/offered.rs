//! Layers of an image that an additional layer store offers: nothing is transferred for them.

use super::wanted::WantedLayer;
use crate::error::ErrorKind;
use crate::store::Store;
use crate::store::additional_layer::AdditionalLayer;

/// Looks for a layer of the image with this reference. It must say that it has the same content: the diff ID, and the digest of
/// the blob if it says one.
pub(super) async fn find(store: &Store, reference: &str, wanted: &WantedLayer) -> Option<AdditionalLayer> {
    let (blob, diff_id) = (&wanted.blob, &wanted.diff_id);
    let found = match store
        .lookup_additional_layer(wanted.toc_digest()?, reference)
        .await
    {
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
