//! Cutting archives of every dialect into entries; the stream must come out whole.

use bytes::Bytes;

use crate::archive::tar::header::{BLOCK, Timestamp};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar::sparse::Fragment;
use crate::error::{ErrorKind, Result};
use crate::test_util::{TarBuilder, TarEntry as Item};

/// An archive in chunks of one size.
struct Chunks {
    bytes: Bytes,
    size: usize,
}

impl ChunkSource for Chunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let count = self.bytes.len().min(self.size);
        Ok((count > 0).then(|| self.bytes.split_to(count)))
    }
}

struct Frame {
    kind: u8,
    name: String,
    link: String,
    size: u64,
    payload: Vec<u8>,
    entry: Entry,
}

/// Frames the whole archive and checks that raw bytes and payloads in order are the stream.
fn frame_in(bytes: &[u8], size: usize) -> Result<Vec<Frame>> {
    let mut reader = TarReader::new(Chunks {
        bytes: Bytes::copy_from_slice(bytes),
        size,
    });
    let mut all = Vec::new();
    let mut frames = Vec::new();
    loop {
        let mut entry = Entry::default();
        if !reader.next(&mut entry, &mut |raw| {
            all.extend_from_slice(raw);
            Ok(())
        })? {
            break;
        }
        let mut payload = Vec::new();
        // Every third payload is left to the reader.
        if frames.len() % 3 != 2 {
            while let Some(piece) = reader.payload()? {
                payload.extend_from_slice(&piece);
            }
            all.extend_from_slice(&payload);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (kind, name, link) = (entry.kind, text(&entry.name), text(&entry.link));
        frames.push(Frame {
            kind,
            name,
            link,
            size: entry.size,
            payload,
            entry,
        });
    }
    reader.drain(&mut |raw| {
        all.extend_from_slice(raw);
        Ok(())
    })?;
    assert!(all == bytes, "raw bytes and payloads are the stream");
    Ok(frames)
}

fn frame(bytes: &[u8]) -> Result<Vec<Frame>> {
    let frames = frame_in(bytes, 1 << 20);
    for size in [1, 100, 513] {
        match (&frames, frame_in(bytes, size)) {
            (Ok(a), Ok(b)) => assert_eq!(a.len(), b.len()),
            (Err(a), Err(b)) => assert_eq!(a.chain(), b.chain()),
            _ => panic!("the cut of the chunks changes the outcome"),
        }
    }
    frames
}

fn only(item: Item) -> Frame {
    let mut frames = frame(&TarBuilder::new().entry(item).build()).unwrap();
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

#[test]
fn every_dialect_is_read() {
    let star = only(
        Item::file("n", "x")
            .patch(345, "pre")
            .patch(476, "00000000017")
            .patch(508, "tar\0"),
    );
    assert_eq!(
        (star.name.as_str(), star.entry.atime.unwrap().secs),
        ("pre/n", 0o17)
    );
    assert_eq!(only(Item::file("n", "x").patch(345, "pre")).name, "pre/n");
    assert_eq!(
        only(Item::file("n", "x").magic(b"ustar\0\0\0").patch(345, "pre")).name,
        "pre/n"
    );
    let gnu = only(Item::file("n", "x").gnu().patch(345, "00000000021"));
    assert_eq!((gnu.name.as_str(), gnu.entry.atime.unwrap().secs), ("n", 0o21));
    assert_eq!(
        only(Item::file("n", "x").gnu().patch(345, "old/go/prefix")).name,
        "old/go/prefix/n"
    );
    assert_eq!(
        only(
            Item::file("n", "x")
                .magic(&[0; 8])
                .patch(345, "pre")
                .patch(329, "junk")
        )
        .name,
        "n"
    );
    let signed = only(Item::file(b"\xfc\xfd", "x").signed_checksum());
    assert_eq!(
        (signed.entry.name.as_slice(), signed.payload.as_slice()),
        (&b"\xfc\xfd"[..], &b"x"[..])
    );
    let negative = only(Item::file("n", "").mtime(-5));
    assert_eq!(negative.entry.mtime, Timestamp { secs: -5, nanos: 0 });
    assert_eq!(
        only(Item::file("n", "").owner(3_000_000_000, 1)).entry.uid,
        3_000_000_000
    );
    assert_eq!(only(Item::new(0, "d/")).kind, b'5');
    assert_eq!(only(Item::new(0, "f")).kind, b'0');
    assert_eq!(only(Item::file("f/", "")).kind, b'0');
    let frames = frame(
        &TarBuilder::new()
            .entry(Item::dir("d").size_field("00000010000"))
            .build(),
    )
    .unwrap();
    assert_eq!((frames[0].size, frames[0].entry.declared_size), (0, 4096));
}

#[test]
fn extended_headers_change_the_entry() {
    let frame = only(
        Item::file("short", "12345")
            .pax("path", "first")
            .pax("path", "last")
            .pax("uid", "70000")
            .pax("gid", "")
            .pax("mtime", "-1.5")
            .pax("atime", "7.25")
            .xattr("user.x", b"\0\xff"),
    );
    let entry = &frame.entry;
    assert_eq!((frame.name.as_str(), entry.uid, entry.gid), ("last", 70000, 0));
    assert_eq!(
        entry.mtime,
        Timestamp {
            secs: -2,
            nanos: 500_000_000
        }
    );
    assert_eq!(entry.records.xattrs().count(), 1);
    let long = "x/".repeat(300);
    let mut archive = TarBuilder::new().entry(Item::symlink(long.clone() + "name", long.clone() + "target"));
    archive = archive.entry(Item::file("next", "y"));
    let frames = self::frame(&archive.build()).unwrap();
    assert_eq!(frames[0].name, long.clone() + "name");
    assert_eq!(frames[0].link, long + "target");
    assert_eq!((frames[1].name.as_str(), frames[1].link.as_str()), ("next", ""));
    // A GNU long name wins over a pax path; of two extended headers the second replaces the first.
    let archive = TarBuilder::new()
        .entry(Item::new(b'x', "p").content(crate::test_util::pax_record(b"uid", b"1")))
        .entry(Item::new(b'L', "l").content("gnu\0junk"))
        .entry(Item::file("n", "z").pax("path", "pax").pax("gid", "2"))
        .build();
    let frames = self::frame(&archive).unwrap();
    assert_eq!(
        (frames[0].name.as_str(), frames[0].entry.uid, frames[0].entry.gid),
        ("gnu", 0, 2)
    );
}

#[test]
fn the_size_in_a_pax_record_counts() {
    let archive = TarBuilder::new()
        .entry(
            Item::file("a", "0123456789")
                .size_field("00000000003")
                .pax("size", "10"),
        )
        .entry(Item::file("b", "x"))
        .build();
    let frames = frame(&archive).unwrap();
    assert_eq!(
        (frames[0].size, frames[0].payload.as_slice()),
        (10, &b"0123456789"[..])
    );
    assert_eq!(frames[1].name, "b");
}

#[test]
fn global_headers_are_entries_and_change_nothing() {
    let record = crate::test_util::pax_record(b"uid", b"77");
    let archive = TarBuilder::new()
        .entry(Item::new(b'x', "lost").content(crate::test_util::pax_record(b"path", b"lost")))
        .entry(Item::new(b'g', "global").content(record))
        .entry(Item::file("a", "x"))
        .build();
    let frames = frame(&archive).unwrap();
    assert_eq!(
        (frames[0].kind, frames[0].name.as_str(), frames[0].size),
        (b'g', "global", 0)
    );
    assert_eq!((frames[1].name.as_str(), frames[1].entry.uid), ("a", 0));
}

#[test]
fn sparse_maps_in_every_form() {
    let expected = [
        Fragment { offset: 2, length: 3 },
        Fragment {
            offset: 100,
            length: 2,
        },
    ];
    let check = |frame: &Frame| {
        assert_eq!(frame.entry.sparse.as_deref(), Some(&expected[..]));
        assert_eq!(
            (frame.size, frame.payload.as_slice(), frame.name.as_str()),
            (1000, &b"abcde"[..], "real")
        );
    };
    let pax = |item: Item| item.pax("GNU.sparse.name", "real").pax("GNU.sparse.size", "1000");
    check(&only(
        pax(Item::file("x", "abcde"))
            .pax("GNU.sparse.numblocks", "2")
            .pax("GNU.sparse.offset", "2")
            .pax("GNU.sparse.numbytes", "3")
            .pax("GNU.sparse.offset", "100")
            .pax("GNU.sparse.numbytes", "2"),
    ));
    let in_header = |map: &str, count: &str| {
        pax(Item::file("x", "abcde"))
            .pax("GNU.sparse.numblocks", count)
            .pax("GNU.sparse.map", map)
    };
    check(&only(in_header("2,3,100,2", "2")));
    let mut content = b"2\n2\n3\n100\n2\n".to_vec();
    content.resize(BLOCK, 0);
    content.extend_from_slice(b"abcde");
    check(&only(
        Item::file("x", content)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", "real")
            .pax("GNU.sparse.realsize", "1000"),
    ));
    let gnu = Item::new(b'S', "real").gnu().patch(483, "00000001750");
    check(&only(
        gnu.clone()
            .content("abcde")
            .patch(386, "00000000002\x0000000000003")
            .patch(410, "00000000144\x0000000000002"),
    ));
    // One entry in the header, one in a block of its own.
    let mut block = [0; BLOCK];
    block[..23].copy_from_slice(b"00000000144\x0000000000002");
    let archive = TarBuilder::new()
        .entry(
            gnu.clone()
                .size_field("00000000005")
                .patch(386, "00000000002\x0000000000003")
                .patch(482, [1]),
        )
        .raw(block)
        .raw("abcde")
        .raw([0; BLOCK - 5])
        .entry(Item::file("next", ""))
        .build();
    let frames = frame(&archive).unwrap();
    check(&frames[0]);
    assert_eq!(frames[1].name, "next");
    for bad in [
        in_header("2,3,100", "2"),
        in_header("2,3,100,2", "1"),
        in_header("2,3,100,2000", "2"),
        in_header("2,3,4,2", "2"),
        in_header("2,3,100,1", "2"),
        in_header("-2,3,100,2", "2"),
        in_header("2,3,100,2", "x"),
        in_header("2,3,100,2", "2").kind(b'5'),
        gnu.clone().content("abcde"),
        gnu.magic(b"ustar\x0000"),
    ] {
        let error = frame(&TarBuilder::new().entry(bad).build()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
    }
}

#[test]
fn odd_endings() {
    let one = || TarBuilder::new().entry(Item::file("a", "12345"));
    let cut = |bytes: Vec<u8>, by: usize| bytes[..bytes.len() - by].to_vec();
    let good: Vec<(&str, Vec<u8>, usize)> = vec![
        ("empty", Vec::new(), 0),
        ("one zero block", vec![0; 512], 0),
        ("two zero blocks", vec![0; 1024], 0),
        ("many zero blocks", vec![0; 10240], 0),
        ("no end blocks", one().unfinished(), 1),
        ("no padding", cut(one().unfinished(), 507), 1),
        ("half the padding", cut(one().unfinished(), 300), 1),
        ("one end block", one().raw([0; 512]).unfinished(), 1),
        (
            "junk after the end",
            one().raw([0; 1024]).raw("junk").unfinished(),
            1,
        ),
        (
            "an archive after the end",
            one().raw([0; 1024]).raw(one().build()).unfinished(),
            1,
        ),
    ];
    for (what, bytes, count) in good {
        assert_eq!(
            frame(&bytes).map_err(|e| panic!("{what}: {e}")).unwrap().len(),
            count,
            "{what}"
        );
    }
    let bad: Vec<(&str, Vec<u8>, &str)> = vec![
        ("short", vec![b'x'; 511], "unexpected EOF"),
        ("100 zeros", vec![0; 100], "unexpected EOF"),
        ("junk", vec![b'x'; 600], "checksum"),
        (
            "zero block and junk",
            one().raw([0; 512]).raw([7; 512]).unfinished(),
            "end block",
        ),
        (
            "zero block and a partial one",
            one().raw([0; 600]).unfinished(),
            "unexpected EOF",
        ),
        ("ends in data", cut(one().unfinished(), 508), "unexpected EOF"),
        ("ends in a header", cut(one().unfinished(), 600), "unexpected EOF"),
        (
            "negative size",
            one().entry(Item::file("b", "").size_field([0xff; 12])).build(),
            "negative size",
        ),
        (
            "negative pax size",
            one().entry(Item::file("b", "").pax("size", "-1")).build(),
            "negative size",
        ),
        (
            "huge size",
            one()
                .entry(Item::file("b", "").size_field(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"))
                .build(),
            "unexpected EOF",
        ),
        (
            "too huge",
            one()
                .entry(Item::file("b", "").size_field(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"))
                .build(),
            "malformed number",
        ),
        (
            "huge long name",
            one()
                .entry(Item::new(b'L', "b").size_field("77777777777"))
                .build(),
            "over 1 MiB",
        ),
        (
            "bad pax",
            one().entry(Item::new(b'x', "b").content("5 a=b\n")).build(),
            "malformed extended header",
        ),
        (
            "bad pax uid",
            one().entry(Item::file("b", "").pax("uid", "x")).build(),
            "malformed extended record",
        ),
        (
            "bad global uid",
            one().entry(Item::new(b'g', "b").content("8 uid=x\n")).build(),
            "malformed global",
        ),
        (
            "bad mode",
            one().entry(Item::file("b", "").patch(100, "junk")).build(),
            "malformed number",
        ),
    ];
    for (what, bytes, reason) in bad {
        let error = frame(&bytes)
            .err()
            .unwrap_or_else(|| panic!("{what} is accepted"));
        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{what}");
        assert!(error.chain().contains(reason), "{what}: {}", error.chain());
    }
}
