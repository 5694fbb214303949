//! The threads that take locks and run the steps for which they suffice.
//!
//! One thread leads. What another process holds is waited for by a thread of its own, at most one for each set of locks, which
//! leads afterwards if nobody does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime;

use crate::bridge::{self, Pool};
use crate::error::{Error, ErrorKind};
use crate::lock::record_lock::{Deadline, LockFile, Patience, are_awaited, give_way};
use crate::store::access::batch::Answered;
use crate::store::access::held::Held;
use crate::store::access::needs::Needs;
use crate::store::access::queue::Waitlist;
use crate::store::inner::Inner;

/// How long a leading thread waits for tasks of this process that have a lock for a moment.
const BRIEF: Duration = Duration::from_millis(2);
/// After so many batches, or so long, it is looked whether other processes wait for the locks; they are given so long to
/// take them.
const TURN_BATCHES: u32 = 16;
const TURN_TIME: Duration = Duration::from_millis(5);
const WAY_TIME: Duration = Duration::from_millis(20);
/// How long a thread of the pool leads before it leaves the rest to another step on the pool.
const LEAD_TIME: Duration = Duration::from_millis(20);

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
pub(super) struct Lead {
    waitlist: Arc<Waitlist>,
    inner: Arc<Inner>,
    role: Role,
    /// On whose pool threads help. A thread that waits has no runtime itself.
    pool: Pool,
}

impl Lead {
    fn new(waitlist: &Arc<Waitlist>, inner: &Arc<Inner>, role: Role) -> Self {
        Self {
            waitlist: Arc::clone(waitlist),
            inner: Arc::clone(inner),
            role,
            pool: Pool::here(),
        }
    }

    /// Another one for a thread of its own, which is helped as this one is.
    fn on_own_thread(&self, role: Role) -> Self {
        Self {
            waitlist: Arc::clone(&self.waitlist),
            inner: Arc::clone(&self.inner),
            role,
            pool: self.pool.clone(),
        }
    }

    /// Leads on the blocking pool of the current runtime. The queue has it as a candidate already.
    pub(super) fn start(waitlist: &Arc<Waitlist>, inner: &Arc<Inner>, runtime: runtime::Id) {
        let mut lead = Self::new(waitlist, inner, Role::Candidate(runtime));
        bridge::spawn_detached(move || {
            if lead.take_over() {
                lead.run(Some((runtime, LEAD_TIME)));
            }
        });
    }

    /// Becomes the one that leads, unless there is one.
    fn take_over(&mut self) -> bool {
        let mut queue = self.waitlist.queue();
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
            let Some((oldest, all)) = self.waitlist.next() else {
                self.role = Role::None;
                return;
            };
            if let Some((runtime, time)) = limit
                && started.elapsed() >= time
            {
                self.role = Role::None;
                let mut queue = self.waitlist.queue();
                queue.led = false;
                let candidate = !queue.candidates.contains(&runtime);
                if candidate {
                    queue.candidates.push(runtime);
                }
                drop(queue);
                if candidate {
                    Self::start(&self.waitlist, &self.inner, runtime);
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
                    let last = self.waitlist.run_batch(held, &self.pool);
                    if !self.answer(last) {
                        return;
                    }
                    self.give_way();
                }
                Ok(None) => self.wait_for(oldest),
                Err(error) => self.waitlist.fail(&error, |step| step.needs == oldest),
            }
        }
    }

    /// Gives the last answer of a batch, after the removal of what was deleted unless others wait; that may take long, so
    /// another thread may lead meanwhile. Whether this one leads on.
    fn answer(&mut self, last: Option<Answered>) -> bool {
        let Some(last) = last else { return true };
        if !last.has_waste() || !self.waitlist.leave() {
            drop(last.give());
            return true;
        }
        self.role = Role::None;
        last.give_after_removal();
        self.take_over()
    }

    /// Leaves the locks to other processes that wait for them, from time to time.
    fn give_way(&self) {
        let now = Instant::now();
        let mut queue = self.waitlist.queue();
        let (batches, looked) = queue.turn;
        let since = looked.unwrap_or(now);
        let due = batches + 1 >= TURN_BATCHES || now.duration_since(since) >= TURN_TIME;
        queue.turn = match due {
            true => (0, Some(now)),
            false => (batches + 1, Some(since)),
        };
        let look = due && !queue.looking;
        queue.looking |= look;
        let others_wait = std::mem::take(&mut queue.others_wait);
        drop(queue);
        if look {
            // The kernel takes some milliseconds for the answer.
            let (waitlist, files) = (Arc::clone(&self.waitlist), self.lock_files());
            bridge::spawn_detached(move || {
                let awaited = are_awaited(&files);
                let mut queue = waitlist.queue();
                queue.looking = false;
                queue.others_wait |= awaited;
            });
        }
        if others_wait {
            give_way(&self.lock_files(), WAY_TIME);
        }
    }

    fn lock_files(&self) -> Vec<Arc<LockFile>> {
        let inner = &self.inner;
        let images = inner.graph_images.iter().flat_map(|images| images.lock_files());
        let files = std::iter::once(&inner.graph_lock)
            .chain(inner.layers.lock_files())
            .chain(inner.images.lock_files())
            .chain(images)
            .chain(inner.containers.lock_files());
        files.map(Arc::clone).collect()
    }

    /// Has a thread of its own wait for the locks that the oldest step needs.
    fn wait_for(&self, needs: Needs) {
        self.waitlist.queue().awaited.push(needs);
        let lead = self.on_own_thread(Role::Waiting(needs));
        let thread = std::thread::Builder::new().name("graphroot-wait".into());
        let spawned = thread.spawn(move || lead.after_waiting(needs));
        if let Err(error) = spawned {
            self.waitlist.queue().awaited.retain(|awaited| *awaited != needs);
            let error = Error::io("starting a waiting thread", error);
            self.waitlist.fail(&error, |step| step.needs == needs);
        }
    }

    /// Waits for locks, runs what needs them, and leads on if nobody else does.
    fn after_waiting(mut self, needs: Needs) {
        let timeout = self.inner.options.lock_timeout;
        let deadline = Deadline::new(timeout);
        let taken = Held::take(&self.inner, needs, Patience::Until(deadline));
        self.waitlist.queue().awaited.retain(|awaited| *awaited != needs);
        self.role = Role::None;
        match taken {
            Ok(Some(held)) => {
                if let Some(last) = self.waitlist.run_batch(held, &self.pool) {
                    drop(last.give());
                }
            }
            Ok(None) => {}
            Err(error) => {
                let timed_out = error.kind() == ErrorKind::LockTimeout;
                self.waitlist.fail(&error, |step| {
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
        let mut queue = self.waitlist.queue();
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
        let mut lead = self.on_own_thread(Role::None);
        let thread = std::thread::Builder::new().name("graphroot-lead".into());
        let spawned = thread.spawn(move || {
            if lead.take_over() {
                lead.run(None);
            }
        });
        if let Err(error) = spawned {
            let error = Error::io("starting a leading thread", error);
            self.waitlist.fail(&error, |_| true);
        }
    }
}
