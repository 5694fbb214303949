//! The download of one blob from a registry, resumable: after a connection that breaks, stalls, or ends early the next
//! request begins at the first missing byte. So does that to the registry itself, where a mirror fails.
//!
//! With a partial file, the bytes are also written there, and what an earlier download has left in it is read first
//! instead of being requested again. The reader of the stream verifies the whole blob before it uses anything of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::stream::try_unfold;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio_util::io::StreamReader;

use super::content_range::ContentRange;
use super::meter::Meter;
use super::partial::Partial;
use super::places::Places;
use super::repository::Repository;
use super::retry::Waits;
use crate::error::{Error, ErrorKind, Result};
use crate::options::BoxReader;
use crate::store::image_manifest::Descriptor;

/// The state of a transfer.
pub(crate) struct Transfer {
    places: Arc<Places>,
    /// The number of the place that is asked.
    place: usize,
    /// What is there, once it was asked.
    repository: Option<Arc<Repository>>,
    blob: Descriptor,
    meter: Meter,
    /// Bytes handed on.
    offset: u64,
    /// The answer that is being read.
    body: Option<Response>,
    /// Bytes of the answer that were handed on before, since it does not begin where it should.
    skip: u64,
    /// The waits before further attempts; begun anew once an attempt has brought something.
    waits: Option<Waits>,
    partial: Option<Partial>,
}

impl Transfer {
    /// A stream of the blob. Nothing is asked for before it is read.
    pub(crate) fn start(
        places: Arc<Places>,
        blob: Descriptor,
        meter: Meter,
        partial: Option<Partial>,
    ) -> BoxReader {
        let transfer = Self {
            place: places.first(),
            repository: None,
            waits: None,
            places,
            blob,
            meter,
            offset: 0,
            body: None,
            skip: 0,
            partial,
        };
        let stream = try_unfold(transfer, |mut transfer| async move {
            let chunk = transfer.next().await.map_err(io::Error::from)?;
            Ok::<_, io::Error>(chunk.map(|chunk| (chunk, transfer)))
        });
        Box::pin(StreamReader::new(stream))
    }

    /// The next bytes; `None` at the end of the blob.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(partial) = &mut self.partial
            && let Some(kept) = partial.read_back().await?
        {
            self.offset += kept.len() as u64;
            return Ok(Some(kept));
        }
        loop {
            if self.offset == self.blob.size {
                self.end().await?;
                return Ok(None);
            }
            let error = match self.chunk().await {
                Ok(Some(chunk)) => {
                    self.waits = None;
                    self.meter.add(chunk.len() as u64);
                    self.offset += chunk.len() as u64;
                    if let Some(partial) = &mut self.partial {
                        partial.keep(&chunk).await;
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    let what = format!(
                        "{} ends after {} of {} bytes",
                        self.blob.digest, self.offset, self.blob.size
                    );
                    ErrorKind::Registry.err(what)
                }
                // A blob of another size stays so, and a request without an answer was repeated already.
                Err(error) if error.kind() == ErrorKind::DigestMismatch || self.body.is_none() => {
                    self.next_place(error)?;
                    continue;
                }
                Err(error) => error,
            };
            self.body = None;
            match self.wait() {
                Some(wait) => {
                    tracing::debug!(error = %error.chain(), ?wait, "retrying");
                    self.meter.retrying(wait, error.chain());
                    tokio::time::sleep(wait).await;
                }
                None => self.next_place(error)?,
            }
        }
    }

    /// How long to wait before the present place is asked again; `None` if it was asked often enough.
    fn wait(&mut self) -> Option<Duration> {
        let retry = &self.repository.as_ref()?.retry;
        self.waits.get_or_insert_with(|| retry.waits()).next()
    }

    /// Goes on at the next place; there the first missing byte is asked for.
    fn next_place(&mut self, error: Error) -> Result<()> {
        self.place = self.places.after(self.place, error)?;
        (self.repository, self.body, self.waits) = (None, None, None);
        Ok(())
    }

    /// What is at the present place.
    async fn repository(&mut self) -> Result<Arc<Repository>> {
        if self.repository.is_none() {
            self.repository = Some(self.places.open(self.place).await?);
        }
        let none = || ErrorKind::NotFound.err("nowhere to pull from");
        self.repository.clone().ok_or_else(none)
    }

    /// More of the current answer, or of a new one; `None` at its end.
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let repository = self.repository().await?;
                    let response = repository.blob_from(&self.blob, self.offset).await?;
                    self.skip = self.check(&response)?;
                    self.body.insert(response)
                }
            };
            let chunk = body.chunk().await;
            let Some(mut chunk) = chunk.map_err(|error| {
                ErrorKind::Registry
                    .err(format!("receiving {}", self.blob.digest))
                    .with_source(error)
            })?
            else {
                return Ok(None);
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
            chunk.advance(skipped);
            self.skip -= skipped as u64;
            if chunk.len() as u64 > self.blob.size - self.offset {
                return Err(self.wrong_size("more"));
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// Looks at the headers of an answer. Returns how many of its bytes are known already.
    fn check(&self, response: &Response) -> Result<u64> {
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok());
                let ContentRange { start, total, .. } =
                    range.and_then(ContentRange::parse).ok_or_else(|| {
                        let what = format!("receiving {}: a part without a range", self.blob.digest);
                        ErrorKind::Registry.err(what)
                    })?;
                if start != self.offset {
                    let what = format!(
                        "receiving {}: a part from {start} on, expected {}",
                        self.blob.digest, self.offset
                    );
                    return Err(ErrorKind::Registry.err(what));
                }
                return match total {
                    Some(total) if total != self.blob.size => Err(self.wrong_size(&total.to_string())),
                    _ => Ok(0),
                };
            }
            _ => response.content_length(),
        };
        match total {
            Some(total) if total != self.blob.size => Err(self.wrong_size(&total.to_string())),
            // The registry knows no ranges: read over what is here.
            _ => Ok(self.offset),
        }
    }

    fn wrong_size(&self, found: &str) -> Error {
        let what = format!(
            "the registry sends {found} bytes for {}, expected {}",
            self.blob.digest, self.blob.size
        );
        ErrorKind::DigestMismatch.err(what)
    }

    /// All bytes were handed on: nothing may follow.
    async fn end(&mut self) -> Result<()> {
        self.meter.report();
        if let Some(mut body) = self.body.take() {
            // A connection that breaks now has brought the whole blob.
            if matches!(body.chunk().await, Ok(Some(chunk)) if !chunk.is_empty()) {
                return Err(self.wrong_size("more"));
            }
        }
        if let Some(partial) = &mut self.partial {
            partial.flush().await;
        }
        Ok(())
    }
}
