//! Steps that share their locks and their saves.
//!
//! A step is a future that runs on one thread, beside others. Between two [`Batch::save`]s it changes records, and files as
//! it likes, without waiting; at each save it waits until every other step of the batch has come to one too (or to its
//! end), and one save of each file is made for all of them. So the order of changes and saves that each step relies on
//! when a process is killed is kept, and the number of saves does not grow with the number of steps.
//!
//! What a step has changed in records since its last save is undone if it ends with an error. If a save fails, the records
//! that it was to write are as they were at the last one, and every step that has changed them gets the error.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::Result;
use crate::store::access::boundary::Changed;
use crate::store::access::held::Held;
use crate::store::layer_store::locked::Waste;

/// What a step has of the batch in which it runs.
pub(crate) struct Batch {
    held: Rc<RefCell<Box<Held>>>,
    save: Rc<Cell<Save>>,
}

/// How far a save of a step is.
#[derive(Default)]
enum Save {
    #[default]
    None,
    Wanted,
    Done(Result<()>),
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
        self.save.set(Save::Wanted);
        poll_fn(|_context| match self.save.take() {
            Save::Done(result) => Poll::Ready(result),
            save => {
                self.save.set(save);
                Poll::Pending
            }
        })
        .await
    }
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
    save: Rc<Cell<Save>>,
    /// What it has changed since its last save.
    changed: Changed,
    waste: Waste,
    ended: Option<Ended>,
}

/// Steps that are running, and what they hold in common.
pub(super) struct Steps {
    held: Rc<RefCell<Box<Held>>>,
    running: Vec<Running>,
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
    pub(super) fn new(held: Box<Held>) -> Self {
        Self {
            held: Rc::new(RefCell::new(held)),
            running: Vec::new(),
        }
    }

    /// How many are running.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Adds one more.
    pub(super) fn add(&mut self, step: Step) {
        let save = Rc::new(Cell::default());
        let batch = Batch {
            held: Rc::clone(&self.held),
            save: Rc::clone(&save),
        };
        self.running.push(Running {
            future: (step.start)(batch),
            panicked: Some(step.panicked),
            span: step.span,
            save,
            changed: Changed::default(),
            waste: Waste::default(),
            ended: None,
        });
    }

    /// Runs every step up to its next save or to its end, saves, and returns those that have ended.
    pub(super) fn advance(&mut self) -> std::result::Result<Vec<Answered>, Broken> {
        for step in &mut self.running {
            step.run(&self.held)?;
        }
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
                None => step.save.set(Save::Done(result)),
            }
        }
        self.running.retain(|step| step.panicked.is_some());
        Ok(answers)
    }

    /// Releases the locks.
    pub(super) fn release(mut self) {
        let wastes = self
            .running
            .iter_mut()
            .map(|step| std::mem::take(&mut step.waste));
        let wastes: Vec<Waste> = wastes.collect();
        drop(self.running);
        drop(self.held);
        drop(wastes);
    }
}

impl Running {
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
                self.ended = ended;
            }
        }
        Ok(())
    }
}
