//! Lock order and the combinators: the only room that holds more than one store lock.
//!
//! Order, from first to last: graph lock (`storage.lock`) → `userns.lock` → layers → additional layer stores →
//! images → additional image stores → containers. The lock of `mountpoints.json` is a leaf below the layer lock.
//! Code that needs several locks takes them in this order, through the functions of this room.
//!
//! | lock | taken for | how long |
//! |---|---|---|
//! | graph, exclusive | driver start, mounting, shutdown | one blocking step |
//! | layers, shared | looking something up that has changed | the lookup |
//! | layers, exclusive | records and driver directories | one blocking step, never while a stream flows |
//! | images, containers | likewise | one blocking step |
//!
//! Readers visit immutable snapshots with a plain closure. If one store has the whole answer and nothing has changed
//! since it was last read, they take no lock: the answer is that of the moment at which the lock file was read.
//! Writers run in one blocking step that owns the locks. If the caller is dropped while it waits for a lock, nothing
//! has happened; if it is dropped later, the step runs to its end.

mod containers;
mod graph;
mod images;
mod kinds;
mod layers;
mod repair;
mod visit;

pub(crate) use graph::Mounts;
pub(crate) use kinds::LayersAndImages;
pub(crate) use visit::hit;
