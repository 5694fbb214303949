//! Tables as they should be, and all kinds of others.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::builder::{Bounds, MAX_MEMORY};
use super::{EntryKind, Toc, parse};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// Where the content of the blobs ends.
const END: u64 = 1000;

const BOUNDS: Bounds = Bounds {
    end: END,
    ignored: &[b"landmark"],
    memory: MAX_MEMORY,
};

fn digest(text: &str) -> String {
    Digest::sha256(text).to_string()
}

/// A table with everything in it.
fn table() -> Value {
    json!({
        "version": 1,
        "entries": [
            {"type": "dir", "name": "./d/", "mode": 0o755, "modtime": "2023-11-14T22:13:20Z"},
            {"type": "reg", "name": "d/f", "mode": 0o104_711, "size": 100, "uid": 1000, "gid": 4_294_967_295u32,
             "digest": digest("f"), "offset": 50, "endOffset": 90},
            {"type": "reg", "name": "big", "size": 300, "digest": digest("big"), "offset": 100, "endOffset": 400,
             "chunkSize": 100, "chunkDigest": digest("1")},
            {"type": "chunk", "name": "big", "offset": 200, "chunkSize": 150, "chunkOffset": 100,
             "chunkDigest": digest("2"), "chunkType": "zeros"},
            {"type": "chunk", "name": "big", "offset": 300, "chunkSize": 50, "chunkOffset": 250, "chunkDigest": digest("3")},
            {"type": "symlink", "name": "s", "linkName": "../anywhere"},
            {"type": "hardlink", "name": "h", "linkName": "d/f"},
            {"type": "char", "name": "c", "devMajor": 5, "devMinor": 1},
            {"type": "reg", "name": "empty", "xattrs": {"user.b": "AP8=", "user.a": ""},
             "accesstime": "2020-01-01T00:00:00.5+01:00", "changetime": "0001-01-01T00:00:00Z"},
            {"type": "block", "name": "b"}, {"type": "fifo", "name": "p"},
        ],
        "tarSplitDigest": digest("split"),
        "later": {"of": ["a", {"later": "version"}]},
    })
}

fn read(text: &[u8]) -> Result<Toc> {
    parse(text, BOUNDS)
}

fn read_value(table: &Value) -> Result<Toc> {
    read(table.to_string().as_bytes())
}

#[test]
fn everything_that_a_table_says_is_there() {
    let toc = read_value(&table()).unwrap();
    assert_eq!(
        toc.tar_split_digest().map(Digest::as_str),
        Some(&*digest("split"))
    );
    let entries: Vec<_> = toc.entries().collect();
    let kinds: Vec<_> = entries.iter().map(super::TocEntry::kind).collect();
    use EntryKind::{BlockDevice, CharDevice, Directory, Fifo, File, HardLink, Symlink};
    assert_eq!(
        kinds,
        [
            Directory,
            File,
            File,
            Symlink,
            HardLink,
            CharDevice,
            File,
            BlockDevice,
            Fifo
        ]
    );
    let [dir, file, big, symlink, hard_link, device, empty, ..] = &entries[..] else {
        unreachable!();
    };
    assert_eq!((dir.name(), dir.mode(), dir.size()), (&b"./d/"[..], 0o755, 0));
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    assert_eq!((dir.modified(), file.modified()), (Some(time), None));
    assert_eq!((file.mode(), file.uid(), file.gid()), (0o4711, 1000, u32::MAX));
    assert_eq!(file.digest().unwrap().as_str(), digest("f"));
    let of_file: Vec<_> = file.chunks().collect();
    assert_eq!(
        (of_file.len(), &of_file[0].file, &of_file[0].blob),
        (1, &(0..100), &(50..90))
    );
    assert_eq!(of_file[0].digest.as_str(), digest("f"));
    let of_big: Vec<_> = big
        .chunks()
        .map(|chunk| (chunk.file, chunk.blob, chunk.is_hole, chunk.digest.to_string()))
        .collect();
    assert_eq!(
        of_big,
        [
            (0..100, 100..200, false, digest("1")),
            (100..250, 200..300, true, digest("2")),
            (250..300, 300..400, false, digest("3")),
        ]
    );
    assert_eq!(
        (symlink.link(), hard_link.link()),
        (&b"../anywhere"[..], &b"d/f"[..])
    );
    assert_eq!(device.device(), (5, 1));
    assert_eq!((empty.digest(), empty.chunks().len()), (None, 0));
    let xattrs: Vec<_> = empty.xattrs().collect();
    assert_eq!(xattrs, [(&b"user.a"[..], &b""[..]), (b"user.b", b"\0\xff")]);
}

