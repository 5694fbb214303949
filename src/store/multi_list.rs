//! Consistent listing of layers, images and containers.

use crate::error::Result;
use crate::options::MultiListOptions;
use crate::store::Store;

/// The result of [`Store::multi_list`].
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct MultiListResult {
    /// Layers, those of additional stores last.
    pub layers: Vec<crate::Layer>,
    /// Images, those of additional stores last.
    pub images: Vec<crate::Image>,
    /// Containers.
    pub containers: Vec<crate::Container>,
}

/// # Several kinds at one moment
impl Store {
    /// Lists several kinds of items consistently: the shared locks of all of them are held together.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn multi_list(&self, options: MultiListOptions) -> Result<MultiListResult> {
        let mounts = self.mounts().await?;
        let mut result = MultiListResult::default();
        let held = self.read_everything(options).await?;
        for (origin, table) in held.layers() {
            result.layers.extend(
                table
                    .rows()
                    .map(|row| crate::store::layers::view(row, &mounts, origin)),
            );
        }
        for (origin, table) in held.images() {
            result
                .images
                .extend(table.rows().map(|row| crate::Image::new(row, origin.read_only())));
        }
        if let Some(table) = &held.containers {
            result.containers.extend(table.rows().map(crate::Container::new));
        }
        Ok(result)
    }
}
