//! What is written is found again, and no bytes do harm.

use std::cell::Cell;
use std::io::{self, Cursor};
use std::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::reader::ReadAt;
use super::{CacheFile, CacheWriter, Key, LayerFormat, Location, Unusable};
use crate::digest::{Digest, sha256_sum};
use crate::error::ErrorKind;

/// A file in memory that counts reads.
#[derive(Default)]
struct Bytes {
    bytes: Vec<u8>,
    reads: Cell<usize>,
}

impl ReadAt for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let from = self.bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn bytes(bytes: Vec<u8>) -> Bytes {
    Bytes {
        bytes,
        ..Bytes::default()
    }
}

fn write(entries: &Value, format: LayerFormat) -> Vec<u8> {
    let table = json!({"version": 1, "entries": entries}).to_string();
    let mut out = Vec::new();
    CacheWriter::write_for(table.as_bytes(), format, Cursor::new(Vec::new()), &mut out).unwrap();
    out
}

fn digest(text: &str) -> String {
    Digest::sha256(text).to_string()
}

fn sum(text: &str) -> [u8; 32] {
    sha256_sum(digest(text).as_bytes()).unwrap()
}

fn open(file: &Bytes) -> Result<CacheFile, Unusable> {
    CacheFile::open(file, file.bytes.len() as u64)
}

