//! Layers that a differ puts together.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use graphroot::chunked::{BlobSource, TocLocation};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    BoxReader, ChunkedDiffer, Compression, DiffOptions, Differ, DifferOutput, Digest, ErrorKind,
    LayerOptions, Result, StagedContent, StagingArea, StagingOptions,
};
use tokio::io::AsyncReadExt as _;

use crate::by_toc::ByToc;
use crate::support::{TestStore, assert_nothing_temporary, tar, tree_of};
use crate::text::text;

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// A blob in memory that counts what is read of it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    read: AtomicU64,
    /// What was asked for in which call.
    requests: Mutex<Vec<Vec<Range<u64>>>>,
    /// Bytes after which the stream fails.
    breaks_after: Option<usize>,
}

impl BlobSource for Memory {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        Box::pin(async move {
            let mut bytes = Vec::new();
            for range in &ranges {
                assert!(range.start < range.end, "{ranges:?}");
                bytes.extend_from_slice(&self.bytes[index(range.start)..index(range.end)]);
            }
            assert!(
                ranges.is_sorted_by(|one, other| one.end <= other.start),
                "{ranges:?}"
            );
            self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.requests.lock().unwrap().push(ranges);
            let reader: BoxReader = match self.breaks_after {
                Some(limit) if limit < bytes.len() => {
                    bytes.truncate(limit);
                    Box::pin(Cursor::new(bytes).chain(broken::Broken))
                }
                _ => Box::pin(Cursor::new(bytes)),
            };
            Ok(reader)
        })
    }
}

impl Memory {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            ..Self::default()
        }
    }

    fn has_read(&self, at: usize) -> bool {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .flatten()
            .any(|range| range.contains(&(at as u64)))
    }
}

mod broken {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, ReadBuf};

    /// A connection that breaks.
    pub(super) struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)))
        }
    }
}

/// A zstd:chunked blob with its annotations.
pub(crate) struct Chunked {
    pub(crate) blob: Vec<u8>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) diff_id: Digest,
}

/// A layer with everything that a table of contents can say.
pub(crate) fn everything() -> Vec<u8> {
    let holes = [
        &text(2000, 1)[..],
        &[0; 300_000],
        &text(5000, 2),
        &[0; 1024],
        b"end",
    ]
    .concat();
    TarBuilder::new()
        .entry(TarEntry::dir("dir/").mode(0o2750).mtime(1_000_000))
        .file("dir/empty", "")
        .file("dir/small", "small")
        .file("dir/hole", vec![0; 10_000])
        .file("dir/holes", holes)
        .file("dir/long", text(150_000, 3))
        .file(b"dir/\xff\xfe", "a name that is no text")
        .file(
            "./a//b/c",
            "a name that is not clean, without a directory before it",
        )
        .symlink("link", "dir/small")
        .hard_link("hard", "dir/small")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::char_device("char", 5, 1))
        .entry(TarEntry::block_device("block", 8, 3))
        .entry(
            TarEntry::file("owned", "x")
                .owner(1000, 1001)
                .mode(0o104_755)
                .pax("mtime", "1700000000.123456789")
                .xattr("user.b", b"\xff\0")
                .xattr("user.a", "a"),
        )
        .file("dir/.wh.gone", "")
        .file(".wh.gone-too", "")
        .build()
}

/// What `tar` is as a zstd:chunked blob.
pub(crate) async fn chunked(store: &TestStore, tar: &[u8]) -> Chunked {
    let options = LayerOptions::default().id("source");
    let put = store
        .put_layer(None, options, Cursor::new(tar.to_vec()))
        .await
        .unwrap();
    let options = DiffOptions::compressed(Compression::ZstdChunked);
    let mut stream = store.diff(None, "source", options).await.unwrap();
    let mut blob = Vec::new();
    stream.read_to_end(&mut blob).await.unwrap();
    let annotations = stream.annotations();
    store.delete_layer("source").await.unwrap();
    Chunked {
        blob,
        annotations,
        diff_id: put.layer.uncompressed_digest().unwrap(),
    }
}

impl Chunked {
    pub(crate) fn source(&self) -> Arc<Memory> {
        Arc::new(Memory {
            bytes: self.blob.clone(),
            ..Memory::default()
        })
    }

    pub(crate) async fn differ(&self, store: &TestStore, source: Arc<Memory>) -> Result<ChunkedDiffer> {
        ChunkedDiffer::open(store, &self.annotations, self.blob.len() as u64, source).await
    }
}

