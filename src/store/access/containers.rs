//! The container store.

use std::sync::Arc;

use crate::error::Result;
use crate::record::container::ContainerRow;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::Store;
use crate::store::access::needs::Needs;

impl Store {
    /// Looks something up in the container store, as it is at one moment.
    pub(crate) async fn read_container_store<T: Send>(
        &self,
        visit: impl FnOnce(&Table<ContainerRow>) -> Result<T> + Send,
    ) -> Result<T> {
        let guard = self.glance_at(&self.inner.containers).await?;
        visit(&guard)
    }

    /// A container (an ID, name, ID prefix or the ID of its layer), and what keeps it from being deleted; `None` if there is
    /// none.
    pub(crate) async fn hold_container(
        &self,
        id: &str,
    ) -> Result<Option<(Arc<ContainerRow>, ReadGuard<ContainerRow>)>> {
        let held = self.read_repaired(&self.inner.containers).await?;
        let found = held.find(id).map(Arc::clone);
        Ok(found.map(|row| (row, held)))
    }

    /// Runs `change` in a step that holds the container store exclusively, and saves what it has changed.
    pub(crate) async fn write_to_container_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteGuard<ContainerRow>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step(Needs::CONTAINERS, |held| change(held.containers()?))
            .await
    }
}
