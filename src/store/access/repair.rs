//! What killed processes have left is put right before anything else is read or written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::record::big_data::Items;
use crate::record::record_trait::Record;
use crate::record::{ReadGuard, Records, WriteGuard};
use crate::store::Store;
use crate::store::dirs::item_dir;

/// How often a reader starts a repair of what a crash has left before it reports an error.
pub(super) const MAX_CLEANUPS: usize = 3;

impl Store {
    /// A fresh snapshot of images or containers; what needs a repair is repaired first.
    pub(super) async fn read_repaired<R: Record>(&self, records: &Records<R>) -> Result<ReadGuard<R>> {
        let mut attempts = 0;
        loop {
            let guard = records.read().await?;
            if !guard.needs_repair() {
                return Ok(guard);
            }
            drop(guard);
            self.finish_interrupted(&mut attempts).await?;
        }
    }

    /// As [`Store::unlocked_layers`], at images or containers.
    pub(super) async fn glance_at<R: Record>(&self, records: &Records<R>) -> Result<ReadGuard<R>> {
        let guard = records.unlocked_snapshot().await?;
        if guard.needs_repair() {
            drop(guard);
            return self.read_repaired(records).await;
        }
        Ok(guard)
    }

    /// Runs `change` in a blocking step that holds images or containers exclusively.
    pub(super) async fn write_sound<R: Items, T: Send + 'static>(
        records: &Records<R>,
        dir: PathBuf,
        change: impl FnOnce(&mut WriteGuard<R>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut guard = records.write().await?;
        bridge::run(move || {
            mend(&mut guard, &dir)?;
            let value = change(&mut guard)?;
            guard.settle().map(|()| value)
        })
        .await
    }

    /// Completes the intents of killed processes and saves what loading had to resolve, under all locks: the caller
    /// must hold none. `attempts` counts how often that did not help.
    pub(super) async fn finish_interrupted(&self, attempts: &mut usize) -> Result<()> {
        *attempts += 1;
        if *attempts > MAX_CLEANUPS {
            let what = format!("finishing what was interrupted ({MAX_CLEANUPS} attempts)");
            return Err(ErrorKind::LoadError.err(what));
        }
        self.write_to_all_stores(|_finished_on_entry| Ok(())).await
    }
}

/// Puts right what a killed process has left in the records of images or containers, whose data is in `dir`: one name in
/// two records, and new content of items that has not reached its place.
pub(super) fn mend<R: Items>(guard: &mut WriteGuard<R>, dir: &Path) -> Result<()> {
    if !guard.needs_repair() {
        return Ok(());
    }
    for id in guard.incomplete() {
        let Some(row) = guard.get(&id).map(Arc::clone) else {
            continue;
        };
        let settled = item_dir(dir.to_owned(), &id).and_then(|dir| row.remove_stale_items(&dir));
        if let Err(error) = settled {
            // It is found where it is.
            tracing::warn!(id, error = %error.chain(), "cannot move a big data item to its place");
        }
        guard.table_mut().update(&id, |row| row.set_intent(""))?;
    }
    guard.save()
}
