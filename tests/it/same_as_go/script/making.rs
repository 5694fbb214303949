//! Making layers, images and containers, and what is attached to them.

use super::{BASE, IMAGE, ODD_TEXT, UPPER};
use crate::same_as_go::op::Kind::{Container, Image, Layer};
use crate::same_as_go::op::Op::*;
use crate::same_as_go::op::Packing::{Gzip, Recorded, Uncompressed};
use crate::same_as_go::op::{New, Step, Text};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

/// The digest of nothing in particular.
const OTHER_DIGEST: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

/// SHA-256 of [`MANIFEST`].
fn manifest_digest() -> Text {
    graphroot::Digest::sha256(MANIFEST).to_string().into()
}

pub(super) fn empty_store() -> Vec<Step> {
    steps![
        List(Layer),
        List(Image),
        List(Container),
        Exists("nosuch"),
        Show(Layer, "nosuch"),
        Show(Image, "nosuch"),
        Show(Container, "nosuch"),
        Names("nosuch"),
        Metadata("nosuch"),
        SetMetadata("nosuch", "x"),
        Mounted("nosuch"),
        Delete("nosuch"),
        DeleteLayer("nosuch"),
        DeleteImage("nosuch"),
        DeleteContainer("nosuch"),
        Wipe,
        Checkpoint("an empty store"),
    ]
}

pub(super) fn layers() -> Vec<Step> {
    steps![
        CreateLayer(New::id("plain").name("a plain layer")),
        CreateLayer(New::id("@random")),
        CreateLayer(New::id("child").on("plain").name("one").name("two")),
        CreateLayer(New::id("grandchild").on("a plain layer").read_only()),
        CreateLayer(New::id("plain")),
        CreateLayer(New::id("other").name("one")),
        CreateLayer(New::id("other").on("nosuch")),
        CreateLayer(New::id("twice").name("double").name("double")) => "names-given-twice",
        SetNames("twice", &["double"]),
        Show(Layer, "plain"),
        Show(Layer, "two"),
        Show(Layer, "grandchild"),
        Show(Layer, "@random"),
        List(Layer),
        Exists("one"),
        Changes("child", None),
        DiffSize("child", None),
        Diff("child", None, Uncompressed),
        Checkpoint("layers without content"),
    ]
}

pub(super) fn imports() -> Vec<Step> {
    steps![
        ImportLayer(New::id(BASE).name("base"), "base"),
        ImportLayer(New::id(UPPER).on("base").read_only(), "changes"),
        ImportLayer(New::id("top").on(UPPER), "more"),
        ImportLayer(New::id("replacing").on("base"), "replacements"),
        ImportLayer(New::id("gzip"), "base.gz"),
        ImportLayer(New::id("zstd"), "base.zst"),
        ImportLayer(New::id("bzip2"), "base.bz2"),
        ImportLayer(New::id("xz"), "base.xz"),
        ImportLayer(New::id("@imported").on("gzip"), "changes"),
        ImportLayer(New::id("gnu"), "gnu"),
        ImportLayer(New::id("odd"), "odd"),
        ImportLayer(New::id("no bytes"), "nothing"),
        ImportLayer(New::id("no entries"), "no entries"),
        Show(Layer, "base"),
        Show(Layer, "5eed5eed0"),
        Show(Layer, "5eed5eed"),
        Show(Layer, "zstd"),
        List(Layer),
        Diff("base", None, Uncompressed),
        Diff(UPPER, None, Uncompressed),
        Diff("top", None, Uncompressed),
        Diff("replacing", None, Uncompressed),
        Diff("gzip", None, Uncompressed),
        Diff("gzip", None, Recorded),
        Diff("zstd", None, Recorded),
        Diff("bzip2", None, Recorded),
        Diff("xz", None, Uncompressed),
        Diff("gnu", None, Uncompressed),
        Diff("odd", None, Uncompressed),
        Diff("no bytes", None, Uncompressed),
        Diff("no entries", None, Gzip),
        Diff("nosuch", None, Uncompressed),
        Checkpoint("imported layers"),
    ]
}

pub(super) fn refused_imports() -> Vec<Step> {
    steps![
        ImportLayer(New::id("bad truncated"), "truncated"),
        ImportLayer(New::id("bad truncated.gz"), "truncated.gz"),
        ImportLayer(New::id("bad junk"), "junk"),
        ImportLayer(New::id("bad short"), "short"),
        ImportLayer(New::id("bad lost link"), "lost link"),
        ImportLayer(New::id("bad dot dot"), "dot dot"),
        ImportLayer(New::id("bad through a file"), "through a file"),
        ImportLayer(New::id("wrong").on("nosuch"), "base"),
        ImportLayer(New::id("plain"), "base"),
        ImportLayer(New::id("wrong").name("base"), "base"),
        Exists("wrong"),
        List(Layer),
        Checkpoint("refused imports"),
    ]
}

pub(super) fn images() -> Vec<Step> {
    steps![
        CreateImage(
            New::id(IMAGE)
                .on("base")
                .name("localhost/base:1")
                .name("localhost/base:latest")
        ),
        CreateImage(
            New::id("upper image")
                .on(UPPER)
                .name("localhost/upper:1")
                .metadata(ODD_TEXT)
        ),
        CreateImage(New::id("@image").on("top")),
        CreateImage(New::id("digested").on("gzip").digest(OTHER_DIGEST)),
        CreateImage(New::id("baseless")),
        CreateImage(New::id(IMAGE).on("base")),
        CreateImage(New::id("dup").on("base").name("localhost/base:1")),
        CreateImage(New::id("lost").on("nosuch")),
        CreateImage(
            New::id("twice named")
                .on("base")
                .name("localhost/t")
                .name("localhost/t")
        ),
        Show(Image, "localhost/base:1"),
        Show(Image, "1abe1abe"),
        Show(Image, "@image"),
        Show(Image, "digested"),
        List(Image),
        Size(Image, IMAGE),
        Size(Image, "upper image"),
        Size(Image, "baseless"),
        ImagesByDigest(OTHER_DIGEST.into()),
        ImagesByDigest("sha256:1111111111111111111111111111111111111111111111111111111111111111".into()),
        ImagesByDigest("sha256:12".into()),
        ImagesByDigest("md5:00000000000000000000000000000000".into()),
    ]
}

