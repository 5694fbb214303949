//! Yields of an async task that computes.
//!
//! A reader that always has data would let one poll run for as long as the stream is, and everything else on that
//! thread of the runtime would wait. So the task yields after so many bytes, in such a way that the runtime looks at
//! its timers and sockets before it goes on.

use std::pin::pin;
use std::task::{Context, Poll};

/// Bytes read and decoded between two yields. gzip, the slowest format that is decoded on an async thread, takes about
/// half a millisecond for them.
pub(crate) const PACE: usize = 256 * 1024;

/// The largest number of bytes that are decoded in one call, for which the pace is not checked in between.
pub(crate) const STEP: usize = 128 * 1024;

/// Counts the bytes since the last yield.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    spent: usize,
}

impl Pace {
    /// Notes that `bytes` bytes were read or decoded.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// Notes that the task has waited for something else, which is as good as a yield.
    pub(crate) fn rested(&mut self) {
        self.spent = 0;
    }

    /// Pending, once, when it is time to yield.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.spent < PACE {
            return Poll::Ready(());
        }
        self.spent = 0;
        pin!(tokio::task::yield_now()).poll(cx)
    }

    /// Yields when it is time to.
    pub(crate) async fn keep(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}
