//! The source of an image that is pulled: a registry, an OCI layout, a directory or an archive.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::io::InspectReader;

use super::directory::Directory;
use super::docker_archive::DockerArchive;
use super::download::Transfer;
use super::layout::Layout;
use super::manifest::{Fetched, MAX_DOCUMENT};
use super::meter::Meter;
use super::partial::Partial;
use super::places::Places;
use super::progress::Progress;
use super::ranges::{MeteredBlob, RegistryBlob};
use super::reference::{self, ImageRef};
use super::repository::Registries;
#[cfg(feature = "signatures")]
use super::signatures::signature::Signature;
use super::tarball::Tarball;
use crate::chunked::BlobSource;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::options::BoxReader;
use crate::store::Store;
use crate::store::image_manifest::Descriptor;

/// A source of one image.
#[derive(Clone, Debug)]
pub(crate) enum ImageSource {
    Registry(Arc<Places>),
    Layout { layout: Layout, name: Option<String> },
    Directory(Arc<Directory>),
    Docker(Arc<DockerArchive>),
}

impl ImageSource {
    /// Opens a source. Temporary files go into the store's directory for them.
    pub(crate) async fn open(image: &ImageRef, registries: &Arc<Registries>, store: &Store) -> Result<Self> {
        match image {
            ImageRef::Registry(reference) => {
                Ok(Self::Registry(Arc::new(Places::new(registries, reference)?)))
            }
            ImageRef::Layout { dir, name } => Ok(Self::Layout {
                layout: Layout::Directory(dir.clone()),
                name: name.clone(),
            }),
            ImageRef::Directory { dir } => Ok(Self::Directory(Arc::new(Directory::open(dir.clone()).await?))),
            ImageRef::OciArchive { file, name } => Ok(Self::Layout {
                layout: Layout::Tar(Tarball::open(file, store).await?),
                name: name.clone(),
            }),
            ImageRef::DockerArchive { file, name } => {
                let tar = Tarball::open(file, store).await?;
                Ok(Self::Docker(Arc::new(
                    DockerArchive::open(tar, name.as_deref(), store).await?,
                )))
            }
        }
    }

    /// What the image's reference names.
    pub(crate) async fn top(&self) -> Result<Fetched> {
        match self {
            Self::Registry(places) => places.ask_all(|at| async move { at.top().await }).await,
            Self::Layout { layout, name } => {
                let entry = layout.find(name.as_deref()).await?;
                self.manifest(&entry.digest()?).await
            }
            Self::Directory(directory) => Ok(directory.top.clone()),
            Self::Docker(archive) => Ok(archive.manifest.clone()),
        }
    }

    /// A manifest by digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched> {
        let fetched = match self {
            Self::Registry(places) => return places.ask(|at| async move { at.manifest(digest).await }).await,
            Self::Layout { layout, .. } => layout.document(digest).await?,
            Self::Directory(directory) => directory.manifest(digest).await?,
            Self::Docker(archive) => archive.manifest.bytes.to_vec(),
        };
        digest.check(&fetched, "the manifest")?;
        Ok(Fetched {
            bytes: fetched.into(),
            digest: digest.clone(),
        })
    }

    /// A small blob as a whole, verified.
    pub(crate) async fn small(&self, blob: &Descriptor) -> Result<Bytes> {
        if blob.size > MAX_DOCUMENT {
            let what = format!("config {} of {} bytes is too long", blob.digest, blob.size);
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let bytes: Bytes = match self {
            Self::Registry(places) => places.ask(|at| async move { at.small_blob(blob).await }).await?,
            Self::Layout { layout, .. } => layout.document(&blob.digest).await?.into(),
            Self::Directory(directory) => directory.document(&blob.digest).await?.into(),
            Self::Docker(archive) => archive.config.clone(),
        };
        blob.digest.check(&bytes, "the config")?;
        Ok(bytes)
    }

    /// The signatures of a manifest, not verified. Layouts and archives have none. OpenPGP signatures are looked for everywhere
    /// if they are `wanted`.
    #[cfg(feature = "signatures")]
    pub(crate) async fn signatures(&self, manifest: &Digest, wanted: bool) -> Result<Vec<Signature>> {
        match self {
            Self::Registry(places) => places.current().await?.signatures(manifest, wanted).await,
            Self::Directory(directory) => directory.signatures(manifest).await,
            Self::Layout { .. } | Self::Docker(_) => Ok(Vec::new()),
        }
    }

    /// Whether transfers count among the bounded downloads.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Registry(_))
    }

    /// A layer's blob as a stream; not verified.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        progress: &Progress,
        partial: Option<Partial>,
    ) -> Result<BoxReader> {
        let kept = partial.as_ref().map_or(0, Partial::kept);
        let meter = Meter::start(progress, &blob.digest, blob.size, kept);
        let file = match self {
            Self::Registry(places) => {
                return Ok(Transfer::start(Arc::clone(places), blob.clone(), meter, partial));
            }
            Self::Layout { layout, .. } => layout.file(blob).await?,
            Self::Directory(directory) => directory.file(blob).await?,
            Self::Docker(archive) => archive.file(blob)?,
        };
        Ok(Box::pin(InspectReader::new(
            file.reader(),
            move |bytes: &[u8]| {
                meter.add(bytes.len() as u64);
            },
        )))
    }

    /// A layer's blob as a source of ranges; not verified. What is read is counted by `meter`.
    pub(crate) async fn ranges(&self, blob: &Descriptor, meter: Meter) -> Result<Arc<dyn BlobSource>> {
        let file = match self {
            Self::Registry(places) => {
                let source = RegistryBlob::new(Arc::clone(places), blob.clone(), meter);
                return Ok(Arc::new(source));
            }
            Self::Layout { layout, .. } => layout.file(blob).await?,
            Self::Directory(directory) => directory.file(blob).await?,
            Self::Docker(archive) => archive.file(blob)?,
        };
        Ok(Arc::new(MeteredBlob::new(file, meter)))
    }

    /// The names that the newest Podman would give the image: in a layout what it is asked for by, in an archive what that says,
    /// in a directory none.
    pub(crate) async fn default_names(&self, image: &ImageRef) -> Result<Vec<String>> {
        let is_number = |name: &&String| name.starts_with('@');
        let name = match (self, image) {
            (_, ImageRef::Registry(reference)) => Some(reference.to_string()),
            (_, ImageRef::Layout { name, .. }) => {
                let name = name.as_ref().filter(|name| !is_number(name));
                name.map(|name| reference::layout_name(name)).transpose()?
            }
            (Self::Layout { layout, name }, _) => {
                let entry = layout.find(name.as_deref()).await?;
                entry.image_name().map(reference::own_name).transpose()?
            }
            (Self::Docker(archive), _) => return Ok(archive.names.clone()),
            (Self::Registry(_) | Self::Directory(_), _) => None,
        };
        Ok(name.into_iter().collect())
    }
}
