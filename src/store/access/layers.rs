//! The layer stores, one or all of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::record::{ReadGuard, WriteGuard};
use crate::store::Store;
use crate::store::access::repair::MAX_CLEANUPS;
use crate::store::access::visit::{read_additional, visit_all};
use crate::store::inner::StoreOrigin;
use crate::store::layer_store::locked::LayerStore;

impl Store {
    /// A fresh snapshot of the primary layer store, under its shared lock; what a crash left is cleaned up first.
    pub(crate) async fn read_layers(&self) -> Result<ReadGuard<LayerRow>> {
        self.read_layers_after(false).await
    }

    /// As [`Store::read_layers`]; `reloaded` if the caller has just loaded the records and has not looked for
    /// what a killed process may have left.
    async fn read_layers_after(&self, mut reloaded: bool) -> Result<ReadGuard<LayerRow>> {
        for _ in 0..MAX_CLEANUPS {
            let guard = self.inner.layers.read().await?;
            if guard.reloaded() || std::mem::take(&mut reloaded) {
                // Another process has written the records since; it may have been killed.
                let inner = Arc::clone(&self.inner);
                bridge::run(move || {
                    inner.try_recover();
                    Ok(())
                })
                .await?;
            }
            if !guard.needs_repair() {
                return Ok(guard);
            }
            drop(guard);
            self.write_to_layer_store(|_cleaned_on_entry| Ok(())).await?;
        }
        let guard = self.inner.layers.read().await?;
        if guard.needs_repair() {
            return Err(
                ErrorKind::LoadError.err(format!("cleaning up layer records ({MAX_CLEANUPS} attempts)"))
            );
        }
        Ok(guard)
    }

    /// A snapshot of the primary layer store of some moment during this call, without its lock if possible.
    pub(crate) async fn unlocked_layers(&self) -> Result<ReadGuard<LayerRow>> {
        let guard = self.inner.layers.unlocked_snapshot().await?;
        if guard.reloaded() || guard.needs_repair() {
            drop(guard);
            return self.read_layers_after(true).await;
        }
        Ok(guard)
    }

    /// Visits the primary layer store and then the additional ones, until `visit` breaks. The answer is of one moment:
    /// where there are several stores, each is visited under its shared lock, and those visited stay locked to the end.
    pub(crate) async fn read_all_layer_stores<T: Send>(
        &self,
        visit: impl FnMut(StoreOrigin, &Table<LayerRow>) -> Result<ControlFlow<T>> + Send,
    ) -> Result<Option<T>> {
        let primary = match self.inner.additional_layers.as_slice() {
            [] => self.unlocked_layers().await?,
            _ => self.read_layers().await?,
        };
        visit_all(primary, &self.inner.additional_layers, visit).await
    }

    /// Runs `change` in a blocking step that holds the primary layer store exclusively.
    pub(crate) async fn write_to_layer_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayerStore) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.write_layers().await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || LayerStore::enter(inner, guard)?.leave(change)).await
    }

    /// The layer records, held exclusively, without layers that a killed process has left to be decided on: that takes all
    /// locks.
    pub(crate) async fn write_layers(&self) -> Result<WriteGuard<LayerRow>> {
        let mut attempts = 0;
        loop {
            let guard = self.inner.layers.write().await?;
            let incomplete = guard.incomplete();
            let mut rows = incomplete.iter().filter_map(|id| guard.get(id));
            if rows.all(|row| row.companion().is_none()) {
                return Ok(guard);
            }
            drop(guard);
            self.finish_interrupted(&mut attempts).await?;
        }
    }

    /// As [`Store::write_to_layer_store`], with snapshots of the additional layer stores under their shared locks.
    pub(crate) async fn read_or_write_all_layer_stores<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayerStore, &[ReadGuard<LayerRow>]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.write_layers().await?;
        let additional = read_additional(&self.inner.additional_layers).await?;
        let inner = Arc::clone(&self.inner);
        bridge::run(move || LayerStore::enter(inner, guard)?.leave(|layers| change(layers, &additional)))
            .await
    }
}
