//! Tables of contents out of whole blobs, and blobs that lie about where they are.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::write::GzEncoder;

use super::location::TocLocation;
use super::positions::push_skippable;
use super::{Toc, TocFormat};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::test_util::{TarBuilder, TarEntry};

const KEY: &str = "io.github.containers.zstd-chunked.";
const OLD_KEY: &str = "io.containers.zstd-chunked.";
const ESTARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn text() -> Vec<u8> {
    let digest = Digest::sha256("x");
    let file = format!(r#"{{"type":"reg","name":"f","size":9,"digest":"{digest}","offset":20}}"#);
    format!(r#"{{"version":1,"entries":[{{"type":"dir","name":"d"}},{file}]}}"#).into_bytes()
}

/// A blob with this compressed table of contents, declared to have so many bytes, and its annotations.
fn blob_of(toc: &[u8], size: u64) -> (Vec<u8>, BTreeMap<String, String>) {
    let mut blob = zstd::encode_all(&[7; 5000][..], 1).unwrap();
    blob.extend(zstd::encode_all(&[8; 5000][..], 1).unwrap());
    let range = push_skippable(&mut blob, 0, toc).unwrap();
    let position = format!("{}:{}:{size}:1", range.start, toc.len());
    let annotations = annotations(&[
        (&format!("{KEY}manifest-checksum"), Digest::sha256(toc).as_str()),
        (&format!("{KEY}manifest-position"), &position),
    ]);
    (blob, annotations)
}

fn blob() -> (Vec<u8>, BTreeMap<String, String>) {
    blob_of(&zstd::encode_all(&*text(), 3).unwrap(), text().len() as u64)
}

/// Reads the table at the place that is said.
async fn read_at(location: &TocLocation, blob: &[u8]) -> Result<Toc> {
    let start = usize::try_from(location.toc_range().unwrap().start).unwrap();
    location.read_toc(&blob[start.min(blob.len())..]).await
}

async fn read((blob, annotations): &(Vec<u8>, BTreeMap<String, String>)) -> Result<Toc> {
    let location = TocLocation::from_annotations(annotations, blob.len() as u64)?.unwrap();
    read_at(&location, blob).await
}

#[tokio::test]
async fn a_table_is_read_and_verified() {
    let good = blob();
    let toc = read(&good).await.unwrap();
    assert_eq!(toc.len(), 2);
    let content = toc.entries().nth(1).unwrap().chunks().next().unwrap();
    let location = TocLocation::from_annotations(&good.1, good.0.len() as u64)
        .unwrap()
        .unwrap();
    assert_eq!(content.blob, 20..location.toc_range().unwrap().start - 8);
    // As skopeo 1.9 has named them.
    let old: BTreeMap<_, _> = good
        .1
        .iter()
        .map(|(key, value)| (key.replace(KEY, OLD_KEY), value.clone()))
        .collect();
    assert_eq!(read(&(good.0.clone(), old)).await.unwrap().len(), 2);

    let refused = async |blob, kind: ErrorKind, words: &str| {
        let error = read(&blob).await.unwrap_err();
        assert!(
            error.kind() == kind && error.chain().contains(words),
            "{words}: {}",
            error.chain()
        );
    };
    let compressed = zstd::encode_all(&*text(), 3).unwrap();
    let size = text().len() as u64;
    let mut other = good.clone();
    other.1.insert(
        format!("{KEY}manifest-checksum"),
        Digest::sha256("other").to_string(),
    );
    refused(other, ErrorKind::DigestMismatch, "expected").await;
    let mut cut = good.clone();
    cut.0.truncate(cut.0.len() - 5);
    let location = TocLocation::from_annotations(&good.1, good.0.len() as u64)
        .unwrap()
        .unwrap();
    let error = read_at(&location, &cut.0).await.unwrap_err();
    assert!(error.chain().contains("unexpected EOF"), "{}", error.chain());
    refused(
        blob_of(&compressed, size + 1),
        ErrorKind::InvalidArchive,
        "declared are",
    )
    .await;
    refused(
        blob_of(&compressed, size - 1),
        ErrorKind::InvalidArchive,
        "bytes after decompression",
    )
    .await;
    refused(
        blob_of(&compressed[..compressed.len() - 3], size),
        ErrorKind::InvalidArchive,
        "decompressing",
    )
    .await;
    refused(
        blob_of(b"no zstd", size),
        ErrorKind::InvalidArchive,
        "decompressing",
    )
    .await;
    // Four gigabytes in some hundred kilobytes are given up at what was declared.
    let bomb = zstd::encode_all(&vec![b' '; 1 << 26][..], 1).unwrap();
    refused(blob_of(&bomb, 1000), ErrorKind::InvalidArchive, "over 1000 bytes").await;
    let sha512 = {
        let mut blob = good.clone();
        blob.1.insert(
            format!("{KEY}manifest-checksum"),
            format!("sha512:{}", "0".repeat(128)),
        );
        blob
    };
    refused(sha512, ErrorKind::DigestMismatch, "sha512").await;
}

#[test]
fn annotations_that_lie_are_refused() {
    let digest = Digest::sha256("toc").to_string();
    let checksum = format!("{KEY}manifest-checksum");
    let position = format!("{KEY}manifest-position");
    let split = format!("{KEY}tarsplit-position");
    let case = |pairs: &[(&str, &str)]| TocLocation::from_annotations(&annotations(pairs), 1000);
    assert_eq!(case(&[]).unwrap(), None);
    assert_eq!(case(&[(&position, "1:2:3:1")]).unwrap(), None);
    let good = case(&[
        (&checksum, &digest),
        (&position, "100:200:300:1"),
        (&split, "308:50:600"),
    ]);
    let good = good.unwrap().unwrap();
    assert_eq!(
        (good.format(), good.toc_range()),
        (TocFormat::ZstdChunked, Some(100..300))
    );
    assert_eq!(good.toc_digest().unwrap().as_str(), digest);

    let invalid = [
        (
            "",
            "100:200:300:1",
            "100:20:3",
            "the annotation manifest-checksum",
        ),
        (
            "sha256:12",
            "100:200:300:1",
            "308:20:3",
            "the annotation manifest-checksum",
        ),
        (&digest, "", "308:20:3", "not 4 numbers"),
        (&digest, "100:200:300", "308:20:3", "not 4 numbers"),
        (&digest, "100:200:300:1:1", "308:20:3", "not 4 numbers"),
        (&digest, "100:-200:300:1", "308:20:3", "not 4 numbers"),
        (&digest, "+100:200:300:1", "308:20:3", "not 4 numbers"),
        (
            &digest,
            "100:200:99999999999999999999:1",
            "308:20:3",
            "not 4 numbers",
        ),
        (&digest, "100:200:300:2", "308:20:3", "invalid manifest type 2"),
        (&digest, "0:200:300:1", "308:20:3", "a position of"),
        (&digest, "100:0:300:1", "308:20:3", "a position of"),
        (
            &digest,
            "18446744073709551615:200:300:1",
            "308:20:3",
            "a position of",
        ),
        (
            &digest,
            "900:200:300:1",
            "308:20:3",
            "bytes 900 to 1100 of a blob that has 1000",
        ),
        (&digest, "100:200:300:1", "", "not 3 numbers"),
        (&digest, "100:200:300:1", "308:20:3:1", "not 3 numbers"),
        (&digest, "100:200:300:1", "990:20:3", "bytes 990 to 1010"),
        (&digest, "100:200:300:1", "299:20:3", "in the same bytes"),
        (&digest, "100:200:300:1", "50:51:3", "in the same bytes"),
    ];
    for (checksum_value, position_value, split_value, words) in invalid {
        let error = case(&[
            (&checksum, checksum_value),
            (&position, position_value),
            (&split, split_value),
        ])
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{words}");
        assert!(error.chain().contains(words), "{words}: {}", error.chain());
    }
    let missing = case(&[(&checksum, &digest)]).unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("manifest-position\" annotation missing"),
        "{missing}"
    );
    let both = case(&[(&checksum, &digest), (&position, "1:2:3:1"), (ESTARGZ, &digest)]).unwrap_err();
    assert!(
        both.to_string().contains("both zstd:chunked and eStargz"),
        "{both}"
    );
    for size in ["157286401:200", "200:157286401"] {
        let position_value = format!("100:{size}:1");
        let pairs = annotations(&[(&checksum, &digest), (&position, &position_value)]);
        let error = TocLocation::from_annotations(&pairs, 1 << 40).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    }
}

fn footer(words: &[u64]) -> Vec<u8> {
    let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    payload.extend_from_slice(b"GNUlInUx");
    let mut out = vec![1; 100];
    push_skippable(&mut out, 0, &payload).unwrap();
    out
}

#[tokio::test]
async fn a_blob_says_itself_where_its_table_is() {
    let at = |words: &[u64]| TocLocation::from_footer(&footer(words), 10_000);
    let new = at(&[401, 1658, 4869, 1, 2067, 1408, 31_171]).unwrap().unwrap();
    assert_eq!((new.toc_range(), new.toc_digest()), (Some(401..2059), None));
    assert_eq!(
        new.tar_split.as_ref().map(|section| section.range.clone()),
        Some(2067..3475)
    );
    let old = at(&[401, 1658, 4869, 1]).unwrap().unwrap();
    assert_eq!((old.toc_range(), old.tar_split), (Some(401..2059), None));
    for bad in [
        [9000, 1658, 4869, 1],
        [0, 1658, 4869, 1],
        [401, 0, 4869, 1],
        [401, 1658, 4869, 3],
        [u64::MAX, 1, 1, 1],
    ] {
        assert_eq!(at(&bad).unwrap_err().kind(), ErrorKind::InvalidArchive, "{bad:?}");
    }
    assert_eq!(
        at(&[401, 1658, 1 << 30, 1]).unwrap_err().kind(),
        ErrorKind::NotSupported
    );
    let mut other = footer(&[401, 1658, 4869, 1]);
    for end in [&b""[..], b"short", &[0; 200], &other[..other.len() - 1]] {
        assert_eq!(TocLocation::from_footer(end, 10_000).unwrap(), None);
    }
    *other.last_mut().unwrap() = b'y';
    assert_eq!(TocLocation::from_footer(&other, 10_000).unwrap(), None);
    // Without anything that vouches for it, the table is read all the same.
    let (mut blob, annotations) = blob();
    let said = TocLocation::from_annotations(&annotations, blob.len() as u64)
        .unwrap()
        .unwrap();
    let range = said.toc_range().unwrap();
    let words = [range.start, range.end - range.start, text().len() as u64, 1];
    blob.extend_from_slice(&footer(&words)[100..]);
    let found = TocLocation::from_footer(&blob, blob.len() as u64)
        .unwrap()
        .unwrap();
    assert_eq!(read_at(&found, &blob).await.unwrap().len(), 2);
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An empty member that says where the table is, in either form.
fn estargz_footer(offset: usize, is_old: bool) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    footer.extend_from_slice(if is_old {
        &[22, 0]
    } else {
        &[26, 0, b'S', b'G', 22, 0]
    });
    footer.extend_from_slice(format!("{offset:016x}STARGZ").as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(footer.len(), if is_old { 47 } else { 51 });
    footer
}

#[tokio::test]
async fn estargz_has_its_table_at_the_end() {
    let json = text();
    let digest = Digest::sha256(&json).to_string();
    let blob = |name: &str, is_old: bool| {
        let mut blob = gzip(&[1; 5000]);
        let offset = blob.len();
        blob.extend(gzip(&TarBuilder::new().file(name, &json).build()));
        blob.extend(estargz_footer(offset, is_old));
        blob
    };
    let read = async |blob: &[u8], digest: &str| {
        let location =
            TocLocation::from_annotations(&annotations(&[(ESTARGZ, digest)]), blob.len() as u64)?.unwrap();
        assert_eq!(
            (location.format(), location.toc_range()),
            (TocFormat::EStargz, None)
        );
        let footer = usize::try_from(location.footer_range().unwrap().start).unwrap();
        let unread = location.read_toc(blob).await.unwrap_err();
        assert_eq!(unread.kind(), ErrorKind::InvalidInput);
        let location = location.with_footer(&blob[footer..])?;
        read_at(&location, blob).await
    };
    for is_old in [false, true] {
        let blob = blob("stargz.index.json", is_old);
        assert_eq!(read(&blob, &digest).await.unwrap().len(), 2);
        let found = TocLocation::from_footer(&blob, blob.len() as u64)
            .unwrap()
            .unwrap();
        assert_eq!(read_at(&found, &blob).await.unwrap().len(), 2);
        let other = read(&blob, Digest::sha256("other").as_str()).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::DigestMismatch);
    }
    let misnamed = read(&blob("other.json", false), &digest).await.unwrap_err();
    assert!(
        misnamed.chain().contains("no stargz.index.json"),
        "{}",
        misnamed.chain()
    );
    // However small it is compressed.
    let padding = TarBuilder::new()
        .entry(TarEntry::new(b'g', "global").content(format!("1048576 comment={}\n", "0".repeat(1_048_559))))
        .unfinished();
    let mut endless = gzip(&[1; 5000]);
    let offset = endless.len();
    endless.extend(gzip(&padding).repeat(160));
    endless.extend(gzip(&TarBuilder::new().file("stargz.index.json", &json).build()));
    endless.extend(estargz_footer(offset, false));
    let error = read(&endless, &digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{}", error.chain());
    let whole = blob("stargz.index.json", false);
    let mut broken = whole.clone();
    let middle = broken.len() - 100;
    broken[middle] ^= 0xff;
    assert!(read(&broken, &digest).await.is_err());
    let ends = [
        estargz_footer(whole.len(), false),
        estargz_footer(0, false),
        estargz_footer(usize::MAX, false),
        vec![0; 51],
        estargz_footer(5, false)[..50].to_vec(),
        estargz_footer(5, false)
            .iter()
            .map(|byte| if *byte == b'Z' { b'X' } else { *byte })
            .collect(),
    ];
    for end in ends {
        let blob = [&whole[..whole.len() - 51], &end].concat();
        let error = read(&blob, &digest).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{}", error.chain());
    }
    assert!(read(b"short", &digest).await.is_err());
}
