//! An OCI image layout as a source: `index.json` and `blobs/ALGORITHM/HEX`.

use std::path::PathBuf;

use super::files;
use super::index::{Entry, Index};
use super::manifest::MAX_DOCUMENT;
use super::tarball::Tarball;
use crate::chunked::FileBlob;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::store::image_manifest::Descriptor;

/// A layout: a directory, or an archive of one.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    Directory(PathBuf),
    Tar(Tarball),
}

/// Path of a blob in a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.encoded())
}

impl Layout {
    /// What the index says of the image that is meant.
    pub(crate) async fn find(&self, name: Option<&str>) -> Result<Entry> {
        let bytes = self.small("index.json").await?;
        let found = Index::parse(&bytes).and_then(|index| index.pick(name).cloned());
        found.context(|| "looking for an image in index.json of the layout".into())
    }

    async fn small(&self, file: &str) -> Result<Vec<u8>> {
        match self {
            Self::Directory(dir) => files::read_small(dir.join(file), MAX_DOCUMENT).await,
            Self::Tar(tar) => tar.small(file, MAX_DOCUMENT).await,
        }
    }

    /// A manifest or another document; not verified.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.small(&blob_path(digest)).await
    }

    /// Where a blob is; not verified.
    pub(crate) async fn file(&self, blob: &Descriptor) -> Result<FileBlob> {
        let name = blob_path(&blob.digest);
        let file = match self {
            Self::Directory(dir) => FileBlob::open(dir.join(name)).await?,
            Self::Tar(tar) => tar.file(&name)?,
        };
        of_size(file, blob)
    }
}

/// Checks that a blob has the size that is said of it.
pub(crate) fn of_size(file: FileBlob, blob: &Descriptor) -> Result<FileBlob> {
    match file.size() {
        size if size == blob.size => Ok(file),
        size => {
            let what = format!("{} has {size} bytes, expected {}", blob.digest, blob.size);
            Err(ErrorKind::DigestMismatch.err(what))
        }
    }
}
