//! Applying a layer: from the blob to files below a directory, in one pass.
//!
//! ```text
//! async side, in the caller's future:  read → detect → decode (gzip, zstd) ─┐ bounded channel,
//! unpack thread:  decode (xz, bzip2) → frame → unpack, tar-split recorder ──┘ beside it the hashing queues
//! ```
//!
//! The digests of the blob and of the decoded stream are computed by the side that would wait for the other one, so
//! two processors are busy, and memory stays at a few MiB whatever the layer's size. The async side holds no thread of
//! the runtime while it waits, and yields while it computes.
//!
//! If the unpacking fails, its error is the result and nothing more is read. If the source fails, the unpack thread
//! sees that error and fails with it. If the future is dropped, the unpack thread sees an error, stops, and drops the
//! guard that it was given: a layer that was cut off is never taken for a whole one.
//!
//! The stream is read to its very end, also after the end of the archive: digests and tar-split data cover that too.

use std::pin::{Pin, pin};

use bytes::Bytes;
use futures::future::Either;
use futures::{Stream, StreamExt as _};
use tokio::io::AsyncRead;
use tokio::sync::oneshot;

use crate::archive::apply::digests::HashQueues;
use crate::archive::apply::unpack::{self, Incoming, Job};
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::{self, Decoder};
use crate::bridge::{self, CHUNK, ChunkSender, Detached};
use crate::compression::Compression;
use crate::error::{Error, Result};

pub(crate) use crate::archive::apply::target::{Applied, ApplyOptions, Content, Inspect, Target};

/// The reader of a layer. It is polled by the caller's future only, so it may borrow.
pub(crate) type Source<'a> = Pin<Box<dyn AsyncRead + Send + 'a>>;

/// Chunks of a tar stream.
pub(crate) type TarChunks<'a> = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'a>>;

/// A layer on its way in.
pub(crate) enum Inflow<'a> {
    /// A tar stream that is compressed, or not.
    Blob(Source<'a>),
    /// A tar stream whatever its first bytes look like, in chunks of at most [`CHUNK`] bytes.
    Tar(TarChunks<'a>),
}

/// What is left to be sent.
enum Sending<'a> {
    Blob(BlobReader<Source<'a>>, Compression),
    Tar(TarChunks<'a>),
}

/// Unpacks the layer in `source` below `target`, and hands `guard` back when all is done.
///
/// Until the unpacking has ended, also when this future was dropped, the unpack thread owns `guard`.
///
/// # Errors
/// [`ErrorKind::InvalidArchive`](crate::ErrorKind::InvalidArchive) for a stream that cannot be decoded or unpacked,
/// [`ErrorKind::DigestMismatch`](crate::ErrorKind::DigestMismatch) if digests are checked; the target is partly filled
/// then, and `guard` was dropped.
pub(crate) async fn apply<G: Send + 'static>(
    source: Source<'_>,
    target: Target,
    options: ApplyOptions,
    guard: G,
) -> Result<(Applied, G)> {
    apply_inflow(Inflow::Blob(source), target, options, guard).await
}

/// As [`apply`], for whatever comes.
pub(crate) async fn apply_inflow<G: Send + 'static>(
    source: Inflow<'_>,
    target: Target,
    mut options: ApplyOptions,
    guard: G,
) -> Result<(Applied, G)> {
    let guard = Detached::new(guard);
    let (sending, compression) = match source {
        Inflow::Tar(chunks) => (Sending::Tar(chunks), Compression::None),
        Inflow::Blob(source) => {
            let mut blob = BlobReader::new(source);
            match blob.detect().await {
                Ok(compression) => (Sending::Blob(blob, compression), compression),
                Err(error) => {
                    let guard = guard.into_inner();
                    // It may be in what is removed.
                    drop(target);
                    bridge::run(move || {
                        drop(guard);
                        Ok(())
                    })
                    .await?;
                    return Err(Error::io("unpacking", error));
                }
            }
        }
    };
    let queues = HashQueues::new(&mut options, compression);
    let (sender, reader) = bridge::chunks_in();
    let (report, blob_size) = oneshot::channel();
    let decode_here = decode::is_fast(compression);
    let job = Job {
        incoming: Incoming::new(reader, queues.clone()),
        compression,
        decode: !decode_here,
        blob_size,
    };
    let guard = guard.into_inner();
    let work = bridge::unpack(move || {
        match unpack::unpack(job, target, options) {
            Ok(applied) => Ok((applied, guard)),
            Err(error) => {
                // Here and not on the async side: it may remove a whole tree.
                drop(guard);
                Err(error)
            }
        }
    });
    let feed = Feed {
        sender,
        queues,
        report,
    };
    let feed = async {
        match sending {
            Sending::Tar(chunks) => feed.tar(chunks).await,
            Sending::Blob(blob, compression) if decode_here => feed.decoded(blob, compression).await,
            Sending::Blob(blob, _) => feed.encoded(blob).await,
        }
    };
    let (feed, work) = (pin!(feed), pin!(work));
    match futures::future::select(work, feed).await {
        Either::Left((result, _feed)) => result,
        Either::Right(((), work)) => work.await,
    }
}

