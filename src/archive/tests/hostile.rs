//! Archives that mean harm, and archives that are damaged.

use super::*;
use crate::error::ErrorKind;
use crate::test_util::{TarBuilder, TarEntry as Item};
use proptest::prelude::*;

#[test]
fn names_stay_inside() {
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new()
        .entry(Item::file("../evil", "1"))
        .entry(Item::file("a/../../../evil2", "2"))
        .entry(Item::file("/abs", "3"))
        .entry(Item::file("//tmp/./x/../y", "4"))
        .entry(Item::symlink("esc", ".."))
        .entry(Item::file("esc/sentinel", "inside"))
        .entry(Item::symlink("abs-link", "/"))
        .entry(Item::file("abs-link/z", "5"))
        .entry(Item::symlink("chain", "esc/../esc/.."))
        .entry(Item::file("chain/w", "6"))
        .entry(Item::symlink("final", "../sentinel"))
        .entry(Item::file("final", "replaced, not followed"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(
        layer.names(),
        [
            "abs", "abs-link", "chain", "esc", "evil", "evil2", "final", "sentinel", "tmp", "tmp/y", "w", "z"
        ]
    );
    assert_eq!(layer.read("sentinel"), "inside");
}

#[test]
fn links_lead_nowhere_outside() {
    for target in ["../sentinel", "/../sentinel", "../../sentinel", "esc/sentinel"] {
        let layer = Layer::new(OVERLAY);
        let tar = TarBuilder::new()
            .entry(Item::symlink("esc", ".."))
            .entry(Item::hard_link("h", target))
            .build();
        let error = layer.apply(&tar).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{target}");
        assert!(
            error.chain().contains("no such file or directory"),
            "{}",
            error.chain()
        );
    }
    // A hard link to a link that leads outside is the link, and metadata goes to the link.
    let layer = Layer::new(OVERLAY);
    let before = std::fs::metadata(layer.tmp.path().join("sentinel")).unwrap();
    let tar = TarBuilder::new()
        .entry(Item::symlink("out", "../sentinel"))
        .entry(Item::hard_link("h", "out").mode(0o777).mtime(5))
        .build();
    layer.apply(&tar).unwrap();
    let after = std::fs::metadata(layer.tmp.path().join("sentinel")).unwrap();
    assert_eq!(
        (before.mode(), before.mtime(), before.nlink()),
        (after.mode(), after.mtime(), after.nlink())
    );
    assert!(std::fs::symlink_metadata(layer.at("h")).unwrap().is_symlink());
    // A dangling parent is no way out: it is made inside the root, because a layer below may have it.
    let tar = TarBuilder::new()
        .entry(Item::symlink("x", "/no/where"))
        .entry(Item::file("x/f", ""))
        .build();
    let layer = Layer::new(OVERLAY);
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["no", "no/where", "no/where/f", "x"]);
    let tar = TarBuilder::new()
        .entry(Item::symlink("x", "x"))
        .entry(Item::file("x/f", ""))
        .build();
    let error = Layer::new(OVERLAY).apply(&tar).unwrap_err();
    assert!(error.chain().contains("x/f"), "{}", error.chain());
}

#[test]
fn a_link_put_in_a_cached_directorys_place_is_not_gone_through() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::dir("d"))
        .entry(Item::file("d/1", "x"))
        .entry(Item::symlink("d", "../"))
        .entry(Item::file("d/2", "x"))
        .entry(Item::dir("d"))
        .entry(Item::file("d/3", "x"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["2", "d", "d/3"]);
}

#[test]
fn odd_bytes_in_names() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::file("new\nline", "a"))
        .entry(Item::file(b"\xff\xfe/\x80", "b"))
        .entry(Item::file("tab\t\"quote\" \\", "c"))
        .entry(Item::file("cut\0here", "d"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read("new\nline"), "a");
    assert_eq!(layer.read("cut"), "d");
    let sparse = Item::file("x", "abc")
        .pax("GNU.sparse.name", "a\0b")
        .pax("GNU.sparse.size", "3")
        .pax("GNU.sparse.numblocks", "1")
        .pax("GNU.sparse.map", "0,3");
    let error = layer.apply(&TarBuilder::new().entry(sparse).build()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArchive);
}

/// The sizes of sparse files cost nothing to declare: their sum may be more than 64 bits hold.
#[test]
fn sizes_of_sparse_files_add_up_without_overflow() {
    let mut layer = Layer::new(WhiteoutFormat::Apply);
    // A file system that takes files of any size.
    if std::path::Path::new("/dev/shm").is_dir() {
        layer.move_to(tempfile::tempdir_in("/dev/shm").unwrap());
    }
    let largest = i64::MAX.to_string();
    let sparse = |name: &str| {
        Item::file(name, "abc")
            .pax("GNU.sparse.size", &largest)
            .pax("GNU.sparse.numblocks", "1")
            .pax("GNU.sparse.map", "0,3")
    };
    let tar = TarBuilder::new()
        .entry(sparse("a"))
        .entry(sparse("b"))
        .entry(sparse("c"))
        .build();
    match layer.apply(&tar) {
        Ok(_applied) => assert_eq!(std::fs::metadata(layer.at("c")).unwrap().len(), i64::MAX as u64),
        // Files of that size are not for every file system.
        Err(error) => assert!(
            error.chain().contains("making a sparse file"),
            "{}",
            error.chain()
        ),
    }
}

