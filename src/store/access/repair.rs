//! What killed processes have left is put right before anything else is read or written.

use crate::error::{ErrorKind, Result};
use crate::record::record_trait::Record;
use crate::record::{ReadGuard, Records};
use crate::store::Store;
use crate::store::access::mend::MAX_CLEANUPS;

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
