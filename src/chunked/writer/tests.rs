//! Blobs as a whole: they are the tar, and the table of contents says where everything is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::cutter::{JOB, TarCutter};
use super::format::{Annotations, ZstdChunked};
use crate::archive::compress::parallel::ParallelStream;
use crate::bridge::{ByteStream, Producer, Progress};
use crate::digest::Digest;
use crate::error::Result;
use crate::test_util::{TarBuilder, TarEntry, pax_record};

/// Gives its bytes in pieces of one size, with an empty step before each.
struct Pieces {
    data: Vec<u8>,
    at: usize,
    size: usize,
    is_empty_next: bool,
}

impl Producer for Pieces {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        self.is_empty_next = !self.is_empty_next;
        if self.is_empty_next {
            return Ok(Progress::More);
        }
        let piece = &self.data[self.at..];
        let piece = &piece[..piece.len().min(self.size).min(room)];
        out.extend_from_slice(piece);
        self.at += piece.len();
        Ok(if self.at == self.data.len() {
            Progress::End
        } else {
            Progress::More
        })
    }
}

/// What comes of a tar that is read in pieces and compressed on so many threads.
fn blob_of(tar: &[u8], size: usize, threads: usize) -> (Vec<u8>, BTreeMap<String, String>) {
    let annotations = Annotations::default();
    let format = ZstdChunked::new(std::sync::Arc::clone(&annotations));
    let producer = Pieces {
        data: tar.to_vec(),
        at: 0,
        size,
        is_empty_next: false,
    };
    let stream = ParallelStream::with_threads(format, TarCutter::new(producer, 3), Some(3), threads);
    let mut blob = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read = async { ByteStream::new(stream).read_to_end(&mut blob).await };
    runtime.block_on(read).unwrap();
    (blob, annotations.get().cloned().unwrap_or_default())
}

fn blob(tar: &[u8]) -> (Vec<u8>, BTreeMap<String, String>) {
    blob_of(tar, 100_000, 2)
}

fn numbers(annotations: &BTreeMap<String, String>, key: &str) -> Vec<usize> {
    let text = &annotations[&format!("io.github.containers.zstd-chunked.{key}")];
    text.split(':').map(|number| number.parse().unwrap()).collect()
}

/// A section that the annotations name: its digest, and what is in it.
fn section(blob: &[u8], annotations: &BTreeMap<String, String>, key: &str) -> (String, Vec<u8>) {
    let [offset, length, size, ..] = numbers(annotations, key)[..] else {
        panic!("{annotations:?}");
    };
    let bytes = &blob[offset..offset + length];
    let content = zstd::decode_all(bytes).unwrap();
    assert_eq!(content.len(), size);
    (Digest::sha256(bytes).to_string(), content)
}

/// The entries of a blob's table of contents, after a look at everything about them.
fn entries(tar: &[u8], (blob, annotations): &(Vec<u8>, BTreeMap<String, String>)) -> Vec<Value> {
    assert!(zstd::decode_all(&**blob).unwrap() == tar, "the blob is the tar");
    let (digest, toc) = section(blob, annotations, "manifest-position");
    assert_eq!(
        annotations["io.github.containers.zstd-chunked.manifest-checksum"],
        digest
    );
    let toc: Value = serde_json::from_slice(&toc).unwrap();
    assert_eq!(toc["version"], 1);
    let (digest, tar_split) = section(blob, annotations, "tarsplit-position");
    assert_eq!(toc["tarSplitDigest"], digest);
    let entries = toc["entries"].as_array().cloned().unwrap_or_default();
    check_tar_split(tar, &tar_split, &entries);
    let footer: Vec<u64> = blob[blob.len() - 64..]
        .chunks(8)
        .map(|number| u64::from_le_bytes(number.try_into().unwrap()))
        .collect();
    let positions = [
        &numbers(annotations, "manifest-position")[..],
        &numbers(annotations, "tarsplit-position"),
    ]
    .concat();
    assert_eq!(
        footer[..7],
        positions.iter().map(|n| *n as u64).collect::<Vec<_>>()
    );
    assert_eq!(footer[7].to_le_bytes(), *b"GNUlInUx");
    check_content(blob, &entries);
    entries
}

