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

#[test]
fn overlay_marks_deletions() {
    if !root_or_skip() {
        return;
    }
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.a", "payload nobody needs").owner(5, 6))
        .entry(Item::dir(".wh.dir"))
        .entry(Item::file("sub/.wh.b", ""))
        .entry(Item::file("opaque/.wh..wh..opq", ""))
        .entry(Item::file("opaque/f", "x"))
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
        let layer = Layer::new(OVERLAY);
        layer
            .apply(&items.into_iter().collect::<TarBuilder>().build())
            .unwrap();
        assert!(layer.is_opaque("dir"), "turn {turn}");
        let listing = layer.listing();
        assert_eq!(*first.get_or_insert(listing.clone()), listing, "turn {turn}");
    }
    // Below a whiteout another whiteout means nothing, a directory means that the upper one is opaque.
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.foo", ""))
        .entry(Item::file("foo/.wh.bar", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.is_whiteout("foo"));
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.foo", ""))
        .entry(Item::file("foo/.wh..wh..opq", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.is_opaque("foo"));
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.foo", ""))
        .entry(Item::file("foo/bar/baz", "x"))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.is_opaque("foo") && !layer.is_opaque("foo/bar"));
}

#[test]
fn an_opaque_root_and_existing_content_of_an_upper_directory() {
    if !root_or_skip() {
        return;
    }
    let layer = Layer::new(OVERLAY);
    lower(&layer, &["old", "d/old", "e/old", "e/sub/old"]);
    let tar = TarBuilder::new()
        .entry(Item::file("d/new", "x"))
        .entry(Item::file("d/.wh..wh..opq", ""))
        .entry(Item::file(".wh.e", ""))
        .entry(Item::file(".wh..wh..opq", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.is_opaque("") && layer.is_opaque("d"));
    // The second diff of a layer takes away what the first one brought; the opaque root takes the whiteout too.
    assert_eq!(layer.names(), ["d", "d/new"]);
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
fn deletions_follow_links_inside_the_root_only() {
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
    assert_eq!(layer.names(), ["link", "real", "real/b", "up"]);
    // The deleted link itself goes, not what it points to.
    layer
        .apply(
            &TarBuilder::new()
                .entry(Item::file(".wh.up", ""))
                .entry(Item::file(".wh.link", ""))
                .build(),
        )
        .unwrap();
    assert_eq!(layer.names(), ["real", "real/b"]);
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
fn literal_whiteouts_are_files() {
    let layer = Layer::new(WhiteoutFormat::Verbatim);
    let names = [".wh..wh..opq", ".wh.a", "d/.wh..wh.plnk", "d/.wh.b"];
    let tar: TarBuilder = names.iter().map(|name| Item::file(name, "as it is")).collect();
    layer.apply(&tar.build()).unwrap();
    assert_eq!(
        layer.names(),
        [".wh..wh..opq", ".wh.a", "d", "d/.wh..wh.plnk", "d/.wh.b"]
    );
    // What programs make of these is not defined.
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
        let overlay = Layer::new(OVERLAY);
        overlay
            .apply(&TarBuilder::new().entry(Item::file(".wh..wh.aufs", "")).build())
            .unwrap();
        assert!(overlay.is_whiteout(".wh.aufs"));
    }
}
