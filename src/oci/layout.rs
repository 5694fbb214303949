//! An OCI image layout as a source: `index.json` and `blobs/ALGORITHM/HEX`.

use std::path::PathBuf;

use oci_spec::image::ImageIndex;

use super::files;
use super::manifest::MAX_DOCUMENT;
use super::tarball::Tarball;
use crate::chunked::FileBlob;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::store::image_manifest::Descriptor;

/// The annotation of an index entry that names it.
pub(crate) const NAME: &str = "org.opencontainers.image.ref.name";

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
    /// The digest of the image that is meant, and its name in the layout.
    pub(crate) async fn find(&self, name: Option<&str>) -> Result<(Digest, Option<String>)> {
        let bytes = self.small("index.json").await?;
        let index: ImageIndex = serde_json::from_slice(&bytes).map_err(|error| {
            ErrorKind::InvalidInput
                .err("index.json cannot be read")
                .with_source(error)
        })?;
        pick(&index, name).context(|| "looking for an image in the layout".into())
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
        if file.size() != blob.size {
            let what = format!(
                "{} has {} bytes, expected {}",
                blob.digest,
                file.size(),
                blob.size
            );
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        Ok(file)
    }
}

/// The entry of a layout's index that is meant, and its name.
pub(crate) fn pick(index: &ImageIndex, name: Option<&str>) -> Result<(Digest, Option<String>)> {
    let name_of = |entry: &oci_spec::image::Descriptor| {
        entry
            .annotations()
            .as_ref()
            .and_then(|all| all.get(NAME).cloned())
    };
    let entries = index.manifests();
    let found = match (name, entries.len()) {
        (None, 1) => entries.first(),
        (None, 0) => return Err(ErrorKind::NotFound.err("an empty layout")),
        (None, count) => {
            let names: Vec<String> = entries.iter().filter_map(name_of).collect();
            let what = format!("there are {count} images, say which: {}", names.join(", "));
            return Err(ErrorKind::InvalidInput.err(what));
        }
        (Some(wanted), _) => entries
            .iter()
            .find(|entry| name_of(entry).as_deref() == Some(wanted)),
    };
    match found {
        Some(entry) => Ok((entry.digest().to_string().parse()?, name_of(entry))),
        None => Err(ErrorKind::NotFound.err(format!("image {:?}", name.unwrap_or_default()))),
    }
}
