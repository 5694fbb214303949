//! Layer streams that want to harm: nothing is created outside the layer, errors name the entry, and the store is as
//! before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graphroot::{ErrorKind, LayerOptions, Store};

use crate::support::manifest::{Manifest, assert_same, manifest};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::store::{exported, layer_ids, put_bytes};
use crate::support::tar::{BLOCK, Header, Tar};

const LAYER: &str = "hostile";

/// What has to come of an archive.
enum Outcome {
    /// Refused with this kind of error, and the text in its chain.
    Refused(ErrorKind, &'static str),
    /// Taken; these files (and their directories) are all that the layer has. `OUTSIDE` is the path of what is outside.
    Taken(&'static [&'static str]),
}

use Outcome::{Refused, Taken};

/// A store with a layer, beside a directory that no layer may touch.
struct Target {
    root: TestRoot,
    store: Store,
    outside: PathBuf,
    untouched: Manifest,
    record: Vec<u8>,
}

impl Target {
    async fn new(driver: &'static str) -> Self {
        let root = TestRoot::in_dir(Path::new("/dev/shm"), driver);
        let store = root.open().await;
        let tar = Tar::new().dir("etc/").file("etc/below", "below").build();
        put_bytes(&store, None, LayerOptions::default().id("base"), tar)
            .await
            .unwrap();
        let outside = root.scratch("outside");
        std::fs::write(outside.join("canary"), "alive").unwrap();
        std::os::unix::fs::symlink("canary", outside.join("link")).unwrap();
        let untouched = manifest(&outside);
        let record = std::fs::read(root.metadata_dir("layers").join("layers.json")).unwrap();
        Self {
            root,
            store,
            outside,
            untouched,
            record,
        }
    }

    /// Puts the archive; whatever comes of it, nothing outside of the layer has changed.
    async fn put(&self, archive: Vec<u8>) -> graphroot::Result<()> {
        let result = put_bytes(
            &self.store,
            Some("base"),
            LayerOptions::default().id(LAYER),
            archive,
        )
        .await;
        assert_same(
            "the directory outside",
            &manifest(&self.outside),
            "before",
            &self.untouched,
        );
        result.map(drop)
    }

    /// Everything is as it was before the archive came.
    fn assert_as_before(&self, what: &str) {
        let record = std::fs::read(self.root.metadata_dir("layers").join("layers.json")).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&record),
            String::from_utf8_lossy(&self.record),
            "{what}: records"
        );
        assert_eq!(
            self.root.layer_directories(),
            BTreeSet::from(["base".to_owned()]),
            "{what}: directories"
        );
        assert_eq!(
            self.root.temporary_files(),
            Vec::<String>::new(),
            "{what}: temporary files"
        );
        let tar_split = self
            .root
            .metadata_dir("layers")
            .join(format!("{LAYER}.tar-split.gz"));
        assert!(!tar_split.exists(), "{what}: tar-split");
    }

    /// The files of the layer's mount that are not of its base, without directories.
    async fn files(&self) -> BTreeSet<PathBuf> {
        let mounted = self.store.mount(LAYER, Default::default()).await.unwrap();
        let mut files: BTreeSet<PathBuf> = manifest(&mounted)
            .into_iter()
            .filter(|(_, entry)| entry.kind != "directory")
            .map(|(path, _)| path)
            .collect();
        files.remove(Path::new("etc/below"));
        assert_eq!(self.store.unmount(LAYER).await.unwrap(), 0);
        files
    }

    async fn delete(&self) {
        self.store.delete_layer(LAYER).await.unwrap();
    }
}

