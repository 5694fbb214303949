//! Blobs with a table of contents and without tar-split data: eStargz, as others make it, and zstd:chunked as it was made
//! at first. Each content is a member of its own, the table the last one.

use std::collections::BTreeMap;
use std::io::Write as _;

use base64::Engine as _;
use graphroot::Digest;
use graphroot::test_util::{TarBuilder, TarEntry};
use serde_json::{Value, json};

const TIME: i64 = 981_173_106;

/// A layer as such a blob.
#[derive(Clone, Debug)]
pub(crate) struct ByToc {
    pub(crate) blob: Vec<u8>,
    /// What a manifest has to say of it.
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) media_type: &'static str,
    /// The blob decompressed.
    pub(crate) tar: Vec<u8>,
}

impl ByToc {
    /// An eStargz blob of a directory, a link, a device, and these files.
    pub(crate) fn estargz(files: &[(&str, &[u8])]) -> Self {
        let mut made = Made::of(false, files);
        let toc = made.table();
        let offset = made.member(&TarBuilder::new().file("stargz.index.json", &toc).build());
        let mut footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0".to_vec();
        footer.extend(format!("{offset:016x}STARGZ").into_bytes());
        footer.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        assert_eq!(footer.len(), 51);
        made.blob.extend(footer);
        let key = "containerd.io/snapshot/stargz/toc.digest".to_owned();
        Self {
            blob: made.blob,
            annotations: BTreeMap::from([(key, Digest::sha256(&toc).to_string())]),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
            tar: made.tar,
        }
    }

    /// A zstd:chunked blob of the same.
    pub(crate) fn zstd(files: &[(&str, &[u8])]) -> Self {
        let mut made = Made::of(true, files);
        made.member(&[0; 1024]);
        let toc = made.table();
        let compressed = zstd::encode_all(&toc[..], 0).unwrap();
        let skippable = |content: &[u8]| {
            let length = u32::try_from(content.len()).unwrap();
            [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), content].concat()
        };
        let offset = made.blob.len() + 8;
        made.blob.extend(skippable(&compressed));
        let numbers = [offset, compressed.len(), toc.len(), 1].map(|number| number as u64);
        let footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        made.blob.extend(skippable(&[&footer[..], b"GNUlInUx"].concat()));
        let key = |name: &str| format!("io.github.containers.zstd-chunked.{name}");
        let position = numbers.map(|number| number.to_string()).join(":");
        Self {
            blob: made.blob,
            annotations: BTreeMap::from([
                (key("manifest-checksum"), Digest::sha256(&compressed).to_string()),
                (key("manifest-position"), position),
            ]),
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd",
            tar: made.tar,
        }
    }

    /// Digest of the table of contents.
    pub(crate) fn toc_digest(&self) -> Digest {
        self.annotations.values().next().unwrap().parse().unwrap()
    }
}

struct Made {
    zstd: bool,
    blob: Vec<u8>,
    tar: Vec<u8>,
    entries: Vec<Value>,
}

impl Made {
    fn of(zstd: bool, files: &[(&str, &[u8])]) -> Self {
        let (blob, tar, entries) = (Vec::new(), Vec::new(), Vec::new());
        let mut made = Self {
            zstd,
            blob,
            tar,
            entries,
        };
        let at = "2001-02-03T04:05:06Z";
        made.add(
            TarEntry::dir("d/").mode(0o750),
            json!({"type": "dir", "name": "d/", "mode": 0o750, "modtime": at}),
        );
        made.add(
            TarEntry::symlink("link", "d/a"),
            json!({"type": "symlink", "name": "link", "linkName": "d/a", "mode": 0o777, "modtime": at}),
        );
        made.add(
            TarEntry::char_device("char", 5, 1).mode(0o600),
            json!({"type": "char", "name": "char", "mode": 0o600, "devMajor": 5, "devMinor": 1, "modtime": at}),
        );
        for (name, content) in files {
            made.file(name, content);
        }
        made
    }

    /// Appends a member; returns where it is.
    fn member(&mut self, bytes: &[u8]) -> usize {
        let at = self.blob.len();
        self.tar.extend(bytes);
        if self.zstd {
            self.blob.extend(zstd::encode_all(bytes, 0).unwrap());
        } else {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            self.blob.extend(encoder.finish().unwrap());
        }
        at
    }

    fn add(&mut self, entry: TarEntry, listed: Value) {
        self.member(&TarBuilder::new().entry(entry.mtime(TIME)).unfinished());
        self.entries.push(listed);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        let entry = TarEntry::file(name, content)
            .owner(7, 0)
            .pax("mtime", format!("{TIME}.5"))
            .xattr("user.a", "v");
        let tar = TarBuilder::new().entry(entry).unfinished();
        let padded = content.len().next_multiple_of(512);
        self.member(&tar[..tar.len() - padded]);
        let offset = self.member(content);
        let end = self.blob.len();
        self.member(&vec![0; padded - content.len()]);
        let digest = Digest::sha256(content).to_string();
        let mut listed = json!({
            "type": "reg", "name": name, "size": content.len(), "mode": 0o644, "uid": 7, "offset": offset,
            "modtime": "2001-02-03T04:05:06.5Z", "userName": "nobody",
            "xattrs": {"user.a": base64::engine::general_purpose::STANDARD.encode("v")},
            "digest": digest, "chunkDigest": digest,
        });
        if self.zstd {
            listed["endOffset"] = end.into();
        }
        self.entries.push(listed);
    }

    fn table(&self) -> Vec<u8> {
        serde_json::to_vec(&json!({"version": 1, "entries": self.entries})).unwrap()
    }
}
