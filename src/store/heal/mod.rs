//! Makes damaged and missing layers of images anew, in place.
//!
//! ```text
//! check       what is wrong, of the items that were asked for
//! plan        which layers have content that is not theirs, the lowest first; which digests they have
//! source      a stream with the recorded digest, read without a lock
//! files       or only the files of it that are damaged, if its tar-split data is whole
//! swap        unpacked beside the old tree, which it takes the place of
//! check       again: what is still wrong
//! ```
//!
//! IDs, parents, children, containers and records stay. Nothing is replaced before the whole stream was read and its digest
//! verified.
//!
//! A process that is killed leaves what a step of [`put_layer`](crate::Store::put_layer) leaves: temporary directories, which
//! the next opener removes, or a record with an intent, which the next writer completes
//! ([`pending_diff`](crate::record::pending_diff)). A layer that the driver has lost is made empty first, so that what the
//! exchange is killed at is a damaged layer as before.

mod driver_data;
mod files;
mod image_data;
mod layer;
mod layer_data;
mod missing;
pub(crate) mod options;
mod parts;
mod plan;
pub(crate) mod report;
mod run;
pub(crate) mod source;
mod usage;
mod whole;