/// All locations of a sum, with names.
fn find(cache: &CacheFile, file: &Bytes, sum: &[u8; 32]) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    let key = Key::new(sum);
    if cache.may_have(&key) {
        let visited = cache.visit(file, &key, |location: Location| {
            let name = cache.name(file, location.name).unwrap().unwrap();
            found.push((String::from_utf8(name).unwrap(), location.offset, location.length));
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(visited.unwrap(), None);
    }
    found
}

fn entries() -> Value {
    json!([
        {"type": "dir", "name": "d/", "mode": 0o755},
        {"type": "reg", "name": "d/empty"},
        {"type": "reg", "name": "./d/f", "mode": 0o104_755, "size": 5, "uid": 1000, "gid": 1001,
         "digest": digest("f"), "offset": 50, "endOffset": 90, "xattrs": {"user.b": "AA==", "user.a": "QQ=="}},
        {"type": "reg", "name": "big", "size": 300, "digest": digest("big"), "offset": 100,
         "chunkSize": 100, "chunkDigest": digest("f")},
        {"type": "chunk", "name": "big", "offset": 200, "chunkSize": 150, "chunkOffset": 100,
         "chunkDigest": digest("zeros"), "chunkType": "zeros"},
        {"type": "chunk", "name": "big", "offset": 300, "chunkSize": 50, "chunkOffset": 250, "chunkDigest": digest("zeros")},
        {"type": "reg", "name": "copy", "size": 5, "digest": digest("f"), "offset": 400},
        {"type": "hardlink", "name": "h", "linkName": "copy"},
        {"type": "reg", "name": "sha512", "size": 5, "digest": format!("sha512:{}", "0".repeat(128)), "offset": 500},
    ])
}

#[test]
fn contents_are_found_by_digest() {
    let file = bytes(write(&entries(), LayerFormat::Tree));
    let mut cache = open(&file).unwrap();
    for _ in 0..2 {
        let mut of_f = find(&cache, &file, &sum("f"));
        of_f.sort();
        assert_eq!(
            of_f,
            [
                ("./d/f".into(), 0, 5),
                ("big".into(), 0, 100),
                ("copy".into(), 0, 5)
            ]
        );
        assert_eq!(find(&cache, &file, &sum("big")), [("big".into(), 0, 300)]);
        // Of the chunks behind the first ones, one of each digest is enough.
        assert_eq!(find(&cache, &file, &sum("zeros")), [("big".into(), 100, 150)]);
        assert_eq!(find(&cache, &file, &sum("")), [("d/empty".into(), 0, 0)]);
        assert_eq!(find(&cache, &file, &sum("other")), []);
        let fingerprint = format!("{}1000:1001:104755user.aQQ==user.bAA==", digest("f"));
        assert_eq!(find(&cache, &file, &sum(&fingerprint)), [("./d/f".into(), 0, 5)]);
        cache.load_filter(&file).unwrap();
    }
    assert_eq!(cache.filter_size(), 8 * 2);
}

#[test]
fn a_layer_by_digests_has_each_content_once() {
    let file = bytes(write(&entries(), LayerFormat::Flat));
    let cache = open(&file).unwrap();
    let path = |text: &str| {
        let digest = digest(text);
        let hex = digest.strip_prefix("sha256:").unwrap();
        format!("{}/{}", &hex[..2], &hex[2..])
    };
    let mut of_f = find(&cache, &file, &sum("f"));
    of_f.sort();
    let mut expected = [(path("f"), 0, 5), (path("big"), 0, 100)];
    expected.sort();
    assert_eq!(of_f, expected);
    assert_eq!(find(&cache, &file, &sum("zeros")), []);
    assert_eq!(find(&cache, &file, &sum("")), [(path(""), 0, 0)]);
}

#[test]
fn how_a_layer_is_stored() {
    for (item, expected) in [
        ("{}", Some(LayerFormat::Tree)),
        ("{\"format\":0}", Some(LayerFormat::Tree)),
        ("{\"format\":1,\"later\":2}", Some(LayerFormat::Flat)),
        ("{\"format\":2}", None),
        ("{\"format\":\"1\"}", None),
        ("", None),
    ] {
        assert_eq!(LayerFormat::parse(item.as_bytes()), expected, "{item}");
    }
}

/// Worked out by hand from what the Go library writes for no file.
#[test]
fn a_cache_of_nothing() {
    let mut expected = Vec::new();
    for number in [3u64, 0, 0, 1] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(3u32.to_le_bytes());
    expected.extend([0; 8 + 24]);
    assert_eq!(expected.len(), 68);
    assert_eq!(write(&json!([]), LayerFormat::Tree), expected);
    assert_eq!(write(&Value::Null, LayerFormat::Tree), expected);
    let mut empty = Vec::new();
    CacheWriter::write_empty(Cursor::new(Vec::new()), &mut empty).unwrap();
    assert_eq!(empty, expected);
    let file = bytes(expected);
    let cache = open(&file).unwrap();
    assert!(cache.is_empty());
    assert_eq!(find(&cache, &file, &sum("")), []);
}

#[test]
fn a_table_that_is_none_makes_no_cache() {
    for (table, kind) in [
        ("", ErrorKind::InvalidArchive),
        ("{}", ErrorKind::NotSupported),
        ("{\"version\":1,\"entries\":[{}", ErrorKind::InvalidArchive),
        ("{\"version\":1,\"entries\":[]}}", ErrorKind::InvalidArchive),
    ] {
        let error = CacheWriter::write_for(
            table.as_bytes(),
            LayerFormat::Tree,
            Cursor::new(Vec::new()),
            &mut Vec::new(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), kind, "{table} {error}");
    }
    // Numbers that no file has are left out.
    let odd = json!([
        {"type": "reg", "name": "a", "size": -1, "digest": digest("a")},
        {"type": "reg", "name": "b", "size": 1, "uid": -1, "digest": digest("b"), "chunkDigest": digest("c"), "chunkSize": -1},
        {"type": "reg", "name": "d", "size": 1, "digest": "sha256:garbage"},
    ]);
    let file = bytes(write(&odd, LayerFormat::Tree));
    let cache = open(&file).unwrap();
    assert_eq!(find(&cache, &file, &sum("b")), [("b".into(), 0, 1)]);
    for text in ["a", "c"] {
        assert_eq!(find(&cache, &file, &sum(text)), []);
    }
}

#[test]
fn parts_that_contradict_the_size_are_damage() {
    let good = write(&entries(), LayerFormat::Tree);
    let with = |at: usize, number: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    let lengths = 36 + 2 * 8;
    let numbers = [0, 1, 56, 1 << 26, 1 << 32, 1 << 61, u64::MAX / 2, u64::MAX];
    for number in numbers {
        // Words of the filter, then the lengths.
        for at in [24, lengths, lengths + 8, lengths + 16] {
            let found = open(&bytes(with(at, number)));
            assert!(
                matches!(found, Err(Unusable::Damaged(_))),
                "{at} {number} {found:?}"
            );
        }
        if number != 56 {
            // Bytes of a tag, of which all are so long.
            let found = open(&bytes(with(8, number)));
            let divides = number == 1;
            assert_eq!(found.is_ok(), divides, "{number} {found:?}");
            assert!(found.is_err() || found.unwrap().is_empty());
        }
        // Other digests: none can be found.
        assert!(open(&bytes(with(16, number))).unwrap().is_empty());
    }
    for version in [0, 2, 4, u64::MAX] {
        let found = open(&bytes(with(0, version)));
        assert!(
            matches!(found, Err(Unusable::Version(found)) if found == version),
            "{found:?}"
        );
    }
    let mut hashes = good.clone();
    hashes[35] = 0xff;
    assert!(matches!(open(&bytes(hashes)), Err(Unusable::Damaged(_))));
    for length in 0..good.len() {
        let found = open(&bytes(good[..length].to_vec()));
        assert!(
            matches!(found, Err(Unusable::Damaged(_) | Unusable::Version(_))),
            "{length} {found:?}"
        );
    }
    let longer = [&good[..], b"x"].concat();
    assert!(matches!(open(&bytes(longer)), Err(Unusable::Damaged(_))));
    // A file that gets shorter later.
    let mut file = bytes(good.clone());
    let cache = open(&file).unwrap();
    for length in 0..good.len() {
        file.bytes = good[..length].to_vec();
        if let Ok(Some(location)) = cache.visit(&file, &Key::new(&sum("big")), ControlFlow::Break) {
            let _name = cache.name(&file, location.name);
        }
    }
}

#[test]
fn few_reads_find_one_of_many() {
    let many: Vec<Value> = (0..50_000)
        .map(|number| {
            let name = format!("usr/share/file-{number}");
            json!({"type": "reg", "name": name, "size": number + 1, "digest": digest(&name)})
        })
        .collect();
    let file = bytes(write(&many.into(), LayerFormat::Tree));
    let mut cache = open(&file).unwrap();
    cache.load_filter(&file).unwrap();
    file.reads.set(0);
    for number in (0..50_000).step_by(50) {
        let name = format!("usr/share/file-{number}");
        assert_eq!(find(&cache, &file, &sum(&name)), [(name.clone(), 0, number + 1)]);
    }
    let reads = file.reads.replace(0);
    assert!(reads < 5 * 1000, "{reads}");
    let missing = (0..1000).filter(|number| cache.may_have(&Key::new(&sum(&format!("missing-{number}")))));
    assert!(missing.count() < 60);
}

/// Sums that are not spread: what is placed by the look of them is wrong, and halving goes on.
#[test]
fn many_sums_that_look_alike() {
    let hex = |number: u64| format!("sha256:{}{number:032x}", "ab".repeat(16));
    let many: Vec<Value> = (0..20_000)
        .map(|number| json!({"type": "reg", "name": number.to_string(), "size": 1, "digest": hex(number)}))
        .chain([json!({"type": "reg", "name": "low", "size": 1, "digest": format!("sha256:{:064x}", 1)})])
        .collect();
    let file = bytes(write(&many.into(), LayerFormat::Tree));
    let cache = open(&file).unwrap();
    for number in [0, 1, 9_999, 19_998, 19_999] {
        file.reads.set(0);
        let sum = sha256_sum(hex(number).as_bytes()).unwrap();
        assert_eq!(find(&cache, &file, &sum), [(number.to_string(), 0, 1)]);
        assert!(file.reads.get() < 30, "{}", file.reads.get());
    }
}

#[test]
fn of_a_content_that_is_there_often_some_are_looked_at() {
    let many: Vec<Value> = (0..1000)
        .map(|number| json!({"type": "reg", "name": number.to_string(), "size": 1, "digest": digest("same")}))
        .collect();
    let file = bytes(write(&many.into(), LayerFormat::Tree));
    assert_eq!(find(&open(&file).unwrap(), &file, &sum("same")).len(), 32);
}

/// Looks up what can be looked up in any bytes.
fn attack(bytes: Vec<u8>, sums: &[[u8; 32]]) {
    let file = Bytes {
        bytes,
        ..Bytes::default()
    };
    let Ok(mut cache) = open(&file) else { return };
    for _ in 0..2 {
        for sum in sums {
            let key = Key::new(sum);
            cache.may_have(&key);
            let visited = cache.visit(&file, &key, |location| {
                let _name = cache.name(&file, location.name);
                ControlFlow::<()>::Continue(())
            });
            assert!(matches!(visited, Ok(None) | Err(_)));
        }
        let loaded = cache.load_filter(&file);
        assert!(loaded.is_ok());
    }
}

fn entry() -> impl Strategy<Value = Value> {
    let name = "[a-c/.]{1,6}";
    let optional =
        |text: &'static str| prop_oneof![Just(None), "[a-e]".prop_map(move |seed| Some(seed + text))];
    (
        name,
        optional("f"),
        optional("c"),
        0..200i64,
        0..200i64,
        any::<bool>(),
    )
        .prop_map(|(name, file, chunk, size, offset, is_chunk)| {
            let mut entry = json!({"type": if is_chunk { "chunk" } else { "reg" }, "name": name});
            if let Some(file) = file.filter(|_| !is_chunk) {
                entry["digest"] = digest(&file).into();
                entry["size"] = size.into();
            }
            if let Some(chunk) = chunk {
                entry["chunkDigest"] = digest(&chunk).into();
                entry["chunkSize"] = size.into();
                entry["chunkOffset"] = offset.into();
            }
            entry
        })
}

proptest! {
    #[test]
    fn whatever_is_written_is_found(entries in prop::collection::vec(entry(), 0..40)) {
        let file = bytes(write(&entries.clone().into(), LayerFormat::Tree));
        let cache = open(&file).unwrap();
        let mut chunks = std::collections::HashSet::new();
        for entry in &entries {
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            let number = |key: &str| entry[key].as_u64().unwrap_or(0);
            let name = text("name").unwrap();
            let found = |digest: &str| find(&cache, &file, &sha256_sum(digest.as_bytes()).unwrap());
            if let Some(digest) = text("digest") {
                prop_assert!(found(&digest).contains(&(name.clone(), 0, number("size"))));
            }
            if let Some(digest) = text("chunkDigest") {
                let has_digest = text("digest").is_some() || (text("type").unwrap() == "reg");
                if has_digest || chunks.insert(digest.clone()) {
                    prop_assert!(found(&digest).contains(&(name, number("chunkOffset"), number("chunkSize"))));
                }
            }
        }
        for seed in ["x", "y", "z"] {
            prop_assert_eq!(find(&cache, &file, &sum(seed)), []);
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), has_head: bool) {
        let mut file = bytes;
        if has_head {
            let head = [3u64, 55, 39, 1].map(u64::to_le_bytes).concat();
            let filter = [&3u32.to_le_bytes()[..], &[0xff; 8]].concat();
            let count = file.len() / 55;
            let rest = (file.len() - count * 55) as u64;
            let lengths = [(count * 55) as u64, rest / 2, rest - rest / 2].map(u64::to_le_bytes).concat();
            let tags: Vec<u8> = file.chunks(55).flat_map(|tag| match tag.len() {
                // Numbers that point somewhere near.
                55 => [b"sha256:", &tag[7..40], &[0; 6], &tag[46..48], &[0; 7]].concat(),
                _ => tag.to_vec(),
            }).collect();
            file = [head, filter, lengths, tags].concat();
        }
        let sums: Vec<[u8; 32]> = file
            .windows(39)
            .filter(|bytes| bytes.starts_with(b"sha256:"))
            .map(|bytes| bytes[7..].try_into().unwrap())
            .chain([[0; 32], [0xff; 32]])
            .collect();
        attack(file, &sums);
    }

    #[test]
    fn no_change_does_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut file = write(&entries(), LayerFormat::Tree);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        attack(file, &[sum("f"), sum("big"), sum("zeros"), sum(""), [0; 32], [0xff; 32]]);
    }
}

/// A table that the library has written, and the caches that Podman 5.4 and 5.8 have made of it.
#[test]
fn the_bytes_are_those_of_the_go_library() {
    let table = include_bytes!("fixtures/toc.json");
    let tree = include_bytes!("fixtures/tree.cache");
    let flat = include_bytes!("fixtures/flat.cache");
    for (format, expected) in [(LayerFormat::Tree, &tree[..]), (LayerFormat::Flat, &flat[..])] {
        let mut out = Vec::new();
        CacheWriter::write_for(&table[..], format, Cursor::new(Vec::new()), &mut out).unwrap();
        assert!(out == expected, "{format:?}");
    }
    let file = bytes(tree.to_vec());
    let cache = open(&file).unwrap();
    let mut small = find(&cache, &file, &sum("small"));
    small.sort();
    assert_eq!(small, [("dir/same".into(), 0, 5), ("dir/small".into(), 0, 5)]);
}
