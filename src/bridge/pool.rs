//! Finite steps on tokio's blocking pool, and waits without end on threads of their own.

use crate::error::{ErrorKind, Result};

/// Runs one blocking step on tokio's blocking pool and returns its result; a panic in `step` goes on here.
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
    let task = tokio::task::spawn_blocking(move || Detached::new(span.in_scope(step)));
    match task.await {
        Ok(result) => result.into_inner(),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_shutdown) => Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
    }
}

/// Starts a blocking step that runs beside its caller; nobody waits for it. For work after the last await.
pub(crate) fn spawn_detached<F>(step: F)
where
    F: FnOnce() + Send + 'static,
{
    match tokio::runtime::Handle::try_current() {
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
