//! The lock files of the stores: shared or exclusive, across tasks and processes.
//!
//! A lock file is created empty (0644) and stays for ever: no process may unlink or rename it. Its content is the
//! record of the last write ([`Token`]), if there is one. A crash leaves the file as it is, unlocked.
//!
//! A lock is taken in two steps. The **gate**, a fair async lock, lets in either one task that wants the lock alone
//! or any number that share it; it exists once per path in this process ([`LockFile::open`] finds it). Then the
//! **kernel**: a record lock of the open file, which all sharing tasks have in common and the last one gives back.
//!
//! The kernel's lock is first tried without waiting. Only if another process holds it does a thread of its own wait
//! ([`bridge::park`]), never more than one per lock file: for the exclusive lock because the gate is closed, for the
//! shared one because of [`LockFile::turn`]. What the waiting thread needs (gate, turn) moves into it and comes back
//! as the finished guard. So if the waiting task is dropped, the guard is dropped on that thread as soon as the lock
//! is granted, and until then nobody else of this process queues at the kernel.
//!
//! The locks are not re-entrant: a task that holds one and asks for it again waits for ever, or for its time-out.

use std::collections::HashMap;
use std::ffi::OsString;
use std::future::poll_fn;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::last_write::{self, Token};
use crate::sys::ofd::{self, Kind};

/// A wait longer than this is worth a line in the log.
const NOTICE: Duration = Duration::from_secs(1);

/// Every lock file that is in use in this process.
static REGISTRY: LazyLock<Mutex<HashMap<Key, Weak<LockFile>>>> = LazyLock::new(Mutex::default);

/// Absolute path and mode.
type Key = (PathBuf, LockMode);

/// What a lock file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockMode {
    /// SharedLock and exclusive locks.
    ReadWrite,
    /// SharedLock locks only: the file may be one that this process cannot write.
    ReadOnly,
}

/// A lock file, kept open. Equal paths give the same object, see the module's head.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    mode: LockMode,
    file: OwnedFd,
    /// Device and inode of `file`.
    identity: (u64, u64),
    gate: Arc<RwLock<()>>,
    /// Held by the one sharing task that waits for the kernel.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How many guards have the kernel's shared lock in common. Whoever changes the number or, with it, the
    /// kernel's lock holds the mutex; nobody waits for anything meanwhile, hence a plain one.
    sharing: Mutex<usize>,
}

