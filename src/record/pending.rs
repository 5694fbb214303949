//! Marks of what is under way with an image or container while files of other stores change too.
//!
//! No rename changes two files at once. So whoever creates or deletes something that has a record here and layers
//! elsewhere first saves the record with a mark, and at the end without it. A mark that nobody is working on (its
//! writer held the lock) is a writer's that was killed: whoever finds it finishes the work before anything else. In
//! this way others see the state before or the one after, never one between.
//!
//! Compat: the Go library does not know the field and drops it when it writes the file. It sees what it sees after
//! one of its own processes was killed: a record without a layer.

use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::table::Record;

/// The container's layer is being made; with the layer complete, so is the container.
pub(crate) const CREATE: &str = "create";

/// It is being deleted, and its layers with it.
pub(crate) const DELETE: &str = "delete";

/// A record that can be marked.
pub(crate) trait Pending: Record {
    /// The mark; empty for none.
    fn pending_mut(&mut self) -> &mut String;
}

impl Pending for ContainerRow {
    fn pending_mut(&mut self) -> &mut String {
        &mut self.pending
    }
}

impl Pending for ImageRow {
    fn pending_mut(&mut self) -> &mut String {
        &mut self.pending
    }
}
