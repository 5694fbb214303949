//! Blobs that are made to do harm to who pulls them in parts. The measure is the ordinary pull of the same tar.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{ChunkedDiffer, Digest, ErrorKind, LayerOptions, Result, StagedLayer, StagingOptions};
use serde_json::{Value, json};

use crate::staged_layers::Memory;
use crate::support::{Layout, TestStore, over, tree_of};

/// How long one pull may take; the slowest takes a small part of it.
const PATIENCE: Duration = Duration::from_secs(120);

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Something in a layer.
#[derive(Clone)]
struct Member {
    kind: &'static str,
    name: String,
    link: String,
    content: Vec<u8>,
    /// Where the content is cut into chunks.
    cuts: Vec<usize>,
    mode: u32,
    owner: (u32, u32),
    time: i64,
    device: (u32, u32),
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

fn member(kind: &'static str, name: &str) -> Member {
    Member {
        kind,
        name: name.to_owned(),
        link: String::new(),
        content: Vec::new(),
        cuts: Vec::new(),
        mode: 0o644,
        owner: (0, 0),
        time: 1_000_000_000,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

fn file(name: &str, content: impl AsRef<[u8]>) -> Member {
    Member {
        content: content.as_ref().to_vec(),
        ..member("reg", name)
    }
}

fn dir(name: &str) -> Member {
    Member {
        mode: 0o755,
        ..member("dir", name)
    }
}

fn link(kind: &'static str, name: &str, target: &str) -> Member {
    Member {
        link: target.to_owned(),
        ..member(kind, name)
    }
}

impl Member {
    /// Its header, without content.
    fn header(&self) -> Vec<u8> {
        let kind = match self.kind {
            "reg" => b'0',
            "hardlink" => b'1',
            "symlink" => b'2',
            "char" => b'3',
            "block" => b'4',
            "dir" => b'5',
            _ => b'6',
        };
        let mut entry = TarEntry::new(
            kind,
            self.name.as_bytes().get(..100).unwrap_or(self.name.as_bytes()),
        )
        .mode(self.mode)
        .owner(self.owner.0.into(), self.owner.1.into())
        .mtime(self.time.min(0o777_7777_7777))
        .device(self.device.0, self.device.1)
        .content(&self.content);
        if self.name.len() > 100 {
            entry = entry.pax("path", &self.name);
        }
        if self.time > 0o777_7777_7777 {
            entry = entry.pax("mtime", self.time.to_string());
        }
        if self.link.len() > 100 {
            entry = entry.pax("linkpath", &self.link);
        } else if !self.link.is_empty() {
            entry = entry.link(&self.link);
        }
        for (name, value) in &self.xattrs {
            entry = entry.xattr(name, value);
        }
        let mut bytes = TarBuilder::new().entry(entry).unfinished();
        bytes.truncate(bytes.len() - self.content.len().next_multiple_of(512));
        bytes
    }
}

/// A blob in the making; what is set to `Some` takes the place of what follows from the rest.
#[derive(Default)]
struct Draft {
    tar: Vec<u8>,
    body: Vec<u8>,
    toc: Value,
    lines: Vec<Value>,
    toc_text: Option<Vec<u8>>,
    toc_frame: Option<Vec<u8>>,
    toc_size: Option<u64>,
    split_text: Option<Vec<u8>>,
    split_frame: Option<Vec<u8>>,
    split_size: Option<u64>,
    split_digest: Option<Value>,
    annotations: Vec<(&'static str, Option<String>)>,
    blob_size: Option<u64>,
}

fn segment(bytes: &[u8]) -> Value {
    json!({"type": 2, "payload": BASE64.encode(bytes)})
}

impl Draft {
    fn of(members: &[Member]) -> Self {
        let mut draft = Self::default();
        let mut entries = Vec::new();
        for member in members {
            let header = member.header();
            draft.body.extend(zstd(&header));
            draft.tar.extend(&header);
            draft.lines.push(segment(&header));
            let time = match member.time {
                1_000_000_000 => "2001-09-09T01:46:40Z",
                253_402_300_799 => "9999-12-31T23:59:59Z",
                0 => "1970-01-01T00:00:00Z",
                -1 => "1969-12-31T23:59:59Z",
                _ => "2262-04-11T23:47:17Z",
            };
            let mut entry = json!({
                "type": member.kind, "name": member.name, "mode": member.mode, "uid": member.owner.0,
                "gid": member.owner.1, "modtime": time,
            });
            if !member.link.is_empty() {
                entry["linkName"] = json!(member.link);
            }
            if member.device != (0, 0) {
                entry["devMajor"] = json!(member.device.0);
                entry["devMinor"] = json!(member.device.1);
            }
            for (name, value) in &member.xattrs {
                entry["xattrs"][name] = json!(BASE64.encode(value));
            }
            let mut chunks = Vec::new();
            if !member.content.is_empty() {
                entry["size"] = json!(member.content.len());
                entry["digest"] = json!(Digest::sha256(&member.content).to_string());
                let mut at = 0;
                for end in member.cuts.iter().copied().chain([member.content.len()]) {
                    let part = &member.content[at..end];
                    let mut chunk = json!({"type": "chunk", "name": member.name});
                    let fields = if at == 0 { &mut entry } else { &mut chunk };
                    fields["offset"] = json!(draft.body.len());
                    if !member.cuts.is_empty() {
                        fields["chunkSize"] = json!(part.len());
                        fields["chunkDigest"] = json!(Digest::sha256(part).to_string());
                    }
                    if at > 0 {
                        fields["chunkOffset"] = json!(at);
                        chunks.push(chunk);
                    }
                    draft.body.extend(zstd(part));
                    at = end;
                }
                entry["endOffset"] = json!(draft.body.len());
                draft.tar.extend(&member.content);
                draft.lines.push(json!({
                    "type": 1, "name": member.name, "size": member.content.len(), "payload": "AAAAAAAAAAA=",
                }));
                let padding = vec![0; member.content.len().next_multiple_of(512) - member.content.len()];
                draft.tar.extend(&padding);
                draft.lines.push(segment(&padding));
            } else {
                draft
                    .lines
                    .push(json!({"type": 1, "name": member.name, "payload": null}));
            }
            entries.push(entry);
            entries.extend(chunks);
        }
        draft.tar.extend([0; 1024]);
        draft.lines.push(segment(&[0; 1024]));
        draft.toc = json!({"version": 1, "entries": entries});
        draft
    }

    /// The entry of a name in the table.
    fn entry(&mut self, name: &str) -> &mut Value {
        let entries = self.toc["entries"].as_array_mut().unwrap();
        entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
    }

    fn entries(&mut self) -> &mut Vec<Value> {
        self.toc["entries"].as_array_mut().unwrap()
    }

    /// The place of the content of a name in the tar-split data.
    fn line(&self, name: &str) -> usize {
        self.lines.iter().position(|line| line["name"] == name).unwrap()
    }

    /// Sets a field of an entry.
    fn set(&mut self, name: &str, field: &str, value: impl Into<Value>) {
        self.entry(name)[field] = value.into();
    }

    /// Replaces the header of a name, but not what the table says.
    fn replace_header(&mut self, name: &str, member: &Member) {
        let at = self.line(name);
        self.lines[at - 1] = segment(&member.header());
    }

    fn finish(mut self) -> Blob {
        let split_text = self.split_text.take().unwrap_or_else(|| {
            let lines = self.lines.iter().map(|line| format!("{line}\n"));
            lines.collect::<String>().into_bytes()
        });
        let split = self.split_frame.take().unwrap_or_else(|| zstd(&split_text));
        match self.split_digest.take() {
            None => self.toc["tarSplitDigest"] = json!(Digest::sha256(&split).to_string()),
            Some(Value::Null) => {}
            Some(digest) => self.toc["tarSplitDigest"] = digest,
        }
        let toc_text = self
            .toc_text
            .take()
            .unwrap_or_else(|| self.toc.to_string().into_bytes());
        let toc = self.toc_frame.take().unwrap_or_else(|| zstd(&toc_text));
        let mut blob = self.body;
        let mut place = |bytes: &[u8]| {
            blob.extend([0; 8]);
            let at = blob.len();
            blob.extend(bytes);
            (at, bytes.len())
        };
        let (toc_at, toc_length) = place(&toc);
        let (split_at, split_length) = place(&split);
        let toc_size = self.toc_size.unwrap_or(toc_text.len() as u64);
        let split_size = self.split_size.unwrap_or(split_text.len() as u64);
        let mut annotations = BTreeMap::from([
            ("manifest-checksum", Digest::sha256(&toc).to_string()),
            ("manifest-position", format!("{toc_at}:{toc_length}:{toc_size}:1")),
            (
                "tarsplit-position",
                format!("{split_at}:{split_length}:{split_size}"),
            ),
        ]);
        for (key, value) in self.annotations {
            match value {
                Some(value) => annotations.insert(key, value),
                None => annotations.remove(key),
            };
        }
        let prefix = "io.github.containers.zstd-chunked.";
        Blob {
            diff_id: Digest::sha256(&self.tar),
            tar: self.tar,
            size: self.blob_size.unwrap_or(blob.len() as u64),
            bytes: blob,
            annotations: annotations
                .into_iter()
                .map(|(key, value)| (format!("{prefix}{key}"), value))
                .collect(),
        }
    }
}

struct Blob {
    bytes: Vec<u8>,
    size: u64,
    annotations: BTreeMap<String, String>,
    tar: Vec<u8>,
    diff_id: Digest,
}

impl Blob {
    async fn prepare(&self, store: &TestStore, expected: Option<&Digest>) -> Result<StagedLayer> {
        let source = Arc::new(Memory::of(&self.bytes));
        let preparing = async {
            let mut differ = ChunkedDiffer::open(store, &self.annotations, self.size, source).await?;
            if let Some(expected) = expected {
                differ = differ.expect(expected.clone());
            }
            store
                .prepare_staged_layer(StagingOptions::default(), differ)
                .await
        };
        tokio::time::timeout(PATIENCE, preparing).await.unwrap()
    }
}

/// A layer with something of everything.
fn ordinary() -> Vec<Member> {
    let text = |seed: u32| -> Vec<u8> {
        (0..3000_u32)
            .flat_map(|at| (at.wrapping_mul(seed) ^ (at << 7)).to_le_bytes())
            .collect()
    };
    let chunked = [text(2_654_435_761), vec![0; 50_000], text(40_503)].concat();
    vec![
        dir("d/"),
        file("d/a", text(7)),
        Member {
            cuts: vec![12_000, 62_000],
            ..file("d/b", chunked)
        },
        file("d/z", "the last one"),
        link("symlink", "l", "d/a"),
        link("hardlink", "h", "d/a"),
        member("fifo", "p"),
        Member {
            device: (1, 3),
            ..member("char", "c")
        },
        file("e", ""),
    ]
}

/// Everything below a directory.
fn names_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        // What is being removed may be gone by now.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Below vfs there are no staged layers, and where the files of a store lie changes nothing.
fn on_overlay(case: fn(TestStore) -> std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    over("overlay", Layout::Plain, case);
}

/// What is wrong, how it is made, how it is refused, and what the message says.
type Case = (&'static str, fn(&mut Draft), ErrorKind, &'static str);

use ErrorKind::{DigestMismatch as Mismatch, InvalidArchive as Invalid, NotSupported};

const TEXTS: &[Case] = &[
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
fn large_window() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3];
    frame.extend([3 + (1 << 3), 0, 0, b'x', b'x']);
    frame
}

const ANNOTATIONS: &[Case] = &[
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

const ENTRIES: &[Case] = &[
    (
        "attributes of 20 MiB",
        |d| {
            let value = "A".repeat(1 << 20);
            let xattrs: BTreeMap<_, _> = (0..20).map(|at| (format!("user.{at}"), value.clone())).collect();
            d.set("e", "xattrs", json!(xattrs));
        },
        Invalid,
        "attributes of over",
    ),
    (
        "no name",
        |d| d.set("d/a", "name", ""),
        Invalid,
        "an entry without a name",
    ),
    (
        "a name with NUL",
        |d| d.set("d/a", "name", "d/\0a"),
        Invalid,
        "NUL byte",
    ),
    (
        "a name of 5000 bytes",
        |d| d.set("d/a", "name", "x/".repeat(2500)),
        Invalid,
        "too long",
    ),
    (
        "a name twice",
        |d| d.set("d/z", "name", "d/a"),
        Invalid,
        "there twice",
    ),
    (
        "a path twice",
        |d| d.set("d/z", "name", "/x/../d/./a"),
        Invalid,
        "there twice",
    ),
    (
        "a path twice, by ..",
        |d| d.set("d/z", "name", "../../d/a"),
        Invalid,
        "there twice",
    ),
    (
        "another name",
        |d| d.set("e", "name", "../../../../etc/passwd"),
        Invalid,
        "missing in TOC",
    ),
    (
        "an unknown type",
        |d| d.set("d/a", "type", "door"),
        Invalid,
        "unknown type",
    ),
    (
        "no type",
        |d| d.set("d/a", "type", Value::Null),
        Invalid,
        "unknown type",
    ),
    (
        "another type",
        |d| d.set("p", "type", "reg"),
        Invalid,
        "the type of p",
    ),
    (
        "a link without target",
        |d| d.set("l", "linkName", Value::Null),
        Invalid,
        "a link without a target",
    ),
    (
        "a target with NUL",
        |d| d.set("l", "linkName", "a\0b"),
        Invalid,
        "NUL byte",
    ),
    (
        "another target",
        |d| d.set("l", "linkName", "/etc"),
        Invalid,
        "the link name of l",
    ),
    (
        "another hard link",
        |d| d.set("h", "linkName", "../../etc/passwd"),
        Invalid,
        "the link name of h",
    ),
    (
        "a negative mode",
        |d| d.set("d/a", "mode", -1),
        Invalid,
        "a mode of -1",
    ),
    (
        "another mode",
        |d| d.set("d/a", "mode", 0o4755),
        Invalid,
        "the mode of d/a",
    ),
    (
        "a negative owner",
        |d| d.set("d/a", "uid", -1),
        Invalid,
        "a user ID of -1",
    ),
    (
        "a group of 2^32",
        |d| d.set("d/a", "gid", 1_u64 << 32),
        Invalid,
        "a group ID of 4294967296",
    ),
    (
        "another owner",
        |d| d.set("d/a", "uid", 1000),
        Invalid,
        "the owner of d/a",
    ),
    (
        "a time in words",
        |d| d.set("d/a", "modtime", "yesterday"),
        Invalid,
        "is not a time",
    ),
    (
        "a time that is none",
        |d| d.set("d/a", "modtime", "2001-13-45T99:99:99Z"),
        Invalid,
        "is not a time",
    ),
    (
        "another time",
        |d| d.set("d/a", "modtime", "9999-12-31T23:59:59Z"),
        Invalid,
        "the time of modification of d/a",
    ),
    (
        "a time of access",
        |d| d.set("d/a", "accesstime", "2001-01-01T00:00:00Z"),
        Invalid,
        "the time of access",
    ),
    (
        "a device of 2^40",
        |d| d.set("c", "devMajor", 1_u64 << 40),
        Invalid,
        "a major device number",
    ),
    (
        "a negative device",
        |d| d.set("c", "devMinor", -3),
        Invalid,
        "a minor device number of -3",
    ),
    (
        "another device",
        |d| d.set("c", "devMinor", 1),
        Invalid,
        "the device of c",
    ),
    (
        "an attribute without name",
        |d| d.set("e", "xattrs", json!({"": "AA=="})),
        Invalid,
        "an attribute of the name",
    ),
    (
        "an attribute with NUL",
        |d| d.set("e", "xattrs", json!({"user.\0": ""})),
        Invalid,
        "an attribute of the name",
    ),
    (
        "an attribute in no base64",
        |d| d.set("e", "xattrs", json!({"user.a": "%"})),
        Invalid,
        "no base64",
    ),
    (
        "another attribute",
        |d| d.set("e", "xattrs", json!({"security.capability": "AA=="})),
        Invalid,
        "the attributes of e",
    ),
    (
        "an overlay attribute",
        |d| {
            d.set("d/", "xattrs", json!({"trusted.overlay.redirect": "L2V0Yw=="}));
        },
        Invalid,
        "the attributes of d/",
    ),
    (
        "an entry of the table only",
        |d| {
            d.entries()
                .push(json!({"type": "symlink", "name": "extra", "linkName": "/"}));
        },
        Invalid,
        "TOC contains entries not present in tar-split, incl. extra",
    ),
    (
        "an entry of the tar only",
        |d| drop(d.entries().pop()),
        Invalid,
        "missing in TOC",
    ),
    ("no entries", |d| d.entries().clear(), Invalid, "missing in TOC"),
];

const CHUNKS: &[Case] = &[
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
            let large = Member {
                content: Vec::new(),
                ..file("d/z", "")
            };
            let header = TarBuilder::new()
                .entry(TarEntry::file("d/z", "").mode(large.mode).size(1 << 36))
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

const CONTENTS: &[Case] = &[
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

fn content_of(draft: &mut Draft, name: &str) -> (usize, usize) {
    let entry = draft.entry(name);
    let number = |field: &str| usize::try_from(entry[field].as_u64().unwrap()).unwrap();
    (number("offset"), number("endOffset"))
}

const TAR_SPLITS: &[Case] = &[
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

async fn refuse_all(store: &TestStore, cases: &[Case]) {
    let honest = Draft::of(&ordinary()).finish();
    for expected in [None, Some(&honest.diff_id)] {
        let staged = honest.prepare(store, expected).await.unwrap();
        store.cleanup_staged_layer(staged).await.unwrap();
    }
    let before = names_below(store.path());
    let mut faults = Vec::new();
    for (what, change, kind, text) in cases {
        for is_expected in [false, true] {
            let mut draft = Draft::of(&ordinary());
            change(&mut draft);
            let blob = draft.finish();
            match blob.prepare(store, is_expected.then_some(&blob.diff_id)).await {
                // The digests of single files do not decide where that of the layer is right.
                Ok(staged) if is_expected && *what == "the digest of another file" => {
                    store.cleanup_staged_layer(staged).await.unwrap();
                }
                Ok(_) => faults.push(format!("{what} is taken ({is_expected})")),
                Err(error) => {
                    let chain = error.chain().to_string().replace('"', "");
                    if error.kind() != *kind || !chain.contains(text) {
                        faults.push(format!("{what} ({is_expected}): {:?} {chain}", error.kind()));
                    }
                    if chain.len() > 2000 {
                        faults.push(format!("{what}: a message of {} bytes", chain.len()));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(store.own_layers().await.is_empty());
    // What was staged is removed in the background.
    let removed = async {
        while names_below(store.path()).difference(&before).next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, removed).await.is_err() {
        let after = names_below(store.path());
        panic!("{:?}", after.difference(&before).collect::<Vec<_>>());
    }
    store.free();
    drop(store.reopen().await);
}

macro_rules! refused {
    ($($name:ident: $cases:ident;)*) => {
        $(#[test]
        fn $name() {
            on_overlay(|store| Box::pin(async move { refuse_all(&store, $cases).await }));
        })*
    };
}

refused! {
    tables_that_cannot_be_read_are_refused: TEXTS;
    annotations_that_lie_are_refused: ANNOTATIONS;
    entries_that_lie_are_refused: ENTRIES;
    chunks_that_lie_are_refused: CHUNKS;
    contents_that_are_others_are_refused: CONTENTS;
    tar_split_data_that_lies_is_refused: TAR_SPLITS;
}

/// Layers whose parts agree, however odd they are.
fn odd() -> Vec<(&'static str, Vec<Member>)> {
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(250));
    let too_long = "n".repeat(300);
    vec![
        ("nothing", vec![]),
        (
            "names with ..",
            vec![file("../../up", "1"), dir("d/"), file("d/../../../side", "2")],
        ),
        (
            "absolute names",
            vec![dir("/abs/"), file("/abs/file", "1"), file("//double", "2")],
        ),
        ("long names", vec![file(&long, "1"), link("symlink", "s", &long)]),
        (
            "a name that is too long for a file system",
            vec![file(&too_long, "1")],
        ),
        (
            "odd bytes",
            vec![
                file("new\nline", "1"),
                file("quote\"back\\slash", "2"),
                file("ä/\u{7f}", "3"),
            ],
        ),
        (
            "a root",
            vec![
                Member {
                    mode: 0o700,
                    owner: (5, 6),
                    ..dir("./")
                },
                file("./f", "1"),
            ],
        ),
        ("a root that is a file", vec![file(".", "1")]),
        (
            "links out of the layer",
            vec![
                link("symlink", "out", "../../../../etc"),
                file("out/planted", "1"),
            ],
        ),
        (
            "absolute links",
            vec![link("symlink", "out", "/tmp"), file("out/graphroot-planted", "1")],
        ),
        (
            "a link to itself",
            vec![link("symlink", "loop", "loop"), file("loop/f", "1")],
        ),
        (
            "a hard link out",
            vec![link("hardlink", "passwd", "../../../../../etc/passwd")],
        ),
        ("a hard link to nothing", vec![link("hardlink", "h", "none")]),
        (
            "a hard link to a directory",
            vec![dir("d/"), link("hardlink", "h", "d")],
        ),
        ("a hard link to itself", vec![link("hardlink", "h", "h")]),
        (
            "a hard link to a device",
            vec![
                Member {
                    device: (1, 3),
                    ..member("char", "c")
                },
                link("hardlink", "h", "c"),
            ],
        ),
        (
            "a hard link to a FIFO",
            vec![member("fifo", "p"), link("hardlink", "h", "p")],
        ),
        (
            "a hard link to a link",
            vec![link("symlink", "s", "/etc/passwd"), link("hardlink", "h", "s")],
        ),
        (
            "a hard link through a link",
            vec![link("symlink", "s", "/etc"), link("hardlink", "h", "s/passwd")],
        ),
        ("a file below a file", vec![file("f", "1"), file("f/g", "2")]),
        ("a file below a FIFO", vec![member("fifo", "p"), file("p/g", "2")]),
        (
            "whiteouts",
            vec![
                dir("d/"),
                file("d/.wh.gone", ""),
                file("d/.wh..wh..opq", ""),
                file(".wh.x", ""),
            ],
        ),
        ("whiteouts of nothing", vec![file(".wh.", "")]),
        (
            "whiteouts of the parent",
            vec![dir("d/"), file("d/.wh...", ""), file("d/.wh..", "")],
        ),
        ("whiteouts with content", vec![file(".wh.f", "content")]),
        (
            "a whiteout of what comes before it",
            vec![file("f", "1"), file(".wh.f", "")],
        ),
        (
            "aufs' own files",
            vec![
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/x", "1"),
                file(".wh..wh.aufs", ""),
            ],
        ),
        (
            "devices",
            vec![
                Member {
                    device: (4095, 1_048_575),
                    ..member("char", "c")
                },
                Member {
                    device: (8, 0),
                    ..member("block", "b")
                },
                Member {
                    mode: 0o777,
                    ..member("char", "whiteout")
                },
            ],
        ),
        (
            "times",
            vec![
                Member {
                    time: 253_402_300_799,
                    ..file("late", "1")
                },
                Member {
                    time: 9_223_372_037,
                    ..file("behind-2262", "1")
                },
                Member {
                    time: 0,
                    ..file("epoch", "1")
                },
                Member { time: 0, ..dir("d/") },
            ],
        ),
        (
            "owners",
            vec![Member {
                owner: (4_294_967_294, 65_534),
                mode: 0o6755,
                ..file("f", "1")
            }],
        ),
        (
            "modes",
            vec![
                Member { mode: 0, ..dir("d/") },
                Member {
                    mode: 0,
                    ..file("d/f", "1")
                },
                Member {
                    mode: 0o1777,
                    ..dir("t/")
                },
            ],
        ),
        (
            "attributes",
            vec![Member {
                xattrs: vec![
                    ("user.empty", vec![]),
                    ("user.bytes", vec![0, 255]),
                    (
                        "security.capability",
                        b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
                    ),
                ],
                ..file("f", "1")
            }],
        ),
        (
            "attributes of overlay",
            vec![Member {
                xattrs: vec![
                    ("trusted.overlay.opaque", b"y".to_vec()),
                    ("trusted.overlay.redirect", b"/etc".to_vec()),
                ],
                ..dir("d/")
            }],
        ),
        (
            "an attribute that no file can have",
            vec![Member {
                xattrs: vec![("nothing", vec![1])],
                ..file("f", "1")
            }],
        ),
        ("zeros", vec![file("z", vec![0; 5_000_000])]),
        (
            "the same content twice",
            vec![file("one", "same"), file("two", "same")],
        ),
        (
            "many chunks of one byte",
            vec![Member {
                cuts: (1..200).collect(),
                ..file("f", vec![7; 200])
            }],
        ),
        ("no directories", vec![file("a/b/c/d/e", "1")]),
    ]
}

#[test]
fn odd_layers_are_those_of_the_ordinary_pull() {
    on_overlay(|store| {
        Box::pin(async move {
            let mut faults = Vec::new();
            for (what, members) in odd() {
                let blob = Draft::of(&members).finish();
                let options = LayerOptions::default().id("whole");
                let whole = store
                    .put_layer(None, options, Cursor::new(blob.tar.clone()))
                    .await;
                for expected in [None, Some(&blob.diff_id)] {
                    let staged = blob.prepare(&store, expected).await;
                    let parts = match staged {
                        Ok(staged) => {
                            let options = LayerOptions::default().id("parts");
                            store.apply_staged_layer(None, options, staged).await
                        }
                        Err(error) => Err(error),
                    };
                    match (&whole, parts) {
                        (Ok(_), Ok(layer)) => {
                            if layer.uncompressed_digest().as_ref() != Some(&blob.diff_id) {
                                faults.push(format!("{what}: another diff ID"));
                            }
                            let trees = ["whole", "parts"].map(|id| {
                                let mut tree = crate::manifest::manifest(&tree_of(&store, id));
                                // Directories without an entry have the time at which they were made.
                                for (path, entry) in &mut tree {
                                    let is_named = members.iter().any(|member| {
                                        member.kind == "dir"
                                            && !member.name.starts_with(".wh.")
                                            && Path::new(&member.name) == *path
                                    });
                                    if entry.kind == "directory" && !is_named {
                                        entry.mtime = (0, 0);
                                    }
                                }
                                tree
                            });
                            let differences = crate::manifest::differences(&trees[0], &trees[1]);
                            if !differences.is_empty() {
                                faults.push(format!("{what}: {differences:?}"));
                            }
                            store.delete_layer("parts").await.unwrap();
                        }
                        (Err(whole), Err(parts)) if whole.kind() == parts.kind() => {}
                        (Err(whole), Err(parts)) => {
                            faults.push(format!("{what}: {} but {}", whole.chain(), parts.chain()));
                        }
                        (Ok(_), Err(error)) => {
                            faults.push(format!("{what} is refused: {}", error.chain()));
                        }
                        (Err(error), Ok(_)) => {
                            faults.push(format!("{what} is taken, but not as a whole: {}", error.chain()));
                            store.delete_layer("parts").await.unwrap();
                        }
                    }
                }
                if whole.is_ok() {
                    store.delete_layer("whole").await.unwrap();
                }
            }
            assert!(faults.is_empty(), "{}", faults.join("\n"));
            assert!(!Path::new("/tmp/graphroot-planted").exists());
            assert!(store.own_layers().await.is_empty());
        })
    });
}

/// A line of this process's status, in KiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Most that a pull may take beside the blob, in KiB.
const MOST: u64 = 128 << 10;

#[test]
#[ignore = "measures the memory of its process, in which there must be nothing else"]
fn alone() {
    on_overlay(|store| {
        Box::pin(async move {
            let large = [
                "millions",
                "1 GiB",
                "MiB",
                "GiB",
                "TB",
                "2^62",
                "without end",
                "nested",
            ];
            let cases = [TEXTS, ENTRIES, CHUNKS, TAR_SPLITS].concat();
            let honest = Draft::of(&ordinary()).finish();
            drop(honest.prepare(&store, None).await.unwrap());
            for (what, change, ..) in cases {
                if !large.iter().any(|part| what.contains(part)) {
                    continue;
                }
                let mut draft = Draft::of(&ordinary());
                change(&mut draft);
                let blob = draft.finish();
                std::fs::write("/proc/self/clear_refs", "5").unwrap();
                let before = memory("VmRSS");
                blob.prepare(&store, Some(&blob.diff_id)).await.unwrap_err();
                let taken = memory("VmHWM").saturating_sub(before);
                eprintln!("{what}: {taken} KiB");
                assert!(taken < MOST, "{what} takes {taken} KiB");
            }
        })
    });
}

#[test]
fn harm_takes_little_memory() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["hostile_parts::alone", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
