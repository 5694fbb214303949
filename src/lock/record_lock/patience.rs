//! How long a thread waits for locks.

use std::time::{Duration, Instant};

/// How long a thread waits for locks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// For the tasks of this process so long, for other processes not at all.
    Brief(Duration),
    /// For all of them; a time-out is an error.
    Until(Deadline),
}

/// The end of a time-out that covers several locks, if there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    /// The time-out begins now.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| (Instant::now(), timeout)))
    }

    /// The time that is left.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.0
            .map(|(start, timeout)| timeout.saturating_sub(start.elapsed()))
    }
}
