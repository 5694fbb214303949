//! Decoding of layer streams by `async-compression`, on an async task or on an unpack thread.
//!
//! gzip runs on flate2's `zlib-rs`: this crate asks for that back end, and feature unification gives it to
//! `async-compression` as well. Diffs are compressed elsewhere, on several threads
//! ([`gzip`](crate::archive::compress::gzip), [`zstd_frames`](crate::archive::compress::zstd_frames)).
//!
//! All members or frames of a stream are decoded, skippable zstd frames are skipped. After the end only zero bytes
//! may follow (tools pad to whole records; for zstd not even these, as its own tools refuse them). Anything else is
//! an error, where a lenient reader would unpack half of a damaged blob.

use std::io;
use std::sync::Arc;

use async_compression::tokio::bufread::{BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use bytes::{BufMut as _, Bytes};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _};

use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::buffers::Buffers;
use crate::archive::compress::pace::STEP;
use crate::compression::Compression;
use crate::error::{Error, ErrorKind, Result};

/// What the start of a member costs, in bytes of the pace: its decoder is made anew.
const MEMBER: usize = 16 * 1024;

/// Whether a format is decoded fast enough for an async thread. A block of bzip2 takes tens of milliseconds, and
/// nothing can be done in between; xz needs a millisecond for some 80 KiB.
pub(crate) fn is_fast(compression: Compression) -> bool {
    match compression {
        Compression::None | Compression::Gzip | Compression::Zstd | Compression::ZstdChunked => true,
        Compression::Bzip2 | Compression::Xz => false,
    }
}

/// A decoder of one member (of all frames for zstd).
enum Member<R> {
    None(BlobReader<R>),
    Bzip2(BzDecoder<BlobReader<R>>),
    Gzip(GzipDecoder<BlobReader<R>>),
    Xz(XzDecoder<BlobReader<R>>),
    Zstd(ZstdDecoder<BlobReader<R>>),
}

impl<R: AsyncRead + Unpin> Member<R> {
    fn new(blob: BlobReader<R>, compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None(blob),
            Compression::Bzip2 => Self::Bzip2(BzDecoder::new(blob)),
            Compression::Gzip => Self::Gzip(GzipDecoder::new(blob)),
            Compression::Xz => Self::Xz(XzDecoder::new(blob)),
            Compression::Zstd | Compression::ZstdChunked => {
                // One context for all frames: chunked layers have one frame per file.
                let mut decoder = ZstdDecoder::new(blob);
                decoder.multiple_members(true);
                Self::Zstd(decoder)
            }
        }
    }

    async fn read(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        // Never to be grown: the allocator may have given more than was asked for, but not less.
        let room = out.capacity() - out.len();
        let mut out = out.limit(room.min(STEP));
        match self {
            Self::None(blob) => blob.read_buf(&mut out).await,
            Self::Bzip2(decoder) => decoder.read_buf(&mut out).await,
            Self::Gzip(decoder) => decoder.read_buf(&mut out).await,
            Self::Xz(decoder) => decoder.read_buf(&mut out).await,
            Self::Zstd(decoder) => decoder.read_buf(&mut out).await,
        }
    }

    fn blob(&mut self) -> &mut BlobReader<R> {
        match self {
            Self::None(blob) => blob,
            Self::Bzip2(decoder) => decoder.get_mut(),
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Xz(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }

    fn into_blob(self) -> BlobReader<R> {
        match self {
            Self::None(blob) => blob,
            Self::Bzip2(decoder) => decoder.into_inner(),
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Xz(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.into_inner(),
        }
    }
}

/// A blob's decoded stream, in chunks of one size (the last one shorter).
pub(crate) struct Decoder<R> {
    compression: Compression,
    state: State<R>,
    buffers: Arc<Buffers>,
    chunk: Vec<u8>,
}

enum State<R> {
    Within(Box<Member<R>>),
    /// After the last member.
    Ended(BlobReader<R>),
    /// Within a call, or after one that failed or was dropped.
    Broken,
}

impl<R: AsyncRead + Unpin> Decoder<R> {
    /// Decodes `blob`, whose compression was detected, into chunks of `size` bytes.
    pub(crate) fn new(blob: BlobReader<R>, compression: Compression, size: usize) -> Self {
        let buffers = Buffers::new(size);
        Self {
            compression,
            state: State::Within(Box::new(Member::new(blob, compression))),
            chunk: buffers.take(),
            buffers,
        }
    }

    /// The next chunk, `None` at the end. Yields now and then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for damaged data; what the source reports. It must not be called again then.
    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let compression = self.compression;
        loop {
            let mut member = match std::mem::replace(&mut self.state, State::Broken) {
                State::Within(member) => member,
                State::Ended(blob) => {
                    self.state = State::Ended(blob);
                    let rest = std::mem::take(&mut self.chunk);
                    return Ok((!rest.is_empty()).then(|| self.buffers.share(rest)));
                }
                State::Broken => return Err(ErrorKind::InvalidArchive.err("a stream that failed before")),
            };
            loop {
                let count = match member.read(&mut self.chunk).await {
                    Ok(count) => count,
                    Err(error) => return Err(failure(compression, error, member.blob().count())),
                };
                if count == 0 {
                    break;
                }
                let pace = member.blob().pace();
                pace.spend(count);
                pace.keep().await;
                if self.chunk.len() == self.chunk.capacity() {
                    self.state = State::Within(member);
                    let filled = std::mem::replace(&mut self.chunk, self.buffers.take());
                    return Ok(Some(self.buffers.share(filled)));
                }
            }
            let mut blob = member.into_blob();
            let one_only = !matches!(
                compression,
                Compression::Bzip2 | Compression::Gzip | Compression::Xz
            );
            self.state = if !one_only && another_member(&mut blob, compression).await? {
                blob.pace().spend(MEMBER);
                State::Within(Box::new(Member::new(blob, compression)))
            } else {
                State::Ended(blob)
            };
        }
    }

    /// Bytes of the blob, once it has ended.
    pub(crate) fn blob_size(&self) -> Option<u64> {
        match &self.state {
            State::Ended(blob) => Some(blob.count()),
            State::Within(_) | State::Broken => None,
        }
    }
}

/// What a decoder's failure says. Where other tools have fixed words for a failure, it contains them.
fn failure(compression: Compression, error: io::Error, offset: u64) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return Error::io("unpacking", error);
    }
    let kind = error.kind();
    let words = error.to_string();
    let reason = match compression {
        _ if kind == io::ErrorKind::UnexpectedEof => format!("unexpected EOF after {offset} bytes"),
        Compression::Gzip if words.contains("CRC") || words.contains("amount") => {
            format!("invalid checksum ({words})")
        }
        Compression::Gzip if words.contains("header") => "invalid header".to_owned(),
        Compression::Gzip => format!("corrupt input before offset {offset} ({words})"),
        Compression::Bzip2 => format!("bzip2 data invalid ({words})"),
        Compression::None | Compression::Xz | Compression::Zstd | Compression::ZstdChunked => words,
    };
    // The fixed words name this format themselves.
    let doing = match compression {
        Compression::Bzip2 if kind != io::ErrorKind::UnexpectedEof => "decompressing the stream".to_owned(),
        _ => format!("decompressing {compression}"),
    };
    ErrorKind::InvalidArchive
        .err(doing)
        .with_source(io::Error::new(kind, reason))
}

