//! Locks between processes, compatible with those of the Go library.
//!
//! [`record_lock`] has the lock files that stay for ever (`layers.lock` and so on) and carry the record of the last
//! write ([`last_write`]). [`staging_lock`] has the short-lived ones that mark something temporary as in use, and
//! [`temp_dir`] the temporary directories that they protect.
//!
//! All are `fcntl` record locks owned by an open file ([`crate::sys::ofd`]), on the whole file. The kernel drops
//! them when the process dies, so a crash never leaves a lock behind, only files.

pub(crate) mod last_write;
pub(crate) mod owners;
pub(crate) mod record_lock;
#[cfg(feature = "pull")]
pub(crate) mod single_flight;
pub(crate) mod staging_lock;
pub(crate) mod temp_dir;
mod timer;

#[cfg(test)]
pub(crate) mod peer;
