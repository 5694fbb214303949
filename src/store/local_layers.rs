//! Which contents the layers of a store have, as far as it was found out.

use std::collections::HashMap;
use std::sync::Arc;

use crate::chunked::local::{Layers, LocalLayer};
use crate::record::layer::LayerRow;
use crate::time::Time;

/// What is known of the layers of a store. The mutex is held while caches are loaded, so that all who look for content
/// at the same time wait for one of them.
#[derive(Debug, Default)]
pub(crate) struct LocalLayers(pub(super) tokio::sync::Mutex<Known>);

#[derive(Debug, Default)]
pub(super) struct Known {
    /// By ID. Of a layer that was deleted and made again another time is known.
    pub(super) layers: HashMap<String, Entry>,
    /// All of them, as of the last call.
    pub(super) all: Option<Arc<Layers>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) created: Time,
    /// `None` for a layer of which nothing can be found.
    pub(super) layer: Option<Arc<LocalLayer>>,
    /// Bytes of memory that the filter takes.
    pub(super) filter: usize,
    /// Bytes of memory that all of the cache file takes; 0 if it is not in memory.
    pub(super) whole: usize,
    /// Bytes of the table of contents that the cache was made of, if it is temporary.
    pub(super) temporary: Option<u64>,
}

impl Entry {
    /// Whether it says what is known of this layer. One that was deleted and made again is another one.
    pub(super) fn is_of(&self, row: &LayerRow) -> bool {
        let is_stale = self.layer.as_ref().is_some_and(|layer| layer.is_stale());
        self.created == row.created && !is_stale
    }
}
