//! Steps that share their locks and their saves.
//!
//! A step is a future that runs on one thread, beside others. Between two [`Batch::save`]s it changes records, and files as
//! it likes, without waiting; at each save it waits until every other step of the batch has come to one too (or to its
//! end), and one save of each file is made for all of them. So the order of changes and saves that each step relies on
//! when a process is killed is kept, and the number of saves does not grow with the number of steps.
//!
//! What takes a step some time and needs no records, it hands to [`Batch::work`]: several threads do that for the steps of
//! a batch, each of which then works on a layer that it has [claimed](Batch::claim). No save is made meanwhile.
//!
//! What a step has changed in records since its last save is undone if it ends with an error. If a save fails, the records
//! that it was to write are as they were at the last one, and every step that has changed them gets the error.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use crate::bridge::Pool;
use crate::error::Result;
use crate::store::access::boundary::Changed;
use crate::store::access::claims::{Claim, Claims};
use crate::store::access::held::Held;
use crate::store::access::work::Work;
use crate::store::layer_store::locked::Waste;

/// What a step has of the batch in which it runs.
pub(crate) struct Batch {
    held: Rc<RefCell<Box<Held>>>,
    work: Work,
    claims: Claims,
    waits: Rc<RefCell<Waits>>,
}

/// What a step waits for.
#[derive(Default)]
enum Waits {
    #[default]
    Nothing,
    Save,
    Saved(Result<()>),
    /// For work to be done.
    Work(Arc<AtomicBool>),
    /// For a layer to be free.
    Claim(String),
}

impl Batch {
    /// Does something with what is held.
    pub(crate) fn with<T>(&self, step: impl FnOnce(&mut Held) -> Result<T>) -> Result<T> {
        step(&mut self.held.borrow_mut())
    }

    /// Saves what this step has changed, together with what the others have.
    ///
    /// # Errors
    /// Why it was not saved; what was changed since the last save is undone then.
    #[expect(clippy::future_not_send, reason = "steps stay on one thread")]
    pub(crate) async fn save(&self) -> Result<()> {
        self.waits.replace(Waits::Save);
        poll_fn(|_context| match self.waits.take() {
            Waits::Saved(result) => Poll::Ready(result),
            waits => {
                self.waits.replace(waits);
                Poll::Pending
            }
        })
        .await
    }

    /// Keeps other steps off the layer whose ID `find` returns, with what else it returns, until the claim is dropped. If another
    /// step works on it, this waits until that is done, and looks again. The step may not have changed records that are not saved.
    #[expect(clippy::future_not_send, reason = "steps stay on one thread")]
    pub(crate) async fn claim<T>(
        &self,
        find: impl Fn(&mut Held) -> Result<(String, T)>,
    ) -> Result<(Claim, T)> {
        loop {
            let (layer, found) = self.with(&find)?;
            if let Some(claim) = self.claims.claim(&layer) {
                return Ok((claim, found));
            }
            self.waits.replace(Waits::Claim(layer));
            // Polled again when the layer is free.
            yield_once().await;
            self.waits.take();
        }
    }

    /// Has something done beside what other steps do, that needs no records. It may not come after a change of records that
    /// was not saved: other steps change them meanwhile.
    #[expect(clippy::future_not_send, reason = "steps stay on one thread")]
    pub(crate) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, mut outcome) = self.work.add(work);
        self.waits.replace(Waits::Work(done));
        let outcome = poll_fn(|_context| match outcome.try_recv() {
            Ok(outcome) => Poll::Ready(outcome),
            Err(_not_done) => Poll::Pending,
        });
        let outcome = outcome.await;
        self.waits.take();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Lets the others run.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|_context| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// What a step has come to; gives its caller the answer, for which it gets the result of the last save, and what is to
/// be removed from disk.
pub(super) struct Ended {
    pub(super) failed: bool,
    pub(super) answer: Box<dyn FnOnce(Result<()>, Waste) -> Undelivered>,
}

/// An answer whose caller is gone. Dropping it may take locks, or remove trees.
pub(super) type Undelivered = Option<Box<dyn Any + Send>>;

/// What gets the payload of a panic in a step.
pub(super) type Panicked = Box<dyn FnOnce(Box<dyn Any + Send>) + Send>;

/// Starts a step.
pub(super) type Start = Box<dyn FnOnce(Batch) -> Pin<Box<dyn Future<Output = Ended>>> + Send>;

/// A step that is ready to run.
pub(super) struct Step {
    pub(super) start: Start,
    pub(super) panicked: Panicked,
    pub(super) span: tracing::Span,
}

/// A step that has begun.
struct Running {
    future: Pin<Box<dyn Future<Output = Ended>>>,
    panicked: Option<Panicked>,
    span: tracing::Span,
    waits: Rc<RefCell<Waits>>,
    /// What it has changed since its last save.
    changed: Changed,
    waste: Waste,
    ended: Option<Ended>,
}

/// Steps that are running, and what they hold in common.
pub(super) struct Steps {
    /// Declared first: whatever happens, the locks are held until nobody works any more.
    work: Closing,
    held: Rc<RefCell<Box<Held>>>,
    claims: Claims,
    running: Vec<Running>,
}

/// The work of a batch, closed when the batch ends.
struct Closing(Work);

impl Drop for Closing {
    fn drop(&mut self) {
        drop(self.0.close());
    }
}