#[test]
fn the_go_library_reads_these_too() {
    let mut small = table();
    small["entries"] = json!([
        {"TYPE": "reg", "Name": "x", "SIZE": 5, "DIGEST": digest("x"), "OffSet": 10, "more": null, "mode": null,
         "userName": "u", "xattrs": null, "linkName": null},
        {"type": "reg", "name": "landmark", "size": 1, "offset": 500},
        {"type": "reg", "name": "y", "size": 9, "digest": digest("y"), "offset": 20, "chunkSize": 4,
         "chunkDigest": digest("1")},
        {"type": "chunk", "name": "y", "offset": 30, "chunkOffset": 4, "chunkDigest": digest("2")},
        {"type": "reg", "name": "e", "digest": digest("")},
    ]);
    let toc = read_value(&small).unwrap();
    let ranges: Vec<_> = toc
        .entries()
        .flat_map(|entry| {
            entry
                .chunks()
                .map(|chunk| (chunk.file, chunk.blob))
                .collect::<Vec<_>>()
        })
        .collect();
    // Ends that are not said are where something else begins.
    assert_eq!(ranges, [(0..5, 10..20), (0..4, 20..30), (4..9, 30..1000)]);
    let empty = [
        r#"{"version":1,"entries":null}"#,
        r#" {"entries":[],"Version":1} "#,
        r#"{"version":1}"#,
    ];
    assert!(empty.iter().all(|text| read(text.as_bytes()).unwrap().is_empty()));
    let bytes = read(b"{\"version\":1,\"entries\":[{\"type\":\"fifo\",\"name\":\"\xff\\u00e4\"}]}").unwrap();
    assert_eq!(bytes.entries().next().unwrap().name(), b"\xff\xc3\xa4");
    // Names lead no further up than the root.
    let up =
        read(br#"{"version":1,"entries":[{"type":"dir","name":"../../etc"},{"type":"dir","name":"/"}]}"#);
    assert_eq!(up.unwrap().len(), 2);
}

/// What is done to a table.
fn patched(path: &str, value: Value) -> Value {
    let mut table = table();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = table.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        Value::Object(map) if value == "GONE" => drop(map.remove(key)),
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        _ => unreachable!(),
    }
    table
}

