//! What is found is there, whatever cache files say.

use std::fs;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{LayerTrees, Layers, LocalContent, LocalLayer, NoCache};
use crate::chunked::cache::{CacheWriter, LayerFormat, Unusable};
use crate::digest::{Digest, sha256_sum};
use crate::error::{IoContext as _, Result};
use crate::sys::at;

/// Layers below a directory: `ID/` with the files and `ID.cache`.
#[derive(Debug)]
pub(super) struct Trees(pub(super) PathBuf);

impl LayerTrees for Trees {
    fn open_tree(&self, id: &str) -> Result<OwnedFd> {
        at::open_dir(&self.0.join(id)).during("opening")
    }
}

pub(super) fn digest(text: &str) -> String {
    Digest::sha256(text).to_string()
}

pub(super) fn sum(text: &str) -> [u8; 32] {
    sha256_sum(digest(text).as_bytes()).unwrap()
}

fn file(name: &str, text: &str) -> Value {
    json!({"type": "reg", "name": name, "size": text.len(), "digest": digest(text)})
}

fn cache(entries: &Value) -> Vec<u8> {
    let table = json!({"version": 1, "entries": entries}).to_string();
    let mut out = Vec::new();
    let names = Cursor::new(Vec::new());
    CacheWriter::write_for(table.as_bytes(), LayerFormat::Tree, names, &mut out).unwrap();
    out
}

fn add(dir: &Path, id: &str, entries: &Value) {
    fs::create_dir_all(dir.join(id)).unwrap();
    fs::write(dir.join(format!("{id}.cache")), cache(entries)).unwrap();
}

fn load(dir: &Path, ids: &[&str]) -> LocalContent {
    let open = |id: &&str| {
        let (mut layer, file) = LocalLayer::open(id, dir.join(format!("{id}.cache"))).unwrap();
        layer.load_filter(&file).unwrap();
        Arc::new(layer)
    };
    let layers = Layers::new(ids.iter().map(open).collect(), Box::new(Trees(dir.into())));
    LocalContent::new(Arc::new(layers), &[])
}

/// The content that is found.
fn read(content: &LocalContent, text: &str) -> Option<String> {
    let size = text.len() as u64;
    let place = content.find(&sum(text), size)?;
    let (mut file, offset) = content.open(place, size)?;
    assert_eq!(offset, 0);
    let mut found = String::new();
    file.read_to_string(&mut found).unwrap();
    Some(found)
}

fn read_chunk(content: &LocalContent, text: &str) -> Option<String> {
    let size = text.len() as u64;
    let place = content.find_chunk(&sum(text), size)?;
    let (mut file, offset) = content.open(place, size)?;
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut found = vec![0; text.len()];
    file.read_exact(&mut found).unwrap();
    Some(String::from_utf8(found).unwrap())
}

#[test]
fn files_and_chunks_are_found_in_all_layers() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let big = "0123456789";
    add(dir, "one", &json!([file("d/f", "text"), file("empty", "")]));
    add(
        dir,
        "two",
        &json!([
            {"type": "reg", "name": "big", "size": 10, "digest": digest(big), "chunkSize": 3, "chunkDigest": digest("012")},
            {"type": "chunk", "name": "big", "chunkOffset": 3, "chunkSize": 4, "chunkDigest": digest("3456")},
            // Without a size it goes up to the end.
            {"type": "chunk", "name": "big", "chunkOffset": 7, "chunkDigest": digest("789")},
        ]),
    );
    fs::create_dir(dir.join("one/d")).unwrap();
    fs::write(dir.join("one/d/f"), "text").unwrap();
    fs::write(dir.join("one/empty"), "").unwrap();
    fs::write(dir.join("two/big"), big).unwrap();
    let content = load(dir, &["one", "two"]);
    assert!(!content.is_empty());
    for _ in 0..2 {
        for text in ["text", big] {
            assert_eq!(read(&content, text).as_deref(), Some(text));
            assert_eq!(read_chunk(&content, text).as_deref(), Some(text));
        }
        for text in ["012", "3456", "789"] {
            assert_eq!(read_chunk(&content, text).as_deref(), Some(text));
            // The start of a larger file is not a file.
            assert_eq!(read(&content, text), None);
        }
        for text in ["", "other"] {
            assert_eq!(read(&content, text), None);
            assert_eq!(read_chunk(&content, text), None);
        }
    }
    assert_eq!(content.find(&sum("text"), 5), None);
    assert_eq!(content.find_chunk(&sum("012"), 4), None);
    assert!(load(dir, &[]).is_empty());
}

