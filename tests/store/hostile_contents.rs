//! Chunks that lie, and contents that are others.

use graphroot::Digest;
use graphroot::ErrorKind::{DigestMismatch as Mismatch, InvalidArchive as Invalid};
use graphroot::test_util::{TarBuilder, TarEntry};
use serde_json::{Value, json};

use crate::hostile_blobs::{Case, Draft, segment, zstd};
use crate::hostile_tables::large_window;

pub(crate) const CHUNKS: &[Case] = &[
    (
        "no digest",
        |d| d.set("d/a", "digest", Value::Null),
        Invalid,
        "is no sha256 digest",
    ),
    (
        "a sha512 digest",
        |d| {
            d.set("d/a", "digest", format!("sha512:{}", "0".repeat(128)));
        },
        Invalid,
        "is no sha256 digest",
    ),
    (
        "an empty file with a digest",
        |d| {
            d.set("e", "digest", Digest::sha256("x").to_string());
        },
        Invalid,
        "an empty file with the digest of another",
    ),
    (
        "a negative size",
        |d| d.set("d/a", "size", -5),
        Invalid,
        "a size of -5",
    ),
    (
        "a size of 2^62",
        |d| d.set("d/a", "size", 1_u64 << 62),
        Invalid,
        "d/a has 4611686018427387904 bytes in",
    ),
    (
        "a larger size",
        |d| d.set("d/a", "size", 12_001),
        Invalid,
        "12001 bytes in the table of contents and 12000",
    ),
    (
        "a smaller size",
        |d| d.set("d/a", "size", 11_999),
        Invalid,
        "11999 bytes in the table of contents and 12000",
    ),
    ("a size of 0", |d| d.set("d/a", "size", 0), Invalid, "d/a"),
    (
        "an offset of 0",
        |d| d.set("d/a", "offset", 0),
        Invalid,
        "an offset of 0",
    ),
    (
        "a negative offset",
        |d| d.set("d/a", "offset", -100),
        Invalid,
        "an offset of -100",
    ),
    (
        "an offset behind the contents",
        |d| d.set("d/a", "offset", 1_u64 << 40),
        Invalid,
        "outside of the blob's content",
    ),
    (
        "an offset in the table",
        |d| {
            let at = d.body.len() + 20;
            d.set("d/a", "offset", at);
        },
        Invalid,
        "outside of the blob's content",
    ),
    (
        "the content of another",
        |d| {
            let at = d.entry("d/b")["offset"].clone();
            d.set("d/a", "offset", at);
        },
        Invalid,
        "that of another file",
    ),
    (
        "an end before the start",
        |d| d.set("d/a", "endOffset", 1),
        Invalid,
        "its content ends at 1",
    ),
    (
        "an end behind the contents",
        |d| d.set("d/a", "endOffset", 1_u64 << 40),
        Invalid,
        "an endOffset of",
    ),
    (
        "a negative end",
        |d| d.set("d/a", "endOffset", -1),
        Invalid,
        "an endOffset of -1",
    ),
    (
        "an end in another file",
        |d| {
            let end = d.entry("d/b")["endOffset"].clone();
            d.set("d/a", "endOffset", end);
        },
        Invalid,
        "that of another file",
    ),
    (
        "a chunk larger than its file",
        |d| d.set("d/b", "chunkSize", 1_000_000),
        Invalid,
        "chunks that are not",
    ),
    (
        "a negative chunk",
        |d| d.set("d/b", "chunkSize", -1),
        Invalid,
        "a chunkSize of -1",
    ),
    (
        "a first chunk at 100",
        |d| d.set("d/b", "chunkOffset", 100),
        Invalid,
        "a first chunk that is not at the start",
    ),
    (
        "a gap between chunks",
        |d| d.set("d/b", "chunkSize", 11_999),
        Invalid,
        "it begins at byte 12000 instead of 11999",
    ),
    (
        "chunks that overlap",
        |d| d.set("d/b", "chunkSize", 12_001),
        Invalid,
        "it begins at byte 12000 instead of 12001",
    ),
    (
        "chunks that end early",
        |d| drop(d.entries().remove(4)),
        Invalid,
        "chunks of 62000 bytes in a file of 74000",
    ),
    (
        "chunks in another order",
        |d| d.entries().swap(3, 4),
        Invalid,
        "it begins at byte 62000",
    ),
    (
        "a chunk of another file",
        |d| d.entries()[3]["name"] = json!("d/a"),
        Invalid,
        "a chunk that follows another file",
    ),
    (
        "a chunk without a file",
        |d| d.entries().swap(0, 3),
        Invalid,
        "chunk type without a regular file",
    ),
    (
        "a chunk behind the contents",
        |d| {
            d.entries()[3]["offset"] = json!(1_u64 << 50);
        },
        Invalid,
        "outside of the blob's content",
    ),
    (
        "a chunk before the one before",
        |d| d.entries()[4]["offset"] = json!(10),
        Invalid,
        "not behind that of the chunk",
    ),
    (
        "a chunk of an unknown type",
        |d| d.entries()[3]["chunkType"] = json!("noise"),
        Invalid,
        "of the unknown type noise",
    ),
    (
        "a chunk without digest",
        |d| d.entries()[3]["chunkDigest"] = json!("x"),
        Invalid,
        "chunkDigest x is no",
    ),
    (
        "zeros that are none",
        |d| d.entries()[4]["chunkType"] = json!("zeros"),
        Mismatch,
        "digest",
    ),
    (
        "zeros of 1 TB",
        |d| {
            d.set("d/z", "size", 1_u64 << 40);
            d.set("d/z", "chunkType", "zeros");
            let at = d.line("d/z");
            d.lines[at]["size"] = json!(1_u64 << 40);
        },
        Invalid,
        "d/z has 1099511627776 bytes in",
    ),
    (
        "contents of 1 TB everywhere",
        |d| {
            let header = TarBuilder::new()
                .entry(TarEntry::file("d/z", "").mode(0o644).size(1 << 36))
                .unfinished();
            let at = d.line("d/z");
            d.lines[at - 1] = segment(&header);
            d.lines[at]["size"] = json!(1_u64 << 36);
            d.set("d/z", "size", 1_u64 << 36);
        },
        Invalid,
        "d/z has 68719476736 bytes in",
    ),
];

