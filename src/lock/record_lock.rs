//! Lock files: an in-process gate, then a kernel record lock that excludes Go's.
//!
//! One [`LockFile`] exists per path and process; it keeps one handle of the file open. Tasks first pass its fair
//! in-process gate, so the kernel sees one request per process. A request that the kernel grants at once costs no
//! hop; only one that has to wait moves to a thread of its own. The gate's guard travels with it: a waiter that is
//! dropped neither loses the lock nor lets a second thread wait; the lock is given back as soon as it is granted.
//!
//! Lock files are never removed or renamed. A process that dies lets go of everything.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::last_write::{LENGTH, Token};
use crate::sys::ofd::{self, Kind};

/// A wait that is longer than this is worth a line in the log.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Whether a lock file may be written: those of additional stores are only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockMode {
    /// Opened for reading and writing, created if missing.
    ReadWrite,
    /// Opened for reading; only shared locks.
    ReadOnly,
}

/// All lock files of this process. Weak, so that one ends with its last user.
static REGISTRY: Mutex<Option<HashMap<(PathBuf, LockMode), Weak<LockFile>>>> = Mutex::new(None);

/// One lock file.
pub(crate) struct LockFile {
    path: PathBuf,
    file: File,
    gate: Arc<RwLock<()>>,
    /// Serialises readers that have to wait for another process: one thread waits for all of them.
    queue: Arc<tokio::sync::Mutex<()>>,
    /// How many guards share the kernel's read lock. Never held across a call that blocks.
    readers: Mutex<usize>,
}

impl fmt::Debug for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn open_file(path: &Path, mode: LockMode) -> rustix::io::Result<File> {
    let access = match mode {
        LockMode::ReadWrite => OFlags::RDWR,
        LockMode::ReadOnly => OFlags::RDONLY,
    };
    let open = |flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644)).map(File::from);
    match open(access | OFlags::CREATE) {
        // On a read-only file system an existing lock file can still be opened.
        Err(refused @ (Errno::ROFS | Errno::ACCESS)) if mode == LockMode::ReadOnly => {
            open(access).map_err(|error| if error == Errno::NOENT { refused } else { error })
        }
        result => result,
    }
}

impl LockFile {
    /// The lock file at `path`, created (and its directory) if missing. Blocks for the opening only.
    pub(crate) fn open(path: &Path, mode: LockMode) -> Result<Arc<Self>> {
        let path = std::path::absolute(path).at("making absolute", path)?;
        let key = (path.clone(), mode);
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        let files = registry.get_or_insert_with(HashMap::new);
        if let Some(known) = files.get(&key).and_then(Weak::upgrade) {
            // The directory may have been removed and made again since: then this is another file.
            if known.is_current() {
                return Ok(known);
            }
        }
        let file = match open_file(&path, mode) {
            Err(Errno::NOENT) => {
                if let Some(parent) = path.parent() {
                    crate::sys::make_private_dir(parent)?;
                }
                open_file(&path, mode)
            }
            result => result,
        }
        .at("opening lock file", &path)?;
        let lock = Arc::new(Self {
            path,
            file,
            gate: Arc::default(),
            queue: Arc::default(),
            readers: Mutex::new(0),
        });
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(key, Arc::downgrade(&lock));
        Ok(lock)
    }

