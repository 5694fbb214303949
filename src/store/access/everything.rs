//! All records as they are at one moment.

use crate::error::{ErrorKind, Result};
use crate::record::ReadGuard;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::mend::MAX_CLEANUPS;
use crate::store::access::visit::read_homes;
use crate::store::inner::StoreOrigin;

/// All records under their shared locks. Released in the reverse order.
pub(crate) struct Everything {
    pub(crate) containers: ReadGuard<ContainerRow>,
    /// The primary image store first.
    pub(crate) images: Vec<(StoreOrigin, ReadGuard<ImageRow>)>,
    /// The primary layer store first.
    pub(crate) layers: Vec<(StoreOrigin, ReadGuard<LayerRow>)>,
}

impl Store {
    /// All records as they are at one moment, which lasts as long as what is returned is kept. What killed processes have
    /// left is put right first.
    pub(crate) async fn hold_everything(&self) -> Result<Everything> {
        for _ in 0..=MAX_CLEANUPS {
            let mut layers = vec![(StoreOrigin::Primary, self.read_layers().await?)];
            layers.extend(read_homes(&self.inner.additional_layers).await?);
            let mut images = vec![(StoreOrigin::Primary, self.inner.images.read().await?)];
            images.extend(read_homes(&self.inner.additional_images).await?);
            let containers = self.inner.containers.read().await?;
            let mut primary = images.iter().filter(|(home, _)| home.is_primary());
            if !containers.needs_repair() && !primary.any(|(_, records)| records.needs_repair()) {
                return Ok(Everything {
                    containers,
                    images,
                    layers,
                });
            }
            // That takes locks which come before those that are held.
            drop((containers, images, layers));
            self.read_images().await?;
            self.read_repaired(&self.inner.containers).await?;
        }
        let what = format!("finishing what was interrupted ({MAX_CLEANUPS} attempts)");
        Err(ErrorKind::LoadError.err(what))
    }
}
