//! Applying a diff to a layer that is there.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::io::AsyncRead;

use crate::archive::apply::pipeline::{self, ApplyOptions};
use crate::bridge;
use crate::error::Result;
use crate::lock::temp_dir::TempDir;
use crate::store::Store;
use crate::store::layer_store::fit::stage_beside;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{StagedTarSplit, mappings_on_disk};
use crate::store::stage::unpack::{create_tar_split, target_of};

/// # Changing layers
impl Store {
    /// Applies a tar stream, compressed or not, to an existing layer (an ID, name or ID prefix) of the primary store, on top
    /// of what it has, and records its digests and sizes there. Returns the bytes in the files that it brought.
    ///
    /// The layer gets a new tree as a whole, of hard links to the files that stay, and the old one is removed. Where a mount
    /// of the layer, or of one above it, shows the tree, or the file system cannot exchange directories, its files are
    /// changed in place one by one.
    ///
    /// Holds the layer lock exclusively until the stream ends: [`Store::put_layer`] is the better way for a new layer.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown),
    /// [`ErrorKind::InvalidArchive`](crate::ErrorKind::InvalidArchive), [`ErrorKind::Io`](crate::ErrorKind::Io). The layer is
    /// then as before. If the disk fails while files are changed in place, some are changed, and the record no longer says
    /// where the content comes from.
    ///
    /// # Cancellation
    /// Nothing has happened, or the last step finishes in the background. A crash leaves the layer as it was or as it should
    /// be; one whose files were being changed in place, as such a failure of the disk.
    pub async fn apply_diff(&self, to: &str, diff: impl AsyncRead + Send) -> Result<u64> {
        let permit = self.inner.unpack_permit().await?;
        let guard = self.write_layers().await?;
        let inner = Arc::clone(&self.inner);
        let key = to.to_owned();
        let (layers, row, tar_split, staged, file, target) = bridge::run(move || {
            let layers = LayerStore::enter(inner, guard)?;
            let row = layers.find(&key)?;
            let content = files_of(&row.id, layers.driver.layer_tree(&row.id))?;
            let mappings = mappings_on_disk(&*layers.driver, &row, content.dir.as_fd())?;
            let staged = stage_beside(&layers, &row, &mappings)?;
            let mut temp = TempDir::create(&layers.inner.dirs.layers_tmp())?;
            let path = temp.addition();
            let (file, target) = (create_tar_split(&path)?, target_of(staged.tree(), mappings)?);
            Ok((layers, row, StagedTarSplit { path, temp }, staged, file, target))
        })
        .await?;
        let options = ApplyOptions {
            tar_split: Some(file),
            sync: self.inner.sync_content(),
            ..ApplyOptions::default()
        };
        let guard = (layers, tar_split, staged, permit);
        let (mut applied, (layers, tar_split, staged, _permit)) =
            pipeline::apply(Box::pin(diff), target, options, guard).await?;
        bridge::run(move || {
            layers.leave(|layers| {
                layers.apply(&row, staged, tar_split, &mut applied)?;
                Ok(applied.content_size)
            })
        })
        .await
    }
}
