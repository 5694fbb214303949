//! The layer streams of the script, by name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_compression::tokio::{bufread, write};
use graphroot::Compression;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::answer::Answer;
use crate::support::tar::{Header, Tar};

/// Archives, in memory for one side and as files for the other.
pub(super) struct Archives {
    dir: tempfile::TempDir,
    by_name: BTreeMap<&'static str, Vec<u8>>,
}

impl Archives {
    pub(super) async fn new() -> Self {
        let base = base();
        let zstd = {
            // Two frames, as parallel compressors write them.
            let (first, second) = base.split_at(1000);
            let mut both = packed(write::ZstdEncoder::new, first).await;
            both.extend(packed(write::ZstdEncoder::new, second).await);
            both
        };
        let by_name = BTreeMap::from([
            ("base.gz", packed(write::GzipEncoder::new, &base).await),
            ("base.zst", zstd),
            ("base.bz2", packed(write::BzEncoder::new, &base).await),
            ("base.xz", packed(write::XzEncoder::new, &base).await),
            ("truncated", base[..100_000].to_vec()),
            (
                "truncated.gz",
                packed(write::GzipEncoder::new, &base).await[..1000].to_vec(),
            ),
            ("base", base),
            ("changes", changes()),
            ("replacements", replacements()),
            ("more", more()),
            ("gnu", gnu()),
            ("odd", odd()),
            ("nothing", Vec::new()),
            ("no entries", Tar::new().build()),
            ("junk", b"this is not an archive ".repeat(100)),
            ("short", vec![0; 100]),
            ("lost link", Tar::new().hard_link("link", "nowhere").build()),
            ("dot dot", Tar::new().file(".wh...", "").build()),
            ("through a file", Tar::new().file("a", "").file("a/b", "").build()),
            ("twice", Tar::new().file("a", "1").file("./a", "2").build()),
        ]);
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &by_name {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        Self { dir, by_name }
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        self.by_name[name].clone()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        assert!(self.by_name.contains_key(name), "{name}");
        self.dir.path().join(name)
    }

    /// A stream without its compression. Accepted: `compressed-bytes`.
    pub(super) async fn plain(&self, data: Vec<u8>) -> Answer {
        let compression = Compression::detect(&data);
        let mut plain = Vec::new();
        match compression {
            Compression::None => plain = data,
            Compression::Gzip => {
                let mut decoder = bufread::GzipDecoder::new(&*data);
                decoder.multiple_members(true);
                decoder.read_to_end(&mut plain).await.map(drop).unwrap();
            }
            Compression::Zstd => {
                let mut decoder = bufread::ZstdDecoder::new(&*data);
                decoder.multiple_members(true);
                decoder.read_to_end(&mut plain).await.map(drop).unwrap();
            }
            other => panic!("nobody writes {other:?}"),
        }
        Answer::Bytes(plain, compression)
    }
}

async fn packed<W: AsyncWrite + Unpin + IntoVec>(encoder: fn(Vec<u8>) -> W, plain: &[u8]) -> Vec<u8> {
    let mut encoder = encoder(Vec::new());
    encoder.write_all(plain).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_vec()
}

/// What all encoders have in common without a trait for it.
trait IntoVec {
    fn into_vec(self) -> Vec<u8>;
}

macro_rules! into_vec {
    ($($encoder:ident)*) => {$(
        impl IntoVec for write::$encoder<Vec<u8>> {
            fn into_vec(self) -> Vec<u8> {
                self.into_inner()
            }
        }
    )*};
}
into_vec!(GzipEncoder ZstdEncoder BzEncoder XzEncoder);

/// `cap_net_raw+ep`, version 2.
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

fn long_name() -> String {
    format!("usr/{}file", "a-directory-with-a-long-name/".repeat(8))
}

/// Every kind of entry.
fn base() -> Vec<u8> {
    let long = long_name();
    Tar::new()
        .dir("./")
        .dir("etc/")
        .file("etc/hosts", "127.0.0.1 localhost\n")
        .entry(
            Header::new(b'0', "etc/shadow")
                .mode(0o640)
                .owner(0, 42)
                .size(5)
                .content("root\n"),
        )
        .entry(Header::new(b'0', "etc/empty").mtime(1))
        .dir("bin/")
        .entry(
            Header::new(b'0', "bin/su")
                .mode(0o4755)
                .size(6)
                .content("\x7fELF\n\n"),
        )
        .entry(
            Header::new(b'0', "bin/wall")
                .mode(0o2755)
                .owner(0, 5)
                .size(3)
                .content("abc"),
        )
        .hard_link("bin/login", "bin/su")
        .symlink("lib", "usr/lib")
        .symlink("etc/absolute", "/etc/hosts")
        .symlink("etc/dangling", "../../../nowhere")
        .entry(Header::new(b'5', "tmp/").mode(0o1777))
        .entry(Header::new(b'5', "home/").mtime(1_600_000_000))
        .entry(Header::new(b'5', "home/user/").mode(0o700).owner(1000, 1000))
        .entry(
            Header::new(b'0', "home/user/notes")
                .owner(1000, 1000)
                .mtime(1_500_000_000)
                .size(5)
                .content("notes"),
        )
        .dir("dev/")
        .entry(Header::new(b'3', "dev/null").mode(0o666).device(1, 3))
        .entry(
            Header::new(b'4', "dev/vda1")
                .mode(0o660)
                .owner(0, 6)
                .device(254, 1),
        )
        .entry(Header::new(b'6', "dev/pipe").mode(0o600))
        .dir("usr/")
        .dir("usr/lib/")
        .file("usr/lib/libc.so", pattern(300_000))
        .dir("usr/share/")
        .dir("usr/share/doc/")
        .file("usr/share/doc/one", "1")
        .file("usr/share/doc/two", "2")
        .dir("usr/share/doc/sub/")
        .file("usr/share/doc/sub/three", "3")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1650000000.123456789")])
        .file("long", "content of a file with a long name")
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("usr/long-link", "short")
        .pax(&[
            ("SCHILY.xattr.user.colour", b"blue"),
            ("SCHILY.xattr.user.bytes", b"\x00\xff\n="),
            ("SCHILY.xattr.security.capability", CAPABILITY),
        ])
        .entry(Header::new(b'0', "bin/ping").mode(0o755).size(4).content("ping"))
        .pax(&[("SCHILY.xattr.trusted.of-root", b"1")])
        .dir("usr/attributes/")
        .file(b"usr/n\xe9e", "a name in Latin-1")
        .file("usr/<&>\u{2028} \"quoted\"\\", "a name that JSON escapes")
        .pax(&[
            ("uid", b"100000"),
            ("gid", b"200000"),
            ("comment", b"passed over"),
        ])
        .file("usr/somebody", "")
        .build()
}

fn pattern(size: usize) -> Vec<u8> {
    b"0123456789abcdef\n".iter().copied().cycle().take(size).collect()
}

/// What a layer does to the one below: deletions, an opaque directory, replacements of one kind by another.
fn changes() -> Vec<u8> {
    Tar::new()
        .dir("etc/")
        .file("etc/.wh.empty", "")
        .file("etc/hosts", "127.0.0.1 localhost changed\n")
        .file(".wh.lib", "")
        .dir("lib/")
        .file("lib/new", "a directory where a link was")
        .dir("usr/share/doc/")
        .file("usr/share/doc/.wh..wh..opq", "")
        .file("usr/share/doc/four", "4")
        .file("bin/.wh.login", "")
        .file("home/user", "a file where a directory was")
        .entry(Header::new(b'5', "etc/shadow/").mode(0o750).owner(7, 8))
        .file(".wh.never-there", "")
        .symlink("usr/attributes", "lib")
        .entry(Header::new(b'5', "tmp/").mode(0o1777).mtime(1_710_000_000))
        .build()
}

/// A directory with content where the layer below has a file, and one that hides what was there.
fn replacements() -> Vec<u8> {
    Tar::new()
        .dir("etc/")
        .dir("etc/hosts/")
        .file("etc/hosts/inside", "a directory where a file was")
        .file(".wh.usr", "")
        .build()
}

/// Directories that no entry makes, and a padded end.
fn more() -> Vec<u8> {
    Tar::new()
        .file("opt/implied/by/a/file", "content")
        .file("srv/one", "one")
        .hard_link("srv/two", "srv/one")
        .hard_link("srv/three", "/srv/one")
        .entry(Header::new(b'0', "srv/aged").mtime(0).size(3).content("old"))
        .dir("srv/dir-without-slash")
        .raw([0; 10 * 1024])
        .build()
}

/// GNU's way with long names.
fn gnu() -> Vec<u8> {
    let long = format!("{}\0", long_name());
    let extension = |kind: u8| {
        let size = long.len().try_into().unwrap();
        Header::new(kind, "././@LongLink").size(size)
    };
    Tar::new()
        .entry(extension(b'L').content(&long))
        .file("cut", "GNU")
        .entry(extension(b'K').content(&long))
        .symlink("gnu-link", "cut")
        .build()
}

/// Names that are no plain paths, a global header, something after the end.
fn odd() -> Vec<u8> {
    let mut global = Tar::new().pax(&[("comment", b"of everything")]).unfinished();
    // The same header with another type and its checksum.
    global[156] = b'g';
    let sum: u32 = global[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    global[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Tar::new()
        .raw(global)
        .file("/rooted", "an absolute name")
        .file("./dotted", "")
        .dir("deep//er/./dir/")
        .file("deep//er/./dir/../climbed", "")
        .entry(
            Header::new(b'0', "contiguous-looking")
                .mode(0o100644)
                .size(1)
                .content("x"),
        )
        .entry(Header::new(b'5', "locked/").mode(0))
        .raw([0; 1024])
        .raw(b"something after the end of the archive")
        .unfinished()
}
