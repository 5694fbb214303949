//! Deletions in every form, in every order.

use super::*;
use crate::error::ErrorKind;
use crate::test_util::{TarBuilder, TarEntry as Item};

fn lower(layer: &Layer, files: &[&str]) {
    for file in files {
        let path = layer.at(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "lower").unwrap();
    }
}

/// An overlay layer on a tree with these files.
fn layer_on(files: &[&str]) -> (Layer, tempfile::TempDir) {
    let below = tempfile::tempdir().unwrap();
    for file in files {
        let path = below.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "below").unwrap();
    }
    let mut layer = Layer::new(OVERLAY);
    layer.below.push(below.path().to_owned());
    (layer, below)
}

#[test]
fn overlay_marks_deletions_of_what_is_below() {
    if !root_or_skip() {
        return;
    }
    let (layer, _below) = layer_on(&["a/x", "dir/x", "sub/b", "opaque/x", ".wh.x"]);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.a", "payload nobody needs").owner(5, 6))
        .entry(Item::dir(".wh.dir"))
        .entry(Item::file("sub/.wh.b", ""))
        .entry(Item::file("sub/.wh.phantom", ""))
        .entry(Item::file("opaque/.wh..wh..opq", ""))
        .entry(Item::file("opaque/f", "x"))
        .entry(Item::file("nothing/.wh..wh..opq", ""))
        .entry(Item::file(".wh..wh.x", ""))
        .entry(Item::file("a/under", "a whiteout and then a path through it"))
        .build();
    layer.apply(&tar).unwrap();
    for path in ["dir", "sub/b", ".wh.x"] {
        assert!(layer.is_whiteout(path), "{path}");
    }
    assert!(layer.is_opaque("opaque") && !layer.is_opaque("sub"));
    assert!(
        layer.is_opaque("a"),
        "a directory in place of a whiteout hides what is below"
    );
    assert_eq!(
        layer.names(),
        [
            ".wh.x", "a", "a/under", "dir", "opaque", "opaque/f", "sub", "sub/b"
        ]
    );
    let alone = Layer::new(OVERLAY);
    alone.apply(&tar).unwrap();
    assert_eq!(
        alone.names(),
        ["a", "a/under", "opaque", "opaque/f"],
        "nothing is below"
    );
}

#[test]
fn overlay_deletions_do_not_depend_on_the_order() {
    if !root_or_skip() {
        return;
    }
    let items = [
        Item::file(".wh.dir", ""),
        Item::dir("dir").mode(0o711).mtime(5),
        Item::file("dir/f", "new").mtime(6),
        Item::file(".wh.file", ""),
        Item::file("file", "new").mtime(7),
    ];
    let mut first = None;
    for turn in 0..items.len() {
        let mut items = items.to_vec();
        items.rotate_left(turn);
        let (layer, _below) = layer_on(&["dir/old", "file"]);
        layer
            .apply(&items.into_iter().collect::<TarBuilder>().build())
            .unwrap();
        assert!(layer.is_opaque("dir"), "turn {turn}");
        let listing = layer.listing();
        assert_eq!(*first.get_or_insert(listing.clone()), listing, "turn {turn}");
    }
    // A whiteout of a directory says all that there is to say.
    for below in ["foo/.wh.bar", "foo/.wh..wh..opq"] {
        for mut items in [[below, ".wh.foo"], [".wh.foo", below]].map(Vec::from) {
            let (layer, _below) = layer_on(&["foo/bar"]);
            let tar: TarBuilder = items.drain(..).map(|name| Item::file(name, "")).collect();
            layer.apply(&tar.build()).unwrap();
            assert_eq!(layer.names(), ["foo"]);
            assert!(layer.is_whiteout("foo"));
        }
    }
    let (layer, _below) = layer_on(&["foo/bar/old"]);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.foo", ""))
        .entry(Item::file("foo/bar/baz", "x"))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.is_opaque("foo") && !layer.is_opaque("foo/bar"));
}

