//! The bytes of many ranges in one stream, from as few requests as the registry allows.
//!
//! The ranges are cut into requests. Several requests are in flight, so that the way to the registry and back costs
//! time once only; their answers are read one after the other, and what waits of them stays in the buffers of their
//! connections. If an answer breaks off, what is missing of it is asked for again. If the registry does not serve so
//! many ranges at once, requests for fewer of them are made, down to one.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::super::meter::Meter;
use super::super::retry::Waits;
use super::answer::{Answer, Fault};
use super::request::{RemoteBlob, Reply};
use super::wanted::{self, Wanted};
use crate::error::{Error, ErrorKind, Result};

/// Requests in flight at a time.
const IN_FLIGHT: usize = 6;

/// Bytes that requests in flight are to bring. Another one is made while fewer are on their way: what a fast network
/// brings in the time of a round trip.
const AHEAD: u64 = 4 << 20;

/// A request and what has become of it.
struct Request {
    wanted: Wanted,
    /// Ranges that it may ask for.
    most: usize,
    state: State,
    /// Whether the present answer has brought anything.
    has_brought: bool,
}

enum State {
    Idle,
    /// One task, which ends when this is dropped.
    Asked(JoinSet<Result<Reply>>),
    Answered(Box<Answer>),
}

/// The state of a transfer.
pub(crate) struct RangeTransfer {
    blob: Arc<RemoteBlob>,
    meter: Meter,
    /// What no request was made for.
    rest: Wanted,
    /// In the order of the ranges; the answer to the first one is being read.
    requests: VecDeque<Request>,
    /// Ranges per request, if this transfer has met a refusal that need not last.
    most: usize,
    /// The waits before further attempts; begun anew once an attempt has brought something.
    waits: Waits,
    has_failed: bool,
}

impl RangeTransfer {
    pub(crate) fn new(blob: Arc<RemoteBlob>, meter: Meter, wanted: Wanted) -> Self {
        Self {
            waits: blob.repository.retry.waits(),
            has_failed: false,
            most: usize::MAX,
            requests: VecDeque::new(),
            rest: wanted,
            meter,
            blob,
        }
    }

