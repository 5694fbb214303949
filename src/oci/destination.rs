//! Where an image is pushed to: a registry, an OCI layout, a directory or an archive.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::archive_destination::{ArchiveDestination, Form};
use super::directory_writer::DirectoryWriter;
use super::layout_writer::LayoutWriter;
use super::progress::Progress;
use super::reference::ImageRef;
use super::repository::{Access, Registries, Repository};
use super::spool::Spool;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_manifest::{Descriptor, ImageManifest};

/// A destination of one image.
pub(crate) enum Destination {
    Registry {
        repository: Box<Repository>,
        /// Repositories that blobs may be taken over from.
        mounts: Mutex<Vec<String>>,
    },
    Layout(LayoutWriter),
    Directory(DirectoryWriter),
    Archive(Box<ArchiveDestination>),
}

impl Destination {
    /// Opens a destination. `mounts` are repositories of the same registry that may have blobs of the image.
    pub(crate) async fn open(
        image: &ImageRef,
        registries: &Arc<Registries>,
        mounts: Vec<String>,
    ) -> Result<Self> {
        let archive = async |form, file: &std::path::Path, name: &Option<String>| {
            let archive = ArchiveDestination::create(form, file.to_owned(), name.clone()).await?;
            Ok(Self::Archive(Box::new(archive)))
        };
        match image {
            ImageRef::Registry(reference) if reference.digest().is_some() => Err(ErrorKind::InvalidInput
                .err(format!(
                    "pushing to {image}: a digest follows from the image, name a tag"
                ))),
            ImageRef::Registry(reference) => {
                let retry = registries.retry(u32::MAX);
                let mut repository = registries
                    .repository(reference, Access::Push, false, retry)
                    .await?;
                let scope = |name: &String| format!("repository:{name}:pull");
                repository.scopes.extend(mounts.iter().map(scope));
                Ok(Self::Registry {
                    repository: Box::new(repository),
                    mounts: Mutex::new(mounts),
                })
            }
            ImageRef::Layout { dir, name } => {
                let layout = LayoutWriter::open(dir.clone(), name.clone()).await?;
                Ok(Self::Layout(layout))
            }
            ImageRef::Directory { dir } => Ok(Self::Directory(DirectoryWriter::open(dir.clone()).await?)),
            ImageRef::OciArchive { file, name } => archive(Form::Oci, file, name).await,
            ImageRef::DockerArchive { file, name } => archive(Form::Docker, file, name).await,
        }
    }

    /// Whether only OCI's own media types are allowed.
    pub(crate) fn is_oci_only(&self) -> bool {
        match self {
            Self::Registry { .. } | Self::Directory(_) => false,
            Self::Layout(_) => true,
            Self::Archive(archive) => archive.form == Form::Oci,
        }
    }

    /// Whether it is an archive.
    pub(crate) fn is_archive(&self) -> bool {
        matches!(self, Self::Archive(_))
    }

    /// Whether it is an archive as `docker save` writes it, which has uncompressed layers and no manifest.
    pub(crate) fn is_docker_archive(&self) -> bool {
        matches!(self, Self::Archive(archive) if archive.form == Form::Docker)
    }

    /// Whether the destination has a blob, as far as it can tell without reading it.
    pub(crate) async fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        match self {
            Self::Registry { repository, .. } => repository.has_blob(digest).await,
            Self::Layout(layout) => layout.blobs.has(digest, size).await,
            Self::Directory(directory) => directory.blobs.has(digest, size).await,
            Self::Archive(archive) => Ok(archive.has(digest).await),
        }
    }

    /// Takes a blob over from a repository of the registry that has it. Returns whether that was done. A repository that
    /// does not give one is not asked again.
    pub(crate) async fn take_over(&self, digest: &Digest) -> bool {
        let Self::Registry { repository, mounts } = self else {
            return false;
        };
        let known = || mounts.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = known().clone();
        for from in candidates {
            if repository.mount_blob(digest, &from).await {
                return true;
            }
            known().retain(|name| *name != from);
        }
        false
    }

    /// Puts a layer.
    pub(crate) async fn put_layer(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        match self {
            Self::Registry { repository, .. } => repository.put_layer(spool, progress).await,
            Self::Layout(layout) => layout.blobs.put_layer(spool, progress).await,
            Self::Directory(directory) => directory.blobs.put_layer(spool, progress).await,
            Self::Archive(archive) => archive.put_layer(spool, progress).await,
        }
    }

    /// Puts a config, unless it is there.
    pub(crate) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        match self {
            Self::Registry { repository, .. } => match repository.has_blob(digest).await? {
                true => Ok(()),
                false => repository.put_small(bytes, digest).await,
            },
            Self::Layout(layout) => layout.blobs.put_small(bytes, digest).await,
            Self::Directory(directory) => directory.blobs.put_small(bytes, digest).await,
            Self::Archive(archive) => match archive.has(digest).await {
                true => Ok(()),
                false => archive.put_small(bytes, digest).await,
            },
        }
    }

    /// Puts the manifest, after everything that it names, and gives it the name of the destination.
    pub(crate) async fn finish(
        &self,
        manifest: &ImageManifest,
        config: &Digest,
        layers: &[Descriptor],
    ) -> Result<()> {
        match self {
            Self::Registry { repository, .. } => {
                repository
                    .put_manifest(&manifest.bytes, &manifest.media_type)
                    .await
            }
            Self::Layout(layout) => layout.finish(manifest).await,
            Self::Directory(directory) => directory.finish(manifest, config, layers).await,
            Self::Archive(archive) => archive.finish(manifest, config, layers).await,
        }
    }
}
