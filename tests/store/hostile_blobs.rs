//! Blobs with a table of contents, made by hand so that any part of them can be changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{ChunkedDiffer, Digest, ErrorKind, Result, StagedLayer, StagingOptions};
use serde_json::{Value, json};

use crate::staged_layers::Memory;
use crate::support::{PATIENCE, TestStore};

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Something in a layer.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) link: String,
    pub(crate) content: Vec<u8>,
    /// Where the content is cut into chunks.
    pub(crate) cuts: Vec<usize>,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) time: i64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(&'static str, Vec<u8>)>,
}

pub(crate) fn member(kind: &'static str, name: &str) -> Member {
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

pub(crate) fn file(name: &str, content: impl AsRef<[u8]>) -> Member {
    Member {
        content: content.as_ref().to_vec(),
        ..member("reg", name)
    }
}

pub(crate) fn dir(name: &str) -> Member {
    Member {
        mode: 0o755,
        ..member("dir", name)
    }
}

pub(crate) fn link(kind: &'static str, name: &str, target: &str) -> Member {
    Member {
        link: target.to_owned(),
        ..member(kind, name)
    }
}

impl Member {
    /// Its header, without content.
    pub(crate) fn header(&self) -> Vec<u8> {
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
pub(crate) struct Draft {
    pub(crate) tar: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) toc: Value,
    pub(crate) lines: Vec<Value>,
    pub(crate) toc_text: Option<Vec<u8>>,
    pub(crate) toc_frame: Option<Vec<u8>>,
    pub(crate) toc_size: Option<u64>,
    pub(crate) split_text: Option<Vec<u8>>,
    pub(crate) split_frame: Option<Vec<u8>>,
    pub(crate) split_size: Option<u64>,
    pub(crate) split_digest: Option<Value>,
    pub(crate) annotations: Vec<(&'static str, Option<String>)>,
    pub(crate) blob_size: Option<u64>,
}

pub(crate) fn segment(bytes: &[u8]) -> Value {
    json!({"type": 2, "payload": BASE64.encode(bytes)})
}

impl Draft {
    pub(crate) fn of(members: &[Member]) -> Self {
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
    pub(crate) fn entry(&mut self, name: &str) -> &mut Value {
        let entries = self.toc["entries"].as_array_mut().unwrap();
        entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
    }

    pub(crate) fn entries(&mut self) -> &mut Vec<Value> {
        self.toc["entries"].as_array_mut().unwrap()
    }

    /// The place of the content of a name in the tar-split data.
    pub(crate) fn line(&self, name: &str) -> usize {
        self.lines.iter().position(|line| line["name"] == name).unwrap()
    }

    /// Sets a field of an entry.
    pub(crate) fn set(&mut self, name: &str, field: &str, value: impl Into<Value>) {
        self.entry(name)[field] = value.into();
    }

    /// Replaces the header of a name, but not what the table says.
    pub(crate) fn replace_header(&mut self, name: &str, member: &Member) {
        let at = self.line(name);
        self.lines[at - 1] = segment(&member.header());
    }

    pub(crate) fn finish(mut self) -> Blob {
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

pub(crate) struct Blob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) tar: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Blob {
    pub(crate) async fn prepare(&self, store: &TestStore, expected: Option<&Digest>) -> Result<StagedLayer> {
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
pub(crate) fn ordinary() -> Vec<Member> {
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

/// What is wrong, how it is made, how it is refused, and what the message says.
pub(crate) type Case = (&'static str, fn(&mut Draft), ErrorKind, &'static str);
