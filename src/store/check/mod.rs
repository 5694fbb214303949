//! Checks what is in a store.
//!
//! ```text
//! survey      all records at one moment, and what the driver has
//! contents    layer by layer, without a lock: the stream, the tree, a mount; big data
//! records     what refers to what, in a second survey
//! ```
//!
//! Content is read without a store lock. What is found about an item counts only if its record is the same in the second
//! survey: an item that was deleted or changed meanwhile is not damaged.

mod contents;
mod data;
pub(crate) mod finding;
mod identity;
pub(crate) mod rebuild;
mod records;
pub(crate) mod repair;
pub(crate) mod repair_report;
pub(crate) mod report;
mod run;
pub(crate) mod strays;
mod survey;
mod trees;