fn cases(driver: &str, outside: &Path) -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let outside = outside.to_str().unwrap().as_bytes();
    let at = |name: &str| [outside, b"/", name.as_bytes()].concat();
    let long = |name: &[u8]| Tar::new().pax(&[("path", name)]);
    let up = "../".repeat(12);
    let size = |field: &[u8; 12]| Header::new(b'0', "odd-size").size_field(field);
    use ErrorKind::InvalidArchive;
    vec![
        // Names and links are resolved inside the layer, whatever they say.
        (
            "name above the root",
            Tar::new().file("../above", "x").build(),
            Taken(&["above"]),
        ),
        (
            "name far above the root",
            Tar::new().file(format!("{up}above"), "x").build(),
            Taken(&["above"]),
        ),
        (
            "name through above",
            Tar::new().file("a/b/../../../above", "x").build(),
            Taken(&["above"]),
        ),
        (
            "absolute name",
            Tar::new().file("/absolute", "x").build(),
            Taken(&["absolute"]),
        ),
        (
            "name of the root",
            Tar::new().file("..", "x").build(),
            Refused(InvalidArchive, ".."),
        ),
        (
            "symbolic link to the outside, then a file through it",
            Tar::new().symlink("link", at("")).file("link/evil", "x").build(),
            // What the link leads to is made inside.
            Taken(&["OUTSIDE/evil", "link"]),
        ),
        (
            "symbolic link up, then a file through it",
            Tar::new()
                .dir("etc/")
                .symlink("link", format!("{up}etc"))
                .file("link/evil", "x")
                .build(),
            Taken(&["etc/evil", "link"]),
        ),
        (
            "chain of symbolic links, then a file through it",
            Tar::new()
                .symlink("one", "/two")
                .symlink("two", "../three")
                .dir("three/")
                .file("one/evil", "x")
                .build(),
            Taken(&["one", "three/evil", "two"]),
        ),
        (
            "file over a symbolic link to a file outside",
            Tar::new().symlink("link", at("canary")).file("link", "x").build(),
            Taken(&["link"]),
        ),
        (
            "directory over a symbolic link to a directory outside",
            Tar::new()
                .symlink("link", outside)
                .dir("link/")
                .file("link/inside", "x")
                .build(),
            Taken(&["link/inside"]),
        ),
        (
            "symbolic links in a circle",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/file", "x")
                .build(),
            Refused(ErrorKind::Io, "a/file"),
        ),
        (
            "hard link to a file outside, absolute",
            Tar::new().hard_link("link", at("canary")).build(),
            Refused(InvalidArchive, "link"),
        ),
        (
            "hard link to a file outside, relative",
            Tar::new()
                .hard_link("link", [up.as_bytes(), &at("canary")[1..]].concat())
                .build(),
            Refused(InvalidArchive, "link"),
        ),
        (
            "hard link through a symbolic link to the outside",
            Tar::new()
                .symlink("dir", outside)
                .hard_link("link", "dir/canary")
                .build(),
            Refused(InvalidArchive, "link"),
        ),
        (
            "hard link to a symbolic link to the outside",
            Tar::new()
                .symlink("symbolic", at("canary"))
                .hard_link("link", "symbolic")
                .build(),
            Taken(&["link", "symbolic"]),
        ),
        (
            "write through a hard link to a symbolic link to the outside",
            Tar::new()
                .symlink("symbolic", at("canary"))
                .hard_link("link", "symbolic")
                .entry(
                    Header::new(b'0', "link")
                        .mode(0o777)
                        .owner(9, 9)
                        .size(1)
                        .content("x"),
                )
                .build(),
            Taken(&["link", "symbolic"]),
        ),
        (
            "owner and mode through a hard link to a symbolic link to the outside",
            Tar::new()
                .symlink("symbolic", at("canary"))
                .entry(Header::new(b'1', "link").link("symbolic").mode(0o777).owner(9, 9))
                .build(),
            Taken(&["link", "symbolic"]),
        ),
        (
            "whiteout of what is outside",
            Tar::new()
                .symlink("dir", outside)
                .file("dir/.wh.canary", "")
                .build(),
            Taken(&["dir"]),
        ),
        (
            "whiteout of the directory above",
            Tar::new().file(".wh...", "").build(),
            Refused(ErrorKind::UnsafePath, ".wh..."),
        ),
        (
            "whiteout of the directory itself",
            Tar::new().file("a/.wh..", "").build(),
            Refused(ErrorKind::UnsafePath, "a/.wh.."),
        ),
        (
            "whiteout of no name",
            Tar::new().file("a/.wh.", "").build(),
            Refused(ErrorKind::UnsafePath, "a/.wh."),
        ),
        // Special files are only files.
        (
            "devices and a FIFO",
            Tar::new()
                .entry(Header::new(b'3', "character").device(1, 3))
                .entry(Header::new(b'4', "block").device(259, 0))
                .entry(Header::new(b'6', "fifo"))
                .build(),
            Taken(&["block", "character", "fifo"]),
        ),
        (
            "a device, then a file through it",
            Tar::new()
                .entry(Header::new(b'3', "device").device(1, 3))
                .file("device/evil", "x")
                .build(),
            Refused(ErrorKind::Io, "device/evil"),
        ),
        (
            "a FIFO, then a file of that name",
            Tar::new()
                .entry(Header::new(b'6', "pipe"))
                .file("pipe", "x")
                .build(),
            Taken(&["pipe"]),
        ),
        (
            "unknown type",
            Tar::new().entry(Header::new(b'Z', "unknown-type")).build(),
            Refused(InvalidArchive, "unknown-type"),
        ),
        // Sizes.
        (
            "PAX size larger than the header's: the content's own headers are not entries",
            Tar::new()
                .pax(&[("size", b"1024")])
                .entry(
                    Header::new(b'0', "outer")
                        .size(0)
                        .content(Tar::new().file("smuggled", "x").unfinished()),
                )
                .build(),
            Taken(&["outer"]),
        ),
        (
            "PAX size smaller than the header's",
            Tar::new()
                .pax(&[("size", b"1")])
                .entry(Header::new(b'0', "outer").size(1024).content("x"))
                .file("next", "y")
                .build(),
            Taken(&["next", "outer"]),
        ),
        (
            "PAX size that is negative",
            Tar::new().pax(&[("size", b"-1")]).file("odd-size", "x").build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "PAX size that is no number",
            Tar::new().pax(&[("size", b"12x")]).file("odd-size", "x").build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "PAX size of 2^63",
            Tar::new()
                .pax(&[("size", b"9223372036854775808")])
                .file("odd-size", "x")
                .build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "PAX size of 2^63 - 1",
            Tar::new()
                .pax(&[("size", b"9223372036854775807")])
                .file("odd-size", "x")
                .build(),
            Refused(InvalidArchive, "odd-size"),
        ),
        (
            "size of 8 GiB and no content",
            Tar::new().entry(size(b"77777777777\0")).unfinished(),
            Refused(InvalidArchive, "odd-size"),
        ),
        (
            "negative size in binary",
            Tar::new().entry(size(&[0xff; 12])).build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "size of 2^63 in binary",
            Tar::new().entry(size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0")).build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "size that is no number",
            Tar::new().entry(size(b"0000000000x\0")).build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "PAX header of 1 TiB",
            Tar::new()
                .entry(Header::new(b'x', "pax").size_field(b"\x80\0\0\0\0\0\x01\0\0\0\0\0"))
                .build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "long name of 1 GiB",
            Tar::new()
                .entry(Header::new(b'L', "././@LongLink").size(1 << 30))
                .build(),
            Refused(InvalidArchive, ""),
        ),
        // Names.
        (
            "name of 20,000 bytes, 10,000 deep",
            long("d/".repeat(10_000).as_bytes()).file("x", "x").build(),
            Refused(ErrorKind::Io, "d/d/d"),
        ),
        (
            "name of 300 bytes without a slash",
            long("n".repeat(300).as_bytes()).file("x", "x").build(),
            Refused(ErrorKind::Io, "nnn"),
        ),
        (
            "PAX name with NUL",
            long(b"before\0after").file("x", "x").build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "name with newline",
            Tar::new().file("new\nline", "x").build(),
            Taken(&["new\nline"]),
        ),
        (
            "no name",
            Tar::new().file("", "x").build(),
            // To overlay it is the root, which layers don't describe there.
            if driver == "vfs" {
                Refused(InvalidArchive, "")
            } else {
                Taken(&[])
            },
        ),
        // Ends.
        ("empty input", Vec::new(), Taken(&[])),
        ("one zero block", vec![0; BLOCK], Taken(&[])),
        ("half a zero block", vec![0; 100], Refused(InvalidArchive, "")),
        (
            "no end mark",
            Tar::new().file("file", "x").unfinished(),
            Taken(&["file"]),
        ),
        (
            "garbage after the end",
            Tar::new()
                .file("file", "x")
                .raw([0; 2 * BLOCK])
                .raw(b"garbage".repeat(1000))
                .unfinished(),
            Taken(&["file"]),
        ),
        (
            "an entry after the end",
            Tar::new()
                .file("file", "x")
                .raw([0; 2 * BLOCK])
                .file("late", "x")
                .build(),
            Taken(&["file"]),
        ),
        (
            "garbage only",
            b"garbage".repeat(1000),
            Refused(InvalidArchive, ""),
        ),
        (
            "bad checksum",
            Tar::new().file("good", "x").raw([b'x'; BLOCK]).build(),
            Refused(InvalidArchive, ""),
        ),
        (
            "gzip magic only",
            vec![0x1f, 0x8b, 8],
            Refused(InvalidArchive, "gzip"),
        ),
        (
            "zstd of garbage",
            [&[0x28, 0xb5, 0x2f, 0xfd][..], &[7; 100]].concat(),
            Refused(InvalidArchive, "zstd"),
        ),
    ]
}

