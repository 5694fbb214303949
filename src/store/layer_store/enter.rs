//! Taking over the exclusive lock: what a crash left incomplete is deleted first.

use std::sync::Arc;

use crate::error::Result;
use crate::record::WriteGuard;
use crate::record::layer::LayerRow;
use crate::store::inner::Inner;
use crate::store::layer_store::locked::LayerStore;

impl LayerStore {
    /// Takes over a held lock and deletes what a crash left incomplete.
    pub(crate) fn enter(inner: Arc<Inner>, guard: WriteGuard<LayerRow>) -> Result<Self> {
        let driver = inner.driver();
        let mut store = Self {
            guard,
            inner,
            driver,
            trash: Vec::new(),
            discarded: Vec::new(),
        };
        if store.guard.reloaded() {
            store.inner.try_recover();
        }
        if store.guard.needs_repair() {
            let mut incomplete = store.guard.incomplete();
            // A complete layer that goes with another item is decided on when all locks are held.
            incomplete.retain(|id| store.guard.get(id).is_some_and(|row| row.is_incomplete()));
            for id in &incomplete {
                tracing::warn!(layer = id, "deleting incomplete layer");
            }
            store.delete_all(&incomplete)?;
            // Names that stood in two records were resolved when the file was read.
            store.guard.save()?;
        }
        Ok(store)
    }
}
