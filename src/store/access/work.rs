//! Work on files that steps of a batch have done beside each other.
//!
//! The thread that runs a batch does it, and so do threads of the pool that come to help if there is more than one piece.
//! It waits only for what a thread has begun, never for a thread. Helpers stay for a moment when nothing is left: the next
//! pieces mostly come soon.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::bridge::Pool;

/// How many threads help: more than processors, for much of what the kernel does here is waiting.
const HELPERS: usize = 6;
/// How long a helper stays without work.
const STAY: Duration = Duration::from_micros(500);

/// What one thread does at a time.
struct Piece {
    work: Box<dyn FnOnce() + Send>,
    /// Set when it was done.
    done: Arc<AtomicBool>,
}

#[derive(Default)]
struct Pieces {
    waiting: VecDeque<Piece>,
    /// How many threads are doing one now.
    begun: usize,
    helpers: usize,
    /// Helpers that have nothing to do.
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    pieces: Mutex<Pieces>,
    /// Helpers wait for more.
    more: Condvar,
    /// The thread that runs the batch waits until one is done.
    done: Condvar,
}

/// The work of one batch.
#[derive(Clone)]
pub(super) struct Work {
    shared: Arc<Shared>,
    /// Where helpers come from.
    pool: Pool,
}

/// What a piece of work has come to.
pub(super) type Outcome<T> = std::result::Result<T, Box<dyn Any + Send>>;

impl Work {
    /// None yet; threads of `pool` help.
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            shared: Arc::default(),
            pool: pool.clone(),
        }
    }

    /// Adds a piece. Returns what says that it was done, and then gives what it has come to.
    pub(super) fn add<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (Arc<AtomicBool>, oneshot::Receiver<Outcome<T>>) {
        let (send, receive) = oneshot::channel();
        let done = Arc::<AtomicBool>::default();
        let span = tracing::Span::current();
        let work = move || drop(send.send(catch_unwind(AssertUnwindSafe(|| span.in_scope(work)))));
        let mut pieces = self.shared.lock();
        pieces.waiting.push_back(Piece {
            work: Box::new(work),
            done: Arc::clone(&done),
        });
        drop(pieces);
        (done, receive)
    }

    /// Does a piece, or waits until another thread has done one.
    pub(super) fn advance(&self) {
        let mut pieces = self.shared.lock();
        if let Some(piece) = pieces.waiting.pop_front() {
            pieces.begun += 1;
            self.call_helpers(pieces);
            self.shared.run(piece);
        } else if pieces.begun > 0 {
            drop(self.shared.done.wait(pieces));
        }
    }

    /// Has threads do what waits.
    fn call_helpers(&self, mut pieces: MutexGuard<'_, Pieces>) {
        let waiting = pieces.waiting.len();
        let woken = waiting.min(pieces.idle);
        let new = (waiting - woken).min(HELPERS.saturating_sub(pieces.helpers));
        // Without a runtime there is no pool.
        let new = if self.pool.has_runtime() { new } else { 0 };
        pieces.helpers += new;
        drop(pieces);
        for _ in 0..woken {
            self.shared.more.notify_one();
        }
        for _ in 0..new {
            let helper = Helper(Arc::clone(&self.shared));
            self.pool.start_detached(move || helper.0.help());
        }
    }

    /// Ends the work: what has not begun never does, and is returned; what has begun is waited for.
    pub(super) fn close(&self) -> impl Sized + use<> {
        let mut pieces = self.shared.lock();
        pieces.closed = true;
        let left = std::mem::take(&mut pieces.waiting);
        self.shared.more.notify_all();
        while pieces.begun > 0 {
            pieces = self
                .shared
                .done
                .wait(pieces)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(pieces);
        left
    }
}

/// A thread that helps, or that was to if the runtime had run it.
struct Helper(Arc<Shared>);

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.lock().helpers -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a piece that counts as begun.
    fn run(&self, piece: Piece) {
        (piece.work)();
        piece.done.store(true, Ordering::Release);
        self.lock().begun -= 1;
        self.done.notify_one();
    }

    /// Does pieces until there have been none for a moment.
    fn help(&self) {
        let mut free_since = Instant::now();
        let mut pieces = self.lock();
        while !pieces.closed {
            if let Some(piece) = pieces.waiting.pop_front() {
                pieces.begun += 1;
                drop(pieces);
                self.run(piece);
                free_since = Instant::now();
                pieces = self.lock();
                continue;
            }
            let Some(left) = STAY
                .checked_sub(free_since.elapsed())
                .filter(|left| !left.is_zero())
            else {
                return;
            };
            pieces.idle += 1;
            let (woken, _) = self
                .more
                .wait_timeout(pieces, left)
                .unwrap_or_else(PoisonError::into_inner);
            pieces = woken;
            pieces.idle -= 1;
        }
    }
}