/// A file that equals the first chunk of another one is not that other one.
#[test]
fn a_small_file_is_found_behind_the_chunk_of_a_large_one() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    add(
        dir,
        "one",
        &json!([
            {"type": "reg", "name": "big", "size": 8, "digest": digest("abcdefgh"), "chunkSize": 4, "chunkDigest": digest("abcd")},
            {"type": "chunk", "name": "big", "chunkOffset": 4, "chunkSize": 4, "chunkDigest": digest("efgh")},
            file("small", "abcd"),
        ]),
    );
    fs::write(dir.join("one/big"), "abcdefgh").unwrap();
    let content = load(dir, &["one"]);
    assert_eq!(read(&content, "abcd"), None);
    fs::write(dir.join("one/small"), "abcd").unwrap();
    assert_eq!(read(&content, "abcd").as_deref(), Some("abcd"));
}

#[test]
fn what_is_not_there_as_it_was_is_a_miss() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let path = dir.join("one/f");
    add(dir, "one", &json!([file("f", "text")]));
    let content = load(dir, &["one"]);
    type Make = fn(&Path);
    let kinds: [(&str, Make); 8] = [
        ("nothing", |_| ()),
        ("shorter", |path| fs::write(path, "tex").unwrap()),
        ("longer", |path| fs::write(path, "text and more").unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a link to nothing", |path| symlink("missing", path).unwrap()),
        ("a link to the content", |path| {
            fs::write(path.with_file_name("other"), "text").unwrap();
            symlink("other", path).unwrap();
        }),
        ("a named pipe", |path| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RWXU,
                0,
            )
            .unwrap();
        }),
        ("a socket", |path| {
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }),
    ];
    for (kind, make) in kinds {
        fs::write(&path, "text").unwrap();
        let place = content.find(&sum("text"), 4).unwrap();
        let chunk = content.find_chunk(&sum("text"), 4).unwrap();
        assert_eq!(read(&content, "text").as_deref(), Some("text"));
        fs::remove_file(&path).unwrap();
        make(&path);
        // Gone since it was found, and before.
        assert!(content.open(place, 4).is_none(), "{kind}");
        let within = kind == "longer";
        assert_eq!(content.open(chunk, 4).is_some(), within, "{kind}");
        assert_eq!(content.find(&sum("text"), 4), None, "{kind}");
        assert_eq!(content.find_chunk(&sum("text"), 4).is_some(), within, "{kind}");
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        } else if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn names_do_not_lead_out_of_the_layer() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    fs::write(dir.join("secret"), "secret").unwrap();
    let outside = dir.join("secret");
    let long = "x/".repeat(3000);
    let names = [
        "../secret",
        "/../secret",
        "a/../../secret",
        outside.to_str().unwrap(),
        "up/secret",
        "absolute",
        "link",
        "",
        "/",
        "..",
        "a\0b",
        "a/",
        &long,
        "/proc/self/fd/0",
    ];
    for name in names {
        add(dir, "one", &json!([file(name, "secret")]));
        if fs::symlink_metadata(dir.join("one/up")).is_err() {
            fs::create_dir(dir.join("one/a")).unwrap();
            symlink("..", dir.join("one/up")).unwrap();
            symlink("../secret", dir.join("one/link")).unwrap();
            symlink(&outside, dir.join("one/absolute")).unwrap();
        }
        let content = load(dir, &["one"]);
        assert_eq!(content.find(&sum("secret"), 6), None, "{name:?}");
        assert_eq!(content.find_chunk(&sum("secret"), 6), None, "{name:?}");
    }
    // Inside, names are as in the tar stream.
    for name in ["./a//../f", "../f", "/f", "inner/f"] {
        add(dir, "one", &json!([file(name, "secret")]));
        fs::write(dir.join("one/f"), "secret").unwrap();
        if fs::symlink_metadata(dir.join("one/inner")).is_err() {
            symlink("/", dir.join("one/inner")).unwrap();
        }
        assert_eq!(
            read(&load(dir, &["one"]), "secret").as_deref(),
            Some("secret"),
            "{name:?}"
        );
    }
}

#[test]
fn a_layer_that_goes_away_is_a_miss() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    add(dir, "one", &json!([file("f", "text"), file("g", "more")]));
    fs::write(dir.join("one/f"), "text").unwrap();
    let content = load(dir, &["one"]);
    let place = content.find(&sum("text"), 4).unwrap();
    let (mut file, _) = content.open(place, 4).unwrap();
    fs::remove_dir_all(dir.join("one")).unwrap();
    fs::remove_file(dir.join("one.cache")).unwrap();
    assert!(content.open(place, 4).is_none());
    assert_eq!(content.find(&sum("text"), 4), None);
    // What is open stays readable.
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    // Before anything was opened.
    add(dir, "two", &json!([file_of("text")]));
    let content = load(dir, &["two"]);
    fs::remove_dir_all(dir.join("two")).unwrap();
    assert_eq!(content.find(&sum("text"), 4), None);
}

