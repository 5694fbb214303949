//! Entries of every type and their metadata.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::error::ErrorKind;
use crate::idmap::IdMap;
use crate::test_util::{TarBuilder, TarEntry as Item};

fn meta(layer: &Layer, path: &str) -> std::fs::Metadata {
    std::fs::symlink_metadata(layer.at(path)).unwrap()
}

#[test]
fn every_type_arrives_with_its_metadata() {
    if !root_or_skip() {
        return;
    }
    for form in [OVERLAY, WhiteoutFormat::Apply, WhiteoutFormat::Verbatim] {
        let layer = Layer::new(form);
        let tar = TarBuilder::new()
            .entry(Item::dir("d").mode(0o2775).owner(10, 20).mtime(1000))
            .entry(
                Item::file("d/f", "content")
                    .mode(0o4711)
                    .owner(1000, 1001)
                    .mtime(2000),
            )
            .entry(
                Item::file("d/ns", "x")
                    .pax("mtime", "3000.123456789")
                    .pax("atime", "4000000000.5"),
            )
            .entry(Item::file("d/empty", "").mode(0))
            .entry(Item::symlink("d/l", "../nowhere").owner(7, 8).mtime(5000))
            .entry(
                Item::hard_link("h", "d/f")
                    .mode(0o4711)
                    .owner(1000, 1001)
                    .mtime(2000),
            )
            .entry(Item::fifo("p").mode(0o622).mtime(6000))
            .entry(Item::new(b'3', "c").device(5, 300).mode(0o666).owner(0, 5))
            .entry(Item::new(b'4', "b").device(8, 1).mode(0o660))
            .entry(Item::new(b'7', "contiguous").content("seven"))
            .entry(Item::new(0, "old/"))
            .entry(
                Item::file("x", "attributes")
                    .xattr("user.a", b"\0\xff")
                    .xattr("user.empty", ""),
            )
            .entry(Item::file("cap", "").owner(5, 5).xattr(
                "security.capability",
                b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ))
            .entry(Item::file("minus", "").owner(1, 1).mtime(-100))
            .build();
        let applied = layer.apply(&tar).unwrap();
        assert_eq!(applied.entries, 14);
        let d = meta(&layer, "d");
        assert_eq!(
            (d.mode() & 0o7777, d.uid(), d.gid(), d.mtime()),
            (0o2775, 10, 20, 1000)
        );
        let f = meta(&layer, "d/f");
        assert_eq!(
            (f.mode() & 0o7777, f.uid(), f.gid(), f.mtime(), f.nlink()),
            (0o4711, 1000, 1001, 2000, 2)
        );
        assert_eq!(meta(&layer, "h").ino(), f.ino());
        let ns = meta(&layer, "d/ns");
        assert_eq!(
            (ns.mtime(), ns.mtime_nsec(), ns.atime()),
            (3000, 123_456_789, 4_000_000_000)
        );
        assert_eq!(meta(&layer, "d/empty").mode() & 0o7777, 0);
        let l = meta(&layer, "d/l");
        assert_eq!((l.uid(), l.gid(), l.mtime()), (7, 8, 5000));
        assert_eq!(
            std::fs::read_link(layer.at("d/l")).unwrap(),
            Path::new("../nowhere")
        );
        let p = meta(&layer, "p");
        assert!(p.file_type().is_fifo() && p.mode() & 0o7777 == 0o622 && p.mtime() == 6000);
        let c = meta(&layer, "c");
        assert!(c.file_type().is_char_device() && c.mode() & 0o7777 == 0o666 && c.gid() == 5);
        assert_eq!(c.rdev(), rustix::fs::makedev(5, 300));
        assert!(meta(&layer, "b").file_type().is_block_device());
        assert_eq!(layer.read("contiguous"), "seven");
        assert!(meta(&layer, "old").is_dir());
        assert_eq!(layer.xattr("x", "user.a").unwrap(), b"\0\xff");
        assert_eq!(layer.xattr("x", "user.empty").unwrap(), b"");
        assert!(
            layer.xattr("cap", "security.capability").is_some(),
            "set after the owner"
        );
        assert_eq!(meta(&layer, "minus").mtime(), -100);
        assert_eq!(applied.uids, [0, 1, 5, 7, 10, 1000]);
        assert_eq!(applied.gids, [0, 1, 5, 8, 20, 1001]);
    }
}

