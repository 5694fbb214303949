//! Locks between processes, compatible with those of the Go library.
//!
//! [`record_lock`]: lock files that stay for ever (`layers.lock` and so on) and contain the token of the last write
//! ([`last_write`]). [`staging_lock`]: short-lived lock files that protect something temporary, such as the directories
//! of [`temp_dir`].
//!
//! All are `fcntl` record locks owned by an open file ([`crate::sys::ofd`]), on the whole file. The kernel releases them
//! when the process dies, so a crash leaves files, but no locks.

pub(crate) mod last_write;
pub(crate) mod owners;
pub(crate) mod record_lock;
pub(crate) mod single_flight;
pub(crate) mod staging_lock;
pub(crate) mod temp_dir;
mod timer;

#[cfg(test)]
pub(crate) mod peer;
