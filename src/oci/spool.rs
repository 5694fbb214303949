//! A layer on its way out, in a temporary file: its digest and size have to be known before it is sent, and an upload
//! that breaks off has to begin again. Archives that are compressed, or have layers that are, come in by way of one.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{Stream, TryStreamExt as _, try_unfold};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::StreamReader;

use super::files;
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::bridge;
use crate::chunked::FileBlob;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::store::Store;

/// Bytes that are written in one step.
const STEP: usize = 1 << 20;

/// A file that only its owner knows; removed when dropped, or by the next open of the store after a crash.
#[derive(Debug)]
pub(crate) struct Spool {
    /// ID of the layer; empty for what comes in.
    pub(crate) layer: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    path: Arc<Path>,
    file: Arc<File>,
    temp: Option<TempDir>,
}

impl Spool {
    /// Decompresses a stream to its end.
    pub(crate) async fn decompress(store: &Store, stream: impl AsyncRead + Send + Unpin) -> Result<Self> {
        let mut blob = BlobReader::new(stream);
        let compression = blob
            .detect()
            .await
            .map_err(|error| Error::io("reading what is to be decompressed", error))?;
        let decoder = Decoder::new(blob, compression, STEP);
        let chunks = try_unfold(decoder, |mut decoder| async move {
            let chunk = decoder.next_chunk().await.map_err(io::Error::from)?;
            Ok::<_, io::Error>(chunk.map(|chunk| (chunk, decoder)))
        });
        Self::fill(store, "", StreamReader::new(Box::pin(chunks))).await
    }

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
                .map_err(|error| Error::io("reading what goes into a temporary file", error))?;
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

    /// The file as a blob, which stays when this is dropped.
    pub(crate) fn blob(&self) -> FileBlob {
        FileBlob::part(Arc::clone(&self.file), Arc::clone(&self.path), 0, self.size)
    }

    /// A part of the layer. `count` is called with the number of bytes of each chunk.
    pub(crate) fn stream(
        &self,
        part: Range<u64>,
        mut count: impl FnMut(u64) + Send + 'static,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let size = part.end.saturating_sub(part.start);
        files::chunks(Arc::clone(&self.file), Arc::clone(&self.path), part.start, size)
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
