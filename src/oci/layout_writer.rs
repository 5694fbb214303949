//! An OCI image layout on disk as a destination.
//!
//! Blobs are written under temporary names and renamed, so they are there whole or not at all. `index.json` is read,
//! changed and replaced under a lock file beside it, `index.json.lock`, which all tasks and processes of this library
//! take; it is removed when the lock is released.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::blob_files::{self, BlobFiles};
use super::files;
use super::index::NAME;
use super::layout::blob_path;
use super::manifest::MAX_DOCUMENT;
use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::single_flight;
use crate::store::image_manifest::ImageManifest;

/// The marker file of a layout and its content.
pub(crate) const MARKER: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

/// An index of no images.
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// A layout that is written to.
pub(crate) struct LayoutWriter {
    pub(super) blobs: BlobFiles,
    name: Option<String>,
}

impl LayoutWriter {
    /// Opens a layout, or makes one.
    pub(crate) async fn open(dir: PathBuf, name: Option<String>) -> Result<Self> {
        bridge::run(move || {
            let blobs = dir.join("blobs/sha256");
            std::fs::create_dir_all(&blobs).at("creating", &blobs)?;
            let (marker, content) = MARKER;
            let marker = dir.join(marker);
            if !marker.try_exists().at("looking for", &marker)? {
                blob_files::replace(&marker, content)?;
            }
            Ok(Self {
                blobs: BlobFiles::new(dir, blob_path),
                name,
            })
        })
        .await
    }

    /// Writes the manifest and lists it in the index. Another manifest with the same name is no longer listed.
    pub(crate) async fn finish(&self, manifest: &ImageManifest) -> Result<()> {
        self.blobs.put_small(&manifest.bytes, &manifest.digest).await?;
        let entry = index_entry(manifest, self.name.as_deref());
        let path = self.blobs.dir().join("index.json");
        let lock = single_flight::acquire(self.blobs.dir(), "index.json.lock").await?;
        // The lock moves along: if this future is dropped, it is held until the index is replaced.
        bridge::run(move || {
            let updated = update(&path, entry);
            drop(lock);
            updated
        })
        .await
    }
}

/// The entry of a manifest in an index.
pub(crate) fn index_entry(manifest: &ImageManifest, name: Option<&str>) -> Value {
    let mut entry = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.bytes.len(),
    });
    if let Some(name) = name {
        entry["annotations"] = json!({ NAME: name });
    }
    entry
}

/// Adds an entry to the index in a file.
fn update(path: &Path, entry: Value) -> Result<()> {
    let bytes = match files::read_small_now(path, MAX_DOCUMENT) {
        Ok(bytes) => bytes,
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => EMPTY_INDEX.to_vec(),
        Err(error) => return Err(error),
    };
    let index = add_entry(&bytes, entry).map_err(|error| error.at(path))?;
    blob_files::replace(path, &index)
}

/// An index with one more entry.
fn add_entry(index: &[u8], entry: Value) -> Result<Vec<u8>> {
    let unreadable = || ErrorKind::InvalidInput.err("an index that cannot be read");
    let mut index: Value = serde_json::from_slice(index).map_err(|error| unreadable().with_source(error))?;
    let list = index
        .get_mut("manifests")
        .and_then(Value::as_array_mut)
        .ok_or_else(unreadable)?;
    let name = |entry: &Value| entry.get("annotations").and_then(|all| all.get(NAME)).cloned();
    list.retain(|known| match name(&entry) {
        Some(taken) => name(known) != Some(taken),
        // Without a name, one entry for each manifest is enough.
        None => known.get("digest") != entry.get("digest") || name(known).is_some(),
    });
    list.push(entry);
    serde_json::to_vec(&index).map_err(|error| unreadable().with_source(error))
}

/// An index of one entry.
pub(crate) fn index_of(entry: Value) -> Result<Vec<u8>> {
    add_entry(EMPTY_INDEX, entry)
}
