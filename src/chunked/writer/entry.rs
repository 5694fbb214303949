//! An entry of the table of contents as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::job::Sum;
use crate::archive::path::show;
use crate::archive::tar::header::Timestamp;
use crate::archive::tar::reader::Entry;
use crate::digest::hex;
use crate::json::push_escaped;
use crate::time::Time;

/// What is known of the content of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Content {
    pub(super) sum: Sum,
    /// Where it ends in the blob.
    pub(super) end: u64,
}

/// A chunk of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Where it begins in the blob.
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) is_hole: bool,
    pub(super) sum: Sum,
}

/// Why a tar stream can have no table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit(pub(super) String);

/// What the name of an entry with content comes after.
const FILE_HEAD: &[u8] = b"{\"type\":\"reg\",\"name\":\"";

fn type_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        b'0' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        _ => return None,
    })
}

/// Appends the beginning of an entry's JSON, without the closing brace; returns where in it the name ends.
///
/// As the Go library writes it: raw names, only fields that are not zero, in this order. Times are in UTC, so the same
/// tar always gives the same bytes.
pub(super) fn push_head(out: &mut Vec<u8>, entry: &Entry) -> Result<usize, Unfit> {
    let start = out.len();
    let kind = type_name(entry.kind)
        .filter(|_| entry.sparse.is_none())
        .ok_or_else(|| unfit(entry, &kind_of(entry)))?;
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"name\":\"");
    push_text(out, &entry.name);
    let name_end = out.len() - start;
    out.push(b'"');
    if !entry.link.is_empty() {
        out.extend_from_slice(b",\"linkName\":\"");
        push_text(out, &entry.link);
        out.push(b'"');
    }
    push_number(out, "mode", entry.declared_mode);
    push_number(out, "size", entry.declared_size);
    push_number(out, "uid", entry.uid);
    push_number(out, "gid", entry.gid);
    let times = [
        ("modtime", Some(entry.mtime)),
        ("accesstime", entry.atime),
        ("changetime", entry.ctime),
    ];
    for (key, time) in times {
        if let Some(time) = time {
            push_time(out, key, time).ok_or_else(|| unfit(entry, &format!("has a {key} of {time:?}")))?;
        }
    }
    push_number(out, "devMajor", entry.dev_major);
    push_number(out, "devMinor", entry.dev_minor);
    push_xattrs(out, entry);
    Ok(name_end)
}

fn unfit(entry: &Entry, what: &str) -> Unfit {
    Unfit(format!("{} {what}", show(&entry.name)))
}

fn kind_of(entry: &Entry) -> String {
    match entry.sparse {
        Some(_) => "is a sparse file".to_owned(),
        None => format!("is of type {:?}", char::from(entry.kind)),
    }
}

/// A JSON string's inside. Bytes that are no UTF-8 stay as they are: Go takes them for what they are.
fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    let mut escaped = String::new();
    for part in text.utf8_chunks() {
        escaped.clear();
        push_escaped(&mut escaped, part.valid());
        out.extend_from_slice(escaped.as_bytes());
        out.extend_from_slice(part.invalid());
    }
}

/// Appends `,"KEY":NUMBER`, nothing for 0.
fn push_number(out: &mut Vec<u8>, key: &str, number: i64) {
    if number != 0 {
        out.extend_from_slice(format!(",\"{key}\":{number}").as_bytes());
    }
}

fn push_time(out: &mut Vec<u8>, key: &str, time: Timestamp) -> Option<()> {
    let time = Time::at(time.secs, time.nanos)?;
    if !time.is_go_zero() {
        out.extend_from_slice(format!(",\"{key}\":\"{time}\"").as_bytes());
    }
    Some(())
}

fn push_xattrs(out: &mut Vec<u8>, entry: &Entry) {
    let mut value_text = String::new();
    for (index, (name, value)) in entry.records.xattrs().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"xattrs\":{\"" } else { b",\"" });
        push_text(out, name);
        value_text.clear();
        BASE64.encode_string(value, &mut value_text);
        out.extend_from_slice(b"\":\"");
        out.extend_from_slice(value_text.as_bytes());
        out.push(b'"');
    }
    if entry.records.xattrs().next().is_some() {
        out.push(b'}');
    }
}

/// Appends the JSON of an entry, of which `text` is the beginning and `name_end` the end of its name in that, and of the chunks
/// behind its first one.
pub(super) fn push_entry(
    out: &mut Vec<u8>,
    (text, name_end): (&[u8], usize),
    content: Option<&Content>,
    chunks: &[Chunk],
) {
    out.extend_from_slice(text);
    if let (Some(content), Some((first, others))) = (content, chunks.split_first()) {
        out.extend_from_slice(format!(",\"digest\":\"sha256:{}\"", hex(&content.sum)).as_bytes());
        push_number(out, "offset", signed(first.offset));
        push_number(out, "endOffset", signed(content.end));
        if !others.is_empty() {
            push_chunk(out, first, 0);
        }
        let mut chunk_offset = first.size;
        for chunk in others {
            out.extend_from_slice(b"},{\"type\":\"chunk\",\"name\":\"");
            out.extend_from_slice(text.get(FILE_HEAD.len()..name_end).unwrap_or_default());
            out.push(b'"');
            push_number(out, "offset", signed(chunk.offset));
            push_chunk(out, chunk, chunk_offset);
            chunk_offset += chunk.size;
        }
    }
    out.push(b'}');
}

fn push_chunk(out: &mut Vec<u8>, chunk: &Chunk, chunk_offset: u64) {
    push_number(out, "chunkSize", signed(chunk.size));
    push_number(out, "chunkOffset", signed(chunk_offset));
    out.extend_from_slice(format!(",\"chunkDigest\":\"sha256:{}\"", hex(&chunk.sum)).as_bytes());
    if chunk.is_hole {
        out.extend_from_slice(b",\"chunkType\":\"zeros\"");
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
