//! The stream around the archive: compression, digests, what is recorded, failures and cancellation.

use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use super::*;
use crate::archive::compress::gzip::Gzip;
use crate::archive::compress::parallel::tests::compressed;
use crate::archive::compress::zstd_frames::ZstdFrames;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::test_util::{TarBuilder, TarEntry as Item};

fn tar() -> Vec<u8> {
    TarBuilder::new()
        .entry(Item::dir("d").owner(5, 6))
        .entry(Item::file("d/f", "content ".repeat(50_000)).owner(70_000, 6))
        .entry(Item::file(".wh.x", "").owner(9, 9))
        .entry(Item::new(b'g', "g").content("8 a=bcd\n"))
        .entry(Item::symlink("l", "12345"))
        .raw([0; 4096])
        .unfinished()
}

fn sent(tar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Gzip => compressed::<Gzip>(&[tar], 1),
        Compression::Zstd => compressed::<ZstdFrames>(&[tar], 1),
        _ => tar.to_vec(),
    }
}

fn run(layer: &Layer, bytes: &[u8], options: ApplyOptions) -> Result<Applied> {
    let source = Box::pin(std::io::Cursor::new(bytes.to_vec()));
    RUNTIME
        .block_on(apply(source, layer.target(), options, ()))
        .map(|(applied, ())| applied)
}

fn digest(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap()
}

#[test]
fn the_record_says_what_was_received() {
    let tar = tar();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bytes = sent(&tar, compression);
        let applied = run(
            &Layer::new(WhiteoutFormat::Apply),
            &bytes,
            ApplyOptions::default(),
        )
        .unwrap();
        let expected = Applied {
            compression,
            compressed_digest: Digest::sha256(&bytes),
            compressed_size: bytes.len() as u64,
            diff_digest: Digest::sha256(&tar),
            diff_size: tar.len() as u64,
            uids: vec![0, 5, 70_000],
            gids: vec![0, 6],
            content_size: 400_000,
            entries: 5,
            marks: applied.marks.clone(),
            shared: applied.shared.clone(),
        };
        assert_eq!(applied, expected);
    }
    if root_or_skip() {
        let applied = run(&Layer::new(OVERLAY), &tar, ApplyOptions::default()).unwrap();
        assert_eq!(applied.content_size, 400_005, "files and links on disk");
    }
    let applied = run(&Layer::new(WhiteoutFormat::Apply), b"", ApplyOptions::default()).unwrap();
    assert_eq!((applied.entries, applied.diff_digest), (0, Digest::sha256(b"")));
    assert_eq!((applied.uids, applied.compressed_size), (Vec::new(), 0));
}

#[test]
fn given_digests_are_believed_or_checked() {
    let tar = tar();
    let sha512 = |bytes: &[u8]| {
        let mut hasher = crate::digest::Hasher::like(&format!("sha512:{}", "0".repeat(128)).parse().unwrap());
        hasher.update(bytes);
        hasher.finish()
    };
    for compression in [Compression::None, Compression::Gzip] {
        let bytes = sent(&tar, compression);
        let with = |original: Option<Digest>, uncompressed: Option<Digest>, verify| ApplyOptions {
            original_digest: original,
            original_size: Some(12345),
            uncompressed_digest: uncompressed,
            verify,
            ..ApplyOptions::default()
        };
        let applied = |options| run(&Layer::new(WhiteoutFormat::Apply), &bytes, options);
        let believed = applied(with(Some(digest('a')), Some(digest('b')), false)).unwrap();
        assert_eq!(
            (&believed.compressed_digest, &believed.diff_digest),
            (&digest('a'), &digest('b'))
        );
        assert_eq!(
            (believed.compressed_size, believed.diff_size),
            (12345, tar.len() as u64)
        );
        let sizes = applied(with(None, None, true)).unwrap();
        assert_eq!(
            sizes.compressed_size,
            bytes.len() as u64,
            "a size without a digest does not count"
        );
        // A digest of another blob does not become the digest of the content.
        let partly = applied(with(Some(digest('a')), None, false)).unwrap();
        assert_eq!(partly.diff_digest, Digest::sha256(&tar));
        let (good, good_tar) = (Digest::sha256(&bytes), Digest::sha256(&tar));
        applied(with(Some(good.clone()), Some(good_tar.clone()), true)).unwrap();
        for (options, wrong, right) in [
            (
                with(Some(digest('a')), Some(good_tar.clone()), true),
                digest('a'),
                good.clone(),
            ),
            (with(Some(good), Some(digest('b')), true), digest('b'), good_tar),
        ] {
            let error = applied(options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DigestMismatch);
            let text = error.chain();
            assert!(
                text.contains(wrong.as_str()) && text.contains(right.as_str()),
                "{text}"
            );
        }
        let other = applied(with(Some(sha512(&bytes)), Some(sha512(&tar)), true)).unwrap();
        assert_eq!(other.compressed_digest, Digest::sha256(&bytes));
        assert_eq!(other.diff_digest, Digest::sha256(&tar));
        let error = applied(with(Some(sha512(&tar[1..])), None, true)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch);
    }
}

