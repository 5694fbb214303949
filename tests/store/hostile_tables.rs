//! Tables of contents that cannot be read, and annotations that lie.

use std::io::Read as _;

use graphroot::Digest;
use graphroot::ErrorKind::{DigestMismatch as Mismatch, InvalidArchive as Invalid, NotSupported};
use serde_json::{Value, json};

use crate::hostile_blobs::{Case, zstd};

pub(crate) const TEXTS: &[Case] = &[
    (
        "no version",
        |d| d.toc["version"] = Value::Null,
        NotSupported,
        "version no",
    ),
    (
        "version 2",
        |d| d.toc["version"] = json!(2),
        NotSupported,
        "version 2",
    ),
    (
        "version -1",
        |d| d.toc["version"] = json!(-1),
        NotSupported,
        "version -1",
    ),
    (
        "a list as table",
        |d| d.toc_text = Some(b"[]".into()),
        Invalid,
        "parsing the table",
    ),
    (
        "an empty table",
        |d| d.toc_text = Some(b"".into()),
        Invalid,
        "table of contents",
    ),
    (
        "a cut table",
        |d| d.toc_text = Some(b"{\"version\":1,\"entries\":[{".into()),
        Invalid,
        "parsing the table",
    ),
    (
        "text behind the table",
        |d| {
            d.toc_text = Some(format!("{}x", d.toc).into_bytes());
        },
        Invalid,
        "parsing the table",
    ),
    (
        "two lists of entries",
        |d| {
            d.toc_text = Some(b"{\"version\":1,\"entries\":[],\"Entries\":[]}".into());
        },
        Invalid,
        "two lists of entries",
    ),
    (
        "nested lists",
        |d| {
            let deep = "[".repeat(1_000_000);
            d.toc_text = Some(format!("{{\"version\":1,\"x\":{deep}").into_bytes());
        },
        Invalid,
        "parsing the table",
    ),
    (
        "millions of {}",
        |d| {
            let many = "{},".repeat(3_000_000);
            d.toc_text = Some(format!("{{\"version\":1,\"entries\":[{many}{{}}]}}").into_bytes());
        },
        Invalid,
        "entry 1 of the table",
    ),
    (
        "millions of chunks",
        |d| {
            let many = "{\"type\":\"chunk\"},".repeat(1_000_000);
            d.toc_text = Some(format!("{{\"version\":1,\"entries\":[{many}{{}}]}}").into_bytes());
        },
        Invalid,
        "chunk type without a regular file",
    ),
    (
        "a string of 10 MiB",
        |d| d.set("d/a", "name", "x".repeat(10 << 20)),
        Invalid,
        "a string of over",
    ),
    (
        "a number with a fraction",
        |d| d.set("d/a", "mode", 0.5),
        Invalid,
        "parsing the table",
    ),
    (
        "a size of 2^64",
        |d| d.set("d/a", "size", u64::MAX),
        Invalid,
        "parsing the table",
    ),
    (
        "an entry that is a list",
        |d| d.entries().push(json!([])),
        Invalid,
        "parsing the table",
    ),
    (
        "tarSplitDigest without text",
        |d| d.split_digest = Some(json!("")),
        Invalid,
        "tarSplitDigest  is no digest",
    ),
    (
        "tarSplitDigest with a path",
        |d| {
            d.split_digest = Some(json!("sha256:../../etc/passwd"));
        },
        Invalid,
        "is no digest",
    ),
    (
        "tarSplitDigest of other data",
        |d| {
            d.split_digest = Some(json!(Digest::sha256("x").to_string()));
        },
        Mismatch,
        "the compressed tar-split data has digest",
    ),
    (
        "no tarSplitDigest",
        |d| d.split_digest = Some(Value::Null),
        NotSupported,
        "guaranteed consistency",
    ),
    (
        "a table that inflates further than declared",
        |d| d.toc_size = Some(100),
        Invalid,
        "over 100 bytes",
    ),
    (
        "a table that inflates less than declared",
        |d| d.toc_size = Some(1 << 20),
        Invalid,
        "declared are 1048576",
    ),
    (
        "a table of 1 GiB",
        |d| {
            d.toc_frame = Some(zstd::encode_all(std::io::repeat(b' ').take(1 << 30), 1).unwrap());
            d.toc_size = Some(150 << 20);
        },
        Invalid,
        "over 157286400 bytes",
    ),
    (
        "a table that is no Zstandard",
        |d| d.toc_frame = Some(vec![7; 100]),
        Invalid,
        "decompressing",
    ),
    (
        "a table whose frame is cut",
        |d| {
            let mut frame = zstd(d.toc.to_string().as_bytes());
            frame.truncate(frame.len() - 3);
            d.toc_frame = Some(frame);
        },
        Invalid,
        "decompress",
    ),
    (
        "a table with a window of 2 GiB",
        |d| d.toc_frame = Some(large_window()),
        Invalid,
        "decompressing",
    ),
];

/// A frame that wants a window of 2 GiB.
pub(crate) fn large_window() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3];
    frame.extend([3 + (1 << 3), 0, 0, b'x', b'x']);
    frame
}

pub(crate) const ANNOTATIONS: &[Case] = &[
    (
        "digest of another table",
        |d| {
            d.annotations
                .push(("manifest-checksum", Some(Digest::sha256("x").to_string())));
        },
        Mismatch,
        "the compressed table has digest",
    ),
    (
        "no digest",
        |d| d.annotations.push(("manifest-checksum", Some("x".into()))),
        Invalid,
        "manifest-checksum",
    ),
    (
        "a position of letters",
        |d| {
            d.annotations.push(("manifest-position", Some("a:b:c:1".into())));
        },
        Invalid,
        "is not 4 numbers",
    ),
    (
        "a negative position",
        |d| {
            d.annotations.push(("manifest-position", Some("-1:1:1:1".into())));
        },
        Invalid,
        "is not 4 numbers",
    ),
    (
        "a position that overflows",
        |d| {
            d.annotations
                .push(("manifest-position", Some(format!("{}:2:1:1", u64::MAX))));
        },
        Invalid,
        "a position of",
    ),
    (
        "a length of nothing",
        |d| {
            d.annotations.push(("manifest-position", Some("10:0:1:1".into())));
        },
        Invalid,
        "a position of",
    ),
    (
        "a table behind the end",
        |d| {
            d.annotations
                .push(("manifest-position", Some("1000000000:10:10:1".into())));
        },
        Invalid,
        "of a blob that has",
    ),
    (
        "a table of 2 GB",
        |d| {
            d.annotations
                .push(("manifest-position", Some("100:10:2000000000:1".into())));
        },
        NotSupported,
        "too big to process in memory",
    ),
    (
        "tar-split data in the table",
        |d| {
            d.annotations
                .push(("manifest-position", Some("100:50:10:1".into())));
            d.annotations
                .push(("tarsplit-position", Some("120:50:10".into())));
        },
        Invalid,
        "in the same bytes",
    ),
    (
        "tar-split data behind the end",
        |d| {
            d.annotations
                .push(("tarsplit-position", Some("1000000000:10:10".into())));
        },
        Invalid,
        "of a blob that has",
    ),
    (
        "tar-split data nowhere",
        |d| d.annotations.push(("tarsplit-position", None)),
        NotSupported,
        "consistency",
    ),
    (
        "tar-split data in the contents",
        |d| {
            d.annotations
                .push(("tarsplit-position", Some("10:20:100".into())));
        },
        Invalid,
        "outside of the blob's content",
    ),
    (
        "a blob that is shorter",
        |d| d.blob_size = Some(100),
        Invalid,
        "of a blob that has 100",
    ),
];
