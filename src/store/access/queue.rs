//! The steps that wait for locks, and running those for which the locks suffice.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime;

use crate::bridge::{self, Pool};
use crate::error::Error;
use crate::store::access::batch::{Answered, Broken, Step, Steps};
use crate::store::access::held::Held;
use crate::store::access::needs::Needs;

/// How long, and for how many steps, a batch admits more.
const BATCH_TIME: Duration = Duration::from_millis(4);
const BATCH_STEPS: usize = 64;

/// A step that waits for its locks.
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) needs: Needs,
    /// Whether no other step may run in its batch.
    pub(super) alone: bool,
    pub(super) since: Instant,
    pub(super) step: Step,
    pub(super) failed: Box<dyn FnOnce(Error) + Send>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) next: u64,
    pub(super) waiting: VecDeque<Waiting>,
    /// Whether a thread leads.
    pub(super) led: bool,
    /// The runtimes on whose pools a thread is to lead if none does by then: each may be busy for long.
    pub(super) candidates: Vec<runtime::Id>,
    /// What threads of their own wait for.
    pub(super) awaited: Vec<Needs>,
    /// The batches since it was last looked whether other processes wait, and when that was.
    pub(super) turn: (u32, Option<Instant>),
    /// Whether a thread is looking now, and whether one has seen that others wait.
    pub(super) looking: bool,
    pub(super) others_wait: bool,
}

/// How a step is to be run.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) needs: Needs,
    pub(super) alone: bool,
}

/// The queue, which the threads that lead have too.
#[derive(Default)]
pub(super) struct Waitlist(Mutex<Queue>);

impl Waitlist {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a step in the queue. Also whether its runtime is to start a thread that leads.
    pub(super) fn add(
        &self,
        runtime: runtime::Id,
        request: Request,
        step: Step,
        failed: Box<dyn FnOnce(Error) + Send>,
    ) -> (Place<'_>, bool) {
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Waiting {
            number,
            needs: request.needs,
            alone: request.alone,
            since: Instant::now(),
            step,
            failed,
        });
        let candidate = !queue.led && !queue.candidates.contains(&runtime);
        if candidate {
            queue.candidates.push(runtime);
        }
        drop(queue);
        let place = Place {
            waitlist: self,
            number,
        };
        (place, candidate)
    }

    /// What the oldest step needs, and what those need together that wait for no other thread. If there are none, nobody
    /// leads any more.
    pub(super) fn next(&self) -> Option<(Needs, Needs)> {
        let mut queue = self.queue();
        let mut oldest = None;
        let mut all = Needs::default();
        for step in &queue.waiting {
            if queue.awaited.contains(&step.needs) {
                continue;
            }
            if oldest.is_none() {
                oldest = Some(step.needs);
                all = step.needs;
                if step.alone {
                    break;
                }
            } else if !step.alone {
                all = all.union(step.needs);
            }
        }
        queue.led = oldest.is_some();
        oldest.map(|oldest| (oldest, all))
    }

    /// The next step that can run with these locks; one that runs alone only if `none` runs yet.
    fn admit(&self, held: Needs, none: bool) -> Option<Waiting> {
        let mut queue = self.queue();
        let fits = |step: &Waiting| step.needs.is_covered_by(held);
        let first = queue.waiting.iter().position(fits)?;
        if !none && queue.waiting.get(first).is_some_and(|step| step.alone) {
            return None;
        }
        queue.waiting.remove(first)
    }

    /// Takes the steps out of the queue for which `failed` holds, and gives them the error.
    pub(super) fn fail(&self, error: &Error, failed: impl Fn(&Waiting) -> bool) {
        let mut queue = self.queue();
        let (gone, waiting) = std::mem::take(&mut queue.waiting)
            .into_iter()
            .partition(|step| failed(step));
        queue.waiting = waiting;
        drop(queue);
        let gone: VecDeque<Waiting> = gone;
        for step in gone {
            (step.failed)(error.again());
            drop(step.step);
        }
    }

    /// Runs the steps for which these locks suffice; threads of `pool` help. The answer of one that nothing ran beside is left to the caller.
    pub(super) fn run_batch(&self, held: Box<Held>, pool: &Pool) -> Option<Answered> {
        let needs = held.needs();
        let mut steps = Steps::new(held, pool);
        let started = Instant::now();
        let mut admitted = 0;
        let mut undelivered = Vec::new();
        let mut last: Option<Answered> = None;
        let mut alone = false;
        loop {
            while admitted < BATCH_STEPS
                && !alone
                && (admitted == 0 || started.elapsed() < BATCH_TIME)
                && let Some(step) = self.admit(needs, steps.len() == 0)
            {
                alone = step.alone;
                admitted += 1;
                steps.add(step.step);
            }
            if steps.len() == 0 {
                break;
            }
            undelivered.extend(last.take().map(Answered::give));
            match steps.advance() {
                Ok(answers) if admitted == 1 => last = answers.into_iter().next(),
                Ok(answers) => undelivered.extend(answers.into_iter().map(Answered::give)),
                Err(Broken) => break,
            }
        }
        steps.release();
        drop(undelivered);
        last
    }

    /// Nobody leads any more, unless steps wait. Whether that is so.
    pub(super) fn leave(&self) -> bool {
        let mut queue = self.queue();
        queue.led = !queue.waiting.is_empty();
        !queue.led
    }
}

/// Takes a step out of the queue when its caller is dropped, unless it has begun.
pub(super) struct Place<'a> {
    waitlist: &'a Waitlist,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.waitlist.queue();
        let waiting = queue.waiting.iter().position(|step| step.number == self.number);
        let step = waiting.and_then(|at| queue.waiting.remove(at));
        drop(queue);
        if let Some(step) = step {
            // It may own a whole tree.
            bridge::spawn_detached(move || drop(step));
        }
    }
}