/// One segment before each file, and all of it the tar but for the content.
fn check_tar_split(tar: &[u8], lines: &[u8], entries: &[Value]) {
    use base64::Engine as _;
    let mut names = entries.iter().filter(|entry| entry["type"] != "chunk");
    let (mut at, mut last) = (0, 1);
    for line in std::str::from_utf8(lines).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let kind = line["type"].as_u64().unwrap();
        if kind == 2 {
            let bytes = line["payload"].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
            assert_eq!(&tar[at..at + bytes.len()], bytes);
            at += bytes.len();
        } else {
            assert_eq!(last, 2, "each file has a segment");
            assert_eq!(names.next().unwrap()["name"], line["name"]);
            at += usize::try_from(line["size"].as_u64().unwrap_or(0)).unwrap();
        }
        last = kind;
    }
    assert_eq!(at, tar.len());
    assert!(names.next().is_none());
}

/// Files and chunks are where they are said to be.
fn check_content(blob: &[u8], entries: &[Value]) {
    let number = |entry: &Value, key: &str| usize::try_from(entry[key].as_u64().unwrap_or(0)).unwrap();
    let mut index = 0;
    while let Some(entry) = entries.get(index) {
        index += 1;
        assert_ne!(entry["type"], "chunk");
        if entry["type"] != "reg" || number(entry, "size") == 0 {
            assert_eq!(entry.get("digest"), None);
            continue;
        }
        let end = number(entry, "endOffset");
        let content = zstd::decode_all(&blob[number(entry, "offset")..end]).unwrap();
        assert_eq!(content.len(), number(entry, "size"));
        assert_eq!(entry["digest"], Digest::sha256(&content).to_string());
        let others = entries[index..]
            .iter()
            .take_while(|entry| entry["type"] == "chunk")
            .count();
        let chunks = &entries[index - 1..index + others];
        index += others;
        let mut at = 0;
        for (place, chunk) in chunks.iter().enumerate().filter(|_| others > 0) {
            assert_eq!(chunk["name"], entry["name"]);
            assert_eq!(number(chunk, "chunkOffset"), at);
            let end = chunks.get(place + 1).map_or(end, |next| number(next, "offset"));
            let bytes = zstd::decode_all(&blob[number(chunk, "offset")..end]).unwrap();
            assert_eq!(bytes, &content[at..at + number(chunk, "chunkSize")]);
            assert_eq!(chunk["chunkDigest"], Digest::sha256(&bytes).to_string());
            if chunk.get("chunkType").is_some() {
                assert_eq!(chunk["chunkType"], "zeros");
                assert!(bytes.iter().all(|byte| *byte == 0) && bytes.len() >= 1024);
            }
            at += bytes.len();
        }
        assert!(others == 0 || at == content.len());
    }
}

fn noise(size: usize, mut state: u32) -> Vec<u8> {
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3] % 64
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// Files of all sizes, some longer than a job.
fn sample() -> Vec<u8> {
    let holes = [
        &noise(5000, 1)[..],
        &[0; 3_000_000],
        &noise(70_000, 2),
        &[0; 1024],
    ]
    .concat();
    TarBuilder::new()
        .entry(TarEntry::dir("d/").mode(0o755).mtime(1_700_000_000))
        .file("d/one-chunk", noise(900, 3))
        .file("d/empty", "")
        .file("d/many", noise(2 * JOB + 77_777, 4))
        .file("d/holes", holes)
        .file("d/one-hole", vec![0; 5000])
        .file("d/same-bytes", vec![7; 3 * JOB])
        .symlink("link", "d/many")
        .hard_link("hard", "d/many")
        .entry(TarEntry::char_device("dev", 5, 1))
        .entry(TarEntry::fifo("fifo"))
        .entry(
            TarEntry::file("owned", "x")
                .owner(1000, 1001)
                .mode(0o4711)
                .xattr("user.b", "2")
                .xattr("user.a", "\x01"),
        )
        .build()
}

