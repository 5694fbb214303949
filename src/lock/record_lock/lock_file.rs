//! One lock file, opened once per process, and the kernel's lock on it.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::RwLock;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::last_write::{self, Token};
use crate::sys::ofd::{self, Kind};
use crate::sys::{clean_path, make_private_subdir};

/// Every lock file that is in use in this process.
pub(super) static REGISTRY: LazyLock<Mutex<HashMap<Key, Weak<LockFile>>>> = LazyLock::new(Mutex::default);

/// Absolute path and mode.
type Key = (PathBuf, LockMode);

/// What a lock file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockMode {
    /// Shared and exclusive locks.
    ReadWrite,
    /// Shared locks only: this process may be unable to write the file.
    ReadOnly,
}

/// An open lock file. Equal paths give the same object.
#[derive(Debug)]
pub(crate) struct LockFile {
    pub(super) path: PathBuf,
    mode: LockMode,
    file: OwnedFd,
    /// Device and inode of `file`.
    pub(super) identity: (u64, u64),
    pub(super) gate: Arc<RwLock<()>>,
    /// Held by the one sharing task that waits for the kernel's lock.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// How many threads wait for the kernel's lock.
    #[cfg(test)]
    pub(super) waiting: std::sync::atomic::AtomicUsize,
    /// How many guards share the kernel's shared lock. It changes together with the kernel's lock, under this mutex,
    /// and never while something waits; so a plain mutex suffices.
    pub(super) sharing: Mutex<usize>,
}

