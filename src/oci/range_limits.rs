//! What a registry has shown about ranges, so that each refusal is met once and not at every blob.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Ranges that one request asks for at the most. Some servers answer a request for more with the whole blob, and this
/// many in a header still fit into what servers take.
pub(crate) const MOST_RANGES: usize = 200;

/// For how long a refusal is remembered: a registry that caches another one may serve ranges once it has the blob.
const MEMORY: Duration = Duration::from_secs(600);

/// What is known of one registry.
#[derive(Debug, Default)]
pub(crate) struct RangeLimits {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Ranges per request that it takes, and since when this is known; `None`: no limit has shown.
    most: Option<(usize, Instant)>,
    /// Whether it has served as many ranges per request as it is asked for.
    is_proven: bool,
}

impl RangeLimits {
    fn state(&self) -> State {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.most.is_some_and(|(_, since)| since.elapsed() > MEMORY) {
            *state = State::default();
        }
        *state
    }

    /// Ranges that one request may ask for; 0 if not even one is served.
    pub(crate) fn most(&self) -> usize {
        self.state().most.map_or(MOST_RANGES, |(most, _)| most)
    }

    /// Whether requests of the size that [`RangeLimits::most`] allows have succeeded before.
    pub(crate) fn is_proven(&self) -> bool {
        self.state().is_proven
    }

    /// Notes a refusal: one request may ask for `most` ranges only.
    pub(crate) fn lower(&self, most: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.most.is_none_or(|(known, _)| most < known) {
            *state = State {
                most: Some((most, Instant::now())),
                is_proven: false,
            };
        }
    }

    /// Notes that a request for so many ranges was served.
    pub(crate) fn served(&self, ranges: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let single = state.most.is_some_and(|(most, _)| most == 1);
        state.is_proven |= ranges > 1 || single;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_a_while() {
        let limits = RangeLimits::default();
        assert_eq!((limits.most(), limits.is_proven()), (MOST_RANGES, false));
        limits.served(1);
        assert!(!limits.is_proven(), "says nothing about several");
        limits.served(2);
        assert!(limits.is_proven());
        limits.lower(20);
        assert_eq!((limits.most(), limits.is_proven()), (20, false));
        limits.lower(100);
        assert_eq!(limits.most(), 20);
        limits.lower(1);
        limits.served(1);
        assert_eq!((limits.most(), limits.is_proven()), (1, true));
        tokio::time::advance(MEMORY + Duration::from_secs(1)).await;
        assert_eq!((limits.most(), limits.is_proven()), (MOST_RANGES, false));
    }
}