#[test]
fn what_no_table_can_say_is_refused() {
    let sha512 = format!("sha512:{}", "a".repeat(128));
    let reg = |name: &str, offset: i64, end: i64| json!({"type": "reg", "name": name, "size": 1, "digest": digest("z"), "offset": offset, "endOffset": end});
    let cases: Vec<(&str, Value, &str)> = vec![
        ("/version", json!(2), "version 2"),
        ("/version", json!("GONE"), "version no"),
        ("/version", json!("1"), "invalid type: string"),
        ("/version", json!(1.5), "invalid type: floating point"),
        ("/tarSplitDigest", json!(""), "is no digest"),
        ("/tarSplitDigest", json!("sha256:abc"), "is no digest"),
        ("/tarSplitDigest", json!(["sha256"]), "expected a string"),
        ("/entries", json!({"a": 1}), "invalid type: map"),
        ("/entries", json!("many"), "invalid type: string"),
        ("/entries/-", json!(null), "invalid type: null"),
        ("/entries/-", json!([]), "invalid type: sequence"),
        ("/entries/-", json!({}), "unknown type \"\""),
        (
            "/entries/0/type",
            json!("directory"),
            "unknown type \"directory\"",
        ),
        ("/entries/0/type", json!(5), "expected a string"),
        ("/entries/0/type", json!("REG"), "unknown type"),
        ("/entries/0/name", json!("GONE"), "without a name"),
        ("/entries/0/name", json!(""), "without a name"),
        ("/entries/0/name", json!("a\0b"), "NUL"),
        ("/entries/0/name", json!({"a": 1}), "expected a string"),
        ("/entries/0/name", json!("a/".repeat(2100)), "too long"),
        ("/entries/0/name", json!("d/f"), "there twice"),
        ("/entries/0/name", json!("x/../d//./f"), "there twice"),
        ("/entries/0/name", json!("../d/f"), "there twice"),
        ("/entries/0/name", json!("/d/f/"), "there twice"),
        ("/entries/0/mode", json!(-1), "mode of -1"),
        ("/entries/0/mode", json!(1u64 << 33), "mode of"),
        ("/entries/0/mode", json!("0755"), "invalid type: string"),
        ("/entries/0/mode", json!(u64::MAX), "invalid value"),
        ("/entries/0/uid", json!(-1), "user ID of -1"),
        ("/entries/0/uid", json!(1u64 << 32), "user ID of"),
        ("/entries/0/gid", json!(-5), "group ID of -5"),
        ("/entries/0/gid", json!(1.0), "floating point"),
        ("/entries/0/size", json!(-1), "size of -1"),
        ("/entries/0/modtime", json!("yesterday"), "not a time"),
        ("/entries/0/modtime", json!(1_700_000_000), "expected a string"),
        ("/entries/0/modtime", json!("12023-11-14T22:13:20Z"), "not a time"),
        ("/entries/0/modtime", json!("2023-02-30T22:13:20Z"), "not a time"),
        ("/entries/8/accesstime", json!("2020-01-01"), "not a time"),
        ("/entries/8/changetime", json!("x"), "not a time"),
        ("/entries/7/devMajor", json!(-1), "major device number of -1"),
        ("/entries/7/devMinor", json!(1u64 << 40), "minor device number of"),
        ("/entries/8/xattrs", json!(["user.a"]), "invalid type: sequence"),
        ("/entries/8/xattrs", json!({"user.a": "%%"}), "no base64"),
        ("/entries/8/xattrs", json!({"user.a": "YQ"}), "no base64"),
        ("/entries/8/xattrs", json!({"user.a": 1}), "expected a string"),
        (
            "/entries/8/xattrs",
            json!({"": "YQ=="}),
            "an attribute of the name \"\"",
        ),
        (
            "/entries/8/xattrs",
            json!({"user.\0": "YQ=="}),
            "an attribute of the name",
        ),
        (
            "/entries/8/digest",
            json!(digest("something")),
            "empty file with the digest",
        ),
        ("/entries/5/linkName", json!("GONE"), "without a target"),
        ("/entries/5/linkName", json!("a\0"), "NUL"),
        ("/entries/6/linkName", json!(""), "without a target"),
        ("/entries/1/digest", json!("GONE"), "no sha256 digest"),
        ("/entries/1/digest", json!("sha256:"), "no sha256 digest"),
        (
            "/entries/1/digest",
            json!(digest("x").to_uppercase()),
            "no sha256 digest",
        ),
        ("/entries/1/digest", json!(digest("x") + "00"), "no sha256 digest"),
        ("/entries/1/digest", json!(sha512), "no sha256 digest"),
        ("/entries/1/offset", json!("GONE"), "offset of 0"),
        ("/entries/1/offset", json!(-50), "offset of -50"),
        ("/entries/1/offset", json!(END), "outside of the blob"),
        ("/entries/1/offset", json!(i64::MAX), "outside of the blob"),
        ("/entries/1/offset", json!(95), "its content ends at 90"),
        ("/entries/1/offset", json!(90), "its content ends at 90"),
        ("/entries/1/endOffset", json!(-1), "endOffset of -1"),
        ("/entries/1/endOffset", json!(END + 1), "outside of the blob"),
        ("/entries/1/endOffset", json!(101), "that of another file"),
        ("/entries/1/chunkOffset", json!(5), "not at the start"),
        ("/entries/1/chunkSize", json!(101), "not the 100 bytes"),
        ("/entries/1/chunkSize", json!(99), "no sha256 digest"),
        ("/entries/1/chunkSize", json!(-1), "chunkSize of -1"),
        ("/entries/1/chunkType", json!("ones"), "unknown type \"ones\""),
        ("/entries/1/innerOffset", json!(7), "innerOffset"),
        (
            "/entries/2/size",
            json!(301),
            "chunks of 300 bytes in a file of 301",
        ),
        ("/entries/2/size", json!(299), "not the 299 bytes"),
        ("/entries/2/size", json!(0), "empty file with the digest"),
        ("/entries/2/size", json!(i64::MAX), "chunks of 300 bytes"),
        (
            "/entries/2/chunkSize",
            json!("GONE"),
            "the first chunk has no size",
        ),
        ("/entries/2/chunkDigest", json!("garbage"), "no sha256 digest"),
        (
            "/entries/2/type",
            json!("dir"),
            "chunk type without a regular file",
        ),
        ("/entries/2/name", json!("other"), "follows another file"),
        (
            "/entries/2/offset",
            json!(200),
            "not behind that of the chunk before",
        ),
        ("/entries/2/offset", json!(60), "that of another file"),
        ("/entries/3/name", json!("GONE"), "follows another file"),
        ("/entries/3/offset", json!("GONE"), "offset of 0"),
        (
            "/entries/3/offset",
            json!(300),
            "not behind that of the chunk before",
        ),
        ("/entries/3/offset", json!(1i64 << 50), "outside of the blob"),
        (
            "/entries/3/chunkOffset",
            json!(99),
            "begins at byte 99 instead of 100",
        ),
        ("/entries/3/chunkOffset", json!(101), "begins at byte 101"),
        ("/entries/3/chunkOffset", json!(-100), "chunkOffset of -100"),
        ("/entries/3/chunkSize", json!(201), "not the 300 bytes"),
        ("/entries/3/chunkSize", json!(1i64 << 40), "not the 300 bytes"),
        (
            "/entries/3/chunkSize",
            json!("GONE"),
            "begins at byte 250 instead of 300",
        ),
        ("/entries/3/chunkSize", json!(-150), "chunkSize of -150"),
        ("/entries/3/chunkDigest", json!("GONE"), "no sha256 digest"),
        ("/entries/3/chunkType", json!("hole"), "unknown type \"hole\""),
        (
            "/entries/3/type",
            json!("reg"),
            "chunks of 100 bytes in a file of 300",
        ),
        (
            "/entries/4/type",
            json!("fifo"),
            "chunks of 250 bytes in a file of 300",
        ),
        ("/entries/4/chunkSize", json!(51), "not the 300 bytes"),
        ("/entries/4/chunkSize", json!(49), "chunks of 299 bytes"),
        ("/entries/4/offset", json!(400), "its content ends at 400"),
        (
            "/entries/-",
            json!({"type": "chunk", "name": "p"}),
            "chunk type without a regular file",
        ),
        ("/entries/-", reg("new", 50, 90), "another file"),
        ("/entries/-", reg("new", 60, 70), "another file"),
        ("/entries/-", reg("new", 350, 380), "another file"),
        ("/entries/-", reg("new", 40, 51), "another file"),
        ("/entries/-", reg("new", 450, 440), "its content ends at 440"),
    ];
    assert!(cases.len() > 90);
    let surprise = |(path, value, words): (&str, Value, &str)| match read_value(&patched(path, value.clone()))
    {
        Ok(_toc) => Some(format!("{path} {value} is taken")),
        Err(error) => {
            let is_expected = matches!(error.kind(), ErrorKind::InvalidArchive | ErrorKind::NotSupported);
            let text = error.chain();
            (!is_expected || !text.contains(words)).then(|| format!("{path} {value}: {text}"))
        }
    };
    let surprises: Vec<String> = cases.into_iter().filter_map(surprise).collect();
    assert!(surprises.is_empty(), "{surprises:#?}");
}

