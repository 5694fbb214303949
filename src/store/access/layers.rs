//! The layer stores, one or all of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::record::ReadGuard;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::Store;
use crate::store::access::mend::MAX_CLEANUPS;
use crate::store::access::needs::Needs;
use crate::store::access::visit::visit_all;
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

    /// Runs `change` in a step that holds the primary layer store exclusively, and saves what it has changed.
    pub(crate) async fn write_to_layer_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayerStore) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step(Needs::LAYERS, |held| change(held.layers()?)).await
    }
}
