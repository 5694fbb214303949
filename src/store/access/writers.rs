//! The steps that wait for locks, and the thread that takes these and runs all steps that they suffice for.
//!
//! Whoever has a step puts it in the queue. If no thread leads, one does from then on, on the blocking pool: it takes the
//! locks that the waiting steps need between them, if they are free, runs the steps as one [batch](super::batch), lets the
//! locks go, and goes on until no step waits. Steps that arrive while a batch runs join it, as long as it is not too old.
//! So a lock is taken by the thread that uses it, and never held while waiting for a thread.
//!
//! If another process holds one of the locks, a thread of its own waits for what the oldest step needs, at most one for each
//! set of locks, and leads afterwards. Meanwhile steps with other needs go on.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::record_lock::{Deadline, Patience, give_way};
use crate::store::access::batch::{Answered, Batch, Broken, Ended, Step, Steps, Undelivered};
use crate::store::access::held::Held;
use crate::store::access::needs::Needs;
use crate::store::inner::Inner;
use crate::store::layer_store::locked::Waste;

/// How long a leading thread waits for tasks of this process that have a lock for a moment.
const BRIEF: Duration = Duration::from_millis(2);
/// How long, and for how many steps, a batch admits more.
const BATCH_TIME: Duration = Duration::from_millis(4);
const BATCH_STEPS: usize = 64;
/// After so many batches, or so long, it is looked whether other processes wait for the locks; they are given so long to
/// take them.
const TURN_BATCHES: u32 = 16;
const TURN_TIME: Duration = Duration::from_millis(5);
const WAY_TIME: Duration = Duration::from_millis(20);
/// How long a thread of the pool leads before it leaves the rest to another step on the pool.
const LEAD_TIME: Duration = Duration::from_millis(20);

/// A step that waits for its locks.
struct Waiting {
    number: u64,
    needs: Needs,
    /// Whether no other step may run in its batch.
    alone: bool,
    since: Instant,
    step: Step,
    failed: Box<dyn FnOnce(Error) + Send>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Waiting>,
    /// Whether a thread leads.
    led: bool,
    /// The runtimes on whose pools a thread is to lead if none does by then: each may be busy for long.
    candidates: Vec<runtime::Id>,
    /// What threads of their own wait for.
    awaited: Vec<Needs>,
    /// The batches since it was last looked whether other processes wait, and when that was.
    turn: (u32, Option<Instant>),
}

/// The steps of one store. Only the handles of the store have it: it says that the store is in use, which threads that are
/// about to end do not.
#[derive(Default)]
pub(crate) struct Writers(Arc<Waitlist>);

/// The queue, which the threads that lead have too.
#[derive(Default)]
struct Waitlist(Mutex<Queue>);

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
        let _place = self.0.enqueue(inner, runtime, request, step, failed);
        match answered.await {
            Ok(Answer::Ended(result, None)) => result,
            Ok(Answer::Ended(result, Some(waste))) => {
                let removed = bridge::run(move || {
                    drop(waste.into_inner());
                    Ok(())
                });
                removed.await?;
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
}

/// What a caller gets.
enum Answer<T> {
    /// The result, and what is to be removed from disk before the caller goes on.
    Ended(Result<T>, Option<bridge::Detached<Waste>>),
    Panicked(Box<dyn std::any::Any + Send>),
}

/// Takes a step out of the queue when its caller is dropped, unless it has begun.
struct Place<'a> {
    writers: &'a Waitlist,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.writers.queue();
        let waiting = queue.waiting.iter().position(|step| step.number == self.number);
        let step = waiting.and_then(|at| queue.waiting.remove(at));
        drop(queue);
        if let Some(step) = step {
            // It may own a whole tree.
            bridge::spawn_detached(move || drop(step));
        }
    }
}

/// How a step is to be run.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) needs: Needs,
    pub(super) alone: bool,
}