    fn is_current(&self) -> bool {
        let (Ok(open), Ok(named)) = (self.file.metadata(), std::fs::metadata(&self.path)) else { return false };
        (open.dev(), open.ino()) == (named.dev(), named.ino())
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock together with other readers; waits at most `timeout`, without one for ever.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`] naming the file, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing is held.
    pub(crate) async fn shared(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Shared> {
        let gate = match Arc::clone(&self.gate).try_read_owned() {
            Ok(gate) => gate,
            Err(_busy) => self.timed(timeout, Arc::clone(&self.gate).read_owned()).await?,
        };
        match self.enter_shared(gate)? {
            Ok(held) => Ok(held),
            Err(gate) => self.timed(timeout, Arc::clone(self).wait_shared(gate)).await?,
        }
    }

    async fn wait_shared(self: Arc<Self>, gate: OwnedRwLockReadGuard<()>) -> Result<Shared> {
        let turn = Arc::clone(&self.queue).lock_owned().await;
        // Whoever was first in the queue may have got the lock for all readers meanwhile.
        let gate = match self.enter_shared(gate)? {
            Ok(held) => return Ok(held),
            Err(gate) => gate,
        };
        bridge::park(move || {
            let _turn = turn;
            self.wait_for_readers()?;
            Ok(Shared { lock: self, _gate: gate })
        })
        .await
    }

    /// Waits until the kernel grants the read lock, and counts one reader.
    fn wait_for_readers(&self) -> Result<()> {
        loop {
            self.wait_for_kernel(Kind::Shared)?;
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            // The last of other readers may have given the kernel lock back since it was granted: it belongs to the
            // open file, not to this thread. Asking again under the mutex settles it.
            if *readers > 0 || self.try_kernel(Kind::Shared)? {
                *readers += 1;
                return Ok(());
            }
        }
    }

    /// Shares the kernel lock if it is there or free; gives the gate back if another process is in the way.
    fn enter_shared(
        self: &Arc<Self>,
        gate: OwnedRwLockReadGuard<()>,
    ) -> Result<std::result::Result<Shared, OwnedRwLockReadGuard<()>>> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if *readers == 0 && !self.try_kernel(Kind::Shared)? {
            return Ok(Err(gate));
        }
        *readers += 1;
        drop(readers);
        Ok(Ok(Shared { lock: Arc::clone(self), _gate: gate }))
    }

    /// Takes the lock alone; waits at most `timeout`, without one for ever.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`] naming the file, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing is held.
    pub(crate) async fn exclusive(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Exclusive> {
        let gate = match Arc::clone(&self.gate).try_write_owned() {
            Ok(gate) => gate,
            Err(_busy) => self.timed(timeout, Arc::clone(&self.gate).write_owned()).await?,
        };
        if self.try_kernel(Kind::Exclusive)? {
            return Ok(Exclusive { lock: Arc::clone(self), _gate: gate });
        }
        let lock = Arc::clone(self);
        let wait = bridge::park(move || {
            lock.wait_for_kernel(Kind::Exclusive)?;
            Ok(Exclusive { lock, _gate: gate })
        });
        self.timed(timeout, wait).await?
    }

    /// As [`LockFile::shared`], for blocking code.
    pub(crate) fn shared_blocking(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Shared> {
        self.blocking(timeout, |lock| lock.try_shared(), |lock| {
            // As in `wait_shared`: whoever came first may have got the kernel lock for all readers.
            let gate = blocking_read(&lock.gate);
            match lock.enter_shared(gate)? {
                Ok(held) => Ok(held),
                Err(gate) => {
                    let _turn = Arc::clone(&lock.queue).blocking_lock_owned();
                    let gate = match lock.enter_shared(gate)? {
                        Ok(held) => return Ok(held),
                        Err(gate) => gate,
                    };
                    lock.wait_for_readers()?;
                    Ok(Shared { lock: Arc::clone(lock), _gate: gate })
                }
            }
        })
    }

    /// As [`LockFile::exclusive`], for blocking code.
    pub(crate) fn exclusive_blocking(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Exclusive> {
        self.blocking(timeout, |lock| lock.try_exclusive(), |lock| {
            let gate = blocking_write(&lock.gate);
            if !lock.try_kernel(Kind::Exclusive)? {
                lock.wait_for_kernel(Kind::Exclusive)?;
            }
            Ok(Exclusive { lock: Arc::clone(lock), _gate: gate })
        })
    }

    fn blocking<G>(
        self: &Arc<Self>,
        timeout: Option<Duration>,
        attempt: impl Fn(&Arc<Self>) -> Result<Option<G>>,
        wait: impl FnOnce(&Arc<Self>) -> Result<G>,
    ) -> Result<G> {
        if let Some(guard) = attempt(self)? {
            return Ok(guard);
        }
        let Some(timeout) = timeout else { return wait(self) };
        // The kernel has no record lock with a time-out: ask again, less and less often.
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_micros(200);
        while Instant::now() < deadline {
            std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
            if let Some(guard) = attempt(self)? {
                return Ok(guard);
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Err(self.timed_out(timeout))
    }

    /// Takes the lock together with other readers if nobody is in the way.
    pub(crate) fn try_shared(self: &Arc<Self>) -> Result<Option<Shared>> {
        let Ok(gate) = Arc::clone(&self.gate).try_read_owned() else { return Ok(None) };
        Ok(self.enter_shared(gate)?.ok())
    }

    /// Takes the lock alone if nobody is in the way.
    pub(crate) fn try_exclusive(self: &Arc<Self>) -> Result<Option<Exclusive>> {
        let Ok(gate) = Arc::clone(&self.gate).try_write_owned() else { return Ok(None) };
        Ok(self.try_kernel(Kind::Exclusive)?.then(|| Exclusive { lock: Arc::clone(self), _gate: gate }))
    }

    fn try_kernel(&self, kind: Kind) -> Result<bool> {
        ofd::try_lock(self.file.as_fd(), kind).at("locking", &self.path)
    }

    fn wait_for_kernel(&self, kind: Kind) -> Result<()> {
        let started = Instant::now();
        tracing::debug!(lock = %self.path.display(), holder = self.holder(), "waiting for another process");
        ofd::lock(self.file.as_fd(), kind).at("locking", &self.path)?;
        let waited = started.elapsed();
        if waited > LONG_WAIT {
            tracing::debug!(lock = %self.path.display(), ?waited, "got the lock after a long wait");
        }
        Ok(())
    }

    /// Who is in the way, for people.
    fn holder(&self) -> String {
        match ofd::holder(self.file.as_fd()) {
            Ok(Some(Some(pid))) => {
                let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("process {pid} ({})", command.trim_end())
            }
            Ok(Some(None)) => "a process that does not say".into(),
            Ok(None) => "nobody any more".into(),
            Err(error) => error.to_string(),
        }
    }

    async fn timed<T>(&self, timeout: Option<Duration>, wait: impl Future<Output = T>) -> Result<T> {
        match timeout {
            None => Ok(wait.await),
            Some(timeout) => tokio::time::timeout(timeout, wait).await.map_err(|_elapsed| self.timed_out(timeout)),
        }
    }

    fn timed_out(&self, timeout: Duration) -> Error {
        let what = format!("waiting {timeout:?} for lock file {}, held by {}", self.path.display(), self.holder());
        ErrorKind::LockTimeout.err(what)
    }

    fn token(&self) -> Result<Token> {
        let mut bytes = [0; LENGTH];
        let mut filled = 0;
        while filled < LENGTH {
            match self.file.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).at("reading the last-write token of", &self.path),
            }
        }
        Ok(Token::from_bytes(&bytes[..filled]))
    }
}

/// Tokio's owned guards have no blocking call of their own; the waiting happens on a blocking thread, where parking
/// on a future is what a blocking call is.
fn blocking_read(gate: &Arc<RwLock<()>>) -> OwnedRwLockReadGuard<()> {
    futures::executor::block_on(Arc::clone(gate).read_owned())
}

fn blocking_write(gate: &Arc<RwLock<()>>) -> OwnedRwLockWriteGuard<()> {
    futures::executor::block_on(Arc::clone(gate).write_owned())
}

/// A lock that others may share; given back when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub(crate) struct Shared {
    lock: Arc<LockFile>,
    // After `lock` in the drop: the kernel lock ends (in `drop` below) before the gate opens.
    _gate: OwnedRwLockReadGuard<()>,
}

/// A lock that nobody else has; given back when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub(crate) struct Exclusive {
    lock: Arc<LockFile>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Shared {
    /// The last-write token as it is now.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }
}

impl Exclusive {
    /// The last-write token as it is now.
    pub(crate) fn token(&self) -> Result<Token> {
        self.lock.token()
    }

    /// Writes a new token, so that every reader reloads.
    pub(crate) fn write_token(&self) -> Result<Token> {
        let token = Token::new()?;
        let written = self.lock.file.write_at(token.as_bytes(), 0);
        let written = written.at("writing the last-write token of", &self.lock.path)?;
        if written != LENGTH {
            let short = io::Error::from(io::ErrorKind::StorageFull);
            return Err(short).at("writing the last-write token of", &self.lock.path);
        }
        Ok(token)
    }
}

fn give_back(lock: &LockFile) {
    if let Err(error) = ofd::unlock(lock.file.as_fd()) {
        tracing::warn!(lock = %lock.path.display(), %error, "cannot unlock");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut readers = self.lock.readers.lock().unwrap_or_else(PoisonError::into_inner);
        *readers = readers.saturating_sub(1);
        if *readers == 0 {
            give_back(&self.lock);
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        give_back(&self.lock);
    }
}
