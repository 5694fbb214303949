//! Intents: what is under way with a record while another file changes too.
//!
//! No rename changes two files at once. So a writer that creates or deletes something that has a record here and layers
//! elsewhere first saves the record with an intent, and at the end without it; likewise a writer that takes names from
//! records in another file of the same store. Writers hold the lock, so a record that is found with an intent was left
//! by a killed writer, and the finder completes the work before anything else. Others see the state before or after,
//! never one in between.
//!
//! Compat: the Go library does not know the field and drops it when it writes the file. It then sees what it sees after
//! one of its own processes was killed: a record without a layer, or a name that two records have.

use crate::time::Time;

/// The container's layer is being created; once the layer is complete, the container is too.
pub(crate) const CREATE: &str = "create";

/// The record is being deleted together with its layers. For containers the creation time of the layer follows.
pub(crate) const DELETE: &str = "delete";

/// The record has taken names that a record in another file may still have.
pub(crate) const NAMES: &str = "names";

/// Whether a record with this intent is not complete.
pub(crate) fn is_unfinished(intent: &str) -> bool {
    intent == CREATE || is_deletion(intent)
}

/// Whether the record is being deleted.
pub(crate) fn is_deletion(intent: &str) -> bool {
    intent.starts_with(DELETE)
}

/// The intent of a container that is deleted together with its layer, created at this time. A layer that is created later
/// under the same ID is another one.
pub(crate) fn deletion_with(created: &Time) -> String {
    format!("{DELETE} {}", created)
}
