//! What killed processes have left in the records of images and containers.

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::record::WriteGuard;
use crate::record::big_data::Items;
use crate::store::dirs::item_dir;

/// How often a reader starts a repair of what a crash has left before it reports an error.
pub(super) const MAX_CLEANUPS: usize = 3;

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