/// The async side. Failures reach the caller through the unpack thread, whose own failure comes first.
struct Feed {
    sender: ChunkSender,
    queues: HashQueues,
    report: oneshot::Sender<u64>,
}

impl Feed {
    /// Sends a tar stream as it is.
    async fn tar(self, mut chunks: TarChunks<'_>) {
        let mut size = 0;
        loop {
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    size += chunk.len() as u64;
                    self.queues.decoded.push(chunk.clone());
                    if let Some(error) = self.queues.decoded.take_failure() {
                        return self.fail(error).await;
                    }
                    while self.sender.is_full() && self.queues.help() {
                        tokio::task::yield_now().await;
                    }
                    if !self.sender.send(chunk).await {
                        return;
                    }
                }
                None => return self.end(size).await,
                Some(Err(error)) => return self.fail(error).await,
            }
        }
    }

    /// Sends the decoded stream.
    async fn decoded(self, mut blob: BlobReader<Source<'_>>, compression: Compression) {
        if let Some(queue) = &self.queues.blob {
            blob.hash_with(std::sync::Arc::clone(queue));
        }
        let mut decoder = Decoder::new(blob, compression, CHUNK);
        loop {
            match decoder.next_chunk().await {
                Ok(Some(chunk)) => {
                    self.queues.decoded.push(chunk.clone());
                    while self.sender.is_full() && self.queues.help() {
                        tokio::task::yield_now().await;
                    }
                    if !self.sender.send(chunk).await {
                        return;
                    }
                }
                Ok(None) => return self.end(decoder.blob_size().unwrap_or_default()).await,
                Err(error) => return self.fail(error).await,
            }
        }
    }

    /// Sends the blob.
    async fn encoded(self, mut blob: BlobReader<Source<'_>>) {
        loop {
            match blob.next_chunk().await {
                Ok(Some(chunk)) => {
                    if let Some(queue) = &self.queues.blob {
                        queue.push(chunk.clone());
                    }
                    while self.sender.is_full() && self.queues.help() {
                        tokio::task::yield_now().await;
                    }
                    if !self.sender.send(chunk).await {
                        return;
                    }
                }
                Ok(None) => return self.end(blob.count()).await,
                Err(error) => return self.fail(Error::io("unpacking", error)).await,
            }
        }
    }

    async fn end(self, blob_size: u64) {
        // An unpack thread that has gone away needs no report.
        let _gone: std::result::Result<(), u64> = self.report.send(blob_size);
        self.sender.finish().await;
        while self.queues.help() {
            tokio::task::yield_now().await;
        }
    }

    async fn fail(self, error: Error) {
        self.sender.fail(error.into()).await;
    }
}
