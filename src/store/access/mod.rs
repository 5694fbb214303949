//! Lock order and the combinators: the only room that holds more than one store lock.
//!
//! Order, from first to last: graph lock (`storage.lock`) → `userns.lock` → layers → additional layer stores →
//! images → additional image stores → containers. The lock of `mountpoints.json` is a leaf below the layer lock.
//! Code that needs several locks takes them in this order, through the functions of this room.
//!
//! | lock | taken for | how long |
//! |---|---|---|
//! | graph, exclusive | driver start, mounting, shutdown | one batch |
//! | layers, shared | looking something up that has changed | the lookup |
//! | layers, exclusive | records and driver directories | one batch, never while a stream flows |
//! | images, containers | likewise | one batch |
//!
//! Readers visit immutable snapshots with a plain closure. If one store has the whole answer and nothing has changed
//! since it was last read, they take no lock: the answer is that of the moment at which the lock file was read.
//! Writers run in steps on a thread that takes the locks itself. Steps that wait at the same time run in one
//! [batch]: they share the locks, the check whether another process has changed the records, and the saves. If the caller is
//! dropped before its step begins, nothing has happened; if it is dropped later, the step runs to its end. From time to
//! time the locks are left to other processes that wait for them ([writers]).

mod batch;
mod boundary;
mod claims;
mod containers;
pub(crate) mod everything;
pub(crate) mod files;
mod held;
mod images;
pub(crate) mod in_flight;
mod kinds;
mod layers;
mod lead;
mod mend;
mod mounts;
mod needs;
mod queue;
mod repair;
mod steps;
mod visit;
mod work;
pub(crate) mod writers;

#[cfg(test)]
mod tests;

pub(crate) use batch::Batch;
pub(crate) use held::Held;
pub(crate) use mounts::Mounts;
pub(crate) use needs::Needs;
pub(crate) use visit::hit;