#[test]
fn nothing_is_hidden_below_what_is_no_directory() {
    if !root_or_skip() {
        return;
    }
    let ways = [
        Item::file("a", "x"),
        Item::fifo("a"),
        Item::symlink("a", "target"),
        Item::symlink("a", "a"),
    ];
    for own in ways {
        for mark in ["a/.wh.old", "a/.wh..wh..opq", "a/b/.wh.c"] {
            let (layer, _below) = layer_on(&["a/old", "a/b/c", "target/old"]);
            layer
                .apply(
                    &TarBuilder::new()
                        .entry(own.clone())
                        .entry(Item::file(mark, ""))
                        .build(),
                )
                .unwrap();
            assert_eq!(layer.names(), ["a"], "{mark} below {own:?}");
        }
    }
    let (layer, below) = layer_on(&["file", "target/keep"]);
    std::os::unix::fs::symlink("target", below.path().join("link")).unwrap();
    let names = [
        "file/.wh.x",
        "file/.wh..wh..opq",
        "link/.wh.keep",
        "link/.wh..wh..opq",
    ];
    let tar: TarBuilder = names.iter().map(|name| Item::file(name, "")).collect();
    layer.apply(&tar.build()).unwrap();
    assert_eq!(layer.names(), [""; 0]);
}

#[test]
fn implied_directories_are_as_they_are_below() {
    if !root_or_skip() {
        return;
    }
    use crate::archive::tests::out_support::Tree;
    let (bottom, top) = (Tree::new(), Tree::new());
    bottom
        .file("d/sub/old", "")
        .owner("d/sub", 5, 6)
        .mode("d/sub", 0o2750);
    bottom
        .xattr("d/sub", "user.x", b"1")
        .mtime("d/sub", 1_000_000_000, 5);
    bottom.mode("d", 0o755).file("gone/x", "").mode("gone", 0o700);
    top.dir("d")
        .owner("d", 7, 7)
        .mode("d", 0o700)
        .mtime("d", 1_100_000_000, 0)
        .whiteout("gone");
    let mut layer = Layer::new(OVERLAY);
    layer.below = vec![top.path().to_owned(), bottom.path().to_owned()];
    for tar in [
        TarBuilder::new()
            .entry(Item::file("d/sub/new", ""))
            .entry(Item::file("gone/new", "")),
        TarBuilder::new()
            .entry(Item::file("d/sub/.wh.old", ""))
            .entry(Item::file("gone/f", "")),
    ] {
        layer.move_to(tempfile::tempdir().unwrap());
        layer.apply(&tar.build()).unwrap();
        let meta = |path: &str| std::fs::symlink_metadata(layer.at(path)).unwrap();
        let told = |path: &str| {
            (
                meta(path).mode() & 0o7777,
                meta(path).uid(),
                meta(path).gid(),
                meta(path).mtime(),
            )
        };
        assert_eq!(told("d/sub"), (0o2750, 5, 6, 1_000_000_000));
        assert_eq!(meta("d/sub").mtime_nsec(), 5);
        assert_eq!(layer.xattr("d/sub", "user.x").as_deref(), Some(&b"1"[..]));
        assert_eq!(told("d"), (0o700, 7, 7, 1_100_000_000), "as in the topmost layer");
        assert_eq!(meta("gone").mode() & 0o7777, 0o755, "it was deleted");
    }
}