#[test]
fn what_is_no_table_at_all_is_refused() {
    let nested = format!("{{\"x\":{}", "[".repeat(100_000));
    let long = format!(
        "{{\"version\":1,\"entries\":[{{\"name\":\"{}\"",
        "x".repeat(15 << 20)
    );
    let name = format!(
        "{{\"type\":\"symlink\",\"name\":\"a\",\"linkName\":\"{}\"}}",
        "x".repeat(2 << 20)
    );
    let target = format!("{{\"version\":1,\"entries\":[{name}]}}");
    let whole = table().to_string();
    let cases = [
        ("", "EOF"),
        ("null", "invalid type: null"),
        ("[]", "invalid type: sequence"),
        ("\"x\"", "invalid type: string"),
        ("{", "EOF"),
        (&whole[..whole.len() - 1], "EOF"),
        (&whole[..300], "EOF"),
        (&(whole.clone() + "x"), "trailing"),
        (&(whole.clone() + &whole), "trailing"),
        (&whole.replacen(',', ",,", 1), "key must be a string"),
        (&whole.replacen('"', r#""\q"#, 1), "invalid escape"),
        ("{\"version\":1,\"entries\":[],\"Entries\":[]}", "two lists"),
        (
            &whole.replacen(
                "\"tarSplitDigest\"",
                &format!("\"TARSPLITDIGEST\":\"{}\",\"tarSplitDigest\"", digest("")),
                1,
            ),
            "two digests",
        ),
        (&nested, "EOF"),
        (&long, "a string of over"),
        (&target, "a text of 2097152 bytes"),
    ];
    let surprise = |(text, words): (&str, &str)| {
        let error = read(text.as_bytes()).expect_err(words);
        let is_expected = error.kind() == ErrorKind::InvalidArchive && error.chain().contains(words);
        (!is_expected).then(|| format!("{words}: {:?} {}", error.kind(), error.chain()))
    };
    let surprises: Vec<String> = cases.into_iter().filter_map(surprise).collect();
    assert!(surprises.is_empty(), "{surprises:#?}");
}

/// Entries without end, as they come out of a few kilobytes.
struct Endless {
    count: u32,
    text: Vec<u8>,
}

impl std::io::Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.text.is_empty() {
            self.count += 1;
            let text = format!("{{\"type\":\"fifo\",\"name\":\"{}\"}},", self.count);
            self.text = text.into_bytes();
        }
        let count = out.len().min(self.text.len());
        out[..count].copy_from_slice(&self.text[..count]);
        drop(self.text.drain(..count));
        Ok(count)
    }
}

