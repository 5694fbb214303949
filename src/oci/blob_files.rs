//! Files of images outside of a store: they appear whole, under their names.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files;
use crate::bridge;
use crate::error::{IoContext as _, Result};
use crate::sys::atomic::{self, AtomicFile};

/// The mode of new files before the umask. Files that are replaced keep theirs.
const MODE: u32 = 0o644;

/// Writes a copy of a file.
pub(super) async fn put_copy(from: PathBuf, to: PathBuf) -> Result<()> {
    bridge::run(move || {
        let mut source = files::open_regular(&from)?;
        let mut target = AtomicFile::create_user_file(&to, MODE)?;
        std::io::copy(&mut source, &mut target).at("copying a layer to", &to)?;
        target.commit_as_user_file(true)
    })
    .await
}

/// Writes a short file unless there is one.
pub(super) async fn put_missing(path: PathBuf, bytes: Bytes) -> Result<()> {
    bridge::run(move || match path.try_exists().at("looking for", &path)? {
        true => Ok(()),
        false => replace(&path, &bytes),
    })
    .await
}

/// Writes a short file, also in place of another. Blocking.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic::write_user_file(path, bytes, MODE, true)
}

/// Whether there is a file.
pub(super) async fn exists(path: PathBuf) -> Result<bool> {
    bridge::run(move || path.try_exists().at("looking for", &path)).await
}
