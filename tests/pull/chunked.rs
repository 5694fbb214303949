//! zstd:chunked blobs that we write are those that the Go library writes: it pulls them partially, and cuts the same
//! files into the same chunks.

use graphroot::chunked::{TocEntry, TocLocation};
use graphroot::oci::{ImageRef, PullOptions, Puller, PushOptions, push};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{Compression, LayerOptions, Store};
use serde_json::{Value, json};

use crate::records::{podman_pull, skopeo_pull};
use crate::registry::Registry;
use crate::support::each_set;
use crate::support::json::rows;
use crate::support::oci::{OciImage, layout_blob, layout_manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::text::text;

const ANNOTATION: &str = "io.github.containers.zstd-chunked.";

/// A layer with everything that a table of contents can say.
pub(crate) fn tar() -> Vec<u8> {
    let holes = [
        &text(2000, 1)[..],
        &[0; 300_000],
        &text(5000, 2),
        &[0; 1024],
        b"end",
    ]
    .concat();
    TarBuilder::new()
        .dir("dir/")
        .file("dir/empty", "")
        .file("dir/small", "small")
        .file("dir/hole", vec![0; 10_000])
        .file("dir/holes", holes)
        .file("dir/long", text(150_000, 3))
        .file("dir/<&>\u{2028}\"\\\u{1}\u{e4}", "odd name")
        .file(b"dir/\xff\xfe", "a name that is no text")
        .file("./a//b/c", "a name that is not clean")
        .symlink("link", "dir/small")
        .hard_link("hard", "dir/small")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::char_device("char", 5, 1))
        .entry(TarEntry::block_device("block", 8, 3))
        .entry(
            TarEntry::file("owned", "x")
                .owner(1000, 1_000_001)
                .mode(0o104_755)
                .pax("mtime", "1700000000.123456789")
                .pax("atime", "1600000000.5")
                .pax("ctime", "1500000000")
                .xattr("user.b", b"\xff\0")
                .xattr("user.a", "a"),
        )
        .entry(TarEntry::file("old", "y").gnu().mtime(0))
        .entry(TarEntry::file("long/".repeat(60) + "name", "a long name").gnu())
        .build()
}

/// An image of one layer in a store.
pub(crate) async fn image(root: &TestRoot, tar: &[u8]) -> (Store, String) {
    let store = root.open().await;
    let options = LayerOptions::default().name("base");
    let image = OciImage::new(&[put_bytes(&store, None, options, tar.to_vec()).await.unwrap()]);
    let created = store
        .create_image(Some("base"), image.options("localhost/chunked"))
        .await
        .unwrap();
    (store, created.id().to_owned())
}

pub(crate) async fn push_chunked(store: &Store, image: &str, to: &str) {
    let to: ImageRef = to.parse().unwrap();
    let options = PushOptions::default().compression(Compression::ZstdChunked);
    push(store, image, &to, options).await.unwrap();
}

async fn podman_pulls_our_blob_partially(set: PeerSet) {
    let root = TestRoot::in_memory().of(set);
    let registry = Registry::start(&root.scratch("registry"), &root.path().join("data"));
    let (store, id) = image(&root, &tar()).await;
    let name = registry.image("chunked");
    push_chunked(&store, &id, &format!("docker://{name}")).await;

    let other = TestRoot::in_memory().of(set);
    let file = other.path().join("etc/storage.conf");
    let config = std::fs::read_to_string(&file).unwrap();
    let partial = "[storage.options.pull_options]\nenable_partial_images = \"true\"\n";
    std::fs::write(&file, format!("{config}\n{partial}")).unwrap();
    let before = registry.requests().len();
    podman_pull(&other, &[name]);
    let layers = rows(&other.metadata_dir("layers").join("layers.json"));
    let layer = &layers[0];
    assert!(layer["toc-digest"].is_string(), "{layer}");
    assert_eq!(
        layer["diff-digest"],
        store
            .layer("base")
            .await
            .unwrap()
            .uncompressed_digest()
            .unwrap()
            .to_string()
    );
    assert!(
        layer["big-data-names"]
            .as_array()
            .unwrap()
            .contains(&json!("zstd-chunked-manifest"))
    );
    registry.settle("pulled");
    let is_part = |(request, status): &(String, String)| request.contains("/blobs/") && status == "206";
    assert!(registry.requests().iter().skip(before).any(is_part));
    // The stream that Podman makes of what it has pulled is the one that we have sent.
    let diff = other.path().join("diff");
    let id = layer["id"].as_str().unwrap();
    other
        .go()
        .words("diff --uncompressed --file")
        .with([diff.as_os_str()])
        .with([id])
        .run();
    assert!(std::fs::read(&diff).unwrap() == tar());
}
each_set!(newer async podman_pulls_our_blob_partially: "podman", "containers-storage", "docker-registry");

