//! A compressed layer on its way out, on disk for a moment: its digest and size have to be known before it is sent, and
//! an upload that breaks off has to begin again.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::bridge;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::store::Store;

/// Bytes that are written in one step.
const STEP: usize = 1 << 20;

/// A file of which nobody else knows; removed when dropped, or by the next open of the store after a crash.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    temp: Option<TempDir>,
}

impl Spool {
    /// Writes a stream to its end.
    pub(crate) async fn fill(store: &Store, mut stream: impl AsyncRead + Send + Unpin) -> Result<Self> {
        let dir = store.transfer_dirs().temporary;
        let (mut file, path, temp) = bridge::run(move || {
            let mut temp = TempDir::create(&dir)?;
            let path = temp.addition();
            let file = File::create_new(&path).at("creating", &path)?;
            Ok((file, path, temp))
        })
        .await?;
        let mut spool = Self {
            path,
            digest: Digest::sha256(b""),
            size: 0,
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
                let path = spool.path.clone();
                (file, hasher) = bridge::run(move || {
                    hasher.update(&chunk);
                    file.write_all(&chunk).at("writing", path)?;
                    Ok((file, hasher))
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
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            bridge::spawn_detached(move || drop(temp));
        }
    }
}
