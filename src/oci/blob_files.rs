//! Files of images outside of a store: they appear whole, under their names.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files;
use super::meter::Meter;
use super::progress::Progress;
use super::spool::Spool;
use crate::bridge;
use crate::digest::Digest;
use crate::error::{IoContext as _, Result};
use crate::sys::atomic::{self, AtomicFile};

/// The mode of new files before the umask. Files that are replaced keep theirs.
const MODE: u32 = 0o644;

/// Blobs in a directory, each in a file of its own.
pub(super) struct BlobFiles {
    dir: PathBuf,
    /// The path of a blob in the directory.
    path: fn(&Digest) -> String,
}

impl BlobFiles {
    pub(super) fn new(dir: PathBuf, path: fn(&Digest) -> String) -> Self {
        Self { dir, path }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join((self.path)(digest))
    }

    /// Whether there is a blob of this size. One of another size is damaged, and is written anew.
    pub(super) async fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        let path = self.blob(digest);
        let found = bridge::run(move || match std::fs::metadata(&path) {
            Ok(found) => Ok(found.is_file() && found.len() == size),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).at("looking for", &path),
        });
        found.await
    }

    /// Writes a layer.
    pub(super) async fn put_layer(&self, spool: &Spool, progress: &Progress) -> Result<()> {
        let (from, to) = (spool.path().to_owned(), self.blob(&spool.digest));
        let meter = Meter::start(progress, &spool.digest, spool.size, 0);
        bridge::run(move || copy(&from, &to)).await?;
        meter.add(spool.size);
        Ok(())
    }

    /// Writes a short blob unless it is there.
    pub(super) async fn put_small(&self, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let (path, bytes) = (self.blob(digest), bytes.clone());
        bridge::run(move || {
            let there = files::read_small_now(&path, bytes.len() as u64);
            match there.is_ok_and(|there| there == bytes) {
                true => Ok(()),
                false => replace(&path, &bytes),
            }
        })
        .await
    }
}

/// Writes a short file, also in place of another. Blocking.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic::write_user_file(path, bytes, MODE, true)
}

/// Copies a file to a place where it appears whole.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = files::open_regular(from)?;
    let mut target = AtomicFile::create_unnamed(to, MODE)?;
    std::io::copy(&mut source, &mut target).at("copying a layer to", to)?;
    target.commit_as_user_file(true)
}