async fn assert_outcomes(driver: &'static str) {
    let target = Target::new(driver).await;
    let mut failures = Vec::new();
    for (what, archive, expected) in cases(driver, &target.outside) {
        match (target.put(archive.clone()).await, expected) {
            (Err(error), Refused(kind, text)) => {
                if error.kind() != kind || !error.chain().contains(text) {
                    failures.push(format!("{what}: expected {kind:?} about {text:?}, got {error:?}"));
                }
                target.assert_as_before(what);
            }
            (Ok(()), Taken(files)) => {
                let inside = target.outside.strip_prefix("/").unwrap();
                let expected: BTreeSet<PathBuf> = files
                    .iter()
                    .map(|file| match file.strip_prefix("OUTSIDE/") {
                        Some(rest) => inside.join(rest),
                        None => PathBuf::from(file),
                    })
                    .collect();
                let found = target.files().await;
                if found != expected {
                    failures.push(format!("{what}: expected {expected:?}, got {found:?}"));
                }
                let (digest, _) = exported(&target.store, LAYER).await;
                if digest != graphroot::Digest::sha256(&archive) {
                    failures.push(format!("{what}: does not come out as it went in"));
                }
                target.delete().await;
            }
            (Ok(()), Refused(..)) => {
                failures.push(format!("{what}: taken, with {:?}", target.files().await));
                target.delete().await;
            }
            (Err(error), Taken(_)) => failures.push(format!("{what}: refused, {error:?}")),
        }
    }
    target.assert_as_before("in the end");
    assert!(
        failures.is_empty(),
        "{driver}: {} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_on_overlay() {
    needs!();
    assert_outcomes("overlay").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_on_vfs() {
    needs!();
    assert_outcomes("vfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_stay_as_they_are() {
    needs!();
    use std::os::unix::ffi::OsStrExt as _;
    let target = Target::new("overlay").await;
    let name = b"latin-\xe9 \x01\x7f\xff";
    target.put(Tar::new().file(name, "x").build()).await.unwrap();
    let found = target.files().await;
    assert_eq!(
        found
            .iter()
            .map(|path| path.as_os_str().as_bytes())
            .collect::<Vec<_>>(),
        [name]
    );
    target.delete().await;
    // And in a message they are readable.
    let bad = Tar::new().entry(Header::new(b'Z', name)).build();
    let error = target.put(bad).await.unwrap_err();
    assert!(error.chain().contains("latin-\u{fffd}"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_cut_at_every_block_are_refused_or_whole() {
    needs!();
    let archive = Tar::new()
        .dir("etc/")
        .file("etc/small", "content")
        .pax(&[
            ("path", "long/".repeat(50).as_bytes()),
            ("mtime", b"1700000000.5"),
        ])
        .dir("x/")
        .file("large", vec![7; 3000])
        .hard_link("link", "large")
        .build();
    for driver in ["overlay", "vfs"] {
        let target = Target::new(driver).await;
        let (mut taken, mut refused) = (0, 0);
        for end in (0..archive.len()).step_by(BLOCK) {
            for end in [end, end + 1, end + BLOCK - 1] {
                let part = archive[..end].to_vec();
                match target.put(part.clone()).await {
                    Ok(()) => {
                        // Then it ends between two entries, or in padding, and comes out as it went in.
                        let (digest, _) = exported(&target.store, LAYER).await;
                        assert_eq!(digest, graphroot::Digest::sha256(&part), "cut at {end}");
                        target.delete().await;
                        taken += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "cut at {end}: {error:?}");
                        refused += 1;
                    }
                }
                target.assert_as_before(&format!("cut at {end}"));
            }
        }
        assert!(taken >= 5 && refused >= 20, "{taken} taken, {refused} refused");
    }
}

/// No name is long, but links lead from each piece of the path to the next.
#[tokio::test(flavor = "multi_thread")]
async fn directories_10000_deep_are_unpacked_and_deleted_again() {
    needs!();
    for driver in ["overlay", "vfs"] {
        let target = Target::new(driver).await;
        let piece = "d/".repeat(1000);
        let mut tar = Tar::new();
        let mut start = String::new();
        for level in 0..10 {
            // The directory is made through the link of the piece above.
            let path = format!("{start}{piece}");
            let mut below = start.clone();
            for _ in 0..1000 {
                below.push_str("d/");
                tar = tar.pax(&[("path", below.as_bytes())]).dir("x/");
            }
            start = format!("level-{level}/");
            tar = tar
                .pax(&[("linkpath", path.as_bytes())])
                .symlink(format!("level-{level}"), "x");
        }
        let archive = tar.file(format!("{start}file"), "deep").build();
        let digest = graphroot::Digest::sha256(&archive);
        match target.put(archive).await {
            Ok(()) => {
                assert_eq!(exported(&target.store, LAYER).await.0, digest);
                target.delete().await;
            }
            Err(error) => assert!(error.chain().contains("level-"), "{error:?}"),
        }
        target.assert_as_before("deep directories");
        assert_eq!(layer_ids(&target.store).await.len(), 1);
    }
}
