//! Registries as sources: manifests and blobs.

use bytes::Bytes;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::manifest::{Fetched, MANIFEST_TYPES};
use super::repository::Repository;
use super::response;
use super::retry::Failure;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::image_manifest::Descriptor;

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

    async fn fetch(&self, reference: &str, digest: Option<&Digest>) -> Result<Fetched> {
        let what = format!("fetching manifest {reference} of {}", self.image);
        let path = format!("manifests/{reference}");
        let bytes = self
            .retry
            .run(|| async {
                let response = self.get(&path, &what, None).await?;
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
                let response = self.get(&path, &what, None).await?;
                response::read_all(response, &what).await
            })
            .await
    }

    /// Asks for a blob from `offset` on. The answer may begin at 0 all the same.
    pub(crate) async fn blob_from(&self, digest: &Digest, offset: u64) -> Result<Response> {
        let what = format!("fetching {digest} of {}", self.image);
        let path = format!("blobs/{digest}");
        let offset = Some(offset).filter(|offset| *offset > 0);
        self.retry.run(|| self.get(&path, &what, offset)).await
    }

    /// One attempt to get something.
    async fn get(&self, path: &str, what: &str, offset: Option<u64>) -> Result<Response, Failure> {
        let url = self.url(path)?;
        let request = |offset: Option<u64>| {
            let request = self
                .request(Method::GET, url.clone())
                .header(ACCEPT, MANIFEST_TYPES.join(", "));
            match offset {
                Some(offset) => request.header(RANGE, format!("bytes={offset}-")),
                None => request,
            }
        };
        let accept = match offset {
            Some(_) => &[StatusCode::RANGE_NOT_SATISFIABLE][..],
            None => &[],
        };
        let response = self.attempt(&url, || request(offset), accept, what).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return self.attempt(&url, || request(None), &[], what).await;
        }
        Ok(response)
    }
}