    /// Asks, and returns when the first bytes are about to come.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] if the registry does not serve ranges, or only with much around them; those of
    /// [`RemoteBlob::ask`].
    pub(crate) async fn begin(&mut self) -> Result<()> {
        while !self.is_over() {
            self.ask()?;
            if let Some(request) = self.requests.front()
                && let State::Answered(_) = request.state
            {
                break;
            }
            self.receive().await?;
        }
        Ok(())
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self
                .requests
                .front()
                .is_some_and(|request| request.wanted.is_empty())
                && let Some(request) = self.requests.pop_front()
                && let State::Answered(answer) = request.state
            {
                answer.finish();
            }
            if self.is_over() {
                self.meter.report();
                return Ok(None);
            }
            self.ask()?;
            let Some(request) = self.requests.front_mut() else {
                continue;
            };
            let State::Answered(answer) = &mut request.state else {
                self.receive().await?;
                continue;
            };
            let fault = match answer.next(&mut request.wanted).await {
                Ok(Some(bytes)) => {
                    request.has_brought = true;
                    if std::mem::take(&mut self.has_failed) {
                        self.waits = self.blob.repository.retry.waits();
                    }
                    self.meter.add(bytes.len() as u64);
                    return Ok(Some(bytes));
                }
                Ok(None) if request.wanted.is_empty() => continue,
                // A server may cut a long range short.
                Ok(None) if request.has_brought && answer.asked() == 1 => {
                    request.state = State::Idle;
                    continue;
                }
                Ok(None) => {
                    let what = format!(
                        "receiving {}: not all parts have come",
                        self.blob.descriptor.digest
                    );
                    Fault::Unfit(ErrorKind::Registry.err(what))
                }
                Err(fault) => fault,
            };
            let asked = answer.asked();
            match fault {
                Fault::Broken(error) => {
                    request.state = State::Idle;
                    self.pause(error).await?;
                }
                Fault::Unfit(error) => self.lower(asked, error, true)?,
                Fault::Wrong(error) => return Err(error),
            }
        }
    }

    /// Waits before what has failed is tried again.
    async fn pause(&mut self, error: Error) -> Result<()> {
        self.has_failed = true;
        let Some(wait) = self.waits.next() else {
            return Err(error);
        };
        tracing::debug!(error = %error.chain(), ?wait, "retrying");
        self.meter.retrying(wait, error.chain());
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Takes all requests back, since one for `asked` ranges was refused, and plans smaller ones.
    fn lower(&mut self, asked: usize, refusal: Error, is_lasting: bool) -> Result<()> {
        self.take_back();
        let most = match asked {
            0 | 1 => 0,
            2..=20 => 1,
            more => more / 10,
        };
        tracing::debug!(error = %refusal.chain(), asked, most, "a request for ranges was refused");
        if is_lasting {
            self.blob.repository.range_limits.lower(most);
        }
        self.most = most;
        if most > 0 {
            return Ok(());
        }
        let what = format!("{} serves no parts of blobs", self.blob.repository.image);
        Err(ErrorKind::NotSupported.err(what).with_source(refusal))
    }

    /// What has not come yet.
    pub(crate) fn into_wanted(mut self) -> Wanted {
        self.take_back();
        self.rest
    }

    /// Gives up all requests.
    fn take_back(&mut self) {
        for request in std::mem::take(&mut self.requests).into_iter().rev() {
            self.rest.put_back(request.wanted);
        }
    }

    fn is_over(&self) -> bool {
        self.rest.is_empty() && self.requests.iter().all(|request| request.wanted.is_empty())
    }

    /// Makes the requests that should be in flight by now.
    fn ask(&mut self) -> Result<()> {
        let limits = &self.blob.repository.range_limits;
        let most = limits.most().min(self.most);
        // Until it is known what the registry takes, more of the same would be refused as well.
        let at_once = if limits.is_proven() { IN_FLIGHT } else { 1 };
        let mut ahead: u64 = self.requests.iter().map(|request| request.wanted.bytes()).sum();
        while !self.rest.is_empty()
            && (self.requests.is_empty() || (self.requests.len() < at_once && ahead < AHEAD))
        {
            if most == 0 {
                let what = format!("{} serves no parts of blobs", self.blob.repository.image);
                return Err(ErrorKind::NotSupported.err(what));
            }
            let wanted = self.rest.split_off(most);
            ahead += wanted.bytes();
            self.requests.push_back(Request {
                wanted,
                most,
                state: State::Idle,
                has_brought: false,
            });
        }
        for request in &mut self.requests {
            if let State::Idle = request.state {
                let (blob, spans) = (Arc::clone(&self.blob), request.wanted.spans(request.most));
                let mut task = JoinSet::new();
                task.spawn(Box::pin(async move { blob.ask(spans).await }.in_current_span()));
                request.state = State::Asked(task);
                request.has_brought = false;
            }
        }
        Ok(())
    }

    /// Waits for the answer to the first request.
    async fn receive(&mut self) -> Result<()> {
        let Some(request) = self.requests.front_mut() else {
            return Ok(());
        };
        let State::Asked(task) = &mut request.state else {
            return Ok(());
        };
        let reply = match task.join_next().await {
            Some(Ok(reply)) => reply?,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => return Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
        };
        match reply {
            Reply::Refused {
                asked,
                error,
                is_lasting,
            } => self.lower(asked, error, is_lasting),
            Reply::Answer(answer) if answer.is_whole() => self.take_whole(answer),
            Reply::Answer(answer) => {
                self.blob.repository.range_limits.served(answer.asked());
                request.state = State::Answered(answer);
                Ok(())
            }
        }
    }

    /// Takes everything from the whole blob, if that is mostly what is wanted.
    fn take_whole(&mut self, answer: Box<Answer>) -> Result<()> {
        self.take_back();
        if wanted::is_wasteful(self.rest.end(), self.rest.bytes()) {
            let what = format!(
                "fetching parts of {}: the registry sends all of it",
                self.blob.descriptor.digest
            );
            return self.lower(answer.asked(), ErrorKind::Registry.err(what), true);
        }
        self.requests.push_back(Request {
            wanted: std::mem::take(&mut self.rest),
            most: 1,
            state: State::Answered(answer),
            has_brought: false,
        });
        Ok(())
    }
}
