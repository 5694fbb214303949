//! Where an image goes to: a registry, or an OCI layout.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use oci_client::client::Client;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::{Reference, RegistryOperation};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::auth;
use super::files;
use super::layout::{self, NAME};
use super::manifest::MAX_DOCUMENT;
use super::progress::{BlobState, Meter, Progress};
use super::reference::ImageRef;
use super::registry::{Registries, RegistryOptions, failed};
use super::spool::Spool;
use crate::bridge;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::store::Store;
use crate::sys::atomic::{self, AtomicFile};

/// A destination of one image.
pub(crate) enum Destination {
    Registry(Box<Upload>),
    Layout(Directory),
}

impl Destination {
    pub(crate) async fn open(image: &ImageRef, registries: &Registries) -> Result<Self> {
        match image {
            ImageRef::Registry(reference) if reference.digest().is_some() => Err(ErrorKind::InvalidInput
                .err(format!(
                    "pushing to {image}: a digest follows from the image, name a tag"
                ))),
            ImageRef::Registry(reference) => {
                let upload = Upload {
                    client: registries.oci_client(reference.inner.resolve_registry())?,
                    reference: reference.inner.clone(),
                    options: registries.options.clone(),
                };
                let credentials = auth::find(reference, registries.options.auth_file.as_deref()).await?;
                upload
                    .client
                    .auth(&upload.reference, &credentials, RegistryOperation::Push)
                    .await
                    .map_err(|error| failed(format!("signing in for {reference}"), error))?;
                Ok(Self::Registry(Box::new(upload)))
            }
            ImageRef::Layout { dir, name } => {
                Directory::open(dir.clone(), name.clone()).await.map(Self::Layout)
            }
            ImageRef::OciArchive { .. } | ImageRef::DockerArchive { .. } => {
                Err(ErrorKind::NotSupported.err(format!("pushing to {image}")))
            }
        }
    }

    /// Whether only OCI's own media types are allowed.
    pub(crate) fn is_strict(&self) -> bool {
        matches!(self, Self::Layout(_))
    }

    /// Whether the blob is there already.
    pub(crate) async fn has(&self, digest: &Digest) -> Result<bool> {
        match self {
            Self::Registry(upload) => upload.has(digest).await,
            Self::Layout(directory) => directory.has(digest).await,
        }
    }

    /// Brings a layer.
    pub(crate) async fn put(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        match self {
            Self::Registry(upload) => upload.put(spool, progress).await,
            Self::Layout(directory) => directory.put(spool, progress).await,
        }
    }

    /// Brings a short blob.
    pub(crate) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        match self {
            Self::Registry(upload) => upload.put_small(bytes, digest).await,
            Self::Layout(directory) => directory.put_small(bytes, digest).await,
        }
    }

    /// Brings the manifest, after everything that it names, and gives it the name of the destination.
    pub(crate) async fn finish(&self, manifest: Bytes, digest: &Digest, media_type: &str) -> Result<()> {
        match self {
            Self::Registry(upload) => upload.finish(manifest, media_type).await,
            Self::Layout(directory) => {
                directory.put_small(&manifest, digest).await?;
                directory.list(manifest.len(), digest, media_type).await
            }
        }
    }
}

/// A repository that is pushed to.
pub(crate) struct Upload {
    client: Client,
    reference: Reference,
    options: RegistryOptions,
}

/// Whether another attempt may go better.
fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|error| error.code == OciErrorCode::Toomanyrequests),
        _ => false,
    }
}

