//! Single flight: of all tasks and processes that want to make the same thing, one makes it.
//!
//! ```text
//! <directory>/<key>      empty; locked with flock by the process that makes it
//! ```
//!
//! A [`Flight`] is the lock of one key. A caller that had to wait for it checks afterwards whether the thing exists. If
//! it does not, because the former holder failed, was dropped or died, the caller makes it.
//!
//! The lock has two steps: an async lock per path lets in one task of this process, then `flock` lets in one process.
//! Only a wait for another process takes a thread, at most one per key. The Go library does not use these files, so
//! plain `flock` suffices; the kernel releases it when the holder dies.
//!
//! The last holder removes the file before it unlocks it. So a process that gets the lock checks that the file it has
//! locked still has its name, and starts again if not.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::OFlags;
use tokio::sync::OwnedMutexGuard;

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::flocked_file::FlockedFile;
use crate::sys::make_private_subdir;

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

/// The lock of a key; released when dropped.
#[must_use = "the lock is released when this is dropped"]
#[derive(Debug)]
pub(crate) struct Flight {
    path: PathBuf,
    /// Declared before the gate, so that the lock is released first.
    _file: FlockedFile,
    _gate: OwnedMutexGuard<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        // It is still locked, so no other process uses this file. A file that stays does no harm.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "leaving a lock file behind");
        }
    }
}

/// The outcome of an attempt to lock.
enum Attempt {
    Locked(FlockedFile),
    /// Another process holds the lock; this is the file to wait on.
    Taken(File),
    /// The file was removed by its last holder.
    Gone,
}

fn open(path: &Path) -> Result<File> {
    let mut options = std::fs::OpenOptions::new();
    // Nobody makes a link of it; one of somebody else could have a file made anywhere.
    let no_links = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_links);
    let file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                make_private_subdir(dir)?;
            }
            options.open(path)
        }
        opened => opened,
    };
    file.at("opening", path)
}

/// Whether the locked file is still the one that others will open.
fn still_named(file: FlockedFile, path: &Path) -> Result<Attempt> {
    let ours = file.metadata().at("reading the status of", path)?;
    let same = match std::fs::metadata(path) {
        Ok(named) => (named.dev(), named.ino()) == (ours.dev(), ours.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io_at("reading the status of", path, error)),
    };
    Ok(if same {
        Attempt::Locked(file)
    } else {
        Attempt::Gone
    })
}

fn attempt(path: &Path) -> Result<Attempt> {
    match FlockedFile::try_lock(open(path)?).at("locking", path)? {
        Ok(file) => still_named(file, path),
        Err(taken) => Ok(Attempt::Taken(taken)),
    }
}

fn wait(file: File, path: &Path) -> Result<Attempt> {
    still_named(FlockedFile::lock(file).at("locking", path)?, path)
}

/// Waits for the lock of `key`, a plain file name, in `dir`.
///
/// A task that takes several must take them in an order that all tasks agree on.
///
/// # Errors
/// [`ErrorKind::UnsafePath`] if `key` is not a plain file name.
///
/// # Cancellation
/// Nothing is held.
pub(crate) async fn acquire(dir: &Path, key: &str) -> Result<Flight> {
    if matches!(key, "" | "." | "..") || key.bytes().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(ErrorKind::UnsafePath.err(format!("key {key:?} of a lock")));
    }
    let path = dir.join(key);
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
        tracing::debug!(key, "waiting for another process that works on the same key");
        let named = path.clone();
        // The thread keeps the gate: if this future is dropped, no other task of this process starts a second waiter.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_the_next_when_it_is_dropped() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("flight");
        let first = acquire(&dir, "key").await.unwrap();
        let other = acquire(&dir, "other").await.unwrap();
        let mut waiting = Box::pin(acquire(&dir, "key"));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let second = waiting.await.unwrap();
        drop((second, other));
        let left = std::fs::read_dir(dir).unwrap().count();
        assert_eq!(left, 0, "lock files are removed");
    }

    #[tokio::test]
    async fn a_lock_of_another_process_is_waited_for_even_if_its_file_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("flight");
        let path = dir.join("key");
        // As another process locks it: not through the gate of this process.
        let Attempt::Locked(foreign) = attempt(&path).unwrap() else {
            panic!("the lock is free");
        };
        let mut waiting = Box::pin(acquire(&dir, "key"));
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
    async fn a_link_is_no_lock() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("key");
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(acquire(tmp.path(), "key").await.is_err());
        assert!(!tmp.path().join("elsewhere").exists());
    }

    #[tokio::test]
    async fn keys_are_plain_names() {
        let tmp = tempfile::tempdir().unwrap();
        for key in ["", ".", "..", "a/b", "a\0b"] {
            let error = acquire(tmp.path(), key).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsafePath, "{key:?}");
        }
    }
}
