//! The lock files of the stores: shared or exclusive, across tasks and processes.
//!
//! A lock file is created empty (0644) and stays for ever: no process may unlink or rename it. Its content is the token
//! of the last write ([`Token`](crate::lock::last_write::Token)), if there was one. A crash leaves the file as it is,
//! unlocked.
//!
//! A lock is taken in two steps. The **gate**, a fair async lock, admits either one task that wants the lock
//! exclusively or any number of tasks that share it; there is one gate per path in this process ([`LockFile::open`]
//! finds it). Then follows the **kernel's lock**: a record lock of the open file, which all sharing tasks have in
//! common and the last one releases.
//!
//! The kernel's lock is first tried without waiting. Only if another process holds it does a thread wait for it
//! ([`bridge::park`](crate::bridge::park)), at most one thread per lock file: the closed gate ensures that for
//! exclusive locks, the turn of the [`LockFile`] for shared ones. Gate and turn move to the waiting thread and come
//! back inside the guard. So if the waiting task is dropped, the thread drops the guard as soon as the lock is
//! granted, and until then no other task of this process starts a second waiting thread.
//!
//! The locks are not re-entrant: a task that holds one and asks for it again waits for ever, or for its time-out.

mod acquire;
mod foreign;
mod guards;
mod lock_file;
mod patience;

#[cfg(test)]
mod tests;

pub(crate) use foreign::{are_awaited, give_way};
pub(crate) use guards::{ExclusiveLock, SharedLock};
pub(crate) use lock_file::{LockFile, LockMode};
pub(crate) use patience::{Deadline, Patience};
