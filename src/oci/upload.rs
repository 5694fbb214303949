//! Registries as destinations: blobs and manifests.

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, StatusCode};

use super::meter::Meter;
use super::progress::Progress;
use super::repository::Repository;
use super::response;
use super::retry::Failure;
use super::spool::Spool;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

impl Repository {
    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let what = format!("asking {} for {digest}", self.image);
        let url = self.url(&format!("blobs/{digest}"))?;
        let missing = [StatusCode::NOT_FOUND];
        self.retry
            .run(|| async {
                let request = || self.request(Method::HEAD, url.clone());
                let response = self.attempt(&url, request, &missing, &what).await?;
                Ok(response.status() != StatusCode::NOT_FOUND)
            })
            .await
    }

    /// Uploads a layer. A retry begins at the start of the blob.
    pub(crate) async fn put_layer(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        let what = format!("pushing {} to {}", spool.digest, self.image);
        self.retry
            .run(|| async {
                let meter = Meter::start(progress, &spool.digest, spool.size, 0);
                let stream = spool.stream(move |bytes| meter.add(bytes));
                let body = Body::wrap_stream(stream);
                self.put_blob(&spool.digest, spool.size, body, &what).await
            })
            .await
    }

    /// Uploads a short blob.
    pub(crate) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let what = format!("pushing {digest} to {}", self.image);
        self.retry
            .run(|| self.put_blob(digest, bytes.len() as u64, bytes.clone().into(), &what))
            .await
    }

    /// One attempt to upload a blob in one piece.
    async fn put_blob(&self, digest: &Digest, size: u64, body: Body, what: &str) -> Result<(), Failure> {
        let url = self.url("blobs/uploads/")?;
        let begin = || self.request(Method::POST, url.clone()).header(CONTENT_LENGTH, 0);
        let session = self.attempt(&url, begin, &[], what).await?;
        let location = session
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| ErrorKind::Registry.err(format!("{what}: the registry does not say where to")))?;
        let mut url = self.location(location)?;
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let request = self
            .request(Method::PUT, url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(body);
        // Without signing in: the session was begun a moment ago with what is sent here, and the body is used up.
        let (response, _sent) = self.send(&url, request, what).await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(response::refused(response, what).await),
        }
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
