//! Comparing complete trees.

use std::os::fd::AsFd as _;

use proptest::prelude::*;
use rustix::fs::FileType;

use super::*;
use crate::archive::diff::changes::{Change, ChangeKind, Counted, changes_size};
use crate::archive::tests::out_support::*;
use crate::idmap::IdMap;

fn compare(new: &Tree, old: &Tree) -> Vec<Change> {
    let none = IdMappings::default();
    compared((&new.open(), &none), Some((&old.open(), &none)))
}

#[test]
fn a_change_is_written_as_others_do() {
    let change = Change {
        path: "/a b".into(),
        kind: ChangeKind::Add,
    };
    let json = serde_json::to_string(&change).unwrap();
    assert_eq!(json, r#"{"Path":"/a b","Kind":1}"#);
    assert_eq!(serde_json::from_str::<Change>(&json).unwrap(), change);
    assert!(serde_json::from_str::<Change>(r#"{"Path":"/a","Kind":3}"#).is_err());
    let all = [ChangeKind::Modify, ChangeKind::Add, ChangeKind::Delete];
    let texts = all.map(|kind| {
        Change {
            path: "/x".into(),
            kind,
        }
        .to_string()
    });
    assert_eq!(texts, ["C /x", "A /x", "D /x"]);
    let kinds = all.map(|kind| serde_json::to_string(&kind).unwrap());
    assert_eq!(kinds, ["0", "1", "2"]);
    let odd = Change {
        path: PathBuf::from(bytes(b"/\xff")),
        kind: ChangeKind::Add,
    };
    assert_eq!(
        serde_json::to_string(&odd).unwrap(),
        "{\"Path\":\"/\u{fffd}\",\"Kind\":1}"
    );
}

#[test]
fn every_difference_counts_and_nothing_else_does() {
    if !root_or_skip() {
        return;
    }
    type Make = fn(&Tree);
    let cases: [(&str, Make, bool); 17] = [
        ("nothing", |_| {}, false),
        ("mode", |new| new.mode("d/f", 0o600).done(), true),
        ("set-ID bit", |new| new.mode("d/f", 0o4644).done(), true),
        ("user", |new| new.owner("d/f", 7, 0).done(), true),
        ("group", |new| new.owner("d/f", 0, 7).done(), true),
        ("time", |new| new.mtime("d/f", 1_500_000_001, 0).done(), true),
        (
            "time within the second",
            |new| new.mtime("d/f", 1_500_000_000, 5).done(),
            true,
        ),
        (
            "no time within the second",
            |new| new.mtime("d/f", 1_500_000_000, 0).done(),
            false,
        ),
        (
            "size",
            |new| new.file("d/f", "longer").mtime("d/f", 1_500_000_000, 123).done(),
            true,
        ),
        (
            "content alone",
            |new| new.file("d/f", "fF").mtime("d/f", 1_500_000_000, 123).done(),
            false,
        ),
        ("attribute", |new| new.xattr("d/f", "user.x", b"2").done(), true),
        (
            "new attribute",
            |new| new.xattr("d/f", "user.y", b"").done(),
            true,
        ),
        (
            "capability",
            |new| {
                new.xattr(
                    "d/f",
                    "security.capability",
                    &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                )
                .done();
            },
            true,
        ),
        (
            "trusted attribute",
            |new| new.xattr("d/f", "trusted.x", b"1").done(),
            false,
        ),
        (
            "another name of the file",
            |new| {
                new.hard_link("x", "d/f").done();
                std::fs::remove_file(new.at("x")).unwrap();
            },
            false,
        ),
        (
            "link target",
            |new| {
                std::fs::remove_file(new.at("d/l")).unwrap();
                new.symlink("d/l", "xxx").mtime("d/l", 1_500_000_000, 123).done();
            },
            true,
        ),
        (
            "device number",
            |new| {
                std::fs::remove_file(new.at("d/n")).unwrap();
                new.node("d/n", FileType::CharacterDevice, (1, 5))
                    .mtime("d/n", 1_500_000_000, 123)
                    .done();
            },
            true,
        ),
    ];
    for (what, change, counts) in cases {
        let old = Tree::new();
        old.file("d/f", "ff")
            .xattr("d/f", "user.x", b"1")
            .symlink("d/l", "yyy");
        old.node("d/n", FileType::CharacterDevice, (1, 3)).settle();
        for path in ["d/f", "d/l", "d/n"] {
            old.mtime(path, 1_500_000_000, 123);
        }
        let new = Tree::new();
        copy_into(old.path(), new.path());
        change(&new);
        // The directory changed its time with some of these; it is listed for what is in it only.
        new.mtime("d", 1_500_000_000, 0);
        let changes = shown(&compare(&new, &old));
        if counts {
            assert_eq!(changes.len(), 2, "{what}: {changes:?}");
            assert_eq!(changes[0], "C /d", "{what}");
            assert!(changes[1].starts_with("C /d/"), "{what}: {changes:?}");
        } else {
            assert!(changes.is_empty(), "{what}: {changes:?}");
        }
    }
}

#[test]
fn additions_deletions_and_changes_of_type() {
    let (old, new) = (Tree::new(), Tree::new());
    old.file("a/gone/deep/f", "")
        .file("todir", "")
        .file("tofile/x/y", "")
        .file("same/f", "");
    new.file("a/new/deep/f", "")
        .file("todir/x/y", "")
        .file("tofile", "")
        .file("same/f", "");
    old.settle();
    new.settle();
    new.file("a-b", "").file("a.b", "");
    let expected = [
        "C /a",
        "A /a-b",
        "A /a.b",
        "D /a/gone",
        "A /a/new",
        "A /a/new/deep",
        "A /a/new/deep/f",
        "C /todir",
        "A /todir/x",
        "A /todir/x/y",
        "C /tofile",
    ];
    assert_eq!(shown(&compare(&new, &old)), expected);
    let none = IdMappings::default();
    let all = compared((&new.open(), &none), None);
    assert!(all.iter().all(|change| change.kind == ChangeKind::Add));
    assert_eq!(all.len(), listing(new.path()).len());
    assert!(compare(&new, &new).is_empty());
}

#[test]
fn owners_are_compared_as_the_container_sees_them() {
    if !root_or_skip() {
        return;
    }
    let (old, new) = (Tree::new(), Tree::new());
    for tree in [&old, &new] {
        tree.file("mapped", "").file("foreign", "").settle();
    }
    old.owner("mapped", 1003, 1003).owner("foreign", 9, 9);
    new.owner("mapped", 2003, 2003).owner("foreign", 9, 9);
    let maps = |host| IdMappings {
        uids: vec![IdMap::new(0, host, 10)],
        gids: vec![IdMap::new(0, host, 10)],
    };
    let (old_maps, new_maps) = (maps(1000), maps(2000));
    let compare =
        |new_maps, old_maps| shown(&compared((&new.open(), new_maps), Some((&old.open(), old_maps))));
    assert!(compare(&new_maps, &old_maps).is_empty());
    assert_eq!(compare(&IdMappings::default(), &old_maps), ["C /mapped"]);
}

#[test]
fn sizes_count_each_file_once() {
    let tree = Tree::new();
    tree.file("d/a", "12345")
        .hard_link("d/b", "d/a")
        .file("c", "123")
        .symlink("l", "1234567");
    let none = IdMappings::default();
    let mut changes = compared((&tree.open(), &none), None);
    assert_eq!(
        changes_size(tree.open().as_fd(), &changes, &mut Counted::new()),
        15
    );
    changes.push(Change {
        path: "/missing/x".into(),
        kind: ChangeKind::Add,
    });
    changes.retain(|change| change.path != Path::new("/c"));
    changes.push(Change {
        path: "/c".into(),
        kind: ChangeKind::Delete,
    });
    assert_eq!(
        changes_size(tree.open().as_fd(), &changes, &mut Counted::new()),
        12
    );
}

#[test]
fn a_deep_tree_is_compared_and_written() {
    const DEPTH: usize = 600;
    let make = |leaf: &str| {
        let tree = Tree::new();
        let mut dir = tree.open();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&dir, "deepdeepdeep", rustix::fs::Mode::RWXU).unwrap();
            dir = crate::sys::at::open_dir_at(dir.as_fd(), b"deepdeepdeep").unwrap();
        }
        rustix::fs::symlinkat(leaf, &dir, "leaf").unwrap();
        tree
    };
    let (old, new) = (make("old"), make("new!"));
    let changes = compare(&new, &old);
    // Times of the directories may differ, the leaf does.
    assert_eq!(changes.len(), DEPTH + 1);
    assert_eq!(changes_size(new.open().as_fd(), &changes, &mut Counted::new()), 4);
    let tar = changes_stream(&new.open(), &changes);
    let names = names(&tar);
    assert_eq!(names.len(), DEPTH + 1);
    assert!(names.last().unwrap().ends_with("/deepdeepdeep/leaf"));
    for tree in [old, new] {
        run("rm", &[arg("-rf"), arg(&tree.at("deepdeepdeep"))]);
    }
}

/// One object of a random tree: where, what, and a number that all the rest is made of.
pub(super) type Object = (Vec<u8>, u8, u8);

pub(super) fn objects() -> impl Strategy<Value = Vec<Object>> {
    let path = proptest::collection::vec(0..4u8, 1..4);
    proptest::collection::vec((path, 0..7u8, 0..5u8), 0..14)
}

/// The path of an object, and of the directory that it is in.
pub(super) fn names_of(path: &[u8]) -> (String, String) {
    let parts: Vec<&str> = path
        .iter()
        .map(|part| ["a", "a-b", "a.b", "\u{e4}"][usize::from(*part)])
        .collect();
    (parts.join("/"), parts[..parts.len() - 1].join("/"))
}

pub(super) fn build(objects: &[Object]) -> Tree {
    let tree = Tree::new();
    for (path, kind, seed) in objects {
        let (path, parent) = names_of(path);
        // What is in the way stays: the tree is what could be made of the list.
        if std::fs::create_dir_all(tree.at(&parent)).is_err() || tree.at(&path).symlink_metadata().is_ok() {
            continue;
        }
        let first = listing(tree.path())
            .into_iter()
            .find(|(_, text)| text.starts_with("100"));
        match kind {
            0 => tree.symlink(&path, &"t".repeat(usize::from(*seed) + 1)).done(),
            1 | 2 => tree.dir(&path).mode(&path, 0o700 + u32::from(*seed)).done(),
            3 => tree.node(&path, FileType::Fifo, (0, 0)).done(),
            4 if first.is_some() => tree.hard_link(&path, &first.unwrap().0).done(),
            _ => {
                tree.file(&path, &"c".repeat(usize::from(*seed) * 300))
                    .xattr(&path, "user.seed", &[*seed]);
            }
        }
        if tree.at(&path).symlink_metadata().unwrap().nlink() < 2 {
            tree.mtime(&path, 1_000_000_000 + i64::from(*seed), 0);
        }
    }
    for (name, text) in listing(tree.path()) {
        if text.starts_with('4') {
            tree.mtime(&name, 1_000_000_000 + i64::try_from(name.len()).unwrap(), 0);
        }
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn changes_applied_to_the_old_tree_give_the_new_one(old in objects(), new in objects()) {
        let (old, new) = (build(&old), build(&new));
        let changes = compare(&new, &old);
        let tar = changes_stream(&new.open(), &changes);
        let shuffled: Vec<Change> = changes.iter().rev().cloned().collect();
        prop_assert!(changes_stream(&new.open(), &shuffled) == tar, "the order of the list matters");
        let layer = layer_with(old.path());
        layer.apply(&tar).unwrap();
        // Which files are one inode is no part of the comparison.
        let content = |listing: BTreeMap<String, String>| -> BTreeMap<String, String> {
            let cut = |text: String| text.split(" linked to ").next().unwrap_or_default().to_owned();
            listing.into_iter().map(|(name, text)| (name, cut(text))).collect()
        };
        prop_assert_eq!(content(layer.listing()), content(listing(new.path())), "{:?}", shown(&changes));
        // And then there is nothing left to do.
        let none = IdMappings::default();
        let root = crate::sys::at::open_dir(&layer.root()).unwrap();
        let rest = compared((&new.open(), &none), Some((&root, &none)));
        prop_assert!(rest.is_empty(), "{:?}", shown(&rest));
    }
}