#[test]
fn the_table_of_contents_says_where_everything_is() {
    let tar = sample();
    let entries = entries(&tar, &blob(&tar));
    let named = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!(
        *named("d/"),
        json!({"type": "dir", "name": "d/", "mode": 0o755, "modtime": "2023-11-14T22:13:20Z"})
    );
    assert_eq!(named("hard")["linkName"], "d/many");
    assert_eq!(
        (&named("dev")["devMajor"], &named("dev")["devMinor"]),
        (&json!(5), &json!(1))
    );
    let owned = named("owned");
    assert_eq!(owned["xattrs"], json!({"user.a": "AQ==", "user.b": "Mg=="}));
    assert_eq!(
        (&owned["uid"], &owned["gid"], &owned["mode"]),
        (&json!(1000), &json!(1001), &json!(0o4711))
    );
    let chunks = |name: &str| entries.iter().filter(|entry| entry["name"] == name).count();
    assert!(chunks("d/many") > 10);
    assert_eq!(
        (
            chunks("d/one-chunk"),
            chunks("d/one-hole"),
            chunks("d/same-bytes")
        ),
        (1, 1, 1)
    );
    let holes: Vec<_> = entries
        .iter()
        .filter(|entry| entry["chunkType"] == "zeros")
        .map(|entry| entry["chunkSize"].as_u64().unwrap())
        .collect();
    assert_eq!(holes, [3_000_000, 1024]);
}

#[test]
fn the_blob_is_the_same_however_it_was_made() {
    let tar = sample();
    let first = blob(&tar);
    for (size, threads) in [(1 << 20, 0), (1000, 1), (300_001, 3)] {
        assert!(blob_of(&tar, size, threads) == first, "{size} {threads}");
    }
}

#[test]
fn an_empty_stream_is_a_blob() {
    for tar in [vec![], vec![0; 1024], vec![0; 3_000_000]] {
        assert_eq!(entries(&tar, &blob(&tar)), [Value::Null; 0]);
    }
}

#[test]
fn what_can_have_no_table_of_contents_is_plain_zstd() {
    let file = |name: &str| {
        TarBuilder::new()
            .file("before", noise(100_000, 1))
            .file(name, "x")
    };
    let after = |builder: TarBuilder| builder.file("after", noise(3 * JOB, 2)).build();
    let twice = [
        after(file("a").file("./a", "y")),
        after(file("a/b").file("a//x/../c", "y")),
        after(file("a").entry(TarEntry::fifo("p")).hard_link("q", "./p")),
        after(file("x").raw([])).into_iter().chain(*b"more").collect(),
    ];
    let odd = [
        after(file("a").entry(TarEntry::new(b'7', "contiguous"))),
        after(file("a").entry(TarEntry::file("early", "").mtime(-70_000_000_000))),
        after(file("a").entry(TarEntry::new(b'g', "global").content(pax_record(b"comment", b"x")))),
    ];
    for tar in twice.into_iter().chain(odd) {
        let (blob, annotations) = blob(&tar);
        assert!(zstd::decode_all(&*blob).unwrap() == tar);
        assert!(annotations.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_files_are_where_they_are_said_to_be(
        files in prop::collection::vec((0usize..40_000, any::<u32>(), 0usize..3000, 1usize..20), 0..12),
        size in 600usize..300_000,
        threads in 0usize..3,
    ) {
        let mut tar = TarBuilder::new();
        for (index, (bytes, seed, zeros, times)) in files.into_iter().enumerate() {
            let part = [noise(bytes, seed), vec![0; zeros]].concat();
            tar = tar.file(format!("file {index}"), part.repeat(times));
        }
        let tar = tar.build();
        entries(&tar, &blob_of(&tar, size, threads));
    }
}