/// A differ of another program.
struct Own(DifferOutput);

impl Differ for Own {
    async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
        std::fs::write(area.path().join("file"), "content").unwrap();
        area.finish(self.0.clone()).await
    }
}

/// One that unpacks a tar stream, at the second attempt.
struct Unpacking(Vec<u8>, usize);

impl Differ for Unpacking {
    async fn apply(&mut self, area: StagingArea) -> Result<StagedContent> {
        self.1 += 1;
        match self.1 {
            1 => {
                area.unpack(&b"no tar stream, and longer than the block that one has at least"[..])
                    .await
            }
            _ => area.unpack(&self.0[..]).await,
        }
    }

    fn retry(&mut self, error: &graphroot::Error) -> bool {
        error.kind() == ErrorKind::InvalidArchive && self.1 == 1
    }
}

pub(crate) async fn read_all(store: &graphroot::Store, layer: &str) -> Vec<u8> {
    let mut stream = store
        .diff(None, layer, DiffOptions::uncompressed())
        .await
        .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

each_driver! {
    async fn what_a_differ_writes_becomes_a_layer(store) {
        let mut output = DifferOutput::default()
            .toc_digest(Digest::sha256("toc"))
            .owners([7], [])
            .big_data("some-item", "data");
        let prepared = store.prepare_staged_layer(StagingOptions::default(), Own(output.clone())).await;
        if store.graph_driver_name() != "overlay" {
            assert_eq!(prepared.unwrap_err().kind(), ErrorKind::NotSupported);
            return;
        }
        let staged = prepared.unwrap();
        assert!(staged.target().join("file").exists());
        assert_eq!((staged.size(), staged.uncompressed_digest()), (None, None));
        assert_eq!((staged.toc_digest(), staged.uids()), (output.toc_digest.as_ref(), &[7][..]));
        assert_eq!(staged.big_data_keys().collect::<Vec<_>>(), ["some-item"]);
        let base = store.put(None, "base", &[("below", "1")]).await;
        let options = LayerOptions::default().id("new").name("name");
        let layer = store.apply_staged_layer(Some("base"), options, staged).await.unwrap();
        assert_eq!((layer.id(), layer.parent(), layer.names()), ("new", Some(base.id()), &["name".to_owned()][..]));
        assert_eq!((layer.uncompressed_digest(), layer.toc_digest()), (None, output.toc_digest.clone()));
        let found = store.layers_by_toc_digest(&Digest::sha256("toc")).await.unwrap();
        assert_eq!(found.len(), 1);
        let mut data = String::new();
        store.layer_big_data("new", "some-item").await.unwrap().read_to_string(&mut data).await.unwrap();
        assert_eq!(data, "data");
        let mounted = store.mount("new", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("file")).unwrap(), "content");
        assert_eq!(std::fs::read_to_string(mounted.join("below")).unwrap(), "1");
        store.unmount("new").await.unwrap();
        assert_eq!(store.differ_target("new").await.unwrap(), tree_of(&store, "new"));
        assert_eq!(store.differ_target("none").await.unwrap_err().kind(), ErrorKind::LayerUnknown);
        // A layer that is there gets the content instead of its own, unless it is mounted.
        let options = || LayerOptions::default().id(base.id()).name("ignored");
        let staged = store.prepare_staged_layer(StagingOptions::default(), Own(output.clone())).await.unwrap();
        store.mount("new", Default::default()).await.unwrap();
        let error = store.apply_staged_layer(None, options(), staged).await.unwrap_err();
        assert!(error.is_busy(), "{}", error.chain());
        store.unmount("new").await.unwrap();
        assert_eq!(read_all(&store, base.id()).await, tar(&[("below", "1")]));
        let staged = store.prepare_staged_layer(StagingOptions::default(), Own(output.clone())).await.unwrap();
        let layer = store.apply_staged_layer(None, options(), staged).await.unwrap();
        assert_eq!((layer.names(), layer.toc_digest()), (&["base".to_owned()][..], output.toc_digest.clone()));
        assert_eq!(layer.uncompressed_digest(), None);
        assert_eq!(store.list_layer_big_data(base.id()).await.unwrap(), ["some-item"]);
        let files: Vec<_> = std::fs::read_dir(tree_of(&store, base.id())).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(!store.records("layers").join(format!("{}.tar-split.gz", base.id())).exists());
        // What nobody wants leaves nothing.
        let staged = store.prepare_staged_layer(StagingOptions::default(), Own(output.clone())).await.unwrap();
        let target = staged.target().to_owned();
        store.cleanup_staged_layer(staged).await.unwrap();
        assert!(!target.exists());
        output.uncompressed_digest = Some(Digest::sha256("x"));
        let error = store.prepare_staged_layer(StagingOptions::default(), Own(output)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    async fn a_differ_may_unpack_and_try_again(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let tar = tar(&[("file", "1")]);
        let staged = store
            .prepare_staged_layer(StagingOptions::default(), Unpacking(tar.clone(), 0)).await.unwrap();
        assert_eq!(staged.uncompressed_digest(), Some(&Digest::sha256(&tar)));
        let wrong = LayerOptions::default().uncompressed_digest(Digest::sha256("other"));
        let error = store.apply_staged_layer(None, wrong, staged).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch);
        let staged = store
            .prepare_staged_layer(StagingOptions::default(), Unpacking(tar.clone(), 0)).await.unwrap();
        let layer = store.apply_staged_layer(None, LayerOptions::default(), staged).await.unwrap();
        assert_eq!(read_all(&store, layer.id()).await, tar);
    }

    async fn a_blob_in_parts_is_the_whole_layer(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let tar = everything();
        let image = chunked(&store, &tar).await;
        let whole = store.put_layer(None, LayerOptions::default(), Cursor::new(image.blob.clone())).await.unwrap();
        for expected in [None, Some(image.diff_id.clone())] {
            let mut differ = image.differ(&store, image.source()).await.unwrap();
            if let Some(expected) = expected {
                differ = differ.expect(expected);
            }
            let staged = store.prepare_staged_layer(StagingOptions::default(), differ).await.unwrap();
            let options = LayerOptions::default().uncompressed_digest(image.diff_id.clone());
            let layer = store.apply_staged_layer(None, options, staged).await.unwrap();
            let trees = [whole.layer.id(), layer.id()].map(|id| {
                let mut tree = crate::manifest::manifest(&tree_of(&store, id));
                // Directories without an entry have the time at which they were made.
                for implied in ["", "a", "a/b"] {
                    tree.get_mut(std::path::Path::new(implied)).unwrap().mtime = (0, 0);
                }
                tree
            });
            crate::manifest::assert_same("whole", &trees[0], "in parts", &trees[1]);
            assert_eq!(layer.uncompressed_digest().as_ref(), Some(&image.diff_id));
            assert_eq!(layer.uncompressed_size(), whole.layer.uncompressed_size());
            let location = TocLocation::from_annotations(&image.annotations, image.blob.len() as u64);
            assert_eq!(layer.toc_digest().as_ref(), location.unwrap().unwrap().toc_digest());
            assert_eq!(layer.compressed_digest(), None);
            assert_eq!(layer.uids(), whole.layer.uids());
            let mut keys = store.list_layer_big_data(layer.id()).await.unwrap();
            keys.sort_unstable();
            assert_eq!(keys, ["zstd-chunked-layer-data", "zstd-chunked-manifest"]);
            assert!(read_all(&store, layer.id()).await == tar);
        }
        // It is no longer that of its table when more comes.
        let toc = TocLocation::from_annotations(&image.annotations, image.blob.len() as u64).unwrap().unwrap();
        let toc = toc.toc_digest().unwrap();
        let found = store.layers_by_toc_digest(toc).await.unwrap();
        store.apply_diff(found[0].id(), Cursor::new(self::tar(&[("more", "1")]))).await.unwrap();
        assert_eq!(store.layer(found[0].id()).await.unwrap().toc_digest(), None);
        assert_eq!(store.layers_by_toc_digest(toc).await.unwrap().len(), found.len() - 1);
        // All that is there was read, and nothing twice.
        let source = image.source();
        let differ = image.differ(&store, Arc::clone(&source)).await.unwrap();
        store.prepare_staged_layer(StagingOptions::default(), differ).await.unwrap();
        assert!(source.read.load(Ordering::Relaxed) <= image.blob.len() as u64);
    }

    async fn what_other_layers_have_is_not_fetched(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let image = chunked(&store, &everything()).await;
        let put = async |image: &Chunked, id: &str| {
            let (source, savings) = (image.source(), Arc::new(Mutex::new(Vec::new())));
            let seen = Arc::clone(&savings);
            let differ = image.differ(&store, Arc::clone(&source)).await.unwrap().expect(image.diff_id.clone());
            source.requests.lock().unwrap().clear();
            let differ = differ.report(move |savings| seen.lock().unwrap().push(savings));
            let staged = store.prepare_staged_layer(StagingOptions::default(), differ).await.unwrap();
            let options = LayerOptions::default().id(id).uncompressed_digest(image.diff_id.clone());
            store.apply_staged_layer(None, options, staged).await.unwrap();
            let fetched: u64 = source.requests.lock().unwrap().iter().flatten().map(|range| range.end - range.start).sum();
            let savings = savings.lock().unwrap().clone();
            assert_eq!(savings.iter().map(|savings| savings.fetched).sum::<u64>(), fetched);
            savings
        };
        let first = put(&image, "first").await;
        assert_eq!((first.len(), first[0].reused), (1, 0));
        let again = put(&image, "again").await;
        assert_eq!((again.len(), again[0].fetched), (1, 0), "{again:?}");
        assert!(again[0].reused > first[0].fetched / 10 * 9);
        // One file is new, one is longer than before, the rest is there.
        let long = [&text(150_000, 3)[..], b"one more line"].concat();
        let update = TarBuilder::new()
            .file("elsewhere", "small")
            .file("long", &long)
            .file("new", text(1000, 7))
            .build();
        let update = chunked(&store, &update).await;
        let savings = put(&update, "update").await;
        assert!(savings[0].reused > 10 * savings[0].fetched, "{savings:?}");
        let tree = tree_of(&store, "update");
        assert!(std::fs::read(tree.join("long")).unwrap() == long);
        assert_eq!(std::fs::read_to_string(tree.join("elsewhere")).unwrap(), "small");
        // Content that somebody has changed, with and without another size, is fetched.
        for id in ["first", "again"] {
            std::fs::write(tree_of(&store, id).join("dir/long"), "cut").unwrap();
        }
        let path = tree_of(&store, "update").join("long");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let savings = put(&image, "once-more").await;
        assert_eq!(savings.len(), 2, "{savings:?}");
        assert_eq!(savings[1].reused, 0);
        assert!(std::fs::read(tree_of(&store, "once-more").join("dir/long")).unwrap() == text(150_000, 3));
        // One that is gone, too.
        for id in ["first", "again", "update"] {
            store.delete_layer(id).await.unwrap();
        }
        std::fs::remove_file(tree_of(&store, "once-more").join("dir/holes")).unwrap();
        let savings = put(&image, "last").await;
        assert_eq!(savings.len(), 1, "{savings:?}");
        assert!(savings[0].fetched > 0 && savings[0].reused > savings[0].fetched);
    }

    async fn a_layer_whose_diff_id_nobody_knows_has_to_be_asked_for(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let content = text(1000, 4);
        let ByToc { blob, annotations, .. } = ByToc::estargz(&[("d/a", b"small"), ("b", &content)]);
        let size = blob.len() as u64;
        let source = Arc::new(Memory { bytes: blob, ..Memory::default() });
        let error = ChunkedDiffer::open(&store, &annotations, size, Arc::clone(&source) as _).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(error.chain().contains("estargz layers don't support partial pulls"), "{}", error.chain());
        let other = store.reopen_with("insecure_allow_unpredictable_image_contents", "true").await;
        let open = async || ChunkedDiffer::open(&other, &annotations, size, Arc::clone(&source) as _).await.unwrap();
        let expecting = open().await.expect(Digest::sha256("x"));
        let error = other.prepare_staged_layer(StagingOptions::default(), expecting).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        for round in ["first", "second"] {
            source.requests.lock().unwrap().clear();
            let staged = other.prepare_staged_layer(StagingOptions::default(), open().await).await.unwrap();
            assert_eq!((staged.uncompressed_digest(), staged.size()), (None, None));
            let options = LayerOptions::default().id(round);
            let layer = other.apply_staged_layer(None, options, staged).await.unwrap();
            assert_eq!(layer.toc_digest().map(|digest| digest.to_string()), annotations.values().next().cloned());
            let tree = crate::manifest::manifest(&tree_of(&store, round));
            let entry = |name: &str| &tree[std::path::Path::new(name)];
            assert_eq!((entry("d").mode, entry("d").mtime), (0o750, (981_173_106, 0)));
            assert_eq!(entry("link").link_target.as_deref(), Some(std::path::Path::new("d/a")));
            match tree.get(std::path::Path::new("char")) {
                Some(char) => assert_eq!((char.device, char.mode), (Some((5, 1)), 0o600)),
                // Devices cannot be made there.
                None => assert!(!std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")),
            }
            assert_eq!((entry("b").uid, entry("b").mtime), (7, (981_173_106, 500_000_000)));
            assert_eq!(entry("b").xattrs["user.a"], b"v");
            assert!(std::fs::read(tree_of(&store, round).join("b")).unwrap() == content);
            // The footer and the table, and the first time the contents.
            let requests = source.requests.lock().unwrap().len();
            assert_eq!(requests, if round == "first" { 3 } else { 2 });
        }
        // What was changed is seen by the digest of the file.
        let path = tree_of(&store, "first").join("b");
        let mut bytes = content.clone();
        bytes[3] ^= 1;
        std::fs::write(path, &bytes).unwrap();
        std::fs::write(tree_of(&store, "second").join("b"), &bytes).unwrap();
        let staged = other.prepare_staged_layer(StagingOptions::default(), open().await).await.unwrap();
        assert!(std::fs::read(staged.target().join("b")).unwrap() == content);
    }

    async fn a_blob_that_is_wrong_leaves_nothing(store) {
        if !store.graph_driver().capabilities().differ {
            return;
        }
        let image = chunked(&store, &everything()).await;
        let location = TocLocation::from_annotations(&image.annotations, image.blob.len() as u64);
        let end = location.unwrap().unwrap().toc_range().unwrap().start;
        let end = index(end);
        let before = store.own_layers().await.len();
        let prepare = async |source: Arc<Memory>, expected: Option<Digest>| {
            let mut differ = image.differ(&store, source).await?;
            if let Some(expected) = expected {
                differ = differ.expect(expected);
            }
            store.prepare_staged_layer(StagingOptions::default(), differ).await.map(drop)
        };
        // Any damage is found, of the content or of what says where it is.
        for at in (0..image.blob.len()).step_by(image.blob.len() / 60) {
            for expected in [None, Some(image.diff_id.clone())] {
                let mut bytes = image.blob.clone();
                bytes[at] ^= 0x55;
                let source = Arc::new(Memory { bytes, ..Memory::default() });
                match prepare(Arc::clone(&source), expected).await {
                    // Headers come from tar-split data, and not from the frames between contents; the footer is not read.
                    Ok(()) => assert!(at < end || !source.has_read(at), "{at} of {end}"),
                    Err(error) => {
                        let kinds = [ErrorKind::InvalidArchive, ErrorKind::DigestMismatch];
                        assert!(kinds.contains(&error.kind()), "{at}: {}", error.chain());
                    }
                }
            }
        }
        let wrong = prepare(image.source(), Some(Digest::sha256("")));
        assert_eq!(wrong.await.unwrap_err().kind(), ErrorKind::DigestMismatch);
        for limit in [0, 1, 1000, end / 2, end / 4 * 3] {
            let source = Memory { bytes: image.blob.clone(), breaks_after: Some(limit), ..Memory::default() };
            let error = prepare(Arc::new(source), None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{limit}: {}", error.chain());
        }
        assert_eq!(store.own_layers().await.len(), before);
        assert_nothing_temporary(&store).await;
    }

    async fn what_has_no_table_is_pulled_as_a_whole(store) {
        let open = async |annotations: &[(&str, &str)], size| {
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            ChunkedDiffer::open(&store, &annotations, size, Arc::new(Memory::default())).await.map(drop)
        };
        let digest = Digest::sha256("x").to_string();
        let prefix = "io.github.containers.zstd-chunked.";
        let (sum, position) = (format!("{prefix}manifest-checksum"), format!("{prefix}manifest-position"));
        for (annotations, kind) in [
            (vec![], ErrorKind::NotSupported),
            (vec![(&*sum, &*digest), (&*position, "100:20:30:1")], ErrorKind::NotSupported),
            (vec![("containerd.io/snapshot/stargz/toc.digest", &*digest)], ErrorKind::NotSupported),
            (vec![(&*sum, &*digest)], ErrorKind::InvalidArchive),
            (vec![(&*sum, &*digest), (&*position, "100:20:30:2")], ErrorKind::InvalidArchive),
            (vec![(&*sum, "sha256:1"), (&*position, "100:20:30:1")], ErrorKind::InvalidArchive),
        ] {
            assert_eq!(open(&annotations, 1000).await.unwrap_err().kind(), kind, "{annotations:?}");
        }
    }
}
