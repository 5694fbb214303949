//! graphroot's own threads, for work that lasts as long as the stream it reads.
//!
//! Such work must not occupy tokio's blocking pool: the stream may need a place in that pool itself (a
//! `tokio::fs::File`, a diff of the same store), and a slow peer would keep it for as long as it likes. The threads are
//! shared by all stores of the process. How many there are is bounded by the callers: each takes a permit of its store
//! (`StoreOptions::max_unpacks`) first. A thread without work ends after [`IDLE`].
//!
//! They belong to no runtime. A runtime that shuts down drops the futures that feed them, upon which their work fails
//! and they go idle.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bridge::pool::{Detached, spawn_detached};
use crate::error::{Error, ErrorKind, Result};

/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(2);

/// Name of the threads; the kernel keeps 15 bytes.
const NAME: &str = "graphroot-apply";

/// Size of a stack, as in tokio's pool.
const STACK: usize = 2 * 1024 * 1024;

type Job = Box<dyn FnOnce() + Send>;

static THREADS: UnpackThreads = UnpackThreads::new(IDLE, STACK);

/// Runs `job` on an unpack thread and returns its result.
///
/// If the returned future is dropped the job runs on until it finds out by itself (the stream that it reads was
/// dropped too); what it returns is dropped where blocking is allowed.
///
/// # Errors
/// That of `job`; [`ErrorKind::Cancelled`] if it panics; [`ErrorKind::Io`] if no thread can be started.
pub(crate) async fn unpack<T, F>(job: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let span = tracing::Span::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let job: Job = Box::new(move || {
        let caught = catch_unwind(AssertUnwindSafe(|| span.in_scope(job)));
        let result = caught.unwrap_or_else(|panic| Err(panicked(&*panic)));
        // Without a receiver it is dropped here, and this thread may block.
        drop(sender.send(Detached::new(result)));
    });
    if let Err((error, job)) = THREADS.start(job) {
        // It may own a tree that is removed with it.
        spawn_detached(move || drop(job));
        return Err(Error::io("starting a thread that unpacks the layer", error));
    }
    match receiver.await {
        Ok(result) => result.into_inner(),
        Err(_dropped) => Err(ErrorKind::Cancelled.err("the thread that unpacks the layer ended early")),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    ErrorKind::Cancelled.err(format!("unpacking panicked: {}", text.unwrap_or("no message")))
}

/// Threads that start on demand and end when idle.
struct UnpackThreads {
    idle_time: Duration,
    stack: usize,
    state: Mutex<State>,
    queued: Condvar,
}

/// Every job in the queue has a thread: a waiting one that was notified, or one that is starting.
struct State {
    queue: VecDeque<Job>,
    waiting: usize,
}

impl UnpackThreads {
    const fn new(idle_time: Duration, stack: usize) -> Self {
        Self {
            idle_time,
            stack,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                waiting: 0,
            }),
            queued: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `job` to a thread; back if none can be started.
    fn start(&'static self, job: Job) -> std::result::Result<(), (io::Error, Job)> {
        let mut state = self.state();
        if state.waiting > state.queue.len() {
            state.queue.push_back(job);
            drop(state);
            self.queued.notify_one();
            return Ok(());
        }
        // Under the lock, so that no other thread takes the job whose thread could not be started.
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .stack_size(self.stack);
        match thread.spawn(|| self.work()) {
            Ok(_thread) => {
                state.queue.push_back(job);
                Ok(())
            }
            Err(error) => Err((error, job)),
        }
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state();
                continue;
            }
            state.waiting += 1;
            let waited = self
                .queued
                .wait_timeout_while(state, self.idle_time, |state| state.queue.is_empty());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            if state.queue.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};

    const LONG: Duration = Duration::from_secs(3600);

    fn threads(idle_time: Duration) -> &'static UnpackThreads {
        Box::leak(Box::new(UnpackThreads::new(idle_time, STACK)))
    }

    /// Starts a job that says on which thread it is, and ends when the returned sender is used or dropped.
    fn start(threads: &'static UnpackThreads) -> (ThreadId, mpsc::Sender<()>) {
        let (said, says) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let job = move || {
            said.send(thread::current().id()).unwrap();
            let _ended: std::result::Result<(), mpsc::RecvError> = ends.recv();
        };
        assert!(threads.start(Box::new(job)).is_ok());
        (says.recv().unwrap(), end)
    }

    fn wait_for(threads: &UnpackThreads, waiting: usize) {
        while threads.state().waiting != waiting {
            thread::yield_now();
        }
    }

    #[test]
    fn jobs_run_beside_each_other_and_threads_are_used_again() {
        let threads = threads(LONG);
        let running: Vec<_> = (0..5).map(|_| start(threads)).collect();
        let mut ids: Vec<_> = running.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        assert_eq!(ids.len(), 5, "no job waits for another");
        drop(running);
        wait_for(threads, 5);
        let (id, _end) = start(threads);
        assert!(ids.contains(&id));
    }

    #[test]
    fn an_idle_thread_ends() {
        let threads = threads(Duration::from_millis(1));
        let (first, end) = start(threads);
        drop(end);
        // A thread that has ended is never given a job again, so another one comes sooner or later.
        while start(threads).0 == first {
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_thread_that_cannot_be_started_gives_the_job_back() {
        let threads = Box::leak(Box::new(UnpackThreads::new(LONG, usize::MAX / 4)));
        let (ran, runs) = mpsc::channel();
        let Err((_error, job)) = threads.start(Box::new(move || ran.send(()).unwrap())) else {
            panic!("no stack is that large");
        };
        assert!(threads.state().queue.is_empty());
        job();
        runs.recv().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_job_alone() {
        let error = unpack::<(), _>(|| panic!("as the test wants")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.chain().contains("as the test wants"), "{}", error.chain());
        assert_eq!(unpack(|| Ok(7)).await.unwrap(), 7);
    }

    /// Says on which thread it is dropped.
    struct Guard(mpsc::Sender<ThreadId>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap_or_default();
        }
    }

    #[test]
    fn a_result_that_nobody_takes_is_dropped_off_the_async_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (sender, dropped) = mpsc::channel();
        runtime.block_on(async {
            let (go, goes) = mpsc::channel();
            let (done, is_done) = mpsc::channel();
            let mut job = Box::pin(unpack(move || {
                goes.recv().unwrap();
                done.send(()).unwrap();
                Ok(Guard(sender))
            }));
            // The job waits, so that its result cannot come with the first poll.
            assert!(futures::poll!(&mut job).is_pending());
            go.send(()).unwrap();
            is_done.recv().unwrap();
            drop(job);
        });
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
    }
}
