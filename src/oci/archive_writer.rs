//! A tar file that appears under its name when it is complete.

use std::path::PathBuf;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufWriter};
use tokio_tar::{Builder, EntryType, Header};

use crate::bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::atomic::AtomicFile;

/// Bytes that are written in one step.
const STEP: usize = 1 << 20;

/// An archive that is being written, in a file without a name on the file system of its target. Dropped, it is removed.
pub(crate) struct ArchiveWriter {
    /// `None` once it has been dropped or committed.
    target: Option<AtomicFile>,
    path: PathBuf,
    builder: Builder<BufWriter<File>>,
}

impl ArchiveWriter {
    /// Starts an archive that will replace `path`, which must be a regular file if it exists and then keeps its mode. A
    /// new one has `mode` less the umask.
    pub(crate) async fn create(path: PathBuf, mode: u32) -> Result<Self> {
        bridge::run(move || {
            match std::fs::symlink_metadata(&path) {
                // A rename would replace the device or link, not what it stands for.
                Ok(found) if !found.is_file() => {
                    return Err(ErrorKind::NotSupported
                        .err("an archive in place of what is no regular file")
                        .at(path));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io_at("looking at", path, error)),
            }
            let target = AtomicFile::create_unnamed(&path, mode)?;
            let file = BufWriter::with_capacity(STEP, File::from_std(target.handle()?));
            Ok(Self {
                target: Some(target),
                path,
                builder: Builder::new_non_terminated(file),
            })
        })
        .await
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io_at("writing", &self.path, error)
    }

    /// Adds a directory.
    pub(crate) async fn directory(&mut self, name: &str) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0);
        let appended = self
            .builder
            .append_data(&mut header, name, tokio::io::empty())
            .await;
        appended.map_err(|error| self.failed(error))
    }

    /// Adds a file of `size` bytes. After a failure, no more can be added.
    pub(crate) async fn file(
        &mut self,
        name: &str,
        size: u64,
        content: impl AsyncRead + Unpin,
    ) -> Result<()> {
        let mut counted = tokio::io::AsyncReadExt::take(content, size);
        let mut header = header(EntryType::Regular, 0o644, size);
        let appended = self.builder.append_data(&mut header, name, &mut counted).await;
        appended.map_err(|error| self.failed(error))?;
        match counted.limit() {
            0 => Ok(()),
            missing => Err(ErrorKind::InvalidInput.err(format!("{name} ends {missing} bytes early"))),
        }
    }

    /// Adds a short file.
    pub(crate) async fn small(&mut self, name: &str, content: &Bytes) -> Result<()> {
        self.file(name, content.len() as u64, &content[..]).await
    }

    /// Writes the end of the archive and gives it its name.
    pub(crate) async fn commit(mut self) -> Result<()> {
        let finished = async {
            self.builder.finish().await?;
            let file = self.builder.get_mut();
            file.flush().await
        };
        finished.await.map_err(|error| self.failed(error))?;
        match self.target.take() {
            Some(target) => bridge::run(move || target.commit_as_user_file(true)).await,
            None => Ok(()),
        }
    }
}

impl Drop for ArchiveWriter {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            // Removing a large file takes a while.
            bridge::spawn_detached(move || drop(target));
        }
    }
}

/// A header that depends on nothing but the member, so that equal images make equal archives.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