/// After the end of a member: whether another one begins. Zeros up to the end of the stream are read over.
async fn another_member<R: AsyncRead + Unpin>(
    blob: &mut BlobReader<R>,
    compression: Compression,
) -> Result<bool> {
    let failed = |error| Error::io("unpacking", error);
    let mut zeros = false;
    loop {
        let bytes = blob.fill_buf().await.map_err(failed)?;
        let Some(first) = bytes.first() else {
            return Ok(false);
        };
        let padding = bytes.iter().take_while(|byte| **byte == 0).count();
        if padding > 0 {
            zeros = true;
            blob.consume(padding);
        } else if !zeros && *first == magic_start(compression) {
            return Ok(true);
        } else {
            return Err(ErrorKind::InvalidArchive.err(format!(
                "data after the end of the {compression} stream: invalid header"
            )));
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
        Compression::Zstd | Compression::ZstdChunked => 0x28,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::compress::pace::PACE;
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
            Compression::Zstd | Compression::ZstdChunked => {
                ZstdEncoder::new(&data[..]).read_to_end(&mut out).await.unwrap()
            }
            Compression::None => return data,
        };
        out
    }

    async fn decoded<R: AsyncRead + Send + Unpin>(reader: R) -> Result<(Compression, Vec<u8>, u64)> {
        let mut blob = BlobReader::new(reader);
        let compression = blob
            .detect()
            .await
            .map_err(|error| Error::io("detecting", error))?;
        let mut decoder = Decoder::new(blob, compression, 1000);
        let mut bytes = Vec::new();
        while let Some(chunk) = decoder.next_chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        assert!(decoder.next_chunk().await?.is_none(), "the end is the end");
        Ok((compression, bytes, decoder.blob_size().unwrap()))
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
        // As pzstd begins its streams.
        let bytes = [skippable, &one[..], skippable, &one].concat();
        let (compression, content, _) = decoded(&bytes[..]).await.unwrap();
        assert_eq!((compression, &*content), (Compression::Zstd, &b"oneone"[..]));
        assert_eq!(decoded(Slow(bytes, 0)).await.unwrap().1, b"oneone");
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

    /// Decodes with an executor that counts polls, from a reader that always has data; also the most bytes that one
    /// poll has decoded.
    fn polls(blob: &[u8]) -> (usize, usize) {
        let total = std::cell::Cell::new(0);
        let mut task = Box::pin(async {
            let mut blob = BlobReader::new(blob);
            let compression = blob.detect().await.unwrap();
            let mut decoder = Decoder::new(blob, compression, 64 * 1024);
            while let Some(chunk) = decoder.next_chunk().await.unwrap() {
                total.set(total.get() + chunk.len());
            }
        });
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut polls, mut most) = (0, 0);
        loop {
            let before = total.get();
            let done = task.as_mut().poll(&mut cx).is_ready();
            polls += 1;
            most = most.max(total.get() - before);
            if done {
                return (polls, most);
            }
        }
    }

    #[tokio::test]
    async fn one_poll_decodes_no_more_than_the_pace_allows() {
        const SIZE: usize = 8 << 20;
        let mut noise = vec![0u8; SIZE];
        let mut state = 1u64;
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        // What is hardly compressed, and what is as dense as can be.
        for data in [noise, vec![7; SIZE]] {
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                let blob = encoded(&data, compression).await;
                let (polls, most) = polls(&blob);
                let allowed = PACE + STEP + 64 * 1024;
                assert!(most <= allowed, "{compression}: {most} bytes in one poll");
                assert!(polls >= SIZE / allowed, "{compression}: {polls} polls");
            }
        }
        // Members without content cost time too.
        let members = encoded(b"", Compression::Gzip).await.repeat(10_000);
        assert!(polls(&members).0 >= 10_000 * MEMBER / (PACE + MEMBER) / 2);
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
