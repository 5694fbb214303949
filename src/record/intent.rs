//! Marks of what is under way with a record while another file changes too.
//!
//! No rename changes two files at once. So whoever creates or deletes something that has a record here and layers
//! elsewhere first saves the record with a mark, and at the end without it; likewise whoever takes names from records
//! in another file of the same store. A mark that nobody is working on (its writer held the lock) is a writer's that
//! was killed: whoever finds it finishes the work before anything else. In this way others see the state before or
//! the one after, never one between.
//!
//! Compat: the Go library does not know the field and drops it when it writes the file. It sees what it sees after
//! one of its own processes was killed: a record without a layer, a name that two records have.

use crate::time::Time;

/// The container's layer is being made; with the layer complete, so is the container.
pub(crate) const CREATE: &str = "create";

/// It is being deleted, and its layers with it. For containers the time follows at which the layer was made.
pub(crate) const DELETE: &str = "delete";

/// It has got names that a record in another file may still have.
pub(crate) const NAMES: &str = "names";

/// Whether a record with this mark is not what it seems to be.
pub(crate) fn is_unfinished(mark: &str) -> bool {
    mark == CREATE || is_deletion(mark)
}

/// Whether the record is being deleted.
pub(crate) fn is_deletion(mark: &str) -> bool {
    mark.starts_with(DELETE)
}

/// The intent of a container that is deleted together with its layer, created at this time. A layer that is created later
/// under the same ID is another one.
pub(crate) fn deletion_with(created: &Time) -> String {
    format!("{DELETE} {}", created)
}
