//! Registries as sources: manifests and blobs.

use bytes::Bytes;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::manifest::{Fetched, MANIFEST_TYPES};
use super::repository::Repository;
use super::response;
use super::retry::Failure;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_manifest::Descriptor;

/// More places than any layer has.
const MAX_URLS: usize = 16;

impl Repository {
    /// What the image's reference names.
    pub(crate) async fn top(&self) -> Result<Fetched> {
        match self.image.digest() {
            Some(digest) => self.manifest(digest).await,
            None => self.fetch(self.image.tag().unwrap_or("latest"), None).await,
        }
    }

    /// A manifest by digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched> {
        self.fetch(digest.as_str(), Some(digest)).await
    }

    /// A manifest by another tag than that of the image.
    #[cfg(feature = "signatures")]
    pub(crate) async fn tagged(&self, tag: &str) -> Result<Fetched> {
        self.fetch(tag, None).await
    }

    async fn fetch(&self, reference: &str, digest: Option<&Digest>) -> Result<Fetched> {
        let what = format!("fetching manifest {reference} of {}", self.image);
        let path = format!("manifests/{reference}");
        let accept = MANIFEST_TYPES.join(", ");
        let bytes = self
            .retry
            .run(|| async {
                let response = self.get(&path, &what, None, Some(&accept)).await?;
                response::read_all(response, &what).await
            })
            .await?;
        let digest = match digest {
            Some(digest) => {
                digest.check(&bytes, "the manifest")?;
                digest.clone()
            }
            None => Digest::sha256(&bytes),
        };
        Ok(Fetched { bytes, digest })
    }

    /// A small blob as a whole; not verified.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Bytes> {
        let what = format!("fetching {} of {}", blob.digest, self.image);
        let path = format!("blobs/{}", blob.digest);
        self.retry
            .run(|| async {
                let response = self.get(&path, &what, None, None).await?;
                response::read_all(response, &what).await
            })
            .await
    }

    /// Asks for a blob from `offset` on. The answer may begin at 0 all the same.
    ///
    /// Layers that may not be redistributed are at their URLs, and sometimes in a registry all the same; others may have
    /// URLs too, where the registry does not have them.
    pub(crate) async fn blob_from(&self, blob: &Descriptor, offset: u64) -> Result<Response> {
        let what = format!("fetching {} of {}", blob.digest, self.image);
        let path = format!("blobs/{}", blob.digest);
        let offset = Some(offset).filter(|offset| *offset > 0);
        let urls = external(blob);
        let mut outside = None;
        if !urls.is_empty() && is_foreign(&blob.media_type) {
            match self.external_blob(&urls, offset).await {
                Ok(response) => return Ok(response),
                Err(error) => outside = Some(error),
            }
        }
        let error = match self.retry.run(|| self.get(&path, &what, offset, None)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            answered => return answered,
        };
        match outside {
            Some(outside) => Err(outside.context(format!("{what}, which the registry does not have"))),
            None if urls.is_empty() => Err(error),
            None => self.external_blob(&urls, offset).await,
        }
    }

    /// Asks for a blob at one of its URLs. No credentials go there.
    async fn external_blob(&self, urls: &[Url], offset: Option<u64>) -> Result<Response> {
        let mut last = None;
        for url in urls {
            let host = url.host_str().unwrap_or_default();
            let host = match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            };
            let (http, _) = self.registries.client(&host, None).await?;
            // Queries may hold signatures.
            let what = format!("fetching a layer from {host}{}", url.path());
            let attempt = || async {
                let sent = from_offset(http.get(url.clone()), offset).send().await;
                let response = sent.map_err(|error| Failure::of_connection(&what, error.without_url()))?;
                match response.status().is_success() {
                    true => Ok(response),
                    false => Err(response::refused(response, &what).await),
                }
            };
            match self.retry.run(attempt).await {
                Ok(response) => return Ok(response),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ErrorKind::NotFound.err("a layer without URLs")))
    }

    /// One attempt to get something. Some registries refuse requests for blobs that accept manifests, so `accept` is for
    /// manifests only.
    async fn get(
        &self,
        path: &str,
        what: &str,
        offset: Option<u64>,
        accept: Option<&str>,
    ) -> Result<Response, Failure> {
        let url = self.url(path)?;
        let request = |offset: Option<u64>| {
            let mut request = self.request(Method::GET, url.clone());
            if let Some(types) = accept {
                request = request.header(ACCEPT, types);
            }
            from_offset(request, offset)
        };
        let statuses = match offset {
            Some(_) => &[StatusCode::RANGE_NOT_SATISFIABLE][..],
            None => &[],
        };
        let response = self.attempt(&url, || request(offset), statuses, what).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return self.attempt(&url, || request(None), &[], what).await;
        }
        Ok(response)
    }
}

/// A request for what is from this offset on.
fn from_offset(request: RequestBuilder, offset: Option<u64>) -> RequestBuilder {
    match offset {
        Some(offset) => request.header(RANGE, format!("bytes={offset}-")),
        None => request,
    }
}

/// Whether layers of this type are not to be in registries.
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// The URLs of a blob that can be asked.
fn external(blob: &Descriptor) -> Vec<Url> {
    let urls = blob.urls.iter().take(MAX_URLS);
    urls.filter_map(|url| Url::parse(url).ok())
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .collect()
}
