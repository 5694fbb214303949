//! A directory with the files of one image, as Skopeo writes it, as a destination.
//!
//! An image that is there stays whole until the new manifest replaces its own. What belongs to it alone is removed afterwards.
//! One at a time of all tasks and processes of this library writes to a directory: `manifest.json.lock` in it is locked, and
//! removed when the lock is released.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::blob_files::{self, BlobFiles};
use super::directory::{self, MANIFEST, VERSION};
use super::files;
use super::manifest::MAX_DOCUMENT;
use crate::bridge;
use crate::digest::Digest;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::single_flight::{self, Flight};
use crate::store::image_manifest::{Descriptor, ImageManifest};
use crate::sys::temporary_names;

/// The name of the lock file.
const LOCK: &str = "manifest.json.lock";

/// A directory that is written to.
pub(crate) struct DirectoryWriter {
    pub(super) blobs: BlobFiles,
    _lock: Flight,
}

impl DirectoryWriter {
    /// Opens a directory for one image, or makes one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is something else in it.
    pub(crate) async fn open(dir: PathBuf) -> Result<Self> {
        let prepared = dir.clone();
        bridge::run(move || prepare(&prepared)).await?;
        let lock = single_flight::acquire(&dir, LOCK).await?;
        Ok(Self {
            blobs: BlobFiles::new(dir, directory::file_name),
            _lock: lock,
        })
    }

    /// Writes the manifest, and removes the files of the image that was there.
    pub(crate) async fn finish(
        &self,
        manifest: &ImageManifest,
        config: &Digest,
        layers: &[Descriptor],
    ) -> Result<()> {
        let mut digests: Vec<&Digest> = layers.iter().map(|layer| &layer.digest).collect();
        digests.push(config);
        let version = directory::version(&digests);
        let kept: HashSet<String> = digests.into_iter().map(directory::file_name).collect();
        let (dir, bytes) = (self.blobs.dir().to_owned(), manifest.bytes.clone());
        bridge::run(move || {
            blob_files::replace(&dir.join(VERSION), version.as_bytes())?;
            blob_files::replace(&dir.join(MANIFEST), &bytes)?;
            for entry in std::fs::read_dir(&dir).at("listing", &dir)? {
                let entry = entry.at("listing", &dir)?;
                let name = entry.file_name();
                let is_directory = entry.file_type().at("looking at", entry.path())?.is_dir();
                let is_kept = name.to_str().is_some_and(|name| kept.contains(name));
                let is_left = temporary_names::is_temporary(&name);
                if !is_directory && (is_left || belongs_to_an_image(&name) && !is_kept) {
                    let path = dir.join(name);
                    std::fs::remove_file(&path).at("removing", &path)?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Makes a directory that has a version file. One that is there has to have it, or nothing.
fn prepare(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).at("creating", dir)?;
    let file = dir.join(VERSION);
    match files::read_small_now(&file, MAX_DOCUMENT) {
        Ok(content) => directory::check_version(&content).map_err(|error| error.at(&file)),
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {
            for entry in std::fs::read_dir(dir).at("listing", dir)? {
                let name = entry.at("listing", dir)?.file_name();
                // What a killed process of this library has left.
                let is_left = name == LOCK || temporary_names::is_temporary(&name);
                if name != VERSION && !is_left {
                    let what = "not a containers image directory, don't want to overwrite important data";
                    return Err(ErrorKind::InvalidInput.err(what).at(dir));
                }
            }
            blob_files::replace(&file, directory::version(&[]).as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// Whether a file is a blob, a manifest of an index or a signature, by its name.
fn belongs_to_an_image(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    let is_signature = |name: &str| {
        let number = name.strip_prefix("signature-");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if is_signature(name) {
        return true;
    }
    let digest = match first.split_once('-') {
        Some((algorithm, encoded)) => format!("{algorithm}:{encoded}"),
        None => format!("sha256:{first}"),
    };
    digest.parse::<Digest>().is_ok() && (["", "manifest.json"].contains(&rest) || is_signature(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_images_are_known_by_their_names() {
        let (usual, long) = ("a".repeat(64), format!("sha512-{}", "b".repeat(128)));
        for (name, is_of_image) in [
            (usual.clone(), true),
            (long.clone(), true),
            (format!("{usual}.manifest.json"), true),
            (format!("{usual}.signature-1"), true),
            ("signature-12".into(), true),
            ("signature-".into(), false),
            ("signature-x".into(), false),
            (usual.to_uppercase(), false),
            (format!("{usual}.tar"), false),
            (format!("x{usual}"), false),
            ("version".into(), false),
            ("manifest.json".into(), false),
            ("notes".into(), false),
        ] {
            assert_eq!(belongs_to_an_image(OsStr::new(&name)), is_of_image, "{name}");
        }
    }
}
