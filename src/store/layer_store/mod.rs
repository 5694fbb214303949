//! The primary layer store under its exclusive lock: creating, mounting and deleting layers. Everything here blocks.
//!
//! # What a crash leaves
//! A layer's record is saved with the flag `incomplete` before the driver makes anything, and again without it when
//! everything is in place; deletion marks it likewise before anything moves. The next process that takes the lock deletes
//! incomplete layers on entry ([`enter`]), and completes or takes back a diff that was being applied to a layer. What is deleted is renamed into a locked temporary directory
//! under the lock and unlinked after it; a directory whose owner died is removed by the next open.

mod apply;
pub(crate) mod counts;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod enter;
pub(crate) mod fit;
pub(crate) mod heal;
pub(crate) mod locked;
pub(crate) mod mount;
pub(crate) mod new_layer;
pub(crate) mod received;