#[test]
fn an_opaque_root_and_existing_content_of_an_upper_directory() {
    if !root_or_skip() {
        return;
    }
    let (layer, _below) = layer_on(&["below", "d/below", "e/below"]);
    lower(&layer, &["old", "d/old", "e/old", "e/sub/old"]);
    let tar = TarBuilder::new()
        .entry(Item::file("d/new", "x"))
        .entry(Item::file("d/.wh..wh..opq", ""))
        .entry(Item::file(".wh.e", ""))
        .entry(Item::file(".wh..wh..opq", ""))
        .build();
    layer.apply(&tar).unwrap();
    // The second diff of a layer takes away what the first one brought. Nobody looks at marks of a root.
    assert_eq!(layer.names(), ["below", "d", "d/new", "e"]);
    assert!(layer.is_whiteout("below") && layer.is_whiteout("e"));
    assert!(layer.is_opaque("d") && !layer.is_opaque(""));
    // What replaces a whiteout or a file of the same layer hides what that has hidden.
    let (layer, _below) = layer_on(&["a/x", "b/x", "c/x"]);
    layer
        .apply(&TarBuilder::new().whiteout("a").file("b", "").build())
        .unwrap();
    layer
        .apply(&TarBuilder::new().dir("a").dir("b").file("c/y", "").build())
        .unwrap();
    assert_eq!(layer.names(), ["a", "b", "c", "c/y"]);
    assert!(layer.is_opaque("a") && layer.is_opaque("b") && !layer.is_opaque("c"));
}

#[test]
fn complete_trees_carry_deletions_out() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    lower(
        &layer,
        &[
            "file",
            "dir/a",
            "dir/sub/b",
            "opq/old",
            "opq/keep/old",
            "opq/new",
            "other/x",
        ],
    );
    let tar = TarBuilder::new()
        .entry(Item::file("opq/keep/new", "new"))
        .entry(Item::file("opq/new", "new"))
        .entry(Item::file("opq/.wh..wh..opq", ""))
        .entry(Item::file(".wh.file", "payload"))
        .entry(Item::file(".wh.dir", ""))
        .entry(Item::file("other/.wh.missing", ""))
        .entry(Item::file("nowhere/.wh.x", ""))
        .entry(Item::file("nowhere/.wh..wh..opq", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(
        layer.names(),
        ["opq", "opq/keep", "opq/keep/new", "opq/new", "other", "other/x"]
    );
    assert_eq!(layer.read("opq/new"), "new");
}

#[test]
fn deletions_in_complete_trees_do_not_depend_on_the_order() {
    let items = [
        Item::file(".wh.dir", ""),
        Item::file("dir/f", "new"),
        Item::file(".wh.file", ""),
        Item::file("file", "new"),
        Item::file("opq/.wh..wh..opq", ""),
        Item::file("opq/sub/f", "new"),
    ];
    for turn in 0..items.len() {
        let mut items = items.to_vec();
        items.rotate_left(turn);
        let layer = Layer::new(WhiteoutFormat::Apply);
        lower(
            &layer,
            &["file", "dir/f", "dir/g", "dir/sub/h", "opq/old", "opq/sub/old"],
        );
        layer
            .apply(&items.into_iter().collect::<TarBuilder>().build())
            .unwrap();
        assert_eq!(
            layer.names(),
            ["dir", "dir/f", "file", "opq", "opq/sub", "opq/sub/f"],
            "turn {turn}"
        );
        assert_eq!(
            (layer.read("dir/f"), layer.read("file")),
            ("new".into(), "new".into())
        );
    }
}

#[test]
fn deletions_follow_no_links() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    lower(&layer, &["real/a", "real/b"]);
    std::os::unix::fs::symlink("/real", layer.at("link")).unwrap();
    std::os::unix::fs::symlink("..", layer.at("up")).unwrap();
    let tar = TarBuilder::new()
        .entry(Item::file("link/.wh.a", ""))
        .entry(Item::file("up/.wh.sentinel", ""))
        .entry(Item::file("../.wh.sentinel", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["link", "real", "real/a", "real/b", "up"]);
    // The deleted link itself goes, not what it points to.
    layer
        .apply(
            &TarBuilder::new()
                .entry(Item::file(".wh.up", ""))
                .entry(Item::file(".wh.link", ""))
                .build(),
        )
        .unwrap();
    assert_eq!(layer.names(), ["real", "real/a", "real/b"]);
    // Nor does what comes into the tree: a directory takes the place of the link.
    std::os::unix::fs::symlink("real", layer.at("link")).unwrap();
    let tar = TarBuilder::new().opaque("link").file("link/new", "");
    layer.apply(&tar.build()).unwrap();
    assert_eq!(layer.names(), ["link", "link/new", "real", "real/a", "real/b"]);
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    for form in [OVERLAY, WhiteoutFormat::Apply] {
        for name in [".wh.", "d/.wh..", ".wh..."] {
            let layer = Layer::new(form);
            lower(&layer, &["d/f"]);
            let error = layer
                .apply(&TarBuilder::new().entry(Item::file(name, "")).build())
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsafePath, "{name}");
            assert!(layer.at("d/f").exists());
        }
    }
}

