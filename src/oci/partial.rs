//! The first bytes of blobs whose download was interrupted, kept for the next attempt.
//!
//! ```text
//! <graph root>/<driver>-partial/sha256-HEX     the first bytes of the blob, flock'ed by the task that downloads it
//! ```
//!
//! A file holds the first bytes that were received for a digest; they are not verified. The reader verifies the whole
//! blob and discards the file if that fails. It is also discarded when the store has the blob's layer. A failure to
//! write it (on a full disk for example) does not fail the download: the file then keeps what was written before.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::bridge;
use crate::digest::Digest;
use crate::error::{Error, IoContext as _, Result};
use crate::lock::flocked_file::FlockedFile;
use crate::sys::{list_dir_if_there, make_private_subdir};

/// Bytes that are read or written in one step; a kill loses at most so many.
const STEP: usize = 256 * 1024;

/// The directory of partial blobs.
#[derive(Clone, Debug)]
pub(crate) struct Partials {
    dir: PathBuf,
}

impl Partials {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join(format!("{}-{}", digest.algorithm(), digest.encoded()))
    }

    /// Opens the file of a blob, or a new one. `None` if another task or process has it locked, or it cannot be opened:
    /// the download then does without.
    pub(crate) async fn open(&self, digest: &Digest, size: u64) -> Option<Partial> {
        let (dir, path) = (self.dir.clone(), self.path(digest));
        let opened = bridge::run(move || open(&dir, path, size)).await;
        opened.unwrap_or_else(|error| {
            tracing::warn!(error = %error.chain(), "downloading without a partial file");
            None
        })
    }

    /// Removes the file of a blob.
    pub(crate) async fn discard(&self, digest: &Digest) {
        let path = self.path(digest);
        let removed = bridge::run(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io_at("removing", path, error))
            }
            _ => Ok(()),
        });
        if let Err(error) = removed.await {
            tracing::warn!(error = %error.chain(), "leaving a partial blob behind");
        }
    }

    /// Removes all files that are not locked; returns how many bytes that frees.
    pub(crate) fn discard_all(&self) -> Result<u64> {
        let mut freed = 0;
        for entry in list_dir_if_there(&self.dir)? {
            let path = entry?.path();
            let Some((_lock, size)) = lock(&path)? else {
                continue;
            };
            std::fs::remove_file(&path).at("removing", &path)?;
            freed += size;
        }
        Ok(freed)
    }
}

/// Locks an existing or new file; `None` if it is locked.
fn lock(path: &Path) -> Result<Option<(FlockedFile, u64)>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .at("opening", path)?;
    let Ok(file) = FlockedFile::try_lock(file).at("locking", path)? else {
        return Ok(None);
    };
    let size = file.metadata().at("looking at", path)?.len();
    Ok(Some((file, size)))
}

fn open(dir: &Path, path: PathBuf, size: u64) -> Result<Option<Partial>> {
    make_private_subdir(dir)?;
    let Some((file, found)) = lock(&path)? else {
        return Ok(None);
    };
    let mut kept = found;
    if found > size {
        // It is longer than the blob, so not of it.
        file.set_len(0).at("emptying", &path)?;
        kept = 0;
    }
    Ok(Some(Partial {
        file: Arc::new(Mutex::new(file)),
        path,
        kept,
        at: 0,
        waiting: BytesMut::new(),
        broken: false,
    }))
}

/// The locked file of one blob.
#[derive(Debug)]
pub(crate) struct Partial {
    /// Its position is where the next bytes are read, and later written.
    file: Arc<Mutex<FlockedFile>>,
    path: PathBuf,
    kept: u64,
    /// Bytes read back.
    at: u64,
    /// Received and not written yet.
    waiting: BytesMut,
    broken: bool,
}

impl Partial {
    /// How many bytes an earlier download has left.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// The next of the kept bytes; `None` when all were read.
    pub(crate) async fn read_back(&mut self) -> Result<Option<Bytes>> {
        let left = self.kept - self.at;
        if left == 0 {
            return Ok(None);
        }
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let count = left.min(STEP as u64);
        let bytes = bridge::run(move || {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let mut bytes = Vec::new();
            (&**file)
                .take(count)
                .read_to_end(&mut bytes)
                .at("reading", &path)?;
            if bytes.is_empty() {
                return Err(crate::error::ErrorKind::NotFound
                    .err("the rest of a partial blob")
                    .at(path));
            }
            Ok(bytes)
        })
        .await?;
        self.at += bytes.len() as u64;
        Ok(Some(bytes.into()))
    }

    /// Keeps bytes that were received.
    pub(crate) async fn keep(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= STEP {
            self.flush().await;
        }
    }

    /// Writes what is buffered.
    pub(crate) async fn flush(&mut self) {
        if self.broken || self.waiting.is_empty() {
            return;
        }
        let (file, path, bytes) = (
            Arc::clone(&self.file),
            self.path.clone(),
            self.waiting.split().freeze(),
        );
        if let Err(error) = bridge::run(move || write(&file, &bytes, &path)).await {
            tracing::warn!(error = %error.chain(), "no longer keeping a download");
            self.broken = true;
        }
    }
}

fn write(file: &Mutex<FlockedFile>, bytes: &[u8], path: &Path) -> Result<()> {
    let file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file: &File = &file;
    let start = file.stream_position().at("writing", path)?;
    let written = file.write_all(bytes).at("writing", path);
    if written.is_err() {
        // How many of the bytes were written is not known: drop all of them.
        file.set_len(start).at("cutting", path)?;
        file.seek(SeekFrom::Start(start)).at("cutting", path)?;
    }
    written
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.broken || self.waiting.is_empty() {
            return;
        }
        // The download was interrupted: keep what was received.
        let (file, path, bytes) = (
            Arc::clone(&self.file),
            self.path.clone(),
            self.waiting.split().freeze(),
        );
        bridge::spawn_detached(move || {
            if let Err(error) = write(&file, &bytes, &path) {
                tracing::warn!(error = %error.chain(), "no longer keeping a download");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(partial: &mut Partial) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = partial.read_back().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[tokio::test]
    async fn what_was_kept_comes_back_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::new(dir.path().join("partial"));
        let digest = Digest::sha256(b"x");
        let mut first = partials.open(&digest, 1 << 20).await.unwrap();
        assert_eq!((first.kept(), read_all(&mut first).await.len()), (0, 0));
        first.keep(&[1; STEP + 1]).await;
        assert!(partials.open(&digest, 1 << 20).await.is_none(), "one at a time");
        first.keep(&[2; 10]).await;
        first.flush().await;
        // As a child has it that another thread has just forked.
        let _inherited = first.file.lock().unwrap().try_clone().unwrap();
        drop(first);
        let mut second = partials.open(&digest, 1 << 20).await.unwrap();
        let bytes = read_all(&mut second).await;
        assert_eq!((second.kept(), bytes.len()), (STEP as u64 + 11, STEP + 11));
        assert_eq!((bytes[STEP], bytes[STEP + 1]), (1, 2));
        second.keep(&[3]).await;
        second.flush().await;
        assert_eq!(partials.discard_all().unwrap(), 0, "it is in use");
        drop(second);
        assert_eq!(
            partials.open(&digest, 5).await.unwrap().kept(),
            0,
            "longer than the blob"
        );
        partials.discard(&digest).await;
        assert_eq!(partials.discard_all().unwrap(), 0);
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }
}
