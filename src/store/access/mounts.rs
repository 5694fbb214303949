//! Where layers are mounted.

use std::sync::Arc;

use crate::bridge;
use crate::error::Result;
use crate::record::mount_point::{MountPointRow, MountPoints, MountTable};
use crate::store::Store;
use crate::store::inner::StoreOrigin;

/// Where layers are mounted and how often.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) primary: Arc<MountTable>,
    pub(crate) additional: Arc<MountTable>,
}

impl Mounts {
    /// The mounts of the layers of one store.
    pub(crate) fn of(&self, origin: StoreOrigin) -> &MountTable {
        match origin {
            StoreOrigin::Primary => &self.primary,
            StoreOrigin::Additional { .. } => &self.additional,
        }
    }

    /// The entry of the layer that is mounted at `path`.
    pub(crate) fn by_path(&self, path: &str) -> Option<&MountPointRow> {
        self.primary
            .by_path(path)
            .or_else(|| self.additional.by_path(path))
    }
}

impl Store {
    /// Where layers are mounted and how often, at this moment.
    pub(crate) async fn mounts(&self) -> Result<Mounts> {
        let read = async |mounts: &MountPoints| match mounts.try_read()? {
            Some(known) => Ok(known),
            None => {
                let mounts = mounts.clone();
                bridge::run(move || mounts.read_blocking()).await
            }
        };
        Ok(Mounts {
            primary: read(&self.inner.mounts).await?,
            additional: match &self.inner.additional_mounts {
                Some(mounts) => read(mounts).await?,
                None => Arc::default(),
            },
        })
    }
}
