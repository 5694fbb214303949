//! Renaming, mounting, changing, comparing and deleting what was made.

use super::{BASE, IMAGE, ODD_TEXT, UPPER};
use crate::same_as_go::op::Edit::*;
use crate::same_as_go::op::Kind::{Container, Image, Layer};
use crate::same_as_go::op::New;
use crate::same_as_go::op::Op::*;
use crate::same_as_go::op::Packing::{Gzip, Recorded, Uncompressed};
use crate::same_as_go::op::Step;

pub(super) fn names() -> Vec<Step> {
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

pub(super) fn metadata() -> Vec<Step> {
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

pub(super) fn mounts() -> Vec<Step> {
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

pub(super) fn writing() -> Vec<Step> {
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

pub(super) fn diffs() -> Vec<Step> {
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

pub(super) fn applied_diffs() -> Vec<Step> {
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

pub(super) fn owners() -> Vec<Step> {
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

pub(super) fn deletions() -> Vec<Step> {
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

pub(super) fn the_end() -> Vec<Step> {
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
