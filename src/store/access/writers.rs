//! Running steps: whoever has one waits for its answer here.
//!
//! Whoever has a step puts it in the [queue](super::queue). If no thread [leads](super::lead), one does from then on, on the
//! blocking pool: it takes the locks that the waiting steps need between them, if they are free, runs the steps as one
//! [batch](super::batch), lets the locks go, and goes on until no step waits. Steps that arrive while a batch runs join it,
//! as long as it is not too old. So a lock is taken by the thread that uses it, and never held while waiting for a thread.
//!
//! If another process holds one of the locks, a thread of its own waits for what the oldest step needs. Meanwhile steps with
//! other needs go on.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use tokio::sync::oneshot;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::store::access::batch::{Batch, Ended, Step, Undelivered};
use crate::store::access::lead::Lead;
use crate::store::access::queue::{Request, Waitlist};
use crate::store::inner::Inner;
use crate::store::layer_store::locked::Waste;

/// The steps of one store. Only the handles of the store have it: it says that the store is in use, which threads that are
/// about to end do not.
#[derive(Default)]
pub(crate) struct Writers(Arc<Waitlist>);

impl Writers {
    /// Runs a step.
    ///
    /// If dropped: nothing has happened, or the step runs to its end.
    pub(super) async fn run<T, F>(
        &self,
        inner: &Arc<Inner>,
        request: Request,
        step: impl FnOnce(Batch) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let runtime = bridge::runtime()?.id();
        let (answer, answered) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        let send = move |what: Answer<T>| -> Undelivered {
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let undelivered = answer.and_then(|answer| answer.send(what).err());
            undelivered.map(|what| Box::new(what) as Box<dyn std::any::Any + Send>)
        };
        let (ended, panicked, failed) = (send.clone(), send.clone(), send);
        let start = Box::new(move |batch| {
            let future = step(batch);
            let ended = future.map(move |result| Ended {
                failed: result.is_err(),
                answer: Box::new(move |saved, waste: Waste| {
                    let result = result.and_then(|value| saved.map(|()| value));
                    let waste = (!waste.is_empty()).then(|| bridge::Detached::new(waste));
                    ended(Answer::Ended(result, waste))
                }),
            });
            ended.boxed_local()
        });
        let step = Step {
            start,
            panicked: Box::new(move |payload| drop(panicked(Answer::Panicked(payload)))),
            span: tracing::Span::current(),
        };
        let failed = Box::new(move |error| drop(failed(Answer::Ended(Err(error), None))));
        let (_place, leads) = self.0.add(runtime, request, step, failed);
        if leads {
            Lead::start(&self.0, inner, runtime);
        }
        match answered.await {
            Ok(Answer::Ended(result, None)) => result,
            Ok(Answer::Ended(result, Some(waste))) => {
                let removed = bridge::run(move || {
                    drop(waste.into_inner());
                    Ok(())
                });
                // What is left is removed when the store is opened next.
                drop(removed.await);
                result
            }
            Ok(Answer::Panicked(payload)) => resume_unwind(payload),
            Err(_dropped) => Err(ErrorKind::Cancelled.err("the step of the store ended early")),
        }
    }

    /// How many steps wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.queue().waiting.len()
    }

    /// Whether a thread of its own waits for locks.
    #[cfg(test)]
    pub(super) fn has_waiting_thread(&self) -> bool {
        !self.0.queue().awaited.is_empty()
    }
}

/// What a caller gets.
enum Answer<T> {
    /// The result, and what is to be removed from disk before the caller goes on.
    Ended(Result<T>, Option<bridge::Detached<Waste>>),
    Panicked(Box<dyn std::any::Any + Send>),
}
