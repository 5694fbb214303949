//! The sequence of operations, family by family.

use super::op::Edit::*;
use super::op::Kind::{Container, Image, Layer};
use super::op::Op::*;
use super::op::Packing::{Gzip, Recorded, Uncompressed};
use super::op::{New, Step, Text};

/// Steps; what follows an arrow is the accepted difference that the step shows.
macro_rules! steps {
    (@differs) => { None };
    (@differs $differs:literal) => { Some($differs) };
    ($($op:expr $(=> $differs:literal)?),* $(,)?) => {
        vec![$(Step { op: $op, differs: steps!(@differs $($differs)?) }),*]
    };
}

/// Two IDs with a common beginning, and one without.
const BASE: &str = "5eed5eed0000000000000000000000000000000000000000000000000000aaaa";
const UPPER: &str = "5eed5eed1111111111111111111111111111111111111111111111111111bbbb";
const IMAGE: &str = "1abe1abe2222222222222222222222222222222222222222222222222222cccc";

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

/// The digest of nothing in particular.
const OTHER_DIGEST: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

/// Text that every JSON writer escapes in its own way.
const ODD_TEXT: &str = "{\"a\": \"<b> & 'c'\"}\\ \t\u{8}\u{1f}\u{7f}\u{2028} \u{fc}ml\u{e4}ut \u{1f980}";

/// SHA-256 of [`MANIFEST`].
fn manifest_digest() -> Text {
    graphroot::Digest::sha256(MANIFEST).to_string().into()
}

/// The whole sequence.
pub(super) fn script() -> Vec<Step> {
    let families = [
        empty_store,
        layers,
        imports,
        refused_imports,
        images,
        image_data,
        containers,
        other_data,
        names,
        metadata,
        mounts,
        writing,
        diffs,
        applied_diffs,
        owners,
        deletions,
        the_end,
    ];
    families.iter().flat_map(|family| family()).collect()
}