#[test]
fn bad_streams_say_why() {
    let gz = sent(&tar(), Compression::Gzip);
    for (bytes, reason) in [
        (vec![0x1f, 0x8b, 0x08], "decompressing gzip"),
        (sent(&[b'x'; 600], Compression::Gzip), "wrong checksum"),
        (gz[..gz.len() - 1].to_vec(), "decompressing gzip"),
        (
            [&gz[..], b"junk"].concat(),
            "data after the end of the gzip stream",
        ),
        (vec![b'x'; 600], "wrong checksum"),
        // A skippable frame that is cut off.
        (b"\x50\x2a\x4d\x18\x02\0\0\0x".to_vec(), "decompressing zstd"),
    ] {
        let error = run(
            &Layer::new(WhiteoutFormat::Apply),
            &bytes,
            ApplyOptions::default(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{reason}");
        assert!(error.chain().contains(reason), "{}", error.chain());
    }
    let padded = [&gz[..], &[0; 1000]].concat();
    let applied = run(
        &Layer::new(WhiteoutFormat::Apply),
        &padded,
        ApplyOptions::default(),
    )
    .unwrap();
    assert_eq!(applied.compressed_digest, Digest::sha256(&padded));
}

/// Gives some bytes, then waits for ever or fails.
struct Then(Vec<u8>, usize, Option<&'static str>);

impl AsyncRead for Then {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let rest = &self.0[self.1..];
        if rest.is_empty() {
            return match self.2 {
                Some(reason) => Poll::Ready(Err(std::io::Error::other(reason))),
                None => Poll::Pending,
            };
        }
        let count = rest.len().min(out.remaining()).min(1000);
        out.put_slice(&rest[..count]);
        self.1 += count;
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_failing_source_is_named() {
    let gz = sent(&tar(), Compression::Gzip);
    for bytes in [Vec::new(), tar()[..1000].to_vec(), gz[..500].to_vec()] {
        let source = Box::pin(Then(bytes, 0, Some("connection lost")));
        let layer = Layer::new(WhiteoutFormat::Apply);
        let error = RUNTIME
            .block_on(apply(source, layer.target(), ApplyOptions::default(), ()))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(
            error
                .chain()
                .contains("reading the layer stream: connection lost"),
            "{}",
            error.chain()
        );
    }
}

#[test]
fn a_failing_extraction_does_not_wait_for_the_source() {
    let bad = TarBuilder::new()
        .entry(Item::hard_link("a", "missing"))
        .raw(vec![0; 300_000])
        .unfinished();
    let source = Box::pin(Then(bad, 0, None));
    let layer = Layer::new(WhiteoutFormat::Apply);
    let error = RUNTIME.block_on(async {
        let run = apply(source, layer.target(), ApplyOptions::default(), ());
        tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .expect("stops at once")
            .unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::InvalidArchive);
}

/// Tells when it is dropped, and what was there then.
struct Guard(mpsc::Sender<bool>, PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send(self.1.exists()).unwrap_or_default();
    }
}

#[test]
fn the_guard_stays_with_the_blocking_half() {
    // Dropped in the middle of the stream.
    let layer = Layer::new(WhiteoutFormat::Apply);
    let (sender, dropped) = mpsc::channel();
    let guard = Guard(sender, layer.at("d/f"));
    let big = TarBuilder::new()
        .entry(Item::file("d/f", vec![1; 4 << 20]))
        .build();
    let source = Box::pin(Then(big[..3 << 20].to_vec(), 0, None));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let run = apply(source, layer.target(), ApplyOptions::default(), guard);
        let started = async {
            while !layer.at("d/f").exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = run => panic!("the stream never ends"),
            () = started => {}
        }
    });
    let there = dropped
        .recv_timeout(Duration::from_secs(60))
        .expect("dropped by the blocking half");
    assert!(there);
    // Failed: dropped too. Done: handed back.
    for (bytes, fails) in [(vec![b'x'; 600], true), (tar(), false)] {
        let layer = Layer::new(WhiteoutFormat::Apply);
        let (sender, dropped) = mpsc::channel();
        let guard = Guard(sender, layer.root());
        let source = Box::pin(std::io::Cursor::new(bytes));
        let result = RUNTIME.block_on(apply(source, layer.target(), ApplyOptions::default(), guard));
        assert_eq!(result.is_err(), fails);
        assert_eq!(dropped.try_recv().is_ok(), fails);
        drop(result);
        assert!(dropped.try_recv().is_ok() != fails);
    }
}

#[test]
fn syncing_few_and_many() {
    for count in [3, 40] {
        let mut layer = Layer::new(WhiteoutFormat::Apply);
        layer.sync = true;
        let items = (0..count).map(|index| Item::file(format!("dir{}/f{index}", index % 3), "x"));
        layer.apply(&items.collect::<TarBuilder>().build()).unwrap();
        assert_eq!(layer.names().len(), count + 3);
    }
}
