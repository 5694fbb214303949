//! A directory with the files of one image, as Skopeo writes it (`dir:`): `manifest.json`, or those of an index as
//! `HEX.manifest.json`, blobs as `HEX`, signatures as `signature-NUMBER`, and the version of the format in `version`.

use std::path::PathBuf;

use super::files;
use super::layout;
use super::manifest::{Fetched, MAX_DOCUMENT};
#[cfg(feature = "signatures")]
use super::signatures::signature::{self, MAX_SIGNATURE, Signature};
use crate::bridge;
use crate::chunked::FileBlob;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_manifest::Descriptor;

/// The name of the file that says which version of the format the directory has.
pub(super) const VERSION: &str = "version";
/// The first manifest: that of the image, or an index.
pub(super) const MANIFEST: &str = "manifest.json";
const VERSION_PREFIX: &str = "Directory Transport Version: ";
const NEWEST: (u32, u32) = (1, 2);

/// A directory that is read.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    pub(super) top: Fetched,
}

/// The content of the version file: the older version unless a digest is of another kind than the usual one.
pub(super) fn version(digests: &[&Digest]) -> String {
    let minor = 1 + u32::from(digests.iter().any(|digest| digest.algorithm() != "sha256"));
    format!("{VERSION_PREFIX}1.{minor}\n")
}

/// Checks what a version file says.
pub(super) fn check_version(content: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(content);
    let number = |text: &str| -> Option<u32> {
        let read = text.parse().ok()?;
        (format!("{read}") == text).then_some(read)
    };
    let read = text
        .strip_prefix(VERSION_PREFIX)
        .and_then(|rest| rest.strip_suffix('\n')?.split_once('.'))
        .and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    match read {
        None => Err(ErrorKind::InvalidInput.err(format!("invalid version file content: {text:?}"))),
        Some(version) if version > NEWEST => {
            Err(ErrorKind::NotSupported.err(format!("unsupported directory transport version {text:?}")))
        }
        Some(_) => Ok(()),
    }
}

/// What a digest is called in names of files.
pub(super) fn file_name(digest: &Digest) -> String {
    match digest.algorithm() {
        "sha256" => digest.encoded().to_owned(),
        other => format!("{other}-{}", digest.encoded()),
    }
}

impl Directory {
    /// Opens a directory and reads its first manifest.
    pub(crate) async fn open(dir: PathBuf) -> Result<Self> {
        bridge::run(move || {
            let file = dir.join(VERSION);
            match files::read_small_now(&file, MAX_DOCUMENT) {
                Ok(content) => check_version(&content).map_err(|error| error.at(&file))?,
                // Older programs write none.
                Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
            let bytes = files::read_small_now(&dir.join(MANIFEST), MAX_DOCUMENT)?;
            let top = Fetched {
                digest: Digest::sha256(&bytes),
                bytes: bytes.into(),
            };
            Ok(Self { dir, top })
        })
        .await
    }

    /// A manifest; not verified.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>> {
        if *digest == self.top.digest {
            return Ok(self.top.bytes.to_vec());
        }
        let file = self.dir.join(format!("{}.manifest.json", file_name(digest)));
        files::read_small(file, MAX_DOCUMENT).await
    }

    /// A short blob; not verified.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        files::read_small(self.dir.join(file_name(digest)), MAX_DOCUMENT).await
    }

    /// Where a blob is; not verified.
    pub(crate) async fn file(&self, blob: &Descriptor) -> Result<FileBlob> {
        let file = FileBlob::open(self.dir.join(file_name(&blob.digest))).await?;
        layout::of_size(file, blob)
    }

    /// The signatures of a manifest; not verified.
    #[cfg(feature = "signatures")]
    pub(crate) async fn signatures(&self, manifest: &Digest) -> Result<Vec<Signature>> {
        let prefix = match *manifest == self.top.digest {
            true => String::new(),
            false => format!("{}.", file_name(manifest)),
        };
        let mut found = Vec::new();
        loop {
            let file = self.dir.join(format!("{prefix}signature-{}", found.len() + 1));
            let bytes = match files::read_small(file.clone(), MAX_SIGNATURE).await {
                Ok(bytes) => bytes,
                Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => return Ok(found),
                Err(error) => return Err(error),
            };
            let added = Signature::parse(&bytes).and_then(|read| signature::add(&mut found, read));
            added.map_err(|why| ErrorKind::InvalidInput.err(format!("parsing signature {file:?}: {why}")))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_checked() {
        let usual = Digest::sha256(b"");
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(version(&[&usual]), "Directory Transport Version: 1.1\n");
        assert_eq!(version(&[&usual, &long]), "Directory Transport Version: 1.2\n");
        for good in ["1.1", "1.2", "0.7"] {
            check_version(format!("Directory Transport Version: {good}\n").as_bytes()).unwrap();
        }
        for (bad, kind) in [
            ("Directory Transport Version: 1.3\n", ErrorKind::NotSupported),
            ("Directory Transport Version: 2.0\n", ErrorKind::NotSupported),
            ("Directory Transport Version: 1.1", ErrorKind::InvalidInput),
            ("Directory Transport Version: 01.1\n", ErrorKind::InvalidInput),
            ("Directory Transport Version: +1.1\n", ErrorKind::InvalidInput),
            ("Directory Transport Version: 1\n", ErrorKind::InvalidInput),
            ("", ErrorKind::InvalidInput),
        ] {
            assert_eq!(check_version(bad.as_bytes()).unwrap_err().kind(), kind, "{bad:?}");
        }
    }

    #[test]
    fn blobs_have_names_that_follow_from_their_digests() {
        let usual = Digest::sha256(b"");
        assert_eq!(file_name(&usual), usual.encoded());
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(file_name(&long), format!("sha512-{}", "0".repeat(128)));
    }
}
