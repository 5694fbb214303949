//! Layers on their way in: planned, unpacked outside every store lock, committed under the layer lock.

pub(crate) mod area;
pub(crate) mod differ;
pub(crate) mod differ_output;
pub(crate) mod plan;
pub(crate) mod planning;
pub(crate) mod staged_diff;
pub(crate) mod unpack;