/// A plain mutex whose holders cannot leave it half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LockFile {
    /// The lock file at `path`, which is created where missing, as is its directory (0700). Blocking.
    ///
    /// If the file was replaced since it was opened (somebody deleted and made the store anew), this is a new object
    /// for the new file; guards on the old one live on but protect nothing that still has a name.
    pub(crate) fn open(path: &Path, mode: LockMode) -> Result<Arc<Self>> {
        let path = clean(path).at("finding the absolute path of", path)?;
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
            sharing: Mutex::default(),
        });
        let mut registry = locked(&REGISTRY);
        // Another task may have been faster. What is not used is dropped after the registry is free again, since
        // dropping the last reference to a lock file takes the registry's mutex.
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

    /// Waits for the lock, beside others that share it; at most for `timeout` if there is one.
    ///
    /// If dropped, or after a time-out ([`ErrorKind::LockTimeout`]): nothing is held.
    pub(crate) async fn shared(self: &Arc<Self>, timeout: Option<Duration>) -> Result<SharedLock> {
        self.within(Kind::Shared, timeout, Arc::clone(self).acquire_shared())
            .await
    }

    /// Waits for the lock, alone; at most for `timeout` if there is one.
    ///
    /// If dropped, or after a time-out ([`ErrorKind::LockTimeout`]): nothing is held.
    pub(crate) async fn exclusive(self: &Arc<Self>, timeout: Option<Duration>) -> Result<ExclusiveLock> {
        self.within(Kind::Exclusive, timeout, Arc::clone(self).acquire_exclusive())
            .await
    }

    /// [`LockFile::shared`] for a thread that may block.
    pub(crate) fn shared_blocking(self: &Arc<Self>, timeout: Option<Duration>) -> Result<SharedLock> {
        self.within_blocking(Kind::Shared, timeout, Arc::clone(self).acquire_shared())
    }

    /// [`LockFile::exclusive`] for a thread that may block.
    pub(crate) fn exclusive_blocking(self: &Arc<Self>, timeout: Option<Duration>) -> Result<ExclusiveLock> {
        self.within_blocking(Kind::Exclusive, timeout, Arc::clone(self).acquire_exclusive())
    }

    /// The lock beside others, if it can be had at once. Also `None` while another task waits to have it alone.
    pub(crate) fn try_shared(self: &Arc<Self>) -> Result<Option<SharedLock>> {
        let Ok(gate) = Arc::clone(&self.gate).try_read_owned() else {
            return Ok(None);
        };
        Ok(self.enter_shared()?.then(|| SharedLock {
            lock: Arc::clone(self),
            _gate: gate,
        }))
    }

    /// The lock alone, if it can be had at once.
    pub(crate) fn try_exclusive(self: &Arc<Self>) -> Result<Option<ExclusiveLock>> {
        self.check_writable()?;
        let Ok(gate) = Arc::clone(&self.gate).try_write_owned() else {
            return Ok(None);
        };
        Ok(self.enter_exclusive()?.then(|| ExclusiveLock {
            lock: Arc::clone(self),
            _gate: gate,
        }))
    }

    async fn acquire_shared(self: Arc<Self>) -> Result<SharedLock> {
        let gate = Arc::clone(&self.gate).read_owned().await;
        if self.enter_shared()? {
            return Ok(SharedLock {
                lock: self,
                _gate: gate,
            });
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // The one whose turn it was may have got it.
        if self.enter_shared()? {
            return Ok(SharedLock {
                lock: self,
                _gate: gate,
            });
        }
        bridge::park(move || {
            self.wait_shared()?;
            drop(turn);
            Ok(SharedLock {
                lock: self,
                _gate: gate,
            })
        })
        .await
    }

    async fn acquire_exclusive(self: Arc<Self>) -> Result<ExclusiveLock> {
        self.check_writable()?;
        let gate = Arc::clone(&self.gate).write_owned().await;
        if self.enter_exclusive()? {
            return Ok(ExclusiveLock {
                lock: self,
                _gate: gate,
            });
        }
        bridge::park(move || {
            ofd::lock(self.file.as_fd(), Kind::Exclusive)
                .at("waiting for the exclusive lock on", &self.path)?;
            Ok(ExclusiveLock {
                lock: self,
                _gate: gate,
            })
        })
        .await
    }

    /// With the gate held for sharing: joins those who have the kernel's lock, or takes it if it is free.
    fn enter_shared(&self) -> Result<bool> {
        let mut sharing = locked(&self.sharing);
        let entered = *sharing > 0
            || ofd::try_lock(self.file.as_fd(), Kind::Shared).at("taking the shared lock on", &self.path)?;
        *sharing += usize::from(entered);
        Ok(entered)
    }

    /// With the gate held for sharing, and the turn: waits for the kernel's lock, then counts as one who has it.
    fn wait_shared(&self) -> Result<()> {
        loop {
            ofd::lock(self.file.as_fd(), Kind::Shared).at("waiting for the shared lock on", &self.path)?;
            // Meanwhile another guard may have come in, and given the common lock back on its way out.
            if self.enter_shared()? {
                return Ok(());
            }
        }
    }

    /// With the gate held alone.
    fn enter_exclusive(&self) -> Result<bool> {
        ofd::try_lock(self.file.as_fd(), Kind::Exclusive).at("taking the exclusive lock on", &self.path)
    }

    /// Gives the kernel's lock back; what can go wrong there leaves nothing to be done about it.
    fn leave(&self) {
        if let Err(error) = ofd::unlock(self.file.as_fd()) {
            tracing::error!("unlocking {}: {error}", self.path.display());
        }
    }

    fn check_writable(&self) -> Result<()> {
        match self.mode {
            LockMode::ReadWrite => Ok(()),
            LockMode::ReadOnly => Err(ErrorKind::StoreIsReadOnly.err("exclusive lock on").at(&self.path)),
        }
    }

    /// Polls `acquire` with a limit. There are no timers unless it really has to wait.
    async fn within<T>(
        &self,
        kind: Kind,
        timeout: Option<Duration>,
        acquire: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut acquire = pin!(acquire);
        if let Poll::Ready(result) = poll_fn(|context| Poll::Ready(acquire.as_mut().poll(context))).await {
            return result;
        }
        let started = Instant::now();
        let quiet = timeout.map_or(NOTICE, |timeout| timeout.min(NOTICE));
        if let Ok(result) = tokio::time::timeout(quiet, acquire.as_mut()).await {
            return result;
        }
        let rest = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        match rest {
            Some(Duration::ZERO) => Err(self.timed_out(kind, started.elapsed())),
            Some(rest) => {
                self.notice(kind);
                let result = tokio::time::timeout(rest, acquire).await;
                result.unwrap_or_else(|_elapsed| Err(self.timed_out(kind, started.elapsed())))
            }
            None => {
                self.notice(kind);
                acquire.await
            }
        }
    }

    /// [`LockFile::within`] on this thread, with no need of a runtime.
    fn within_blocking<T>(
        &self,
        kind: Kind,
        timeout: Option<Duration>,
        acquire: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut acquire = pin!(acquire);
        let started = Instant::now();
        let mut noticed = false;
        loop {
            if let Poll::Ready(result) = acquire.as_mut().poll(&mut context) {
                return result;
            }
            let waited = started.elapsed();
            if timeout.is_some_and(|timeout| waited >= timeout) {
                return Err(self.timed_out(kind, waited));
            }
            if !noticed && waited >= NOTICE {
                noticed = true;
                self.notice(kind);
            }
            let next_notice = (!noticed).then(|| NOTICE.saturating_sub(waited));
            let end = timeout.map(|timeout| timeout.saturating_sub(waited));
            match next_notice.into_iter().chain(end).min() {
                Some(pause) => std::thread::park_timeout(pause),
                None => std::thread::park(),
            }
        }
    }

    fn notice(&self, kind: Kind) {
        tracing::debug!(
            path = %self.path.display(),
            holder = self.holder(kind),
            "waiting for the {} lock",
            describe(kind)
        );
    }

    fn timed_out(&self, kind: Kind, waited: Duration) -> Error {
        let what = format!(
            "waited {waited:.1?} for the {} lock, held by {}, on",
            describe(kind),
            self.holder(kind)
        );
        ErrorKind::LockTimeout.err(what).at(&self.path)
    }

    /// Who is in the way, as far as the kernel tells.
    fn holder(&self, kind: Kind) -> String {
        match ofd::holder(self.file.as_fd(), kind) {
            Ok(Some(pid)) if pid > 0 => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(command) => format!("process {pid} ({})", command.trim_end()),
                Err(_gone_or_hidden) => format!("process {pid}"),
            },
            // Locks that belong to an open file, and those from outside our PID namespace.
            Ok(Some(_)) => "another process".to_owned(),
            Ok(None) => "another task of this process".to_owned(),
            Err(error) => format!("an unknown process ({error})"),
        }
    }

    /// What the file says about the last write. Without the lock that is true at one moment, which is enough to know
    /// that nothing had changed up to then: a writer changes this before it changes anything else.
    pub(crate) fn token(&self) -> Result<Token> {
        let mut bytes = [0; last_write::SIZE];
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut bytes, 0))
            .at("reading the last write from", &self.path)?;
        Ok(Token::from_bytes(bytes.get(..read).unwrap_or_default()))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let key = (std::mem::take(&mut self.path), self.mode);
        let mut registry = locked(&REGISTRY);
        // The place may have been taken by the object of a newer file.
        if registry
            .get(&key)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), &raw const *self))
        {
            drop(registry.remove(&key));
        }
    }
}

