//! A big data item of a layer as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::{fmt, io};

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::bridge::ByteStream;

/// A big data item of a layer as a stream, made by [`Store::layer_big_data`](crate::Store::layer_big_data). It stays
/// readable when the item is replaced or its layer deleted.
///
/// It is both an [`AsyncRead`] and a [`Stream`] of chunks. Each poll that finds no bytes runs one short step on the
/// runtime's blocking pool; a reader that is not polled costs an open file.
pub struct BigDataReader {
    pub(super) stream: ByteStream,
    pub(super) size: u64,
}

impl BigDataReader {
    /// Bytes of the whole item.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Debug for BigDataReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BigDataReader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for BigDataReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Stream for BigDataReader {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}
