//! What tells a file of records that was never written, or that a reboot has taken away, from one that was lost.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::rows_in_file;
use crate::record::table::Table;
use crate::store::dirs::{Dirs, VOLATILE_CONTAINERS, VOLATILE_LAYERS, layer_location};
use crate::sys::boot::changed_before_boot;
use crate::sys::presence::is_there;

/// The IDs of the rows of volatile containers that are read in the other mode only: transient, or not. In use at the same
/// time, perhaps.
pub(crate) fn containers_of_other_mode(dirs: &Dirs, transient: bool) -> Result<HashSet<String>> {
    let dir = match transient {
        true => dirs.containers(),
        false => dirs.run_containers(),
    };
    ids_in_file::<ContainerRow>(&dir.join(VOLATILE_CONTAINERS))
}

/// The same for layers.
pub(crate) fn layers_of_other_mode(dirs: &Dirs, transient: bool) -> Result<HashSet<String>> {
    let dir = match transient {
        true => dirs.layers(),
        false => dirs.run_layers(),
    };
    ids_in_file::<LayerRow>(&dir.join(VOLATILE_LAYERS))
}

fn ids_in_file<R: Record>(file: &Path) -> Result<HashSet<String>> {
    let rows = rows_in_file::<R>(file)?;
    Ok(rows.iter().map(|row| row.id().to_owned()).collect())
}

/// Whether a file of volatile items that says nothing has lost them since the machine was started. It is not synced: one
/// that was last changed before is what a power cut has left, and nothing uses these items any more.
pub(crate) fn was_lost(volatile: &Path) -> Result<bool> {
    Ok(is_there(volatile)? && !changed_before_boot(volatile))
}

/// A layer that outlives a reboot and may be that of a container without a record: each container has one, which nothing
/// stands on, which no image refers to, and into which no diff was unpacked.
pub(crate) fn layer_without_container<'a>(
    layers: &'a Table<LayerRow>,
    images: impl Iterator<Item = &'a Arc<ImageRow>>,
    containers: &Table<ContainerRow>,
) -> Option<&'a str> {
    let below = layers.rows().map(|row| row.parent.as_str());
    let used: HashSet<&str> = images.flat_map(|row| row.top_layers()).chain(below).collect();
    let mut stable = layers.rows_in(layer_location::STABLE);
    let found = stable.find(|row| {
        !row.has_diff() && !used.contains(row.id.as_str()) && containers.by_layer(&row.id).is_none()
    });
    found.map(|row| row.id.as_str())
}
