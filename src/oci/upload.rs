//! Registries as destinations: blobs and manifests.
//!
//! A blob is sent in one request. To a registry that takes it in no other way it is sent in pieces, from then on at once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};

use super::meter::Meter;
use super::progress::Progress;
use super::repository::Repository;
use super::response;
use super::retry::Failure;
use super::spool::Spool;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// The size of a piece, unless the registry wants larger ones.
const PIECE: u64 = 16 << 20;

/// The largest pieces that a registry may want.
const MAX_PIECE: u64 = 1 << 30;

/// Says how small pieces may be.
const MIN_PIECE: &str = "oci-chunk-min-length";

/// Names a session whose answer has no `Location`.
const UPLOAD_ID: &str = "docker-upload-uuid";

/// A blob that is sent.
struct Upload<'a> {
    digest: &'a Digest,
    content: Content<'a>,
    /// Whether an authorization that ended in the middle was renewed.
    is_renewed: AtomicBool,
}

enum Content<'a> {
    Small(&'a Bytes),
    Layer(&'a Spool, &'a Progress),
}

impl Upload<'_> {
    fn size(&self) -> u64 {
        match self.content {
            Content::Small(bytes) => bytes.len() as u64,
            Content::Layer(spool, _) => spool.size,
        }
    }

    /// A part of it.
    fn body(&self, part: Range<u64>) -> Body {
        match self.content {
            Content::Small(bytes) => {
                let at = |end: u64| usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
                bytes.slice(at(part.start)..at(part.end)).into()
            }
            Content::Layer(spool, progress) => {
                let meter = Meter::start(progress, &spool.digest, spool.size, part.start);
                Body::wrap_stream(spool.stream(part, move |bytes| meter.add(bytes)))
            }
        }
    }
}

/// What a registry answers to the beginning of an upload.
enum Begun {
    /// It has the blob.
    Done,
    Session {
        url: Url,
        /// The size of the pieces that it takes.
        piece: u64,
    },
}