/// Locks a plain mutex. A panic of a holder leaves no half-made change, so poisoning is ignored.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LockFile {
    /// The lock file at `path`. The file and its directory (0700) are created if missing. Blocking.
    ///
    /// If the file was replaced since it was opened (the store was deleted and created again), the result is a new
    /// object for the new file. Guards of the old one protect a file that no longer has a name.
    pub(crate) fn open(path: &Path, mode: LockMode) -> Result<Arc<Self>> {
        let path = clean_path(path).at("finding the absolute path of", path)?;
        let key = (path, mode);
        let path = &key.0;
        if let Some(known) = registered(&key)
            && rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == known.identity)
        {
            return Ok(known);
        }
        let file = open_file(path, mode)?;
        let stat = rustix::fs::fstat(&file).at("reading the status of", path)?;
        let new = Arc::new(Self {
            path: path.clone(),
            mode,
            file,
            identity: (stat.st_dev, stat.st_ino),
            gate: Arc::default(),
            turn: Arc::default(),
            #[cfg(test)]
            waiting: std::sync::atomic::AtomicUsize::default(),
            sharing: Mutex::default(),
        });
        let mut registry = locked(&REGISTRY);
        // Another task may have registered the file meanwhile. The object that is not used is dropped after the
        // registry is unlocked, because dropping the last reference to a lock file locks the registry.
        let known = registry.get(&key).and_then(Weak::upgrade);
        let chosen = match &known {
            Some(known) if known.identity == new.identity => Arc::clone(known),
            _ => {
                drop(registry.insert(key, Arc::downgrade(&new)));
                Arc::clone(&new)
            }
        };
        drop(registry);
        drop((new, known));
        Ok(chosen)
    }

    /// The absolute path of the file.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the kernel's shared lock, or joins the guards that share it already; `false` if another process holds an
    /// exclusive one. The caller holds the gate shared.
    pub(super) fn enter_shared(&self) -> Result<bool> {
        let mut sharing = locked(&self.sharing);
        let entered = *sharing > 0
            || ofd::try_lock(self.file.as_fd(), Kind::Shared).at("taking the shared lock on", &self.path)?;
        *sharing += usize::from(entered);
        Ok(entered)
    }

    /// Waits for the kernel's shared lock. Blocking. The caller holds the gate shared, and the turn.
    pub(super) fn wait_shared(&self) -> Result<()> {
        loop {
            self.wait(Kind::Shared)
                .at("waiting for the shared lock on", &self.path)?;
            // Another guard may have joined in between, and released the common lock when it was dropped.
            if self.enter_shared()? {
                return Ok(());
            }
        }
    }

    /// Ends the part of one guard in the kernel's shared lock; the last one releases it.
    pub(super) fn leave_shared(&self) {
        let mut sharing = locked(&self.sharing);
        *sharing = sharing.saturating_sub(1);
        if *sharing == 0 {
            self.release();
        }
    }

    /// Takes the kernel's exclusive lock; `false` if another process holds one. The caller holds the gate exclusively.
    pub(super) fn enter_exclusive(&self) -> Result<bool> {
        ofd::try_lock(self.file.as_fd(), Kind::Exclusive).at("taking the exclusive lock on", &self.path)
    }

    /// Waits for the kernel's exclusive lock. Blocking. The caller holds the gate exclusively.
    pub(super) fn wait_exclusive(&self) -> Result<()> {
        self.wait(Kind::Exclusive)
            .at("waiting for the exclusive lock on", &self.path)
    }

    fn wait(&self, kind: Kind) -> rustix::io::Result<()> {
        #[cfg(test)]
        self.waiting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let waited = ofd::lock(self.file.as_fd(), kind);
        #[cfg(test)]
        self.waiting.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        waited
    }

    /// Refuses to go on if the path no longer names this file: a writer would make a store anew that was removed, or
    /// change one that was made in its place without its lock.
    pub(super) fn check_named(&self) -> Result<()> {
        match rustix::fs::stat(&self.path) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == self.identity => Ok(()),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {
                let what = "the store was removed or replaced while it was open; it has lost its lock file";
                Err(Errno::STALE).at(what, &self.path)
            }
            Err(error) => Err(error).at("reading the status of", &self.path),
        }
    }

    /// Releases the kernel's lock. A failure is only logged: the caller cannot do anything about it.
    pub(super) fn release(&self) {
        if let Err(error) = ofd::unlock(self.file.as_fd()) {
            tracing::error!("unlocking {}: {error}", self.path.display());
        }
    }

    /// Refuses exclusive locks on a file that was opened for reading.
    pub(super) fn check_writable(&self) -> Result<()> {
        match self.mode {
            LockMode::ReadWrite => Ok(()),
            LockMode::ReadOnly => Err(ErrorKind::StoreIsReadOnly.err("exclusive lock on").at(&self.path)),
        }
    }

    /// Who holds a lock that conflicts with one of this kind, as far as the kernel tells.
    pub(super) fn holder(&self, kind: Kind) -> String {
        match ofd::holder(self.file.as_fd(), kind) {
            Ok(Some(pid)) if pid > 0 => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(command) => format!("process {pid} ({})", command.trim_end()),
                Err(_gone_or_hidden) => format!("process {pid}"),
            },
            // A lock that belongs to an open file, or a process outside of this PID namespace.
            Ok(Some(_)) => "another process".to_owned(),
            Ok(None) => "another task of this process".to_owned(),
            Err(error) => format!("an unknown process ({error})"),
        }
    }

    /// The token of the last write. Read without the lock it is true for one moment: nothing had changed up to then,
    /// because a writer changes the token before it changes anything else.
    pub(crate) fn token(&self) -> Result<Token> {
        let mut bytes = [0; last_write::SIZE];
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut bytes, 0))
            .at("reading the last write from", &self.path)?;
        Ok(Token::from_bytes(bytes.get(..read).unwrap_or_default()))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let key = (std::mem::take(&mut self.path), self.mode);
        let mut registry = locked(&REGISTRY);
        // A newer file at the same path may have replaced this object in the registry.
        if registry
            .get(&key)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), &raw const *self))
        {
            drop(registry.remove(&key));
        }
    }
}

fn registered(key: &Key) -> Option<Arc<LockFile>> {
    locked(&REGISTRY).get(key)?.upgrade()
}

/// Opens the file and creates it, and its directory, where missing. One that is written to is not a symbolic link, which could
/// lead to any file.
fn open_file(path: &Path, mode: LockMode) -> Result<OwnedFd> {
    let access = match mode {
        LockMode::ReadWrite => OFlags::RDWR | OFlags::NOFOLLOW,
        LockMode::ReadOnly => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    };
    let permissions = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let open = |extra| rustix::fs::openat(CWD, path, access | OFlags::CLOEXEC | extra, permissions);
    // An existing one first: a read-only file system allows no more.
    match open(OFlags::empty()) {
        Err(Errno::NOENT) => {}
        result => return result.at("opening lock file", path),
    }
    match open(OFlags::CREATE) {
        Err(Errno::NOENT) => {}
        result => return result.at("creating lock file", path),
    }
    if let Some(parent) = path.parent() {
        make_private_subdir(parent)?;
    }
    open(OFlags::CREATE).at("creating lock file", path)
}
