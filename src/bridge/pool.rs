//! Finite steps on tokio's blocking pool, and waits without end on threads of their own.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// Runs one blocking step on tokio's blocking pool and returns its result; a panic in `step` goes on here.
///
/// Outside of a tokio runtime it fails.
///
/// If the returned future is dropped the step still runs to its end; what it returns is dropped in a step too. So a
/// step must own everything it needs, and must leave the store consistent by itself.
pub(crate) async fn run<T, F>(step: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let span = tracing::Span::current();
    #[expect(clippy::disallowed_methods, reason = "this is the one door")]
    let task = runtime()?.spawn_blocking(move || Detached::new(span.in_scope(step)));
    match task.await {
        Ok(result) => result.into_inner(),
        Err(error) => Err(ended(error)),
    }
}

/// Runs a long computation in bounded steps, as [`run`] each. `step` says whether there is more to do. A caller that goes
/// away ends it with the current step.
pub(crate) async fn run_to_completion<S, F>(mut state: S, step: F) -> Result<S>
where
    S: Send + 'static,
    F: Fn(&mut S) -> Result<bool> + Copy + Send + 'static,
{
    loop {
        let more;
        (more, state) = run(move || Ok((step(&mut state)?, state))).await?;
        if !more {
            return Ok(state);
        }
    }
}

/// The runtime of the caller.
///
/// # Errors
/// [`ErrorKind::NotSupported`] outside of a tokio runtime.
pub(crate) fn runtime() -> Result<Handle> {
    Handle::try_current().map_err(|error| {
        ErrorKind::NotSupported
            .err("a call outside of a tokio runtime")
            .with_source(error)
    })
}

/// What a task says that has no result; a panic goes on.
fn ended(error: tokio::task::JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_shutdown) => ErrorKind::Cancelled.err("the runtime is shutting down"),
    }
}

/// Starts a blocking step that runs beside its caller and is not waited for. For work after the last await.
pub(crate) fn spawn_detached<F>(step: F)
where
    F: FnOnce() + Send + 'static,
{
    match Handle::try_current() {
        #[expect(clippy::disallowed_methods, reason = "this is the one door")]
        Ok(runtime) => drop(runtime.spawn_blocking(step)),
        Err(_no_runtime) => step(),
    }
}

/// A value whose drop may block, since it may remove a whole tree: dropped by a task, it is dropped in a step.
#[derive(Debug)]
pub(crate) struct Detached<T: Send + 'static>(
    /// `None` once it was taken out.
    Option<T>,
);

impl<T: Send + 'static> Detached<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value, for a caller that does not hold it across an await.
    pub(crate) fn into_inner(mut self) -> T {
        #[expect(clippy::expect_used, reason = "only this takes it, and it takes `self` too")]
        self.0.take().expect("a value that was not taken out")
    }
}

impl<T: Send + 'static> std::ops::Deref for Detached<T> {
    type Target = T;

    fn deref(&self) -> &T {
        #[expect(
            clippy::expect_used,
            reason = "only `into_inner` takes it, and that takes `self` too"
        )]
        self.0.as_ref().expect("a value that was not taken out")
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take()
            && std::mem::needs_drop::<T>()
        {
            spawn_detached(move || drop(value));
        }
    }
}

/// Runs a step that may block for ever (waiting for another process's lock) on a thread of its own, so that it
/// takes no place in the blocking pool and a runtime that shuts down does not wait for it.
///
/// If the returned future is dropped, the step's result is dropped on its thread.
pub(crate) async fn park<T, F>(step: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("graphroot-wait".into())
        .spawn(move || {
            // A waiter that has gone away: the value (a lock) is dropped right here.
            drop(sender.send(step()));
        });
    match spawned {
        Ok(_thread) => {}
        Err(error) => return Err(crate::error::Error::io("starting a waiting thread", error)),
    }
    match receiver.await {
        Ok(result) => result,
        Err(_gone) => Err(ErrorKind::Cancelled.err("waiting thread ended early")),
    }
}

/// Where steps run: on the pool of the runtime that is current, else of the one in which this was made.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    home: Option<Handle>,
}

impl Pool {
    /// Remembers the runtime of the caller, if it is in one.
    pub(crate) fn here() -> Self {
        Self {
            home: Handle::try_current().ok(),
        }
    }

    /// Starts a finite step. To be called from a poll, and the result to be waited for in polls.
    pub(crate) fn start<T, F>(&self, step: F) -> Running<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let runtime = Handle::try_current().ok();
        #[expect(clippy::disallowed_methods, reason = "this is the one door")]
        let task = runtime
            .as_ref()
            .or(self.home.as_ref())
            .map(|runtime| runtime.spawn_blocking(move || Detached::new(step())));
        Running { task }
    }

    /// Whether there is a runtime for steps.
    pub(crate) fn has_runtime(&self) -> bool {
        self.home.is_some() || Handle::try_current().is_ok()
    }

    /// Starts a finite step that nobody waits for. Without a runtime, or with one that is shutting down, it is dropped.
    pub(crate) fn start_detached<F>(&self, step: F)
    where
        F: FnOnce() + Send + 'static,
    {
        let runtime = Handle::try_current().ok();
        if let Some(runtime) = runtime.as_ref().or(self.home.as_ref()) {
            #[expect(clippy::disallowed_methods, reason = "this is the one door")]
            drop(runtime.spawn_blocking(step));
        }
    }
}

/// A step that was started. Dropped before it has begun, it never does; otherwise it runs to its end, and what it
/// returns is dropped in a step too.
#[derive(Debug)]
pub(crate) struct Running<T: Send + 'static> {
    /// `None`: there was no runtime.
    task: Option<JoinHandle<Detached<T>>>,
}

impl<T: Send + 'static> Future for Running<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(task) = &mut self.task else {
            return Poll::Ready(Err(ErrorKind::Cancelled.err("there is no runtime")));
        };
        match ready!(Pin::new(task).poll(cx)) {
            Ok(result) => Poll::Ready(Ok(result.into_inner())),
            Err(error) => Poll::Ready(Err(ended(error))),
        }
    }
}

impl<T: Send + 'static> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