impl Waitlist {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        runtime: runtime::Id,
        request: Request,
        step: Step,
        failed: Box<dyn FnOnce(Error) + Send>,
    ) -> Place<'_> {
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
        if candidate {
            Lead::start(self, inner, runtime);
        }
        Place {
            writers: self,
            number,
        }
    }

    /// What the oldest step needs, and what those need together that wait for no other thread. If there are none, nobody
    /// leads any more.
    fn next(&self) -> Option<(Needs, Needs)> {
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
    fn fail(&self, error: &Error, failed: impl Fn(&Waiting) -> bool) {
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

    /// Runs the steps for which these locks suffice. The answer of one that nothing ran beside is left to the caller.
    fn run_batch(&self, held: Box<Held>) -> Option<Answered> {
        let needs = held.needs();
        let mut steps = Steps::new(held);
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

    /// Whether steps wait for a thread that leads.
    fn has_waiting(&self) -> bool {
        !self.queue().waiting.is_empty()
    }

    /// Has a thread of its own wait for the locks that the oldest step needs.
    fn wait_for(self: &Arc<Self>, inner: &Arc<Inner>, needs: Needs) {
        self.queue().awaited.push(needs);
        let lead = Lead::new(self, inner, Role::Waiting(needs));
        let thread = std::thread::Builder::new().name("graphroot-wait".into());
        let spawned = thread.spawn(move || lead.after_waiting(needs));
        if let Err(error) = spawned {
            self.queue().awaited.retain(|awaited| *awaited != needs);
            let error = Error::io("starting a waiting thread", error);
            self.fail(&error, |step| step.needs == needs);
        }
    }
}

/// What a thread is for the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    /// It waits for these locks.
    Waiting(Needs),
    /// It is to lead if none does when it runs, on the pool of this runtime.
    Candidate(runtime::Id),
    Leader,
}

/// A thread that leads, or may come to.
struct Lead {
    writers: Arc<Waitlist>,
    inner: Arc<Inner>,
    role: Role,
}

impl Lead {
    fn new(writers: &Arc<Waitlist>, inner: &Arc<Inner>, role: Role) -> Self {
        Self {
            writers: Arc::clone(writers),
            inner: Arc::clone(inner),
            role,
        }
    }

    /// Leads on the blocking pool of the current runtime. The queue has it as a candidate already.
    fn start(writers: &Arc<Waitlist>, inner: &Arc<Inner>, runtime: runtime::Id) {
        let mut lead = Self::new(writers, inner, Role::Candidate(runtime));
        bridge::spawn_detached(move || {
            if lead.take_over() {
                lead.run(Some((runtime, LEAD_TIME)));
            }
        });
    }

    /// Becomes the one that leads, unless there is one.
    fn take_over(&mut self) -> bool {
        let mut queue = self.writers.queue();
        if let Role::Candidate(runtime) = self.role {
            queue.candidates.retain(|candidate| *candidate != runtime);
        }
        self.role = match std::mem::replace(&mut queue.led, true) {
            true => Role::None,
            false => Role::Leader,
        };
        self.role == Role::Leader
    }

    /// Runs batches until no step waits, or on the pool of a runtime for so long.
    fn run(mut self, limit: Option<(runtime::Id, Duration)>) {
        let started = Instant::now();
        loop {
            let Some((oldest, all)) = self.writers.next() else {
                self.role = Role::None;
                return;
            };
            if let Some((runtime, time)) = limit
                && started.elapsed() >= time
            {
                self.role = Role::None;
                let mut queue = self.writers.queue();
                queue.led = false;
                let candidate = !queue.candidates.contains(&runtime);
                if candidate {
                    queue.candidates.push(runtime);
                }
                drop(queue);
                if candidate {
                    Self::start(&self.writers, &self.inner, runtime);
                }
                return;
            }
            let brief = Patience::Brief(BRIEF);
            let mut taken = Held::take(&self.inner, all, brief);
            if all != oldest && !matches!(taken, Ok(Some(_))) {
                // Something is wrong, or busy, that the oldest step perhaps does not need.
                taken = Held::take(&self.inner, oldest, brief);
            }
            match taken {
                Ok(Some(held)) => {
                    let last = self.writers.run_batch(held);
                    if !self.answer(last) {
                        return;
                    }
                    self.give_way();
                }
                Ok(None) => self.writers.wait_for(&self.inner, oldest),
                Err(error) => self.writers.fail(&error, |step| step.needs == oldest),
            }
        }
    }

    /// Gives the last answer of a batch, after the removal of what was deleted unless others wait; that may take long, so
    /// another thread may lead meanwhile. Whether this one leads on.
    fn answer(&mut self, last: Option<Answered>) -> bool {
        let Some(last) = last else { return true };
        if !last.has_waste() || self.writers.has_waiting() {
            drop(last.give());
            return true;
        }
        self.writers.queue().led = false;
        self.role = Role::None;
        last.give_after_removal();
        self.take_over()
    }

    /// Leaves the locks to other processes that wait for them, from time to time.
    fn give_way(&self) {
        let now = Instant::now();
        let mut queue = self.writers.queue();
        let (batches, looked) = queue.turn;
        let since = looked.unwrap_or(now);
        let due = batches + 1 >= TURN_BATCHES || now.duration_since(since) >= TURN_TIME;
        queue.turn = match due {
            true => (0, Some(now)),
            false => (batches + 1, Some(since)),
        };
        drop(queue);
        if due {
            let inner = &self.inner;
            let mut files = vec![&inner.graph_lock];
            files.extend(inner.layers.lock_files());
            files.extend(inner.images.lock_files());
            files.extend(inner.graph_images.iter().flat_map(|images| images.lock_files()));
            files.extend(inner.containers.lock_files());
            give_way(&files, WAY_TIME);
        }
    }

    /// Waits for locks, runs what needs them, and leads on if nobody else does.
    fn after_waiting(mut self, needs: Needs) {
        let timeout = self.inner.options.lock_timeout;
        let deadline = Deadline::new(timeout);
        let taken = Held::take(&self.inner, needs, Patience::Until(deadline));
        self.writers.queue().awaited.retain(|awaited| *awaited != needs);
        self.role = Role::None;
        match taken {
            Ok(Some(held)) => {
                if let Some(last) = self.writers.run_batch(held) {
                    drop(last.give());
                }
            }
            Ok(None) => {}
            Err(error) => {
                let timed_out = error.kind() == ErrorKind::LockTimeout;
                self.writers.fail(&error, |step| {
                    let old = timeout.is_none_or(|timeout| step.since.elapsed() >= timeout);
                    step.needs == needs && (old || !timed_out)
                });
            }
        }
        if self.take_over() {
            self.run(None);
        }
    }
}

/// The runtime is shutting down and has not run it, or a panic has ended it: others may still wait.
impl Drop for Lead {
    fn drop(&mut self) {
        let mut queue = self.writers.queue();
        match self.role {
            Role::None => return,
            Role::Waiting(needs) => queue.awaited.retain(|awaited| *awaited != needs),
            Role::Candidate(runtime) => queue.candidates.retain(|candidate| *candidate != runtime),
            Role::Leader => queue.led = false,
        }
        if queue.led || queue.waiting.is_empty() {
            return;
        }
        drop(queue);
        let mut lead = Self::new(&self.writers, &self.inner, Role::None);
        let thread = std::thread::Builder::new().name("graphroot-lead".into());
        let spawned = thread.spawn(move || {
            if lead.take_over() {
                lead.run(None);
            }
        });
        if let Err(error) = spawned {
            let error = Error::io("starting a leading thread", error);
            self.writers.fail(&error, |_| true);
        }
    }
}
