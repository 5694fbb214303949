//! A compressed layer on its way out, on disk for a moment: its digest and size have to be known before it is sent, and
//! an upload that breaks off has to begin again.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

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
        let dir = store.inner.dirs.layers_tmp();
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

/// Hands a stream on in pieces of one size, however it comes. What an encoder makes of a stream depends on the pieces in
/// which it gets it; a layer that is pushed twice shall be the same blob twice.
#[derive(Debug)]
pub(crate) struct Even<R> {
    inner: R,
    buffer: Box<[u8]>,
    filled: usize,
    taken: usize,
    /// The piece is as full as it will be and is being handed on.
    whole: bool,
    ended: bool,
}

/// Size of the pieces: that of the buffer before the encoder.
const PIECE: usize = 64 * 1024;

impl<R> Even<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; PIECE].into(),
            filled: 0,
            taken: 0,
            whole: false,
            ended: false,
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Even<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        while !this.whole {
            let mut room = ReadBuf::new(this.buffer.get_mut(this.filled..).unwrap_or_default());
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut room))?;
            let count = room.filled().len();
            this.filled += count;
            this.ended = count == 0;
            this.whole = this.ended || this.filled == PIECE;
        }
        let piece = this.buffer.get(this.taken..this.filled).unwrap_or_default();
        let count = piece.len().min(out.remaining());
        out.put_slice(piece.get(..count).unwrap_or_default());
        this.taken += count;
        if this.taken == this.filled {
            (this.filled, this.taken, this.whole) = (0, 0, this.ended);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            bridge::detach(move || drop(temp));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of odd sizes.
    struct Odd(Vec<u8>, usize);

    impl AsyncRead for Odd {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.1 = self.1 * 7 % 10_007 + 1;
            let count = self.1.min(self.0.len()).min(out.remaining());
            out.put_slice(&self.0.drain(..count).collect::<Vec<_>>());
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn pieces_are_full_until_the_last() {
        for size in [0, 1, PIECE - 1, PIECE, 3 * PIECE + 17] {
            let content: Vec<u8> = (0..size)
                .map(|index| u8::try_from(index % 251).unwrap())
                .collect();
            let mut even = Even::new(Odd(content.clone(), 3));
            let mut all = Vec::new();
            loop {
                let mut piece = vec![0; PIECE];
                let count = even.read(&mut piece).await.unwrap();
                all.extend_from_slice(&piece[..count]);
                assert!(count == PIECE || all.len() == size, "{count} of {size}");
                if count == 0 {
                    break;
                }
            }
            assert!(all == content);
        }
    }
}
