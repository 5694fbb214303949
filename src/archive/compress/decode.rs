//! Compression of layer streams: detected by magic numbers, undone by `async-compression`. Diffs are compressed
//! elsewhere, on several threads ([`gzip`](crate::archive::compress::gzip), [`zstd_frames`](crate::archive::compress::zstd_frames)).
//!
//! Everything is decoded in process. gzip runs on flate2's `zlib-rs`: this crate asks for that back end, and feature
//! unification gives it to `async-compression` as well.
//!
//! All members or frames of a stream are decoded, skippable zstd frames are skipped. After the end only zero bytes
//! may follow (tools pad to whole records; for zstd not even these, as its own tools refuse them). Anything else is
//! an error, where a lenient reader would unpack half of a damaged blob.

use std::io;

use async_compression::tokio::bufread::{BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::buffers::Buffers;
use crate::compression::Compression;
use crate::error::{Error, ErrorKind, Result};

/// A decoder of one member (of all frames for zstd).
enum Decoder<'a, R: AsyncRead + Unpin> {
    None(&'a mut BlobReader<R>),
    Bzip2(BzDecoder<&'a mut BlobReader<R>>),
    Gzip(GzipDecoder<&'a mut BlobReader<R>>),
    Xz(XzDecoder<&'a mut BlobReader<R>>),
    Zstd(ZstdDecoder<&'a mut BlobReader<R>>),
}

impl<'a, R: AsyncRead + Unpin> Decoder<'a, R> {
    fn new(stream: &'a mut BlobReader<R>, compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None(stream),
            Compression::Bzip2 => Self::Bzip2(BzDecoder::new(stream)),
            Compression::Gzip => Self::Gzip(GzipDecoder::new(stream)),
            Compression::Xz => Self::Xz(XzDecoder::new(stream)),
            Compression::Zstd => {
                // One context for all frames: chunked layers have one frame per file.
                let mut decoder = ZstdDecoder::new(stream);
                decoder.multiple_members(true);
                Self::Zstd(decoder)
            }
        }
    }

    async fn read(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::None(stream) => stream.read_buf(out).await,
            Self::Bzip2(decoder) => decoder.read_buf(out).await,
            Self::Gzip(decoder) => decoder.read_buf(out).await,
            Self::Xz(decoder) => decoder.read_buf(out).await,
            Self::Zstd(decoder) => decoder.read_buf(out).await,
        }
    }
}

/// Where decoded bytes go, a chunk at a time.
pub(crate) trait ChunkConsumer {
    /// Takes one chunk; `false` stops the decoding.
    fn take(&mut self, chunk: bytes::Bytes) -> impl Future<Output = bool> + Send;
}

/// Decodes the whole stream into chunks of `size` bytes (the last one shorter). Returns early, and without error, if
/// the sink wants no more.
pub(crate) async fn decode<R, S>(
    stream: &mut BlobReader<R>,
    compression: Compression,
    size: usize,
    sink: &mut S,
) -> Result<()>
where
    R: AsyncRead + Send + Unpin,
    S: ChunkConsumer + Send,
{
    let failed = |error: io::Error| {
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            return Error::io("unpacking", error);
        }
        ErrorKind::InvalidArchive
            .err(format!("decompressing {compression} data"))
            .with_source(error)
    };
    let buffers = Buffers::new(size);
    let mut chunk = buffers.take();
    loop {
        let mut decoder = Decoder::new(stream, compression);
        while decoder.read(&mut chunk).await.map_err(failed)? > 0 {
            // Never to be grown: the allocator may have given more than was asked for, but not less.
            if chunk.len() == chunk.capacity() {
                let filled = std::mem::replace(&mut chunk, buffers.take());
                if !sink.take(buffers.share(filled)).await {
                    return Ok(());
                }
            }
        }
        drop(decoder);
        if matches!(compression, Compression::None | Compression::Zstd)
            || !another_member(stream, compression).await?
        {
            break;
        }
    }
    if !chunk.is_empty() {
        sink.take(buffers.share(chunk)).await;
    }
    Ok(())
}

/// After the end of a member: whether another one begins. Zeros up to the end of the stream are read over.
async fn another_member<R: AsyncRead + Unpin>(
    stream: &mut BlobReader<R>,
    compression: Compression,
) -> Result<bool> {
    use tokio::io::AsyncBufReadExt as _;
    let failed = |error| Error::io("unpacking", error);
    let mut zeros = false;
    loop {
        let bytes = stream.fill_buf().await.map_err(failed)?;
        let Some(first) = bytes.first() else {
            return Ok(false);
        };
        let padding = bytes.iter().take_while(|byte| **byte == 0).count();
        if padding > 0 {
            zeros = true;
            stream.consume(padding);
        } else if !zeros && *first == magic_start(compression) {
            return Ok(true);
        } else {
            return Err(
                ErrorKind::InvalidArchive.err(format!("data after the end of the {compression} stream"))
            );
        }
    }
}

/// The first byte of a member; its decoder checks the rest.
const fn magic_start(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Bzip2 => b'B',
        Compression::Gzip => 0x1f,
        Compression::Xz => 0xfd,
        Compression::Zstd => 0x28,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::bufread::{BzEncoder, GzipEncoder, XzEncoder, ZstdEncoder};
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Bzip2,
        Compression::Gzip,
        Compression::Xz,
        Compression::Zstd,
    ];

    #[derive(Default)]
    struct Collect {
        bytes: Vec<u8>,
        chunks: usize,
    }

    impl ChunkConsumer for Collect {
        async fn take(&mut self, chunk: bytes::Bytes) -> bool {
            self.bytes.extend_from_slice(&chunk);
            self.chunks += 1;
            true
        }
    }

    /// Gives its bytes one at a time.
    struct Slow(Vec<u8>, usize);

    impl AsyncRead for Slow {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            if self.1.is_multiple_of(2) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(byte) = self.0.get(self.1 / 2) {
                buffer.put_slice(&[*byte]);
            }
            Poll::Ready(Ok(()))
        }
    }

    async fn encoded(data: &[u8], compression: Compression) -> Vec<u8> {
        let mut out = Vec::new();
        let data = data.to_vec();
        match compression {
            Compression::Bzip2 => BzEncoder::new(&data[..]).read_to_end(&mut out).await.unwrap(),
            Compression::Xz => XzEncoder::new(&data[..]).read_to_end(&mut out).await.unwrap(),
            Compression::Gzip => GzipEncoder::new(&data[..]).read_to_end(&mut out).await.unwrap(),
            Compression::Zstd => ZstdEncoder::new(&data[..]).read_to_end(&mut out).await.unwrap(),
            Compression::None => return data,
        };
        out
    }

    async fn decoded<R: AsyncRead + Send + Unpin>(reader: R) -> Result<(Compression, Vec<u8>, u64)> {
        let mut stream = BlobReader::new(reader);
        let compression = stream
            .detect()
            .await
            .map_err(|error| Error::io("detecting", error))?;
        let mut sink = Collect::default();
        decode(&mut stream, compression, 1000, &mut sink).await?;
        Ok((compression, sink.bytes, stream.count()))
    }

    #[tokio::test]
    async fn every_format_is_detected_and_decoded_however_slowly_it_comes() {
        let data: Vec<u8> = (0..5000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in ALL {
            let bytes = encoded(&data, compression).await;
            let length = bytes.len() as u64;
            let expected = (compression, data.clone(), length);
            assert_eq!(decoded(&bytes[..]).await.unwrap(), expected);
            assert_eq!(decoded(Slow(bytes, 0)).await.unwrap(), expected);
        }
        assert_eq!(
            decoded(&b""[..]).await.unwrap(),
            (Compression::None, Vec::new(), 0)
        );
        assert_eq!(
            decoded(&b"BZ"[..]).await.unwrap(),
            (Compression::None, b"BZ".to_vec(), 2)
        );
    }

    #[tokio::test]
    async fn members_follow_each_other_and_only_zeros_the_last() {
        for compression in ALL.into_iter().skip(1) {
            let mut bytes = encoded(b"one", compression).await;
            bytes.extend(encoded(b"", compression).await);
            bytes.extend(encoded(b"two", compression).await);
            assert_eq!(decoded(&bytes[..]).await.unwrap().1, b"onetwo", "{compression}");
            assert_eq!(
                decoded(Slow(bytes.clone(), 0)).await.unwrap().1,
                b"onetwo",
                "{compression}"
            );
            if compression != Compression::Zstd {
                let padded = [&bytes[..], &[0; 700]].concat();
                let (_, data, count) = decoded(&padded[..]).await.unwrap();
                assert_eq!((data.as_slice(), count), (&b"onetwo"[..], padded.len() as u64));
                let hidden = [&padded[..], &encoded(b"three", compression).await].concat();
                assert_eq!(
                    decoded(&hidden[..]).await.unwrap_err().kind(),
                    ErrorKind::InvalidArchive
                );
            }
            for junk in [
                &b"junk"[..],
                b"\x1f",
                b"BZ",
                b"(\xb5/",
                b"\xfd7",
                b"a much longer piece of junk",
            ] {
                let bad = [&bytes[..], junk].concat();
                let error = decoded(&bad[..]).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{compression} {junk:?}");
            }
            for cut in 4..bytes.len() {
                // Where a member ends, so may the stream.
                match decoded(&bytes[..cut]).await {
                    Ok((kind, data, _)) => {
                        assert!(kind == Compression::None || data == b"one", "{compression}");
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidArchive),
                }
            }
        }
    }

    #[tokio::test]
    async fn skippable_frames_are_skipped() {
        let skippable = b"\x50\x2a\x4d\x18\x05\0\0\0xxxxx";
        let one = encoded(b"one", Compression::Zstd).await;
        let bytes = [&one[..], skippable, &one, skippable, skippable].concat();
        assert_eq!(decoded(&bytes[..]).await.unwrap().1, b"oneone");
        assert_eq!(decoded(Slow(bytes.clone(), 0)).await.unwrap().1, b"oneone");
        assert!(decoded(&bytes[..bytes.len() - 1]).await.is_err());
    }

    #[tokio::test]
    async fn a_failing_source_is_not_taken_for_bad_data() {
        let whole = encoded(&[7; 100_000], Compression::Gzip).await;
        let failing = tokio_test_reader(&whole[..20]);
        let error = decoded(failing).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(
            error.chain().contains("reading the layer stream: lost"),
            "{}",
            error.chain()
        );
    }

    /// Some bytes, then an error.
    fn tokio_test_reader(bytes: &[u8]) -> impl AsyncRead + Send + Unpin {
        struct Failing;
        impl AsyncRead for Failing {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::Error::other("lost")))
            }
        }
        io::Cursor::new(bytes.to_vec()).chain(Failing)
    }

    proptest! {
        #[test]
        fn damaged_streams_never_panic(index in any::<prop::sample::Index>(), bit in 0..8, kind in 1usize..5) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut bytes = encoded(b"some data, some data, some data", ALL[kind]).await;
                let at = index.index(bytes.len());
                bytes[at] ^= 1u8 << bit;
                drop(decoded(&bytes[..]).await);
            });
        }
    }
}