fn file_of(text: &str) -> Value {
    file("f", text)
}

#[test]
fn a_cache_file_that_was_replaced_is_not_mixed_with_the_old_one() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    add(dir, "one", &json!([file("f", "text")]));
    fs::write(dir.join("one/f"), "text").unwrap();
    let opened = load(dir, &["one"]);
    let unopened = load(dir, &["one"]);
    assert!(opened.find(&sum("text"), 4).is_some());
    let new = dir.join("new");
    fs::write(&new, cache(&json!([file("other", "text"), file("f", "text")]))).unwrap();
    fs::rename(new, dir.join("one.cache")).unwrap();
    assert!(opened.find(&sum("text"), 4).is_some());
    assert_eq!(unopened.find(&sum("text"), 4), None);
}

#[test]
fn only_a_regular_file_is_a_cache() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("cache");
    let open = || LocalLayer::open("one", path.clone()).map(drop).unwrap_err();
    assert!(matches!(open(), NoCache::Missing));
    fs::create_dir(&path).unwrap();
    assert!(matches!(open(), NoCache::Missing));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(matches!(open(), NoCache::Missing));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(matches!(open(), NoCache::Unusable(Unusable::Damaged(_))));
}

#[test]
fn more_layers_than_files_that_may_be_open() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let ids: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    for id in &ids {
        add(dir, id, &json!([file("f", id)]));
        fs::write(dir.join(id).join("f"), id).unwrap();
    }
    let content = load(dir, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (content, ids) = (&content, &ids);
            scope.spawn(move || {
                for id in ids.iter().cycle().skip(start * 25).take(200) {
                    assert_eq!(read(content, id).as_ref(), Some(id));
                }
            });
        }
    });
}

#[test]
fn a_repository_links_to_contents() {
    let tmp = tempfile::tempdir().unwrap();
    let repo = tmp.path().join("repo");
    let link = |text: &str| {
        let hex = digest(text).split_off("sha256:".len());
        let dir = repo.join("objects").join(&hex[..2]);
        fs::create_dir_all(&dir).unwrap();
        dir.join(format!("{}.payload-link", &hex[2..]))
    };
    let object = repo.join("object.file");
    fs::create_dir(&repo).unwrap();
    fs::write(&object, "text").unwrap();
    symlink("../../object.file", link("text")).unwrap();
    symlink("/missing", link("gone")).unwrap();
    fs::create_dir(link("dir.")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        link("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::write(link("size"), "longer").unwrap();
    let repos = [tmp.path().join("missing"), repo.clone(), "repo".into()];
    let trees = Box::new(Trees(tmp.path().into()));
    let content = LocalContent::new(Arc::new(Layers::new(Vec::new(), trees)), &repos);
    assert!(!content.is_empty());
    assert_eq!(read(&content, "text").as_deref(), Some("text"));
    for text in ["gone", "dir.", "fifo", "size", "none"] {
        assert_eq!(read(&content, text), None, "{text}");
    }
    let place = content.find(&sum("text"), 4).unwrap();
    fs::write(&object, "other text").unwrap();
    assert!(content.open(place, 4).is_none());
    fs::remove_file(&object).unwrap();
    assert!(content.open(place, 4).is_none());
    // A relative path means something else in each process.
    let trees = Box::new(Trees(tmp.path().into()));
    let relative = LocalContent::new(Arc::new(Layers::new(Vec::new(), trees)), &["repo".into()]);
    assert!(relative.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_changed_cache_finds_what_is_there_or_nothing(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let entries = json!([file("f", "text"), file("g", "more"), {"type": "dir", "name": "d"}, file("d/h", "third text")]);
        fs::create_dir_all(dir.join("one/d")).unwrap();
        fs::write(dir.join("one/f"), "text").unwrap();
        fs::write(dir.join("one/g"), "more").unwrap();
        fs::write(dir.join("one/d/h"), "third text").unwrap();
        let mut bytes = cache(&entries);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let path = dir.join("one.cache");
        fs::write(&path, bytes).unwrap();
        let Ok((layer, _file)) = LocalLayer::open("one", path) else { return Ok(()) };
        let content = LocalContent::new(
            Arc::new(Layers::new(vec![Arc::new(layer)], Box::new(Trees(dir.into())))),
            &[],
        );
        for text in ["text", "more", "third text", "none"] {
            if let Some(found) = read(&content, text) {
                prop_assert_eq!(found.len(), text.len());
            }
            read_chunk(&content, text);
        }
    }
}
