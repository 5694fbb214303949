//! Single flight: of all tasks and processes that want the same thing made, one makes it.
//!
//! ```text
//! <run root>/<driver>-flight/<key>      empty; flock'ed by the process that is at work
//! ```
//!
//! A [`Flight`] is the right to be at work on one key. Whoever waits for it looks afterwards whether the thing is
//! there by now; if it isn't, because the one that worked failed, was dropped or died, it is the next one's turn.
//!
//! Two steps, as everywhere: an async lock per path lets in one task of this process, then `flock` one process. Only
//! a wait for another process takes a thread, of its own and never more than one per key. The locks are of no
//! interest to the Go library, so plain `flock` will do; the kernel gives them back when their holder dies.
//!
//! A file is removed by its last holder before it is unlocked. So whoever gets the lock checks that the file it has
//! locked still has its name, and starts again if not.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use fd_lock::RwLock;
use tokio::sync::OwnedMutexGuard;

use crate::bridge;
use crate::error::{Error, IoContext as _, Result};
use crate::store::Store;
use crate::sys::make_private_dir;

type Gate = tokio::sync::Mutex<()>;

/// The gates of this process, by path.
static GATES: LazyLock<Mutex<HashMap<PathBuf, Weak<Gate>>>> = LazyLock::new(Mutex::default);

fn gate(path: &Path) -> Arc<Gate> {
    let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gate) = gates.get(path).and_then(Weak::upgrade) {
        return gate;
    }
    gates.retain(|_, gate| gate.strong_count() > 0);
    let gate = Arc::new(Gate::default());
    gates.insert(path.to_owned(), Arc::downgrade(&gate));
    gate
}

/// The right to be the one that works on a key; given back when dropped.
#[must_use = "the right is given back when this is dropped"]
#[derive(Debug)]
pub(crate) struct Flight {
    path: PathBuf,
    /// Locked for as long as it is open. Declared before the gate: the kernel's lock goes first.
    _file: RwLock<File>,
    _gate: OwnedMutexGuard<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Still locked: nobody can hold a lock of this file. Left over it does no harm.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "leaving a lock file behind");
        }
    }
}

/// What became of an attempt to lock.
enum Attempt {
    Locked(RwLock<File>),
    /// Another process has it; this is the file to wait with.
    Taken(RwLock<File>),
    /// The file was removed by its last holder.
    Gone,
}

fn open(path: &Path) -> Result<RwLock<File>> {
    let mut options = std::fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                make_private_dir(dir)?;
            }
            options.open(path)
        }
        opened => opened,
    };
    Ok(RwLock::new(file.at("opening", path)?))
}

/// Whether the locked file is still the one that others will open.
fn still_named(lock: RwLock<File>, path: &Path) -> Result<Attempt> {
    let file = lock.into_inner();
    let ours = file.metadata().at("looking at", path)?;
    let same = match std::fs::metadata(path) {
        Ok(named) => (named.dev(), named.ino()) == (ours.dev(), ours.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io_at("looking at", path, error)),
    };
    Ok(if same {
        Attempt::Locked(RwLock::new(file))
    } else {
        Attempt::Gone
    })
}

fn attempt(path: &Path) -> Result<Attempt> {
    let mut lock = open(path)?;
    // The lock belongs to the open file and goes when it is closed; the guard would only borrow it.
    match lock.try_write().map(std::mem::forget) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Attempt::Taken(lock)),
        Err(error) => return Err(Error::io_at("locking", path, error)),
    }
    still_named(lock, path)
}

fn wait(mut lock: RwLock<File>, path: &Path) -> Result<Attempt> {
    loop {
        match lock.write().map(std::mem::forget) {
            Ok(()) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io_at("locking", path, error)),
        }
    }
    still_named(lock, path)
}

impl Store {
    /// Waits for the right to work on `key`, a plain file name.
    ///
    /// Whoever holds several must take them in an order that all agree on.
    ///
    /// # Cancellation
    /// Nothing is held.
    pub(crate) async fn flight(&self, key: &str) -> Result<Flight> {
        crate::driver::check_id(key)?;
        let path = self.inner.dirs.flight().join(key);
        let mut gate = gate(&path).lock_owned().await;
        loop {
            let file = path.clone();
            let taken = match bridge::run(move || attempt(&file)).await? {
                Attempt::Locked(file) => {
                    return Ok(Flight {
                        path,
                        _file: file,
                        _gate: gate,
                    });
                }
                Attempt::Gone => continue,
                Attempt::Taken(file) => file,
            };
            tracing::debug!(key, "waiting for another process that is at work on it");
            let named = path.clone();
            // The gate goes along: should this future be dropped, nobody else of this process queues meanwhile.
            let waited = bridge::park(move || Ok((wait(taken, &named)?, gate))).await?;
            match waited {
                (Attempt::Locked(file), gate) => {
                    return Ok(Flight {
                        path,
                        _file: file,
                        _gate: gate,
                    });
                }
                (_, back) => gate = back,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::StoreOptions;

    async fn store(dir: &Path) -> Store {
        let options = StoreOptions::new(dir.join("graph"), dir.join("run")).driver("vfs");
        Store::open(options).await.unwrap()
    }

    #[tokio::test]
    async fn one_at_a_time_and_the_next_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let first = store.flight("key").await.unwrap();
        let other = store.flight("other").await.unwrap();
        let mut waiting = Box::pin(store.flight("key"));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let second = waiting.await.unwrap();
        drop((second, other));
        let left = std::fs::read_dir(store.inner.dirs.flight()).unwrap().count();
        assert_eq!(left, 0, "lock files are removed");
    }

    #[tokio::test]
    async fn a_lock_of_another_process_is_waited_for_even_if_its_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let path = store.inner.dirs.flight().join("key");
        // As another process would: past the gate of this one.
        let Attempt::Locked(foreign) = attempt(&path).unwrap() else {
            panic!("the lock is free");
        };
        let mut waiting = Box::pin(store.flight("key"));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await;
        assert!(waits.is_err(), "it is taken");
        std::fs::remove_file(&path).unwrap();
        drop(foreign);
        let flight = waiting.await.unwrap();
        assert!(
            matches!(attempt(&path).unwrap(), Attempt::Taken(_)),
            "the named file is locked"
        );
        drop(flight);
    }

    #[tokio::test]
    async fn keys_are_plain_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        for key in ["", "..", "a/b"] {
            assert!(store.flight(key).await.is_err(), "{key:?}");
        }
    }
}