impl Repository {
    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let what = format!("asking {} for {digest}", self.image);
        let url = self.url(&format!("blobs/{digest}"))?;
        self.retry.run(|| self.ask_for(&url, &what)).await
    }

    async fn ask_for(&self, url: &Url, what: &str) -> Result<bool, Failure> {
        let request = || self.request(Method::HEAD, url.clone());
        let response = self.attempt(url, request, &[StatusCode::NOT_FOUND], what).await?;
        Ok(response.status() != StatusCode::NOT_FOUND)
    }

    /// Takes a blob over from another repository of the registry, if both have told nothing against it. Whatever is the
    /// matter with that, the blob can be sent.
    pub(crate) async fn mount_blob(&self, digest: &Digest, from: &str) -> bool {
        let what = format!("mounting {digest} of {from} in {}", self.image);
        match self.try_mount(digest, from, &what).await {
            Ok(mounted) => mounted,
            Err(failure) => {
                tracing::debug!(error = %failure.error.chain(), "cannot mount a blob");
                false
            }
        }
    }

    async fn try_mount(&self, digest: &Digest, from: &str, what: &str) -> Result<bool, Failure> {
        // Registries that do not mount it begin an upload instead, so they are asked first whether they have it.
        let there = self.url(&format!("/v2/{from}/blobs/{digest}"))?;
        if !self.ask_for(&there, what).await? {
            return Ok(false);
        }
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", digest.as_str())
            .append_pair("from", from);
        match self.begin(&url, what).await? {
            Begun::Done => Ok(true),
            Begun::Session { url, .. } => {
                // It is of no use; that the registry forgets it is its own affair.
                let cancelled = self.send(&url, self.request(Method::DELETE, url.clone()), what);
                if let Err(failure) = cancelled.await {
                    tracing::debug!(error = %failure.error.chain(), "cannot cancel an upload");
                }
                Ok(false)
            }
        }
    }

    /// Uploads a layer. A retry begins at the start of the blob.
    pub(crate) async fn put_layer(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        self.put(Upload {
            digest: &spool.digest,
            content: Content::Layer(spool, progress),
            is_renewed: AtomicBool::new(false),
        })
        .await
    }

    /// Uploads a short blob.
    pub(crate) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        self.put(Upload {
            digest,
            content: Content::Small(bytes),
            is_renewed: AtomicBool::new(false),
        })
        .await
    }

    async fn put(&self, upload: Upload<'_>) -> Result<()> {
        let what = format!("pushing {} to {}", upload.digest, self.image);
        self.retry.run(|| self.put_once(&upload, &what)).await
    }

    /// One attempt to upload a blob.
    async fn put_once(&self, upload: &Upload<'_>, what: &str) -> Result<(), Failure> {
        if !self.in_pieces.load(Ordering::Relaxed) {
            let Begun::Session { url, .. } = self.begin(&self.url("blobs/uploads/")?, what).await? else {
                return Ok(());
            };
            let url = finishing(url, upload.digest);
            let request = self
                .request(Method::PUT, url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, upload.size())
                .body(upload.body(0..upload.size()));
            let response = self.send_part(&url, request, &upload.is_renewed, what).await?;
            if response.status().is_success() {
                return Ok(());
            }
            // Too large for one request, or not known as one.
            if upload.size() == 0 || !matches!(response.status().as_u16(), 405 | 413 | 501) {
                return Err(response::refused(response, what).await);
            }
        }
        self.put_in_pieces(upload, what).await
    }

    async fn put_in_pieces(&self, upload: &Upload<'_>, what: &str) -> Result<(), Failure> {
        let begun = self.begin(&self.url("blobs/uploads/")?, what).await?;
        let Begun::Session { mut url, piece } = begun else {
            return Ok(());
        };
        let mut sent = 0;
        while sent < upload.size() {
            let end = sent.saturating_add(piece).min(upload.size());
            let request = self
                .request(Method::PATCH, url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_RANGE, format!("{sent}-{}", end - 1))
                .header(CONTENT_LENGTH, end - sent)
                .body(upload.body(sent..end));
            let response = self.send_part(&url, request, &upload.is_renewed, what).await?;
            if !response.status().is_success() {
                return Err(response::refused(response, what).await);
            }
            self.in_pieces.store(true, Ordering::Relaxed);
            // Without another place, it goes on at this one.
            if let Some(next) = self.next(response.url(), response.headers())? {
                url = next;
            }
            sent = end;
        }
        let url = finishing(url, upload.digest);
        let request = self.request(Method::PUT, url.clone()).header(CONTENT_LENGTH, 0);
        let response = self.send_part(&url, request, &upload.is_renewed, what).await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(response::refused(response, what).await),
        }
    }

    /// Sends a request whose body is used up by it. If the authorization has ended, a new one is asked for, for the next
    /// attempt.
    async fn send_part(
        &self,
        url: &Url,
        request: RequestBuilder,
        is_renewed: &AtomicBool,
        what: &str,
    ) -> Result<Response, Failure> {
        let (response, sent) = self.send(url, request, what).await?;
        if response.status() != StatusCode::UNAUTHORIZED || sent.is_none() {
            return Ok(response);
        }
        if is_renewed.swap(true, Ordering::Relaxed)
            || !self
                .sign_in(response.headers(), sent.as_ref(), &mut 0, what)
                .await?
        {
            return Ok(response);
        }
        let mut failure = response::refused(response, what).await;
        failure.transient = true;
        Err(failure)
    }

    /// Begins an upload.
    async fn begin(&self, url: &Url, what: &str) -> Result<Begun, Failure> {
        let request = || self.request(Method::POST, url.clone()).header(CONTENT_LENGTH, 0);
        let response = self.attempt(url, request, &[], what).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(Begun::Done);
        }
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let session = match (self.next(response.url(), headers)?, text(UPLOAD_ID)) {
            (Some(url), _) => url,
            (None, Some(id)) => self.url(&format!("blobs/uploads/{id}"))?,
            (None, None) => {
                let what = format!("{what}: the registry does not say where to");
                return Err(ErrorKind::Registry.err(what).into());
            }
        };
        let least = text(MIN_PIECE).and_then(|least| least.parse().ok()).unwrap_or(0);
        Ok(Begun::Session {
            url: session,
            piece: PIECE.max(least).min(MAX_PIECE),
        })
    }

    /// Where an answer to a request for `from` sends the upload.
    fn next(&self, from: &Url, headers: &HeaderMap) -> Result<Option<Url>> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.filter(|location| !location.is_empty());
        location.map(|text| self.location(from, text)).transpose()
    }

    /// Uploads a manifest under the tag of the image's reference.
    pub(crate) async fn put_manifest(&self, manifest: &Bytes, media_type: &str) -> Result<()> {
        let tag = self.image.tag().unwrap_or("latest");
        let what = format!("pushing the manifest to {}", self.image);
        let url = self.url(&format!("manifests/{tag}"))?;
        self.retry
            .run(|| async {
                let request = || {
                    self.request(Method::PUT, url.clone())
                        .header(CONTENT_TYPE, media_type)
                        .body(manifest.clone())
                };
                self.attempt(&url, request, &[], &what).await.map(drop)
            })
            .await
    }
}

/// The URL that ends an upload.
fn finishing(mut url: Url, digest: &Digest) -> Url {
    url.query_pairs_mut().append_pair("digest", digest.as_str());
    url
}
