//! A layer on its way out, in a temporary file: its digest and size have to be known before it is sent, and an upload
//! that breaks off has to begin again.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{Stream, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::files;
use crate::bridge;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::store::Store;

/// Bytes that are written in one step.
const STEP: usize = 1 << 20;

/// A file that only its owner knows; removed when dropped, or by the next open of the store after a crash.
#[derive(Debug)]
pub(crate) struct Spool {
    /// ID of the layer.
    pub(crate) layer: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    path: Arc<Path>,
    file: Arc<File>,
    temp: Option<TempDir>,
}

impl Spool {
    /// Writes a stream to its end.
    pub(crate) async fn fill(
        store: &Store,
        layer: &str,
        mut stream: impl AsyncRead + Send + Unpin,
    ) -> Result<Self> {
        let dir = store.transfer_dirs().temporary;
        let (file, path, temp) = bridge::run(move || create(&dir)).await?;
        let mut spool = Self {
            layer: layer.to_owned(),
            digest: Digest::sha256(b""),
            size: 0,
            path: path.into(),
            file: Arc::new(file),
            temp: Some(temp),
        };
        let mut hasher = Hasher::sha256();
        let mut buffer = BytesMut::with_capacity(STEP);
        loop {
            let count = stream
                .read_buf(&mut buffer)
                .await
                .map_err(|error| Error::io("reading a layer out of the store", error))?;
            if count == 0 || buffer.len() >= STEP {
                let chunk = buffer.split().freeze();
                spool.size += chunk.len() as u64;
                let (file, path) = (Arc::clone(&spool.file), Arc::clone(&spool.path));
                hasher = bridge::run(move || {
                    hasher.update(&chunk);
                    (&*file).write_all(&chunk).at("writing", path)?;
                    Ok(hasher)
                })
                .await?;
                buffer.reserve(STEP);
            }
            if count == 0 {
                break;
            }
        }
        spool.digest = hasher.finish();
        Ok(spool)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The layer, from its start. `count` is called with the number of bytes of each chunk.
    pub(crate) fn stream(
        &self,
        mut count: impl FnMut(u64) + Send + 'static,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        files::chunks(Arc::clone(&self.file), Arc::clone(&self.path), 0, self.size)
            .inspect_ok(move |chunk| count(chunk.len() as u64))
    }
}

fn create(dir: &Path) -> Result<(File, PathBuf, TempDir)> {
    let mut temp = TempDir::create(dir)?;
    let path = temp.addition();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .at("creating", &path)?;
    Ok((file, path, temp))
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            bridge::spawn_detached(move || drop(temp));
        }
    }
}
