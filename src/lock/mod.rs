//! Locks: between the tasks of this process, and with every other process that uses the store.
//!
//! * [`record_lock`]: the lock files that are shared with Go processes.
//! * [`last_write`]: the token in them by which readers notice saves.
//! * [`temp_dir`]: temporary directories whose lock tells whether their owner lives.

pub(crate) mod last_write;
pub(crate) mod record_lock;
pub(crate) mod temp_dir;

pub(crate) use last_write::Token;
pub(crate) use record_lock::{Exclusive, LockFile, LockMode, Shared};
