//! Locks between processes, compatible with those of the Go library.
//!
//! [`record_lock`]: lock files that stay for ever (`layers.lock` and so on) and contain the token of the last write
//! ([`last_write`]). [`staging_lock`]: short-lived lock files that protect something temporary, such as the directories
//! of [`temp_dir`].
//!
//! These are `fcntl` record locks owned by an open file ([`crate::sys::ofd`]), on the whole file. What only this library uses is
//! locked by `flock` ([`flocked_file`]). The kernel releases both when the process dies, so a crash leaves files, but no locks.
//!
//! A child has the open files of its parent until it runs another program, and with them the locks. So locks are released before
//! their files are closed.

pub(crate) mod flocked_file;
pub(crate) mod last_write;
pub(crate) mod owners;
pub(crate) mod record_lock;
pub(crate) mod single_flight;
pub(crate) mod staging_lock;
pub(crate) mod temp_dir;
mod timer;

#[cfg(test)]
pub(crate) mod peer;
