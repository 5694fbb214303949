//! Deletions in every form, in every order.

use super::*;
use crate::archive::test_tar::{Item, TarBuilder};
use crate::error::ErrorKind;

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
        .add(Item::file(".wh.a", "payload nobody needs").owner(5, 6))
        .add(Item::dir(".wh.dir"))
        .add(Item::file("sub/.wh.b", ""))
        .add(Item::file("opaque/.wh..wh..opq", ""))
        .add(Item::file("opaque/f", "x"))
        .add(Item::file(".wh..wh.x", ""))
        .add(Item::file("a/under", "a whiteout and then a path through it"))
        .end();
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
            .apply(&items.into_iter().collect::<TarBuilder>().end())
            .unwrap();
        assert!(layer.is_opaque("dir"), "turn {turn}");
        let listing = layer.listing();
        assert_eq!(*first.get_or_insert(listing.clone()), listing, "turn {turn}");
    }
    // Below a whiteout another whiteout means nothing, a directory means that the upper one is opaque.
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .add(Item::file(".wh.foo", ""))
        .add(Item::file("foo/.wh.bar", ""))
        .end();
    layer.apply(&tar).unwrap();
    assert!(layer.is_whiteout("foo"));
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .add(Item::file(".wh.foo", ""))
        .add(Item::file("foo/.wh..wh..opq", ""))
        .end();
    layer.apply(&tar).unwrap();
    assert!(layer.is_opaque("foo"));
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .add(Item::file(".wh.foo", ""))
        .add(Item::file("foo/bar/baz", "x"))
        .end();
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
        .add(Item::file("d/new", "x"))
        .add(Item::file("d/.wh..wh..opq", ""))
        .add(Item::file(".wh.e", ""))
        .add(Item::file(".wh..wh..opq", ""))
        .end();
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
        .add(Item::file("opq/keep/new", "new"))
        .add(Item::file("opq/new", "new"))
        .add(Item::file("opq/.wh..wh..opq", ""))
        .add(Item::file(".wh.file", "payload"))
        .add(Item::file(".wh.dir", ""))
        .add(Item::file("other/.wh.missing", ""))
        .add(Item::file("nowhere/.wh.x", ""))
        .add(Item::file("nowhere/.wh..wh..opq", ""))
        .end();
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
            .apply(&items.into_iter().collect::<TarBuilder>().end())
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
        .add(Item::file("link/.wh.a", ""))
        .add(Item::file("up/.wh.sentinel", ""))
        .add(Item::file("../.wh.sentinel", ""))
        .end();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["link", "real", "real/b", "up"]);
    // The deleted link itself goes, not what it points to.
    layer
        .apply(
            &TarBuilder::new()
                .add(Item::file(".wh.up", ""))
                .add(Item::file(".wh.link", ""))
                .end(),
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
                .apply(&TarBuilder::new().add(Item::file(name, "")).end())
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
    layer.apply(&tar.end()).unwrap();
    assert_eq!(
        layer.names(),
        [".wh..wh..opq", ".wh.a", "d", "d/.wh..wh.plnk", "d/.wh.b"]
    );
    // What a program would make of these nobody knows.
    for name in [".wh.", "d/.wh..", ".wh..."] {
        let error = layer
            .apply(&TarBuilder::new().add(Item::file(name, "")).end())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafePath, "{name}");
    }
}

#[test]
fn private_files_of_aufs() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .add(Item::dir(".wh..wh.plnk"))
        .add(Item::file(".wh..wh.plnk/1.2", "linked").mode(0o640).mtime(9))
        .add(Item::file(".wh..wh.aufs", "private"))
        .add(Item::hard_link("a", ".wh..wh.plnk/1.2"))
        .add(Item::hard_link("d/b", "/.wh..wh.plnk/1.2"))
        .end();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["a", "d", "d/b"]);
    assert_eq!(layer.read("d/b"), "linked");
    let (a, b) = (
        std::fs::metadata(layer.at("a")).unwrap(),
        std::fs::metadata(layer.at("d/b")).unwrap(),
    );
    assert_eq!((a.ino(), a.mode() & 0o7777, a.mtime()), (b.ino(), 0o640, 9));
    let tar = TarBuilder::new()
        .add(Item::hard_link("a", ".wh..wh.plnk/9"))
        .end();
    assert_eq!(layer.apply(&tar).unwrap_err().kind(), ErrorKind::InvalidArchive);
    // Further down the names mean nothing special.
    if root_or_skip() {
        let overlay = Layer::new(OVERLAY);
        overlay
            .apply(&TarBuilder::new().add(Item::file(".wh..wh.aufs", "")).end())
            .unwrap();
        assert!(overlay.is_whiteout(".wh.aufs"));
    }
}
