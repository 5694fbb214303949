//! Applying a diff to a layer that is there.

use std::sync::Arc;

use tokio::io::AsyncRead;

use crate::archive::apply::pipeline::{self, ApplyOptions};
use crate::bridge::{self, Detached};
use crate::error::Result;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::layer_store::received::{Received, Receiving};

/// # Changing layers
impl Store {
    /// Applies a tar stream, compressed or not, to an existing layer (an ID, name or ID prefix) of the primary store, on top
    /// of what it has, and records its digests and sizes there. Returns the bytes in the files that it brought.
    ///
    /// The stream is unpacked while it arrives, beside the layer and outside every store lock; as many at once as
    /// [`StoreOptions::max_unpacks`](crate::StoreOptions::max_unpacks) allows. Then, with the layer lock held exclusively
    /// for one step, the layer gets a new tree as a whole, of hard links to the files that stay, and the old one is removed.
    /// Where a mount of the layer, or of one above it, shows the tree, or the file system cannot exchange directories, or
    /// zfs-fuse the datasets since files in the layer are open, its files are changed in place one by one.
    ///
    /// A hard link may lead to what the stream has brought before, and to a file that the layer had: both names are the same
    /// file afterwards, with the metadata of the link's header. A whiteout that came before takes such a file away; one that
    /// only a layer below has is refused, as [`Store::put_layer`] refuses it.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown), also if the layer is deleted before the stream ends,
    /// [`ErrorKind::InvalidArchive`](crate::ErrorKind::InvalidArchive), [`ErrorKind::Io`](crate::ErrorKind::Io); if another
    /// diff has replaced a file meanwhile to which a hard link of this one leads,
    /// [`Error::is_busy`](crate::Error::is_busy) says so. The layer is then as before. If the disk fails while files are
    /// changed in place, some are changed, and the record no longer says where the content comes from.
    ///
    /// # Cancellation
    /// Nothing has happened and nothing remains, or the last step finishes in the background. A crash leaves the layer as it
    /// was or as it should be; one whose files were being changed in place, as such a failure of the disk.
    pub async fn apply_diff(&self, to: &str, diff: impl AsyncRead + Send) -> Result<u64> {
        let permit = self.inner.unpack_permit().await?;
        // Held until its place is there: the layer is not deleted meanwhile.
        let layers = self.read_layers().await?;
        let inner = Arc::clone(&self.inner);
        let key = to.to_owned();
        let (target, file, place) = bridge::run(move || Receiving::begin(&inner, &layers, &key)).await?;
        let options = ApplyOptions {
            tar_split: Some(file),
            sync: self.inner.sync_content(),
            ..ApplyOptions::default()
        };
        // The permit goes with what is unpacked: the thread may be busy for a moment after this future was dropped.
        let (applied, (place, permit)) =
            pipeline::apply(Box::pin(diff), target, options, (place, permit)).await?;
        drop(permit);
        let received = Detached::new(Received { place, applied });
        // Alone: it takes as long as there are files.
        self.step_alone(Needs::LAYERS, move |held| {
            held.layers()?.apply(received.into_inner())
        })
        .await
    }
}
