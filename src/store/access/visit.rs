//! Primary and additional stores of one kind.

use std::ops::ControlFlow;

use crate::error::Result;
use crate::record::ReadGuard;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::store::inner::{Additional, StoreOrigin};

/// Snapshots of additional stores, under their shared locks.
pub(super) async fn read_additional<R: Record>(additional: &[Additional<R>]) -> Result<Vec<ReadGuard<R>>> {
    let mut held = Vec::with_capacity(additional.len());
    for store in additional {
        held.push(store.records.read().await?);
    }
    Ok(held)
}

/// As [`read_additional`], each with what it is.
pub(super) async fn read_homes<R: Record>(
    additional: &[Additional<R>],
) -> Result<Vec<(StoreOrigin, ReadGuard<R>)>> {
    let held = read_additional(additional).await?;
    let homes = additional
        .iter()
        .enumerate()
        .map(|(index, store)| store.home(index));
    Ok(homes.zip(held).collect())
}

/// Visits a primary store and then the additional ones, each under its shared lock, until `visit` breaks.
pub(super) async fn visit_all<R: Record, T: Send>(
    primary: ReadGuard<R>,
    additional: &[Additional<R>],
    mut visit: impl FnMut(StoreOrigin, &Table<R>) -> Result<ControlFlow<T>> + Send,
) -> Result<Option<T>> {
    if let ControlFlow::Break(found) = visit(StoreOrigin::Primary, &primary)? {
        return Ok(Some(found));
    }
    let mut held = Vec::with_capacity(additional.len());
    for (index, store) in additional.iter().enumerate() {
        let guard = store.records.read().await?;
        if let ControlFlow::Break(found) = visit(store.home(index), &guard)? {
            return Ok(Some(found));
        }
        held.push(guard);
    }
    // Held to here, so that the answer is of one moment.
    drop((held, primary));
    Ok(None)
}

/// Breaks a visit with what was found, if something was.
pub(crate) fn hit<T>(found: Option<T>) -> ControlFlow<T> {
    found.map_or(ControlFlow::Continue(()), ControlFlow::Break)
}
