//! Layers on their way in: planned, unpacked outside every store lock, committed under the layer lock.

pub(crate) mod plan;
pub(crate) mod planning;
pub(crate) mod staged_diff;
pub(crate) mod unpack;