pub(super) fn image_data() -> Vec<Step> {
    let digest = manifest_digest();
    let own_key: Text = format!("manifest-{digest}").into();
    steps![
        ListData(Image, IMAGE),
        SetData(Image, "localhost/base:1", "manifest".into(), MANIFEST),
        SetData(Image, IMAGE, own_key.clone(), MANIFEST),
        SetData(Image, IMAGE, "sha256:5678".into(), b"config"),
        SetData(Image, IMAGE, "empty".into(), b""),
        SetData(Image, IMAGE, "Odd/Key <&> \u{fc}".into(), b"odd"),
        SetData(Image, IMAGE, "".into(), b"x"),
        SetData(Image, "nosuch", "key".into(), b"x"),
        ListData(Image, IMAGE),
        GetData(Image, IMAGE, "manifest".into()),
        GetData(Image, IMAGE, "sha256:5678".into()),
        GetData(Image, IMAGE, "empty".into()),
        GetData(Image, IMAGE, "Odd/Key <&> \u{fc}".into()),
        GetData(Image, IMAGE, "nosuch".into()),
        GetData(Image, "nosuch", "manifest".into()),
        DataSize(Image, IMAGE, "manifest".into()),
        DataSize(Image, IMAGE, "nosuch".into()),
        DataDigest(Image, IMAGE, "manifest".into()),
        DataDigest(Image, IMAGE, "sha256:5678".into()),
        DataDigest(Image, IMAGE, "nosuch".into()),
        Show(Image, IMAGE),
        ImagesByDigest(digest.clone()),
        SetData(Image, "upper image", "manifest".into(), MANIFEST),
        ImagesByDigest(digest.clone()),
        // A digest given by hand is kept beside those of manifests.
        SetData(Image, "digested", "manifest".into(), MANIFEST),
        ImagesByDigest(digest.clone()),
        ImagesByDigest(OTHER_DIGEST.into()),
        // A replaced manifest: the image is still found by its first one.
        SetData(Image, "upper image", "manifest".into(), b"{}"),
        Show(Image, "upper image"),
        ImagesByDigest(digest),
        ImagesByDigest(graphroot::Digest::sha256("{}").to_string().into()),
        // The same again changes nothing.
        SetData(Image, "upper image", "manifest".into(), b"{}"),
        Size(Image, IMAGE),
        Checkpoint("images"),
    ]
}

pub(super) fn containers() -> Vec<Step> {
    steps![
        CreateContainer(
            New::id("first")
                .on("localhost/base:1")
                .name("web1")
                .metadata("of the first")
        ),
        CreateContainer(New::id("@second").on(IMAGE)),
        CreateContainer(New::id("third").on("upper image").name("web3")),
        CreateContainer(New::id("rootless")),
        CreateContainer(New::id("fleeting").on(IMAGE).volatile()),
        CreateContainer(New::id("first").on(IMAGE)),
        CreateContainer(New::id("dup").on(IMAGE).name("web1")),
        CreateContainer(New::id("lost").on("nosuch")),
        Show(Container, "first"),
        Show(Container, "web1"),
        Show(Container, "@second"),
        Show(Container, "@first.layer"),
        Show(Container, "rootless"),
        Show(Container, "fleeting"),
        Show(Layer, "@first.layer"),
        List(Container),
        List(Layer),
        Size(Container, "first"),
        Directory("web1"),
        RunDirectory("web1"),
        Directory("nosuch"),
        RunDirectory("nosuch"),
        CreateLayer(New::id("on a container").on("@first.layer")),
        Checkpoint("containers"),
    ]
}

pub(super) fn other_data() -> Vec<Step> {
    steps![
        ListData(Container, "first"),
        SetData(Container, "web1", "state".into(), b"running"),
        SetData(Container, "first", "Key With Capitals".into(), b"k"),
        SetData(Container, "first", "state".into(), b"stopped now"),
        SetData(Container, "first", "".into(), b"x"),
        SetData(Container, "nosuch", "key".into(), b"x"),
        SetData(Container, "fleeting", "key".into(), b"x"),
        ListData(Container, "web1"),
        GetData(Container, "web1", "state".into()),
        GetData(Container, "web1", "nosuch".into()),
        GetData(Container, "nosuch", "state".into()),
        DataSize(Container, "first", "state".into()),
        DataSize(Container, "first", "nosuch".into()),
        DataDigest(Container, "first", "state".into()),
        DataDigest(Container, "first", "nosuch".into()),
        Show(Container, "first"),
        Size(Container, "first"),
        ListData(Layer, "base"),
        SetData(Layer, "base", "notes".into(), b"on the layer"),
        SetData(Layer, "base", "Other/Notes".into(), b"more"),
        SetData(Layer, "base", "notes".into(), b"changed"),
        SetData(Layer, "base", "".into(), b"x"),
        SetData(Layer, "nosuch", "key".into(), b"x"),
        ListData(Layer, "base"),
        GetData(Layer, "base", "notes".into()),
        GetData(Layer, "base", "Other/Notes".into()),
        GetData(Layer, "base", "nosuch".into()),
        GetData(Layer, "nosuch", "notes".into()),
        Show(Layer, "base"),
        Checkpoint("data of containers and layers"),
    ]
}
