//! The graph lock, and where layers are mounted.

use std::sync::{Arc, PoisonError};

use crate::bridge;
use crate::error::Result;
use crate::lock::record_lock::ExclusiveLock;
use crate::record::mount_point::{MountPointRow, MountPoints, MountTable};
use crate::store::Store;
use crate::store::inner::StoreOrigin;

/// The graph lock, held; the driver is current while it is.
pub(crate) struct GraphGuard {
    _held: ExclusiveLock,
}

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

    /// Takes the graph lock and makes sure that the driver is running: another process may have shut it down.
    pub(crate) async fn lock_graph(&self) -> Result<GraphGuard> {
        let held = self
            .inner
            .graph_lock
            .exclusive(self.inner.options.lock_timeout)
            .await?;
        let current = held.token()?;
        let known = self
            .inner
            .driver
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .token;
        if current == known {
            return Ok(GraphGuard { _held: held });
        }
        let inner = Arc::clone(&self.inner);
        bridge::run(move || {
            inner.restart_driver(current)?;
            Ok(GraphGuard { _held: held })
        })
        .await
    }

    /// Marks the store as shut down for every process, this one included. Call with the graph lock held.
    pub(crate) fn mark_shut_down(graph: &GraphGuard) -> Result<()> {
        graph._held.write_token().map(drop)
    }
}