#[test]
fn for_a_mount_program_whiteouts_are_files() {
    let (mut layer, below) = layer_on(&["a", "d/b", "d/e", "o/x", "p/x"]);
    layer.form = WhiteoutFormat::Verbatim;
    std::fs::write(below.path().join("d/.wh.e"), "").unwrap();
    std::fs::remove_file(below.path().join("d/e")).unwrap();
    let names = [
        ".wh.a",
        "d/.wh.b",
        "d/.wh.e",
        "d/.wh.phantom",
        "o/.wh..wh..opq",
        ".wh.p",
    ];
    let tar: TarBuilder = names.iter().map(|name| Item::file(name, "payload")).collect();
    layer.apply(&tar.dir("p").build()).unwrap();
    let expected = [
        ".wh.a",
        "d",
        "d/.wh.b",
        "o",
        "o/.wh..wh..opq",
        "p",
        "p/.wh..wh..opq",
    ];
    assert_eq!(layer.names(), expected);
    assert_eq!(layer.read(".wh.a"), "");
    // In a second diff a name takes the place of its whiteout.
    layer
        .apply(&TarBuilder::new().dir("a").file("d/b", "new").build())
        .unwrap();
    let expected = ["a", "d", "d/b", "o", "o/.wh..wh..opq", "p", "p/.wh..wh..opq"];
    let names: Vec<_> = layer
        .names()
        .into_iter()
        .filter(|name| name != "a/.wh..wh..opq")
        .collect();
    assert_eq!(names, expected);
    // What a program would make of these is not defined.
    for name in [".wh.", "d/.wh..", ".wh..."] {
        let error = layer
            .apply(&TarBuilder::new().entry(Item::file(name, "")).build())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafePath, "{name}");
    }
}

#[test]
fn private_files_of_aufs() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::dir(".wh..wh.plnk"))
        .entry(Item::file(".wh..wh.plnk/1.2", "linked").mode(0o640).mtime(9))
        .entry(Item::file(".wh..wh.aufs", "private"))
        .entry(Item::hard_link("a", ".wh..wh.plnk/1.2"))
        .entry(Item::hard_link("d/b", "/.wh..wh.plnk/1.2"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["a", "d", "d/b"]);
    assert_eq!(layer.read("d/b"), "linked");
    let (a, b) = (
        std::fs::metadata(layer.at("a")).unwrap(),
        std::fs::metadata(layer.at("d/b")).unwrap(),
    );
    assert_eq!((a.ino(), a.mode() & 0o7777, a.mtime()), (b.ino(), 0o640, 9));
    let tar = TarBuilder::new()
        .entry(Item::hard_link("a", ".wh..wh.plnk/9"))
        .build();
    assert_eq!(layer.apply(&tar).unwrap_err().kind(), ErrorKind::InvalidArchive);
    // Further down the names mean nothing special.
    if root_or_skip() {
        let (overlay, _below) = layer_on(&[".wh.aufs"]);
        overlay
            .apply(&TarBuilder::new().entry(Item::file(".wh..wh.aufs", "")).build())
            .unwrap();
        assert!(overlay.is_whiteout(".wh.aufs"));
    }
}
