//! Which failures of a request are transient, and how long to wait before the retry.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::registry_options::RegistryOptions;
use crate::error::{Error, ErrorKind, Result};

/// One failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the same request may succeed later.
    pub(crate) transient: bool,
    /// The status of the answer, if there was one.
    pub(crate) status: Option<StatusCode>,
    /// The wait that the registry asks for.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of the connection, with all its causes.
    pub(crate) fn of_connection(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self {
            error: ErrorKind::Registry.err(what.to_owned()).with_source(error),
            transient: true,
            status: None,
            retry_after: None,
        }
    }

    /// An answer with this status and these headers.
    pub(crate) fn of_status(error: Error, status: StatusCode, headers: &HeaderMap) -> Self {
        Self {
            error,
            transient: matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504),
            status: Some(status),
            retry_after: retry_after(headers),
        }
    }
}

impl From<Error> for Failure {
    /// A failure that no retry cures.
    fn from(error: Error) -> Self {
        Self {
            error,
            transient: false,
            status: None,
            retry_after: None,
        }
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO))
}

/// How often and when failed requests are repeated.
#[derive(Clone, Debug)]
pub(crate) struct RetryPolicy {
    builder: ExponentialBuilder,
    max_wait: Duration,
}

impl RetryPolicy {
    /// As the options say, but `most` times at the most.
    pub(crate) fn new(options: &RegistryOptions, most: u32) -> Self {
        let retries = usize::try_from(options.retries.min(most)).unwrap_or(usize::MAX);
        Self {
            builder: ExponentialBuilder::default()
                .with_jitter()
                .with_min_delay(options.backoff)
                .with_max_delay(options.max_wait)
                .with_max_times(retries),
            max_wait: options.max_wait,
        }
    }

    /// The waits before the retries of one request.
    pub(crate) fn waits(&self) -> Waits {
        use backon::BackoffBuilder as _;
        Waits {
            planned: Box::new(self.builder.build()),
            max_wait: self.max_wait,
        }
    }

    /// Repeats a request until it succeeds, fails for good, or has been repeated often enough.
    pub(crate) async fn run<T, F>(&self, attempt: impl FnMut() -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        let result = self.try_run(attempt).await;
        result.map_err(|failure| failure.error)
    }

    /// As [`RetryPolicy::run`]; returns what the last attempt has failed with.
    pub(crate) async fn try_run<T, F>(&self, attempt: impl FnMut() -> F + Send) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        let max_wait = self.max_wait;
        attempt
            .retry(self.builder)
            .when(|failure| failure.transient)
            .adjust(move |failure, planned| {
                planned.map(|planned| failure.retry_after.unwrap_or(planned).min(max_wait))
            })
            .notify(|failure, wait| tracing::debug!(error = %failure.error.chain(), ?wait, "retrying"))
            .await
    }
}

/// The waits before the retries of one request; at the end there are no more retries.
pub(crate) struct Waits {
    planned: Box<dyn Iterator<Item = Duration> + Send + Sync>,
    max_wait: Duration,
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.planned.next().map(|planned| planned.min(self.max_wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(retries: u32) -> RetryPolicy {
        let options = RegistryOptions::default()
            .retries(retries)
            .backoff(Duration::from_millis(100))
            .max_wait(Duration::from_secs(3));
        RetryPolicy::new(&options, u32::MAX)
    }

    #[test]
    fn waits_grow_with_jitter_up_to_the_longest() {
        let waits: Vec<Duration> = policy(10).waits().collect();
        assert_eq!(waits.len(), 10);
        for (index, wait) in waits.iter().enumerate() {
            let least = Duration::from_millis(100 << index).min(Duration::from_secs(3));
            assert!(
                *wait >= least && *wait <= (least * 2).min(Duration::from_secs(3)),
                "{waits:?}"
            );
        }
        let other: Vec<Duration> = policy(10).waits().collect();
        assert_ne!(waits, other, "two clients do not wait in step");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_says_when_to_retry() {
        let failure = |seconds| Failure {
            error: ErrorKind::Registry.err("busy"),
            transient: true,
            status: None,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        for (asked, waited) in [(0, 0), (2, 2), (1000, 3)] {
            let start = tokio::time::Instant::now();
            let mut attempts = 0;
            let error = policy(1)
                .run(|| {
                    attempts += 1;
                    std::future::ready(Err::<(), _>(failure(asked)))
                })
                .await
                .unwrap_err();
            assert_eq!((attempts, error.kind()), (2, ErrorKind::Registry));
            assert_eq!(start.elapsed().as_secs(), waited);
        }
    }

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let headers = |text: &str| HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        assert_eq!(retry_after(&headers(" 7 ")), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after(&headers("Wed, 21 Oct 2015 07:28:00 GMT")),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