impl Upload {
    /// Does something until it works, or will not.
    async fn retry<T, F>(&self, what: String, attempt: impl Fn() -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T, OciDistributionError>> + Send,
        T: Send,
    {
        let mut attempts = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            attempts += 1;
            if attempts > self.options.retries || !is_transient(&error) {
                return Err(failed(format!("{what} to {}", self.reference), error));
            }
            let wait = self.options.wait(attempts, None);
            tracing::debug!(%error, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn has(&self, digest: &Digest) -> Result<bool> {
        let what = format!("asking for {digest} before pushing it");
        self.retry(what, || self.client.blob_exists(&self.reference, digest.as_str()))
            .await
    }

    async fn put(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        let what = format!("pushing {}", spool.digest);
        self.retry(what, || async {
            let path = spool.path.clone();
            let file = bridge::run(move || files::open_regular(&path))
                .await
                .map_err(|error| OciDistributionError::IoError(error.into()))?;
            let reader = files::stream(file, 0, spool.size);
            let meter = Meter::start(progress, &spool.digest, spool.size, 0);
            let body = futures::stream::try_unfold((reader, meter), |(mut reader, mut meter)| async move {
                let mut chunk = BytesMut::with_capacity(bridge::CHUNK);
                let count = reader.read_buf(&mut chunk).await?;
                meter.add(count as u64);
                if count == 0 {
                    meter.tell();
                    return Ok(None);
                }
                Ok(Some((chunk.freeze(), (reader, meter))))
            });
            let size = Some(spool.size);
            let digest = spool.digest.as_str();
            self.client
                .push_blob_stream(&self.reference, body, digest, size)
                .await
                .map(drop)
        })
        .await
    }

    async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let what = format!("pushing {digest}");
        let attempt = || {
            self.client
                .push_blob(&self.reference, bytes.clone(), digest.as_str())
        };
        self.retry(what, attempt).await.map(drop)
    }

    async fn finish(&self, manifest: Bytes, media_type: &str) -> Result<()> {
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|error| failed(format!("media type {media_type:?}"), error))?;
        let attempt = || {
            self.client
                .push_manifest_raw(&self.reference, manifest.clone(), media_type.clone())
        };
        self.retry("pushing the manifest".into(), attempt).await.map(drop)
    }
}

/// An OCI layout that is written to.
pub(crate) struct Directory {
    dir: PathBuf,
    name: Option<String>,
}

impl Directory {
    async fn open(dir: PathBuf, name: Option<String>) -> Result<Self> {
        bridge::run(move || {
            let blobs = dir.join("blobs/sha256");
            std::fs::create_dir_all(&blobs).at("creating", &blobs)?;
            let marker = dir.join("oci-layout");
            if !marker.exists() {
                atomic::write_file(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644, true)?;
            }
            Ok(Self { dir, name })
        })
        .await
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(layout::blob_path(digest))
    }

    async fn has(&self, digest: &Digest) -> Result<bool> {
        let path = self.blob(digest);
        bridge::run(move || path.try_exists().at("looking for", &path)).await
    }

    async fn put(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        let (from, to) = (spool.path.clone(), self.blob(&spool.digest));
        let mut meter = Meter::start(progress, &spool.digest, spool.size, 0);
        meter.add(spool.size);
        meter.tell();
        bridge::run(move || copy(&from, &to)).await
    }

    async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let (path, bytes) = (self.blob(digest), bytes.clone());
        bridge::run(move || {
            if path.try_exists().at("looking for", &path)? {
                return Ok(());
            }
            atomic::write_file(&path, &bytes, 0o644, true).map(drop)
        })
        .await
    }

    /// Puts the manifest into the index; another one with the same name leaves it.
    async fn list(&self, size: usize, digest: &Digest, media_type: &str) -> Result<()> {
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(name) = &self.name {
            entry["annotations"] = json!({ NAME: name });
        }
        let path = self.dir.join("index.json");
        bridge::run(move || {
            let bytes = match std::fs::File::open(&path) {
                Ok(file) => {
                    let mut bytes = Vec::new();
                    file.take(MAX_DOCUMENT + 1)
                        .read_to_end(&mut bytes)
                        .at("reading", &path)?;
                    bytes
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()
                }
                Err(error) => return Err(Error::io_at("opening", path, error)),
            };
            let unreadable = || {
                ErrorKind::InvalidInput
                    .err("an index that cannot be read")
                    .at(&path)
            };
            let mut index: Value =
                serde_json::from_slice(&bytes).map_err(|error| unreadable().with_source(error))?;
            let list = index
                .get_mut("manifests")
                .and_then(Value::as_array_mut)
                .ok_or_else(unreadable)?;
            let name = |entry: &Value| entry.get("annotations").and_then(|all| all.get(NAME)).cloned();
            // Without a name it stands for itself: once is enough.
            list.retain(|known| match name(&entry) {
                Some(taken) => name(known) != Some(taken),
                None => known.get("digest") != entry.get("digest") || name(known).is_some(),
            });
            list.push(entry);
            let text = serde_json::to_vec(&index).map_err(|error| unreadable().with_source(error))?;
            atomic::write_file(&path, &text, 0o644, true).map(drop)
        })
        .await
    }
}

/// Copies a file into the place of another, which is there as a whole or not at all.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = files::open_regular(from)?;
    let mut target = AtomicFile::create(to)?;
    std::io::copy(&mut source, &mut target).at("copying a layer to", to)?;
    target.flush().at("copying a layer to", to)?;
    target.commit(true, 0o644).map(drop)
}

/// Tells that the destination has a blob.
pub(crate) fn reused(progress: &Progress, digest: &Digest) {
    progress.blob(digest, || BlobState::Reused {
        item: digest.to_string(),
    });
}

/// The manifest of an image of the store.
pub(crate) async fn stored_manifest(store: &Store, image: &str) -> Result<Bytes> {
    match store.image_big_data(image, "manifest").await {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.context(format!("image {image:?} has no manifest to push"))),
    }
}