pub(crate) const CONTENTS: &[Case] = &[
    (
        "other content",
        |d| {
            let (start, end) = content_of(d, "d/a");
            d.body[start..end].fill(0);
        },
        Invalid,
        "restoring entry d/a",
    ),
    (
        "content with another byte",
        |d| {
            let frame = zstd(&vec![7; 12_000]);
            let (start, _) = content_of(d, "d/a");
            d.body[start..start + frame.len()].copy_from_slice(&frame);
        },
        Mismatch,
        "digest",
    ),
    (
        "content that ends early",
        |d| {
            let frame = zstd(b"short");
            let (start, end) = content_of(d, "d/a");
            d.body[start..end].fill(0);
            // The rest is a frame to be skipped.
            d.body[start..start + frame.len()].copy_from_slice(&frame);
            let rest = start + frame.len();
            d.body[rest..rest + 4].copy_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
            let length = u32::try_from(end - rest - 8).unwrap().to_le_bytes();
            d.body[rest + 4..rest + 8].copy_from_slice(&length);
        },
        Invalid,
        "the content of d/a ends 11995 bytes early",
    ),
    (
        "a frame that is cut",
        |d| {
            let (_, end) = content_of(d, "d/a");
            d.set("d/a", "endOffset", end - 20);
        },
        Invalid,
        "d/a",
    ),
    (
        "a window of 2 GiB",
        |d| {
            let frame = large_window();
            let (start, _) = content_of(d, "d/a");
            d.body[start..start + frame.len()].copy_from_slice(&frame);
        },
        Invalid,
        "restoring entry d/a",
    ),
    (
        "the digest of another file",
        |d| d.set("d/z", "digest", Digest::sha256("x").to_string()),
        Mismatch,
        "d/z has digest",
    ),
];

pub(crate) fn content_of(draft: &mut Draft, name: &str) -> (usize, usize) {
    let entry = draft.entry(name);
    let number = |field: &str| usize::try_from(entry[field].as_u64().unwrap()).unwrap();
    (number("offset"), number("endOffset"))
}
