//! Layers on their way in: planned, unpacked outside every store lock, committed under the layer lock.

pub(crate) mod commit;
pub(crate) mod put_layer;
pub(crate) mod staged_diff;