/// The lock beside others. Dropped: given back.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub(crate) struct SharedLock {
    lock: Arc<LockFile>,
    /// Opens after `drop` has given the kernel's lock back.
    _gate: OwnedRwLockReadGuard<()>,
}

impl SharedLock {
    /// What the lock file says about the last write.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }

    /// The lock file.
    #[cfg(test)]
    pub(crate) fn file(&self) -> &Arc<LockFile> {
        &self.lock
    }
}

impl Drop for SharedLock {
    fn drop(&mut self) {
        let mut sharing = locked(&self.lock.sharing);
        *sharing = sharing.saturating_sub(1);
        if *sharing == 0 {
            self.lock.leave();
        }
    }
}

/// The lock alone. Dropped: given back.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub(crate) struct ExclusiveLock {
    lock: Arc<LockFile>,
    /// Opens after `drop` has given the kernel's lock back.
    _gate: OwnedRwLockWriteGuard<()>,
}

impl ExclusiveLock {
    /// What the lock file says about the last write.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }

    /// Says that there was a new write, before the data changes; returns what the file says now.
    pub(crate) fn write_token(&self) -> Result<Token> {
        let token = Token::new()?;
        let bytes = token.as_bytes();
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(self.lock.as_fd(), bytes, 0));
        let complete = written.and_then(|count| {
            if count == bytes.len() {
                Ok(())
            } else {
                Err(Errno::NOSPC)
            }
        });
        complete.at("noting a write in", &self.lock.path)?;
        Ok(token)
    }
}

impl Drop for ExclusiveLock {
    fn drop(&mut self) {
        self.lock.leave();
    }
}

fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Shared => "shared",
        Kind::Exclusive => "exclusive",
    }
}

fn registered(key: &Key) -> Option<Arc<LockFile>> {
    locked(&REGISTRY).get(key)?.upgrade()
}

/// The absolute path without `.`, `..` and doubled slashes. By its text alone, as the Go library does, so that one
/// store gets one lock however it is spelt.
fn clean(path: &Path) -> std::io::Result<PathBuf> {
    let mut parts: Vec<OsString> = Vec::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::ParentDir => drop(parts.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    Ok(std::iter::once(OsString::from("/")).chain(parts).collect())
}

/// Opens the file and creates it, and its directory, where missing.
fn open_file(path: &Path, mode: LockMode) -> Result<OwnedFd> {
    let access = match mode {
        LockMode::ReadWrite => OFlags::RDWR,
        LockMode::ReadOnly => OFlags::RDONLY,
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
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .at("creating", parent)?;
    }
    open(OFlags::CREATE).at("creating lock file", path)
}

#[cfg(test)]
mod tests;
