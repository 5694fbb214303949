//! Deadlines in real time, for waits that another process ends.
//!
//! tokio's timers follow the clock of the runtime, which a test may have paused, and panic where the runtime has no
//! time driver. A lock is held by whole processes, so its time-out is measured with [`Instant`]: one thread of this
//! process wakes all tasks whose deadline has come. It starts with the first deadline and ends when there has been none
//! for [`LINGER`].

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long the thread stays without a deadline.
const LINGER: Duration = Duration::from_secs(2);

struct Deadlines {
    /// By time, and a number that keeps equal times apart.
    wakers: BTreeMap<(Instant, u64), Waker>,
    /// Number of the next deadline.
    next: u64,
    /// Whether the thread runs.
    served: bool,
}

static DEADLINES: Mutex<Deadlines> = Mutex::new(Deadlines {
    wakers: BTreeMap::new(),
    next: 0,
    served: false,
});

/// Notified when a deadline comes before all others.
static EARLIER: Condvar = Condvar::new();

fn deadlines() -> MutexGuard<'static, Deadlines> {
    DEADLINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Awaits `future` until `deadline`; `None` if that comes first.
///
/// # Errors
/// If the thread cannot be started.
pub(super) async fn until<F: Future>(
    deadline: Instant,
    mut future: Pin<&mut F>,
) -> Result<Option<F::Output>> {
    let mut alarm = Alarm {
        deadline,
        number: None,
    };
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(output)));
        }
        if Instant::now() >= deadline {
            return Poll::Ready(Ok(None));
        }
        match alarm.set(context.waker()) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    })
    .await
}

/// One entry of the table; removed when dropped.
struct Alarm {
    deadline: Instant,
    number: Option<u64>,
}

impl Alarm {
    fn set(&mut self, waker: &Waker) -> Result<()> {
        let waker = waker.clone();
        let mut table = deadlines();
        let number = *self.number.get_or_insert_with(|| {
            table.next = table.next.wrapping_add(1);
            table.next
        });
        let key = (self.deadline, number);
        let replaced = table.wakers.insert(key, waker);
        let earliest = table.wakers.keys().next() == Some(&key);
        if !table.served {
            std::thread::Builder::new()
                .name("graphroot-timer".into())
                .spawn(serve)
                .map_err(|error| Error::io("starting the thread for time-outs", error))?;
            table.served = true;
        } else if earliest && replaced.is_none() {
            EARLIER.notify_one();
        }
        // A waker may do anything when it is dropped: not under the mutex.
        drop(table);
        drop(replaced);
        Ok(())
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let removed = deadlines().wakers.remove(&(self.deadline, number));
            drop(removed);
        }
    }
}

/// The thread.
fn serve() {
    let mut table = deadlines();
    loop {
        let now = Instant::now();
        let later = table.wakers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut table.wakers, later);
        if !due.is_empty() {
            drop(table);
            for waker in due.into_values() {
                // A waker is code of the runtime: a panic in one must not end the thread for all others.
                drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
            }
            table = deadlines();
            continue;
        }
        let first = table.wakers.keys().next().map(|(deadline, _)| *deadline);
        let pause = first.map_or(LINGER, |first| first.saturating_duration_since(now));
        let (back, waited) = EARLIER
            .wait_timeout(table, pause)
            .unwrap_or_else(PoisonError::into_inner);
        table = back;
        if waited.timed_out() && first.is_none() && table.wakers.is_empty() {
            table.served = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::pin::pin;

    async fn sleep(pause: Duration) {
        let never = pin!(pending::<()>());
        let output = until(Instant::now() + pause, never).await.unwrap();
        assert!(output.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn every_deadline_comes_and_none_too_early() {
        let started = Instant::now();
        let all = (0..50).map(|n| async move {
            let pause = Duration::from_millis(n * 37 % 50);
            sleep(pause).await;
            assert!(started.elapsed() >= pause);
        });
        futures::future::join_all(all).await;
    }

    #[tokio::test]
    async fn what_is_ready_comes_first_and_what_is_dropped_leaves_nothing() {
        let ready = pin!(async { 7 });
        assert_eq!(until(Instant::now(), ready).await.unwrap(), Some(7));

        let far = Instant::now() + Duration::from_secs(3600);
        let mut waiting = Box::pin(async {
            let never = pin!(pending::<()>());
            until(far, never).await
        });
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(deadlines().wakers.keys().any(|(deadline, _)| *deadline == far));
        drop(waiting);
        assert!(!deadlines().wakers.keys().any(|(deadline, _)| *deadline == far));
        // An earlier deadline is not missed while the thread waits for a later one.
        let mut waiting = Box::pin(async {
            let never = pin!(pending::<()>());
            until(far, never).await
        });
        assert!(futures::poll!(&mut waiting).is_pending());
        sleep(Duration::from_millis(5)).await;
        drop(waiting);
    }
}
