//! The zfs driver: every layer is a dataset, and one on a parent begins as a clone of a snapshot of it, which takes no space and no
//! time that grows with its content.
//!
//! ```text
//! <dataset>/ID                        the complete tree of a layer; mountpoint=legacy
//! <dataset>/ID@graphroot-<n>          the snapshot that a layer is a clone of; it goes with the last of its clones
//! <dataset>/graphroot-<n>-new         a layer that is being made
//! <dataset>/graphroot-<n>-old         a layer that is being removed
//! <graph root>/zfs/                   0700, on any file system
//!   graph/ID/                         where a layer is mounted; there while it is
//!   tempdirs/lock-<n>, temp-dir-<n>/  held by the process to which the datasets and snapshots of this number belong
//! ```
//!
//! How a layer gets another tree: see [`exchange`].
//!
//! The names and places of layers are those of the Go library, which has no `tempdirs` and numbers its snapshots. The dataset is
//! that of the option `zfs.fsname`, or the one that the graph root is in. Everything is asked of the program `zfs`, with
//! arguments that OpenZFS and zfs-fuse share; no shell reads them.
//!
//! The dataset may have children that are no layers, and those of layers of another graph root. So what this driver makes is
//! marked by the property `graphroot:home`, and only what has the mark of this graph root is listed, and removed without
//! a record. Layers that the Go library has made are used and removed as any other, by their records.
//!
//! Every command that changes a dataset ends when the change is on disk, with all that was written before. A crash leaves a
//! whole layer, or temporary datasets and snapshots with a free lock, which the next open removes.
//!
//! Where the kernel has zfs, it mounts datasets, and what is only looked at has a mount without a path. With zfs-fuse the daemon
//! mounts them: see [`mounting`]. Everything takes root in the initial user namespace.

mod command;
mod datasets;
mod driver;
mod exchange;
mod mounting;
mod names;
mod recovery;
mod staged;
mod state;
#[cfg(test)]
mod tests;

pub(super) use state::Zfs;