#[test]
fn too_long_and_too_deep_names_are_named_shortly() {
    for name in ["d/".repeat(10_000) + "f", "x".repeat(256), "y/".repeat(2049)] {
        let error = Layer::new(WhiteoutFormat::Apply)
            .apply(&TarBuilder::new().entry(Item::file(&name, "")).build())
            .unwrap_err();
        assert_eq!(
            error.io_kind(),
            Some(std::io::ErrorKind::InvalidFilename),
            "{}",
            error.chain()
        );
        assert!(
            error.chain().len() < 400 && error.chain().contains("unpacking"),
            "{}",
            error.chain()
        );
    }
    // What a path can just name works, and so does replacing it.
    let deep = "d/".repeat(2000) + "f";
    let tar = TarBuilder::new()
        .entry(Item::file(&deep, "deep"))
        .entry(Item::file("d", "flat"))
        .build();
    let layer = Layer::new(WhiteoutFormat::Apply);
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read("d"), "flat");
}

#[test]
fn wide_numbers_are_errors_and_not_other_owners() {
    for (uid, gid) in [(1 << 32, 0), (0, 1 << 40)] {
        let error = Layer::new(WhiteoutFormat::Apply)
            .apply(
                &TarBuilder::new()
                    .entry(Item::file("f", "").owner(uid, gid))
                    .build(),
            )
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
    }
    let error = Layer::new(WhiteoutFormat::Apply).apply(
        &TarBuilder::new()
            .entry(Item::file("f", "").pax("mtime", "9223372036854775807"))
            .build(),
    );
    drop(error);
}

/// A small archive with some of everything.
fn sample() -> Vec<u8> {
    TarBuilder::new()
        .entry(Item::dir("d").mode(0o700))
        .entry(
            Item::file("d/f", "content")
                .xattr("user.x", "y")
                .pax("mtime", "1.5"),
        )
        .entry(Item::symlink("l", "d"))
        .entry(Item::file("l/g", "through a link"))
        .entry(Item::hard_link("h", "d/f"))
        .entry(Item::file("x".repeat(120), "long name"))
        .entry(Item::file("d/.wh.gone", ""))
        .entry(Item::file("d/f", "again"))
        .build()
}

#[test]
fn truncation_anywhere_is_an_error_or_a_clean_end() {
    let whole = sample();
    let full = Layer::new(WhiteoutFormat::Apply);
    full.apply(&whole).unwrap();
    for cut in 0..whole.len() {
        // Every byte in the first headers, then every block border and its neighbours.
        if cut > 3000 && !matches!(cut % 512, 0 | 1 | 511) {
            continue;
        }
        let layer = Layer::new(WhiteoutFormat::Apply);
        match layer.apply(&whole[..cut]) {
            Ok(applied) => assert_eq!(applied.diff_size, cut as u64),
            Err(error) => assert_eq!(
                error.kind(),
                ErrorKind::InvalidArchive,
                "{cut}: {}",
                error.chain()
            ),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Bytes changed anywhere, checksums made good again so that the changes get further.
    #[test]
    fn mutations_never_panic_and_never_leave_the_root(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        fix in any::<bool>(),
        overlay in any::<bool>(),
    ) {
        let mut tar = sample();
        for (index, value) in changes {
            let at = index.index(tar.len());
            tar[at] = value;
            if fix {
                let block = at / 512 * 512;
                if let Some(header) = tar.get_mut(block..block + 512)
                    && &header[257..262] == b"ustar"
                {
                    header[148..156].fill(b' ');
                    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let layer = Layer::new(if overlay { OVERLAY } else { WhiteoutFormat::Apply });
        // The helper checks the replay and what lies outside.
        drop(layer.apply(&tar));
    }

    /// Sequences of entries over few names, so that they collide in every way.
    #[test]
    fn colliding_entries_replay_exactly(
        steps in proptest::collection::vec((0usize..8, 0usize..9, 0usize..9), 1..25),
        form in 0usize..3,
    ) {
        let names = ["a", "b", "a/b", "b/a", "a/b/c", "../a", "l", "l/a", "a/"];
        let mut builder = TarBuilder::new();
        for (index, (kind, name, other)) in steps.into_iter().enumerate() {
            let (name, other) = (names[name], names[other]);
            builder = builder.entry(match kind {
                0 | 1 => Item::file(name, format!("content {index}")),
                2 => Item::dir(name),
                3 => Item::symlink(name, other),
                4 => Item::hard_link(name, other),
                5 => {
                    let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
                    Item::file(format!("{parent}/.wh.{base}x"), "whiteout")
                }
                6 => {
                    let trimmed = name.trim_end_matches('/');
                    let (parent, base) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
                    Item::file(format!("{parent}/.wh.{base}"), "whiteout")
                }
                _ => Item::file(format!("{name}/.wh..wh..opq"), "marker"),
            });
        }
        let tar = builder.build();
        let layer = Layer::new([OVERLAY, WhiteoutFormat::Apply, WhiteoutFormat::Verbatim][form]);
        drop(layer.apply(&tar));
    }
}
