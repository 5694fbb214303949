//! One request for ranges of a blob, repeated while the registry is not well.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::super::content_range::size_of_refusal;
use super::super::repository::Repository;
use super::super::retry::Failure;
use super::answer::{Answer, Fault, wrong_size};
use super::wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::store::image_manifest::Descriptor;

/// What a request came to.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Bytes come.
    Answer(Box<Answer>),
    /// The server does not serve so many ranges.
    Refused {
        asked: usize,
        error: Error,
        /// Whether it will always say so.
        is_lasting: bool,
    },
}

/// A blob of a registry, as the requests for parts of it see it.
#[derive(Debug)]
pub(crate) struct RemoteBlob {
    pub(crate) repository: Arc<Repository>,
    pub(crate) descriptor: Descriptor,
    /// Where the registry has sent a request for the blob last: the next one goes there at once.
    direct: Mutex<Option<Url>>,
}

/// Whether a status says that the request is not understood or not liked, rather than that something is amiss. Some
/// servers fail with an internal error when asked for several ranges.
fn is_refusal(status: StatusCode, is_several: bool) -> bool {
    match status.as_u16() {
        401 | 404 | 408 | 410 | 425 | 429 => false,
        400..500 | 501 | 505 => true,
        500 => is_several,
        _ => false,
    }
}

impl RemoteBlob {
    pub(crate) fn new(repository: Arc<Repository>, descriptor: Descriptor) -> Self {
        Self {
            repository,
            descriptor,
            direct: Mutex::default(),
        }
    }

    fn direct(&self) -> MutexGuard<'_, Option<Url>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `spans`.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] if the blob has another size, [`ErrorKind::NotFound`] if there is none;
    /// [`ErrorKind::Registry`] if all attempts have failed.
    pub(crate) async fn ask(&self, spans: Vec<Range<u64>>) -> Result<Reply> {
        let what = format!(
            "fetching parts of {} of {}",
            self.descriptor.digest, self.repository.image
        );
        let range = wanted::header(&spans);
        if let Some(response) = self.ask_directly(&range, &what).await {
            return self.judge(response, spans, &what);
        }
        let url = self
            .repository
            .url(&format!("blobs/{}", self.descriptor.digest))?;
        let result = self
            .repository
            .retry
            .try_run(|| self.attempt(&url, &range, &what, spans.len() > 1))
            .await;
        let response = match result {
            Ok(response) => response,
            Err(failure) if failure.status == Some(StatusCode::INTERNAL_SERVER_ERROR) => {
                return Ok(Reply::Refused {
                    asked: spans.len(),
                    error: failure.error,
                    is_lasting: false,
                });
            }
            Err(failure) => return Err(failure.error),
        };
        if response.status() == StatusCode::PARTIAL_CONTENT && *response.url() != url {
            *self.direct() = Some(response.url().clone());
        }
        self.judge(response, spans, &what)
    }

    fn request(&self, url: &Url, range: &str) -> RequestBuilder {
        let request = self.repository.request(Method::GET, url.clone());
        request.header(RANGE, range)
    }

    /// Asks where the registry has sent the last request. If anything is the matter there, the registry is to say anew
    /// where to go.
    async fn ask_directly(&self, range: &str, what: &str) -> Option<Response> {
        let url = self.direct().clone()?;
        let request = self.request(&url, range);
        match self.repository.send(&url, request, what).await {
            Ok((response, _)) if response.status() == StatusCode::PARTIAL_CONTENT => Some(response),
            Ok(_) | Err(_) => {
                *self.direct() = None;
                None
            }
        }
    }

    /// One attempt: an answer of success, or a refusal.
    async fn attempt(
        &self,
        url: &Url,
        range: &str,
        what: &str,
        is_several: bool,
    ) -> Result<Response, Failure> {
        let refusals: Vec<StatusCode> = (400..600_u16)
            .filter_map(|status| StatusCode::from_u16(status).ok())
            .filter(|status| is_refusal(*status, is_several))
            .collect();
        let request = || self.request(url, range);
        self.repository.attempt(url, request, &refusals, what).await
    }

    /// Looks at the headers of an answer.
    fn judge(&self, response: Response, spans: Vec<Range<u64>>, what: &str) -> Result<Reply> {
        let status = response.status();
        let range = response.headers().get(CONTENT_RANGE);
        if status == StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(size) = range
                .and_then(|value| value.to_str().ok())
                .and_then(size_of_refusal)
            && size != self.descriptor.size
        {
            return Err(wrong_size(&self.descriptor, size));
        }
        let asked = spans.len();
        let refused = |error, is_lasting| Reply::Refused {
            asked,
            error,
            is_lasting,
        };
        if status != StatusCode::OK && status != StatusCode::PARTIAL_CONTENT {
            let what = format!("{what}: the registry answers {status} to {asked} ranges");
            // One range may be forbidden because all of the blob is.
            let is_lasting = status.is_client_error() && (asked > 1 || status != StatusCode::FORBIDDEN);
            return Ok(refused(ErrorKind::Registry.err(what), is_lasting));
        }
        match Answer::new(response, &self.descriptor, spans) {
            Ok(answer) => Ok(Reply::Answer(Box::new(answer))),
            Err(Fault::Unfit(error)) => Ok(refused(error, true)),
            Err(Fault::Broken(error) | Fault::Wrong(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_failures_are_refusals() {
        let refused = |status, is_several| is_refusal(StatusCode::from_u16(status).unwrap(), is_several);
        for status in [400, 403, 405, 413, 416, 431, 501] {
            assert!(refused(status, true) && refused(status, false), "{status}");
        }
        for status in [401, 404, 408, 429, 502, 503, 504] {
            assert!(!refused(status, true) && !refused(status, false), "{status}");
        }
        assert!(refused(500, true) && !refused(500, false));
    }
}