#[test]
fn the_umask_does_not_matter() {
    const IN_CHILD: &str = "GRAPHROOT_TEST_UMASK_CHILD";
    if std::env::var_os(IN_CHILD).is_none() {
        // The umask belongs to the whole process, so this needs one of its own.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archive::tests::tree::the_umask_does_not_matter"])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::file("implied/f", "").mode(0o666))
        .entry(Item::dir("d").mode(0o777));
    layer.apply(&tar.build()).unwrap();
    for (path, mode) in [("implied", 0o755), ("implied/f", 0o666), ("d", 0o777)] {
        assert_eq!(meta(&layer, path).mode() & 0o7777, mode, "{path}");
    }
}

#[test]
fn owners_are_mapped_and_implied_parents_belong_to_root() {
    if !root_or_skip() {
        return;
    }
    let mut layer = Layer::new(OVERLAY);
    layer.mappings = IdMappings {
        uids: vec![IdMap::new(0, 100_000, 10)],
        gids: vec![IdMap::new(0, 200_000, 10)],
    };
    layer
        .apply(
            &TarBuilder::new()
                .entry(Item::file("a/b/f", "x").owner(3, 4))
                .build(),
        )
        .unwrap();
    for (path, uid, gid) in [
        ("a", 100_000, 200_000),
        ("a/b", 100_000, 200_000),
        ("a/b/f", 100_003, 200_004),
    ] {
        assert_eq!(
            (meta(&layer, path).uid(), meta(&layer, path).gid()),
            (uid, gid),
            "{path}"
        );
    }
    let error = layer
        .apply(&TarBuilder::new().entry(Item::file("g", "").owner(10, 0)).build())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMappings);
    assert!(error.chain().contains("unpacking \"g\""), "{}", error.chain());
    // Owners of whiteouts are never a reason to fail.
    let below = tempfile::tempdir().unwrap();
    std::fs::write(below.path().join("gone"), "").unwrap();
    layer.below.push(below.path().to_owned());
    layer
        .apply(
            &TarBuilder::new()
                .entry(Item::file(".wh.gone", "").owner(5000, 0))
                .build(),
        )
        .unwrap();
    assert!(layer.is_whiteout("gone"));
}

#[test]
fn later_entries_replace_earlier_ones_by_type() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::file("dir-then-file/x/y", "inner"))
        .entry(Item::file("dir-then-file", "file"))
        .entry(Item::file("file-then-dir", "file"))
        .entry(Item::file("file-then-dir/x", "inner"))
        .build();
    let error = layer.apply(&tar).unwrap_err();
    assert!(error.chain().contains("file-then-dir/x"), "{}", error.chain());
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::file("dir-then-file/x/y", "inner"))
        .entry(Item::file("dir-then-file", "file"))
        .entry(Item::file("file-then-dir", "file"))
        .entry(Item::dir("file-then-dir"))
        .entry(Item::file("file-then-dir/x", "inner"))
        .entry(Item::dir("kept").mode(0o700).xattr("user.old", "1"))
        .entry(Item::file("kept/f", "inside"))
        .entry(Item::dir("kept").mode(0o711))
        .entry(Item::symlink("link", "kept"))
        .entry(Item::dir("link"))
        .entry(Item::file("link/g", "not in kept"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read("dir-then-file"), "file");
    assert_eq!(layer.read("file-then-dir/x"), "inner");
    assert_eq!(layer.read("kept/f"), "inside");
    assert_eq!(meta(&layer, "kept").mode() & 0o7777, 0o711);
    assert_eq!(layer.xattr("kept", "user.old").unwrap(), b"1");
    assert!(!layer.at("kept/g").exists() && layer.at("link/g").exists());
}

#[test]
fn times_of_directories_are_set_last() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::dir("./").mtime(11))
        .entry(Item::dir("d").mtime(22))
        .entry(Item::dir("d/e").mtime(33))
        .entry(Item::file("d/e/f", "x"))
        .entry(Item::dir("gone").mtime(44))
        .entry(Item::symlink("gone", "d"))
        .entry(Item::file("d/g", "x"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(
        (
            meta(&layer, "d").mtime(),
            meta(&layer, "d/e").mtime(),
            meta(&layer, "").mtime()
        ),
        (22, 33, 11)
    );
    assert_ne!(
        meta(&layer, "gone").mtime(),
        44,
        "not on what took a directory's place"
    );
}

#[test]
fn the_root_entry_counts_only_where_it_should() {
    for (name, form, counts) in [
        ("./", OVERLAY, false),
        (".", OVERLAY, false),
        ("a/..", OVERLAY, false),
        ("/", OVERLAY, true),
        ("..", OVERLAY, true),
        ("./", WhiteoutFormat::Apply, true),
        ("/", WhiteoutFormat::Apply, true),
    ] {
        let layer = Layer::new(form);
        layer
            .apply(
                &TarBuilder::new()
                    .entry(Item::dir(name).mode(0o711).mtime(77))
                    .build(),
            )
            .unwrap();
        let root = meta(&layer, "");
        assert_eq!(root.mode() & 0o7777 == 0o711, counts, "{name} {form:?}");
        assert_eq!(root.mtime() == 77, counts, "{name} {form:?}");
    }
    let error = Layer::new(WhiteoutFormat::Apply)
        .apply(&TarBuilder::new().entry(Item::file("/", "x")).build())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArchive);
}

