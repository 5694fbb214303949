//! Taking the lock of a lock file: at once, or waiting, from a task or a blocking thread, with a time-out.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::OwnedRwLockWriteGuard;

use crate::bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::record_lock::guards::{ExclusiveLock, SharedLock};
use crate::lock::record_lock::lock_file::LockFile;
use crate::lock::record_lock::patience::Patience;
use crate::lock::timer;
use crate::sys::ofd::Kind;

/// A wait longer than this is logged.
const NOTICE: Duration = Duration::from_secs(1);

impl LockFile {
    /// Waits for a shared lock, at most for `timeout` of real time if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`]; nothing is held then.
    ///
    /// # Cancellation
    /// Nothing is held.
    pub(crate) async fn shared(self: &Arc<Self>, timeout: Option<Duration>) -> Result<SharedLock> {
        self.within(Kind::Shared, timeout, Arc::clone(self).acquire_shared())
            .await
    }

    /// Waits for the exclusive lock, at most for `timeout` of real time if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::LockTimeout`]; nothing is held then.
    ///
    /// # Cancellation
    /// Nothing is held.
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

    /// Waits for a shared lock as long as `patience` says, on a thread that may block for as long; `None` if it has come to
    /// an end that is no time-out.
    pub(crate) fn shared_with(self: &Arc<Self>, patience: Patience) -> Result<Option<SharedLock>> {
        let wait = match patience {
            Patience::Brief(wait) => wait,
            Patience::Until(deadline) => return self.shared_blocking(deadline.left()).map(Some),
        };
        let Some(gate) = wait_for(Arc::clone(&self.gate).read_owned(), wait) else {
            return Ok(None);
        };
        Ok(self.enter_shared()?.then(|| SharedLock {
            lock: Arc::clone(self),
            _gate: gate,
        }))
    }

    /// As [`LockFile::shared_with`], for the exclusive lock.
    pub(crate) fn exclusive_with(self: &Arc<Self>, patience: Patience) -> Result<Option<ExclusiveLock>> {
        self.check_writable()?;
        let wait = match patience {
            Patience::Brief(wait) => wait,
            Patience::Until(deadline) => return self.exclusive_blocking(deadline.left()).map(Some),
        };
        let Some(gate) = wait_for(Arc::clone(&self.gate).write_owned(), wait) else {
            return Ok(None);
        };
        match self.enter_exclusive()? {
            true => Arc::clone(self).entered(gate).map(Some),
            false => Ok(None),
        }
    }

    /// A shared lock, if it is free. `None` also while another task waits for the exclusive one.
    pub(crate) fn try_shared(self: &Arc<Self>) -> Result<Option<SharedLock>> {
        let Ok(gate) = Arc::clone(&self.gate).try_read_owned() else {
            return Ok(None);
        };
        Ok(self.enter_shared()?.then(|| SharedLock {
            lock: Arc::clone(self),
            _gate: gate,
        }))
    }

    /// The exclusive lock, if it is free.
    pub(crate) fn try_exclusive(self: &Arc<Self>) -> Result<Option<ExclusiveLock>> {
        self.check_writable()?;
        let Ok(gate) = Arc::clone(&self.gate).try_write_owned() else {
            return Ok(None);
        };
        if !self.enter_exclusive()? {
            return Ok(None);
        }
        Arc::clone(self).entered(gate).map(Some)
    }

    /// The guard of the exclusive lock that has just been taken, unless the file has lost its name meanwhile.
    fn entered(self: Arc<Self>, gate: OwnedRwLockWriteGuard<()>) -> Result<ExclusiveLock> {
        let lock = ExclusiveLock {
            lock: self,
            _gate: gate,
        };
        lock.lock.check_named()?;
        Ok(lock)
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
        // The task that had the turn before may have got the lock, to be shared.
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
            return self.entered(gate);
        }
        bridge::park(move || {
            self.wait_exclusive()?;
            self.entered(gate)
        })
        .await
    }

    /// Awaits `acquire` with a limit. There is no timer unless the lock is held.
    ///
    /// The limit is real time: the holder may be another process, for which the clock of a paused tokio runtime does not
    /// count. It needs no time driver of the runtime either.
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
        // A time-out beyond the range of the clock is none.
        let end = timeout.and_then(|timeout| started.checked_add(timeout));
        let notice = started + NOTICE;
        if tracing::enabled!(tracing::Level::DEBUG) && end.is_none_or(|end| end > notice) {
            if let Some(result) = timer::until(notice, acquire.as_mut()).await? {
                return result;
            }
            self.notice(kind);
        }
        match end {
            None => acquire.await,
            Some(end) => match timer::until(end, acquire).await? {
                Some(result) => result,
                None => Err(self.timed_out(kind, started.elapsed())),
            },
        }
    }

    /// [`LockFile::within`] on this thread, without a runtime.
    fn within_blocking<T>(
        &self,
        kind: Kind,
        timeout: Option<Duration>,
        acquire: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let waker = unparks_this_thread();
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
}

fn unparks_this_thread() -> Waker {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    Waker::from(Arc::new(Unpark(std::thread::current())))
}

/// What comes of the future within this time, awaited by this thread.
fn wait_for<T>(future: impl Future<Output = T>, wait: Duration) -> Option<T> {
    let waker = unparks_this_thread();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let started = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        let left = wait.checked_sub(started.elapsed())?;
        std::thread::park_timeout(left);
    }
}

fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Shared => "shared",
        Kind::Exclusive => "exclusive",
    }
}