/// The table of contents and the tar-split data of the only layer in a layout, and its annotations.
fn chunked_parts(layout: &std::path::Path) -> (Value, Vec<u8>, Value) {
    let layer = &layout_manifest(layout)["layers"][0];
    let blob = layout_blob(layout, layer["digest"].as_str().unwrap());
    let part = |key: &str| {
        let position = layer["annotations"][format!("{ANNOTATION}{key}")]
            .as_str()
            .unwrap();
        let numbers: Vec<usize> = position
            .split(':')
            .map(|number| number.parse().unwrap())
            .collect();
        let content = zstd(&blob[numbers[0]..numbers[0] + numbers[1]]);
        assert_eq!(content.len(), numbers[2], "{key}");
        content
    };
    let toc = serde_json::from_slice(&part("manifest-position")).unwrap();
    (toc, part("tarsplit-position"), layer.clone())
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut command = std::process::Command::new("zstd");
    let command = command.args(["-d", "-c"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut input, bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    })
}

/// Names and the digests of chunks by the table of contents of the only layer in a layout.
async fn read_toc(layout: &std::path::Path) -> Vec<(Vec<u8>, Vec<String>)> {
    let layer = &layout_manifest(layout)["layers"][0];
    let blob = layout_blob(layout, layer["digest"].as_str().unwrap());
    let annotations = serde_json::from_value(layer["annotations"].clone()).unwrap();
    let size = blob.len() as u64;
    let location = TocLocation::from_annotations(&annotations, size)
        .unwrap()
        .unwrap();
    let in_footer = TocLocation::from_footer(&blob[blob.len() - 72..], size)
        .unwrap()
        .unwrap();
    assert_eq!(in_footer.toc_range(), location.toc_range());
    let start = usize::try_from(location.toc_range().unwrap().start).unwrap();
    let toc = location.read_toc(&blob[start..]).await.unwrap();
    let digests = |entry: TocEntry<'_>| entry.chunks().map(|chunk| chunk.digest.to_string()).collect();
    toc.entries()
        .map(|entry| (entry.name().to_vec(), digests(entry)))
        .collect()
}

/// Entries without positions, which depend on how well something was compressed.
fn without_positions(toc: &Value) -> Vec<Value> {
    let mut entries = toc["entries"].as_array().unwrap().clone();
    for entry in &mut entries {
        let entry = entry.as_object_mut().unwrap();
        entry.remove("offset");
        entry.remove("endOffset");
    }
    entries
}

async fn skopeo_writes_the_same_table_of_contents(set: PeerSet) {
    // Go replaces what is no text in names, and then refuses the blob itself.
    let tar = {
        let mut tar = tar();
        let at = tar.windows(6).position(|bytes| bytes == b"dir/\xff\xfe").unwrap();
        tar[at + 4..at + 6].copy_from_slice(b"xx");
        let sum: u32 = tar[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = tar[at + 148..at + 156].iter().map(|byte| u32::from(*byte)).sum();
        tar[at + 148..at + 155].copy_from_slice(format!("{:06o}\0", sum - field + 8 * 32).as_bytes());
        tar
    };
    let root = TestRoot::in_memory().of(set);
    let (store, id) = image(&root, &tar).await;
    let layout = |name: &str| root.path().join(name);
    let at = |name: &str| format!("oci:{}:v1", layout(name).display());
    push_chunked(&store, &id, &at("ours")).await;
    let plain: ImageRef = at("plain").parse().unwrap();
    push(
        &store,
        &id,
        &plain,
        PushOptions::default().compression(Compression::None),
    )
    .await
    .unwrap();
    root.skopeo()
        .words("copy --quiet --dest-compress-format zstd:chunked")
        .with([at("plain"), at("theirs")])
        .env("TZ", "UTC")
        .run();
    let (our_toc, our_split, our_layer) = chunked_parts(&layout("ours"));
    let (their_toc, their_split, their_layer) = chunked_parts(&layout("theirs"));
    let (ours, theirs) = (without_positions(&our_toc), without_positions(&their_toc));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().filter(|entry| entry["type"] == "chunk").count() > 30);
    assert!(our_split == their_split);
    assert_eq!(our_layer["mediaType"], their_layer["mediaType"]);
    let keys = |layer: &Value| -> Vec<String> {
        layer["annotations"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(keys(&our_layer), keys(&their_layer));
    let (ours, theirs) = (read_toc(&layout("ours")).await, read_toc(&layout("theirs")).await);
    assert_eq!(ours, theirs);
    // Each is an ordinary image for the other.
    let other = TestRoot::in_memory();
    Puller::new(&other.open().await, PullOptions::default())
        .pull_as(&at("theirs").parse().unwrap(), &["localhost/theirs"])
        .await
        .unwrap();
    let other = TestRoot::in_memory().of(set);
    skopeo_pull(&other, &at("ours"), "localhost/ours");
}
each_set!(newer async skopeo_writes_the_same_table_of_contents: "skopeo", "zstd");