#[test]
fn hard_links_apply_their_header_to_the_shared_file() {
    if !root_or_skip() {
        return;
    }
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file("a", "x").owner(1000, 1000).mode(0o600).mtime(1))
        .entry(Item::hard_link("b", "/../a").owner(7, 8).mode(0o4755).mtime(9))
        .entry(Item::symlink("s", "target").mtime(3))
        .entry(Item::hard_link("t", "s").mtime(4).mode(0o777))
        .entry(Item::hard_link("a", "a").mtime(10).owner(7, 8).mode(0o4755))
        .build();
    layer.apply(&tar).unwrap();
    let a = meta(&layer, "a");
    assert_eq!(
        (a.uid(), a.gid(), a.mode() & 0o7777, a.mtime(), a.nlink()),
        (7, 8, 0o4755, 10, 2)
    );
    let s = meta(&layer, "s");
    assert_eq!((s.mtime(), s.nlink(), s.is_symlink()), (4, 2, true));
    for (link, reason) in [
        ("missing", "no such file or directory"),
        ("no/such/dir", "no such file or directory"),
        ("d", "directory"),
    ] {
        let tar = TarBuilder::new()
            .entry(Item::dir("d"))
            .entry(Item::hard_link("l", link))
            .build();
        let error = Layer::new(OVERLAY).apply(&tar).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
        assert!(error.chain().contains(reason), "{}", error.chain());
    }
}

#[test]
fn devices_are_left_out_in_a_user_namespace() {
    let mut layer = Layer::new(OVERLAY);
    layer.in_user_namespace = true;
    let tar = TarBuilder::new()
        .entry(Item::file("n", "was here"))
        .entry(Item::new(b'3', "n").device(1, 3))
        .entry(Item::new(b'4', "dev/sda").device(8, 0).owner(4_000_000_000, 0))
        .build();
    layer.apply(&tar).unwrap();
    assert!(layer.names().is_empty(), "{:?}", layer.names());
}

#[test]
fn some_attributes_never_come_from_a_layer() {
    if !root_or_skip() {
        return;
    }
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(
            Item::dir("d")
                .xattr("security.selinux", "label")
                .xattr("trusted.overlay.opaque", "y")
                .xattr("trusted.overlay.redirect", "/etc")
                .xattr("user.overlay.opaque", "y")
                .xattr("user.fuseoverlayfs.opaque", "y")
                .xattr("no.such.namespace", "ignored")
                .pax("LIBARCHIVE.xattr.user.z", "ignored")
                .xattr("user.kept", "yes")
                .xattr("trusted.kept", "yes"),
        )
        .build();
    layer.apply(&tar).unwrap();
    let dir = crate::sys::at::open_dir(&layer.root()).unwrap();
    let mut names = crate::sys::xattr::list_at(std::os::fd::AsFd::as_fd(&dir), b"d").unwrap();
    names.sort();
    assert_eq!(names, ["trusted.kept", "user.kept"]);
    let tar = TarBuilder::new()
        .entry(Item::symlink("s", "x").xattr("user.a", "b"))
        .build();
    let error = Layer::new(OVERLAY).apply(&tar).unwrap_err();
    assert!(error.chain().contains("user.a"), "{}", error.chain());
    let mut lenient = Layer::new(OVERLAY);
    lenient.in_user_namespace = true;
    lenient.apply(&tar).unwrap();
}

#[test]
fn unknown_types_are_refused_by_name() {
    for kind in [b'V', b'D', b'M', b'8', b'z', 0xff] {
        let error = Layer::new(OVERLAY)
            .apply(&TarBuilder::new().entry(Item::new(kind, "n")).build())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
        assert!(error.chain().contains("type"), "{}", error.chain());
    }
}

#[test]
fn sparse_files_are_expanded_with_holes() {
    let layer = Layer::new(OVERLAY);
    let size: u64 = 64 << 20;
    let tar = TarBuilder::new()
        .entry(
            Item::file("x", "abcde")
                .pax("GNU.sparse.name", "dir/real")
                .pax("GNU.sparse.realsize", size.to_string())
                .pax("GNU.sparse.numblocks", "3")
                .pax("GNU.sparse.map", format!("2,3,1000000,2,{size},0")),
        )
        .entry(Item::file("next", "y"))
        .build();
    let applied = layer.apply(&tar).unwrap();
    let content = std::fs::read(layer.at("dir/real")).unwrap();
    assert_eq!(content.len() as u64, size);
    assert_eq!(
        (&content[..6], &content[999_999..1_000_003]),
        (&b"\0\0abc\0"[..], &b"\0de\0"[..])
    );
    assert!(content.iter().filter(|byte| **byte != 0).count() == 5);
    assert!(meta(&layer, "dir/real").blocks() < 64);
    assert_eq!(
        layer.file_lines(),
        [("next".into(), 1)],
        "the payload is in the tar-split data itself"
    );
    assert_eq!(applied.content_size, size + 1);
}