/// A step that has ended, and what is to be removed from disk then.
pub(super) struct Answered {
    answer: Box<dyn FnOnce(Waste) -> Undelivered>,
    waste: Waste,
}

impl Answered {
    /// Has the caller remove the waste. What is returned is to be dropped without a lock.
    pub(super) fn give(self) -> Undelivered {
        (self.answer)(self.waste)
    }

    /// Whether something is to be removed.
    pub(super) fn has_waste(&self) -> bool {
        !self.waste.is_empty()
    }

    /// Removes the waste first. To be called without a lock.
    pub(super) fn give_after_removal(self) {
        drop(self.waste);
        drop((self.answer)(Waste::default()));
    }
}

/// A step has panicked: what is held may be half changed.
pub(super) struct Broken;

impl Steps {
    /// No steps yet, with these locks. Threads of `pool` help with their work.
    pub(super) fn new(held: Box<Held>, pool: &Pool) -> Self {
        Self {
            work: Closing(Work::new(pool)),
            held: Rc::new(RefCell::new(held)),
            claims: Claims::default(),
            running: Vec::new(),
        }
    }

    /// How many are running.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Adds one more.
    pub(super) fn add(&mut self, step: Step) {
        let waits = Rc::default();
        let batch = Batch {
            held: Rc::clone(&self.held),
            work: self.work.0.clone(),
            claims: self.claims.clone(),
            waits: Rc::clone(&waits),
        };
        self.running.push(Running {
            future: (step.start)(batch),
            panicked: Some(step.panicked),
            span: step.span,
            waits,
            changed: Changed::default(),
            waste: Waste::default(),
            ended: None,
        });
    }

    /// Runs every step up to its next save or to its end, saves, and returns those that have ended.
    pub(super) fn advance(&mut self) -> std::result::Result<Vec<Answered>, Broken> {
        self.run_to_save()?;
        let saved = self.held.borrow_mut().save();
        let mut answers = Vec::new();
        for step in &mut self.running {
            let result = saved.of(std::mem::take(&mut step.changed));
            match step.ended.take() {
                Some(ended) => {
                    let waste = std::mem::take(&mut step.waste);
                    let answer = ended.answer;
                    answers.push(Answered {
                        answer: Box::new(move |waste| answer(result, waste)),
                        waste,
                    });
                    step.panicked = None;
                }
                None => step.saved(result),
            }
        }
        self.running.retain(|step| step.panicked.is_some());
        Ok(answers)
    }

    fn run_to_save(&mut self) -> std::result::Result<(), Broken> {
        loop {
            // One that ends or goes on may free a layer for one before it.
            let mut ran = true;
            while std::mem::take(&mut ran) {
                for step in &mut self.running {
                    if step.can_run(&self.claims) {
                        step.run(&self.held)?;
                        ran = true;
                    }
                }
            }
            if !self.running.iter().any(Running::works) {
                return Ok(());
            }
            self.work.0.advance();
        }
    }

    /// Releases the locks.
    pub(super) fn release(mut self) {
        let left = self.work.0.close();
        let wastes = self
            .running
            .iter_mut()
            .map(|step| std::mem::take(&mut step.waste));
        let wastes: Vec<Waste> = wastes.collect();
        drop(self.running);
        drop(self.held);
        drop((wastes, left));
    }
}

impl Running {
    /// Whether it waits for nothing, or for what there is.
    fn can_run(&self, claims: &Claims) -> bool {
        self.ended.is_none()
            && match &*self.waits.borrow() {
                Waits::Nothing | Waits::Saved(_) => true,
                Waits::Save => false,
                Waits::Work(done) => done.load(Ordering::Acquire),
                Waits::Claim(layer) => claims.is_free(layer),
            }
    }

    /// Whether it waits for work.
    fn works(&self) -> bool {
        matches!(&*self.waits.borrow(), Waits::Work(_))
    }

    /// Tells it what the save has come to, if it waits for one.
    fn saved(&self, result: Result<()>) {
        let mut waits = self.waits.borrow_mut();
        // Not one that waits for a layer.
        if let Waits::Save = *waits {
            *waits = Waits::Saved(result);
        }
    }

    fn run(&mut self, held: &RefCell<Box<Held>>) -> std::result::Result<(), Broken> {
        let before = held.borrow_mut().before();
        let future = &mut self.future;
        let span = &self.span;
        // Woken by being polled again.
        let mut context = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| {
            span.in_scope(|| future.as_mut().poll(&mut context))
        }));
        let ended = match polled {
            Ok(Poll::Pending) => None,
            Ok(Poll::Ready(ended)) => Some(ended),
            Err(panic) => {
                if let Some(panicked) = self.panicked.take() {
                    panicked(panic);
                }
                return Err(Broken);
            }
        };
        let mut held = held.borrow_mut();
        self.waste.append(held.take_waste());
        match ended {
            Some(ended) if ended.failed => {
                held.roll_back(before);
                self.changed = Changed::default();
                self.ended = Some(ended);
            }
            ended => {
                self.changed.add(held.changed_since(&before));
                debug_assert!(
                    !self.works() || !held.has_unsaved(&self.changed),
                    "a step has others work although it has changed records that were not saved"
                );
                self.ended = ended;
            }
        }
        Ok(())
    }
}