fn empty_store() -> Vec<Step> {
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

fn layers() -> Vec<Step> {
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

fn imports() -> Vec<Step> {
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

fn refused_imports() -> Vec<Step> {
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

fn images() -> Vec<Step> {
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

fn image_data() -> Vec<Step> {
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

fn containers() -> Vec<Step> {
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

fn other_data() -> Vec<Step> {
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

fn names() -> Vec<Step> {
    steps![
        Names("web1"),
        Names(IMAGE),
        Names("base"),
        AddNames("first", &["c1-a", "web1-b"]),
        AddNames("first", &["c1-a"]),
        AddNames("@second", &["web1-b", "web2"]),
        Names("first"),
        RemoveNames("first", &["c1-a", "never had"]),
        SetNames("third", &["web1", "web3", "web3"]),
        Names("first"),
        SetNames("third", &[]),
        Show(Container, "third"),
        AddNames(IMAGE, &["localhost/base:2", "localhost/base:3"]),
        AddNames("upper image", &["localhost/base:1"]),
        Show(Image, IMAGE),
        Show(Image, "localhost/base:1"),
        SetNames(IMAGE, &["localhost/base:1", "localhost/base:4"]),
        RemoveNames(IMAGE, &["localhost/base:1"]),
        Show(Image, IMAGE),
        Show(Image, "upper image"),
        AddNames("top", &["base", "shared name"]),
        Names(BASE),
        Names("top"),
        Show(Layer, "base"),
        SetNames("top", &["topmost"]),
        SetNames(BASE, &["base", "base again", "base"]),
        // A name may be that of a layer, an image and a container.
        AddNames("baseless", &["base"]),
        AddNames("rootless", &["base", "image and container"]),
        Names("base"),
        SetNames("nosuch", &["x"]),
        AddNames("nosuch", &["x"]),
        RemoveNames("nosuch", &["x"]),
        List(Image),
        Checkpoint("names"),
    ]
}

fn metadata() -> Vec<Step> {
    steps![
        Metadata("web1-b"),
        Metadata("first"),
        Metadata("upper image"),
        Metadata("base"),
        SetMetadata("first", ODD_TEXT),
        SetMetadata(IMAGE, "of the image"),
        SetMetadata("base", "of the layer"),
        SetMetadata("fleeting", "of a volatile container"),
        Metadata("first"),
        Metadata(IMAGE),
        Metadata(BASE),
        Metadata("fleeting"),
    ]
}

fn mounts() -> Vec<Step> {
    steps![
        Mounted("first"),
        Mount("web1-b"),
        Unmount("@second"),
        Mount("first"),
        Mounted("first"),
        Mount("first"),
        Mounted("@first.layer"),
        Unmount("first"),
        Mounted("first"),
        Unmount("first"),
        Mounted("first"),
        Unmount("first"),
        Mount("first"),
        Mount("first"),
        UnmountForced("first"),
        Mounted("first"),
        Mount(BASE),
        Mount("plain"),
        Show(Layer, BASE),
        Checkpoint("mounted layers"),
        Shutdown,
        Unmount(BASE),
        Unmount("plain"),
        MountImage("upper image") => "image-mounts-on-old-vfs",
        Checkpoint("a mounted image"),
        UnmountImage("upper image"),
        MountImage("baseless"),
        MountImage("nosuch"),
        UnmountImage("nosuch"),
        Mount("nosuch"),
        Unmount("nosuch"),
        // With something mounted the peer's forced shutdown fails (or, in old versions, never ends).
        ShutdownForced,
        Unmount("@second"),
        Checkpoint("after mounting"),
    ]
}

fn writing() -> Vec<Step> {
    steps![
        Mount("first"),
        Edit(
            "first",
            &[
                Write("etc/hostname", b"container\n"),
                Append("etc/hosts", b"127.0.1.1 container\n"),
                Remove("etc/shadow"),
                Remove("usr/share/doc"),
                Mkdir("usr/share/doc"),
                Write("usr/share/doc/new", b"in a new directory\n"),
                Mkdir("var"),
                Mkdir("var/log"),
                Write("var/log/messages", b"started\nstopped\n"),
                HardLink("var/log/again", "var/log/messages"),
                Symlink("var/tmp", "/tmp"),
                Fifo("var/pipe"),
                CharDevice("var/zero", 1, 5),
                Mode("bin/wall", 0o700),
                Owner("home/user/notes", 0, 0),
                Attribute("bin/ping", "user.colour", b"green"),
                Attribute("var/log", "user.kept", b"yes"),
                Rename("usr/lib/libc.so", "usr/lib/libc.so.6"),
                Write("var/precise", b"to the nanosecond"),
                Time("var/precise", 1_712_345_678, 987_654_321),
                Time("", 1_712_345_000, 0),
            ],
        ),
        Checkpoint("a container that was written to"),
        Changes("@first.layer", None),
        DiffSize("@first.layer", None),
        Size(Container, "first"),
        Unmount("first"),
        DateDeletions("first"),
        Mount("@second"),
        Edit(
            "@second",
            &[
                Write("one", b"1"),
                Mode("one", 0o600),
                Time("one", 1, 0),
                Time("", 2, 0)
            ]
        ),
        Unmount("@second"),
        Mount("rootless"),
        Edit(
            "rootless",
            &[
                Mkdir("directory"),
                Write("directory/file", b"without an image"),
                Time("directory", 1_000_000_000, 0),
                Time("", 1_000_000_001, 0),
            ],
        ),
        Unmount("rootless"),
        Checkpoint("containers that were written to"),
    ]
}

fn diffs() -> Vec<Step> {
    steps![
        Changes("@second.layer", None),
        Changes("@rootless.layer", None),
        Changes("@third.layer", None),
        Changes(UPPER, None) => "times-of-directories-on-vfs",
        Changes(UPPER, Some("base")) => "times-of-directories-on-vfs",
        Changes("replacing", None) => "file-to-directory",
        Changes("top", Some("base")) => "times-of-directories",
        Changes("base", Some("top")) => "times-of-directories",
        Changes("top", Some("gnu")),
        Changes("gnu", Some("nosuch")),
        DiffSize("gnu", Some("nosuch")),
        Diff("gnu", Some("nosuch"), Uncompressed),
        Changes("top", Some("nosuch")),
        Changes("nosuch", None),
        DiffSize("@second.layer", None),
        DiffSize(UPPER, None),
        DiffSize("top", Some("base")),
        DiffSize("nosuch", None),
        Diff("@first.layer", None, Uncompressed),
        Diff("@first.layer", None, Gzip),
        Diff("@second.layer", None, Uncompressed),
        Diff("@rootless.layer", None, Uncompressed),
        Diff("@third.layer", None, Recorded),
        Diff("top", Some("base"), Uncompressed) => "times-of-directories",
        Diff("base", Some("gzip"), Uncompressed) => "times-of-directories",
        Diff("plain", Some("base"), Uncompressed),
    ]
}

fn applied_diffs() -> Vec<Step> {
    steps![
        CreateLayer(New::id("to be filled").on("base")),
        ApplyDiff("to be filled", "changes"),
        Show(Layer, "to be filled"),
        Diff("to be filled", None, Uncompressed),
        CreateLayer(New::id("filled twice")),
        ApplyDiff("filled twice", "base.gz"),
        ApplyDiff("filled twice", "more"),
        Diff("filled twice", None, Uncompressed),
        ApplyDiff("nosuch", "base"),
        CreateLayer(New::id("@filled")),
        ApplyDiff("@filled", "gnu"),
        Checkpoint("applied diffs"),
    ]
}

fn owners() -> Vec<Step> {
    steps![
        CreateLayer(New::id("mapped").maps(100_000, 200_000)),
        CreateLayer(New::id("mapped child").on("mapped")),
        CreateContainer(
            New::id("mapped container")
                .on("upper image")
                .maps(300_000, 400_000)
        ),
        CreateContainer(New::id("mapped again").on("upper image").maps(300_000, 400_000)),
        Show(Image, "upper image"),
        Show(Container, "mapped container"),
        ParentOwners(Container, "mapped container"),
        ParentOwners(Layer, "mapped"),
        ParentOwners(Layer, "base"),
        Mount("mapped container"),
        ParentOwners(Container, "mapped container"),
        Checkpoint("mapped owners"),
        Unmount("mapped container"),
        Diff("@mapped container.layer", None, Uncompressed),
        ImportLayer(New::id("mapped import").maps(100_000, 200_000), "base"),
        Diff("mapped import", None, Uncompressed),
        Checkpoint("mapped owners, unmounted"),
    ]
}

fn deletions() -> Vec<Step> {
    steps![
        DeleteLayer(BASE),
        DeleteLayer(UPPER),
        DeleteLayer("zstd"),
        DeleteLayer("gzip"),
        DeleteLayer("plain"),
        DeleteLayer("@first.layer"),
        DeleteLayer("grandchild"),
        Exists("grandchild"),
        DeleteImage(IMAGE),
        TestDeleteImage("upper image"),
        TestDeleteImage("@image"),
        DeleteImage("@image"),
        Exists("top"),
        DeleteImage("baseless"),
        DeleteImage("nosuch"),
        DeleteContainer("nosuch"),
        DeleteContainer("localhost/base:4"),
        Mount("first"),
        DeleteContainer("web1-b"),
        Exists("first"),
        DeleteContainer("first"),
        DeleteContainer("fleeting"),
        Checkpoint("deleted items"),
        DeleteContainer("@second"),
        DeleteImage("localhost/base:4"),
        DeleteContainer("third"),
        DeleteContainer("mapped container"),
        DeleteContainer("mapped again"),
        DeleteImage("upper image"),
        List(Layer),
        Delete("digested"),
        Delete("rootless"),
        Delete("child"),
        // Without checks: what stands on it stays.
        Delete("mapped"),
        Show(Layer, "mapped child"),
        List(Layer),
        List(Image),
        List(Container),
        Checkpoint("what deletions leave"),
    ]
}

fn the_end() -> Vec<Step> {
    steps![
        CreateImage(New::id("last").on("gzip")),
        CreateContainer(New::id("last container").on("last")),
        Mount("last container"),
        Wipe,
        List(Layer),
        List(Image),
        List(Container),
        Checkpoint("everything wiped"),
        Shutdown,
        Checkpoint("the store shut down"),
    ]
}
