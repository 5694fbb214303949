//! Tar-split data that lies.

use std::io::Read as _;

use graphroot::ErrorKind::{InvalidArchive as Invalid, NotSupported};
use graphroot::test_util::{TarBuilder, TarEntry};
use serde_json::{Value, json};

use crate::hostile_blobs::{Case, Member, file, segment, zstd};
use crate::hostile_tables::large_window;

pub(crate) const TAR_SPLITS: &[Case] = &[
    (
        "no lines",
        |d| d.lines.clear(),
        Invalid,
        "not present in tar-split",
    ),
    (
        "no JSON",
        |d| d.split_text = Some(b"hello\n".into()),
        Invalid,
        "bad JSON",
    ),
    (
        "broken base64",
        |d| d.lines[0]["payload"] = json!("%%%"),
        Invalid,
        "bad base64",
    ),
    (
        "a negative size",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["size"] = json!(-1);
        },
        Invalid,
        "negative size",
    ),
    (
        "a short checksum",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["payload"] = json!("AA==");
        },
        Invalid,
        "checksum is not 8 bytes",
    ),
    (
        "no checksum",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["payload"] = Value::Null;
        },
        Invalid,
        "no checksum",
    ),
    (
        "another size",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["size"] = json!(5);
        },
        Invalid,
        "12000 bytes in the table of contents and 5",
    ),
    (
        "a size of 2^62",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["size"] = json!(1_u64 << 62);
        },
        Invalid,
        "bytes in the table of contents and 4611686018427387904",
    ),
    (
        "a name that is nowhere",
        |d| {
            let at = d.line("d/a");
            d.lines[at]["name"] = json!("../x");
        },
        NotSupported,
        "../x comes where",
    ),
    (
        "a content twice",
        |d| {
            let at = d.line("d/z");
            let line = d.lines[at].clone();
            d.lines.push(line);
        },
        Invalid,
        "missing in TOC",
    ),
    (
        "a content missing",
        |d| {
            let at = d.line("d/z");
            d.lines.remove(at);
        },
        Invalid,
        "d/z",
    ),
    (
        "contents in another order",
        |d| {
            let (a, z) = (d.line("d/a"), d.line("d/z"));
            d.lines.swap(a, z);
        },
        NotSupported,
        "d/z comes where",
    ),
    (
        "a line of 40 MiB",
        |d| d.split_text = Some(vec![b'['; 40 << 20]),
        Invalid,
        "too long",
    ),
    (
        "a cut frame",
        |d| {
            let mut frame = zstd(&vec![b'\n'; 1000]);
            frame.truncate(frame.len() - 2);
            d.split_frame = Some(frame);
        },
        Invalid,
        "tar-split data",
    ),
    (
        "no Zstandard",
        |d| d.split_frame = Some(vec![9; 100]),
        Invalid,
        "tar-split data",
    ),
    (
        "a window of 2 GiB",
        |d| d.split_frame = Some(large_window()),
        Invalid,
        "tar-split data",
    ),
    (
        "blank lines without end",
        |d| {
            d.split_frame = Some(zstd::encode_all(std::io::repeat(b'\n').take(1 << 30), 1).unwrap());
            d.split_size = Some(1 << 30);
        },
        Invalid,
        "tar-split data",
    ),
    (
        "lines of an unknown type without end",
        |d| {
            let lines = "{\"type\":7}\n".repeat(5_000_000);
            d.split_text = Some(lines.into_bytes());
        },
        Invalid,
        "tar-split data",
    ),
    (
        "more lines than declared",
        |d| d.split_size = Some(10),
        Invalid,
        "over 10 bytes",
    ),
    (
        "a header of another file",
        |d| d.replace_header("e", &file("f", "")),
        Invalid,
        "f missing in TOC",
    ),
    (
        "a header with set-user-ID",
        |d| {
            d.replace_header(
                "e",
                &Member {
                    mode: 0o4755,
                    ..file("e", "")
                },
            );
        },
        Invalid,
        "the mode of e",
    ),
    (
        "a header of a larger file",
        |d| {
            d.replace_header("d/z", &file("d/z", "the last one, and then more"));
        },
        Invalid,
        "the size of d/z",
    ),
    (
        "a header of a smaller file",
        |d| d.replace_header("d/z", &file("d/z", "1")),
        Invalid,
        "the size of d/z",
    ),
    (
        "a damaged header",
        |d| d.lines[0] = segment(&[7; 512]),
        Invalid,
        "",
    ),
    ("half a header", |d| d.lines[0] = segment(&[7; 100]), Invalid, ""),
    (
        "a header of an unknown type",
        |d| {
            let header = TarBuilder::new()
                .entry(TarEntry::new(b'Z', "e").mode(0o644))
                .unfinished();
            let at = d.line("e");
            d.lines[at - 1] = segment(&header);
        },
        Invalid,
        "e",
    ),
];
