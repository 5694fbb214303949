//! What a differ says of what it has made.

use bytes::Bytes;

use crate::digest::Digest;
use crate::options::LayerBigData;

/// What a differ says of the content that it has put together.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DifferOutput {
    /// Digest of the layer as an uncompressed tar stream (the diff ID), if it is known to be right.
    pub uncompressed_digest: Option<Digest>,
    /// Bytes of that stream.
    pub size: Option<u64>,
    /// Digest of the blob, if all of it was seen.
    pub compressed_digest: Option<Digest>,
    /// Digest of the table of contents.
    pub toc_digest: Option<Digest>,
    /// User IDs in the layer, inside the container.
    pub uids: Vec<u32>,
    /// Group IDs in the layer, inside the container.
    pub gids: Vec<u32>,
    /// Big data items for the layer.
    pub big_data: Vec<LayerBigData>,
}

impl DifferOutput {
    /// Sets [`DifferOutput::uncompressed_digest`] and [`DifferOutput::size`].
    #[must_use]
    pub fn uncompressed(mut self, digest: Digest, size: u64) -> Self {
        self.uncompressed_digest = Some(digest);
        self.size = Some(size);
        self
    }

    /// Sets [`DifferOutput::compressed_digest`].
    #[must_use]
    pub fn compressed_digest(mut self, digest: Digest) -> Self {
        self.compressed_digest = Some(digest);
        self
    }

    /// Sets [`DifferOutput::toc_digest`].
    #[must_use]
    pub fn toc_digest(mut self, digest: Digest) -> Self {
        self.toc_digest = Some(digest);
        self
    }

    /// Sets [`DifferOutput::uids`] and [`DifferOutput::gids`].
    #[must_use]
    pub fn owners(
        mut self,
        uids: impl IntoIterator<Item = u32>,
        gids: impl IntoIterator<Item = u32>,
    ) -> Self {
        self.uids = uids.into_iter().collect();
        self.gids = gids.into_iter().collect();
        self
    }

    /// Adds one to [`DifferOutput::big_data`].
    #[must_use]
    pub fn big_data(mut self, key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.big_data.push(LayerBigData {
            key: key.into(),
            data: data.into(),
        });
        self
    }
}
