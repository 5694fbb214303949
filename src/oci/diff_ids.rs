//! Layers of images whose config does not name them: their diff IDs are computed, from a transfer of its own, before
//! anything is unpacked.

use super::context::PullContext;
use super::progress::Progress;
use super::source::ImageSource;
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::bridge::CHUNK;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::image_manifest::Descriptor;

/// The diff IDs of these layers.
pub(super) async fn compute(
    context: &PullContext,
    source: &ImageSource,
    blobs: &[Descriptor],
) -> Result<Vec<Digest>> {
    let mut diff_ids = Vec::with_capacity(blobs.len());
    for blob in blobs {
        let known = context.store.layers_by_compressed_digest(&blob.digest).await?;
        let known = known.iter().find_map(|layer| layer.uncompressed_digest());
        diff_ids.push(match known {
            Some(diff_id) => diff_id,
            None => measure(context, source, blob)
                .await
                .context(|| format!("computing the diff ID of layer {}", blob.digest))?,
        });
    }
    Ok(diff_ids)
}

async fn measure(context: &PullContext, source: &ImageSource, blob: &Descriptor) -> Result<Digest> {
    let _turn = context.download(source).await?;
    let stream = source.blob(blob, &Progress::default(), None).await?;
    let mut stream = BlobReader::new(stream);
    let compression = stream
        .detect()
        .await
        .map_err(|error| Error::io("reading a layer", error))?;
    let mut decoder = Decoder::new(stream, compression, CHUNK);
    let mut hasher = Hasher::sha256();
    while let Some(chunk) = decoder.next_chunk().await? {
        hasher.update(&chunk);
    }
    Ok(hasher.finish())
}
