//! The metadata files: the records of layers, images, containers and mount points.
//!
//! ```text
//! <root>/<driver>-layers/layers.lock                 the lock, and in it the token of the last writer
//!                        layers.json                 a location: an array of rows
//!                        volatile-layers.json        a location that is not synced
//!                        .tmp-layers.json<digits>    left by a killed writer
//!                        .reserve-layers.json-<n>    for a full disk; of a large file, earlier versions
//! ```
//!
//! (images and containers alike.) [`Records`] joins the lock files, the locations and a cached
//! [`Table`](table::Table): [`Records::read`] returns an immutable table that holds the lock shared, [`Records::write_with`]
//! one to change and [save](WriteGuard::save) that holds it exclusively. The data is accessible through guards only.
//!
//! The protocol is the Go library's, which may use the same files at the same time. A writer first puts a new token
//! into every lock file, then renames the new files into place. So a crash in between makes the others reload without
//! need, and never hides a change. A reader compares the token with the one of its cached table, for layers also the
//! times of the files. Readers do not wait for writers of the same process ([`published`]).
//!
//! A save and a reload cost what has changed. A small file is written as a whole. For a large one the process knows
//! [where each row lies](layout); it writes what has changed to an [earlier version](crate::sys::spare) of the file, which
//! then changes places with the file: under its name there is a whole version at any time, and who has opened it reads on
//! in the one that was opened. When another process has written, the file is compared with the texts of the known rows,
//! and only rows whose text differs [are read](reload).

pub(crate) mod big_data;
mod cache;
pub(crate) mod container;
mod files;
mod guard;
pub(crate) mod held_files;
pub(crate) mod image;
mod index;
pub(crate) mod inline_id;
pub(crate) mod intent;
pub(crate) mod layer;
mod layout;
mod load;
pub(crate) mod mount_point;
pub(crate) mod names;
pub(crate) mod pending_diff;
mod published;
pub(crate) mod raw_digest;
pub(crate) mod record_trait;
mod records;
mod reload;
pub(crate) mod row;
mod row_files;
mod slot;
pub(crate) mod table;
mod texts;
mod undo;

#[cfg(test)]
mod tests;

pub(crate) use cache::{Location, RecordsConfig, TAR_SPLIT, TMP, lost, unknown_item};
pub(crate) use files::rows_in_file;
pub(crate) use guard::{ReadGuard, WriteGuard};
pub(crate) use records::{ReadOnlyRecords, Records};
pub(crate) use undo::Savepoint;