#[test]
fn memory_is_bounded() {
    let endless = Endless {
        count: 0,
        text: b"{\"version\":1,\"entries\":[".to_vec(),
    };
    let bounds = Bounds {
        memory: 1 << 20,
        ..BOUNDS
    };
    let error = parse(endless, bounds).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(
        error.chain().contains("too big to process in memory"),
        "{}",
        error.chain()
    );
}

#[test]
fn a_large_table_takes_little_memory() {
    let mut text = b"{\"version\":1,\"entries\":[".to_vec();
    for number in 0..20_000u64 {
        let entry = json!({
            "type": "reg", "name": format!("usr/share/some/directory/of/a/package/file number {number}"), "mode": 0o644,
            "size": 4096, "modtime": "2023-11-14T22:13:20Z", "digest": digest(&number.to_string()),
            "offset": number * 1000 + 500, "endOffset": number * 1000 + 1000,
        });
        text.extend_from_slice(entry.to_string().as_bytes());
        text.push(b',');
    }
    text.pop();
    text.extend_from_slice(b"]}");
    let bounds = Bounds {
        end: 1 << 40,
        ..BOUNDS
    };
    let toc = parse(&*text, bounds).unwrap();
    assert_eq!(toc.len(), 20_000);
    // 100,000 files take 25 MB then.
    assert!(toc.memory() / toc.len() < 250, "{}", toc.memory());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever is changed: a table, or a refusal.
    #[test]
    fn changed_tables_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..4), 1..6),
    ) {
        let mut text = table().to_string().into_bytes();
        for (place, byte, how) in changes {
            let at = place.index(text.len());
            match how {
                0 => text[at] = byte,
                1 if text.len() > 1 => drop(text.remove(at)),
                2 => text.insert(at, b"0123456789-\"{}[],:e."[usize::from(byte) % 20]),
                _ => text.truncate(at.max(1)),
            }
        }
        if let Ok(toc) = read(&text) {
            for entry in toc.entries() {
                let mut at = 0;
                for chunk in entry.chunks() {
                    prop_assert_eq!(chunk.file.start, at);
                    prop_assert!(chunk.blob.start < chunk.blob.end && chunk.blob.end <= END);
                    at = chunk.file.end;
                }
                prop_assert_eq!(at, entry.size());
            }
        }
    }

    #[test]
    fn changed_numbers_do_no_harm(
        changes in prop::collection::vec(
            (0usize..11, 0usize..8, prop_oneof![any::<i64>(), -1i64..1100, Just(i64::MAX)]),
            1..4,
        ),
    ) {
        const KEYS: [&str; 8] =
            ["size", "offset", "endOffset", "chunkSize", "chunkOffset", "mode", "uid", "devMajor"];
        let mut table = table();
        for (entry, key, value) in changes {
            table["entries"][entry][KEYS[key]] = value.into();
        }
        if let Ok(toc) = read_value(&table) {
            let mut ranges: Vec<_> = toc
                .entries()
                .flat_map(|entry| entry.chunks().map(|chunk| chunk.blob).collect::<Vec<_>>())
                .collect();
            ranges.sort_by_key(|range| range.start);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{:?}", ranges);
            prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= END));
        }
    }
}
