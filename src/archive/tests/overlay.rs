//! Overlay upper directories, made by the kernel and by hand.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, XattrFlags};

use super::*;
use crate::archive::diff::changes::{Change, Counted, UpperChanges, changes_size};
use crate::archive::tests::out_support::*;
use crate::idmap::IdMap;

pub(super) const NS: Namespace = Namespace::Trusted;

pub(super) fn changes_of(upper: &Tree, lowers: &[OwnedFd]) -> Vec<Change> {
    let lowers = |()| lowers.iter().map(|lower| lower.try_clone().unwrap()).collect();
    let mut lists = [usize::MAX, 1].map(|count| {
        let mut search = UpperChanges::new(upper.open().as_fd(), lowers(()), NS).unwrap();
        while search.step(count).unwrap() {}
        search.into_changes()
    });
    assert_eq!(lists[0], lists[1], "in single steps");
    std::mem::take(&mut lists[0])
}

pub(super) fn tar_of(upper: &Tree, lowers: &[OwnedFd], maps: &IdMappings) -> Vec<u8> {
    upper_stream(&upper.open(), lowers, NS, maps)
}

/// A base and a layer on it, as they would lie on disk.
fn lowers() -> (Tree, Tree) {
    let base = Tree::new();
    base.file("keep", "keep")
        .file("modify", "old")
        .file("delete", "x")
        .file("chmod", "x");
    base.file("dir/a", "a").file("dir/b", "b").file("dir/sub/c", "c");
    base.file("replaced/x", "x")
        .file("replaced/y", "y")
        .file("gone/z", "z");
    base.file("attr", "x").xattr("attr", "user.old", b"1");
    base.file("filetodir", "f")
        .file("dirtofile/q", "q")
        .file("moved/f", "f");
    base.file("hidden", "h")
        .file("opaquelow/old", "o")
        .file("lowfile/f", "f")
        .symlink("link", "keep");
    base.node("null", FileType::CharacterDevice, (1, 3))
        .file("untouched/deep/f", "f");
    base.settle();
    let middle = Tree::new();
    middle
        .file("middle", "m")
        .whiteout("hidden")
        .opaque("opaquelow")
        .file("opaquelow/new", "n");
    middle.file("lowfile", "a file now").settle();
    (base, middle)
}

#[test]
fn a_layer_of_the_kernel_is_told_and_moved_whole() {
    if !root_or_skip() {
        return;
    }
    let (base, middle) = lowers();
    let (upper, work, merged, before) = (Tree::new(), Tree::new(), Tree::new(), Tree::new());
    let below = [middle.path(), base.path()];
    let copy = {
        let _mount = Mount::new(&below, None, before.path());
        layer_with(before.path())
    };
    let mount = Mount::new(&below, Some((upper.path(), work.path())), merged.path());
    std::fs::write(merged.at("modify"), "new content").unwrap();
    std::fs::remove_file(merged.at("delete")).unwrap();
    merged
        .mode("chmod", 0o4750)
        .owner("chmod", 12, 34)
        .mode("chmod", 0o4750);
    std::fs::remove_file(merged.at("dir/a")).unwrap();
    merged.file("dir/sub/new", "n");
    std::fs::remove_dir_all(merged.at("replaced")).unwrap();
    merged.file("replaced/x", "another").dir("replaced/inner");
    std::fs::remove_dir_all(merged.at("gone")).unwrap();
    merged.xattr("attr", "user.new", b"2");
    std::fs::remove_file(merged.at("filetodir")).unwrap();
    merged.file("filetodir/f", "f");
    std::fs::remove_dir_all(merged.at("dirtofile")).unwrap();
    merged.file("dirtofile", "d");
    run("mv", &[arg(&merged.at("moved")), arg(&merged.at("moved2"))]);
    std::fs::remove_file(merged.at("lowfile")).unwrap();
    merged.file("lowfile/g", "g");
    std::fs::remove_dir_all(merged.at("opaquelow")).unwrap();
    merged.file("opaquelow/newer", "n");
    merged.file("hidden", "back again");
    merged
        .file("one", "linked")
        .hard_link("two", "one")
        .hard_link("dir/three", "one");
    merged
        .node("fifo", FileType::Fifo, (0, 0))
        .node("block", FileType::BlockDevice, (7, 300));
    merged.symlink("newlink", "/nowhere").dir("newdir/newsub");
    std::fs::write(merged.at("untouched/deep/f"), "touched").unwrap();
    merged.mode("newdir", 0o1777);
    drop(std::os::unix::net::UnixListener::bind(merged.at("socket")).unwrap());
    let expected = to_the_second(listing(merged.path()));
    drop(mount);

    let below: Vec<OwnedFd> = vec![middle.open(), base.open()];
    let changes = changes_of(&upper, &below);
    let listed = [
        "C /attr",
        "A /block",
        "C /chmod",
        "D /delete",
        "C /dir",
        "D /dir/a",
        "C /dir/sub",
        "A /dir/sub/new",
        "A /dir/three",
        "C /dirtofile",
        "A /fifo",
        "C /filetodir",
        "A /filetodir/f",
        "D /gone",
        "A /hidden",
        "C /lowfile",
        "A /lowfile/g",
        "C /modify",
        "D /moved",
        "A /moved2",
        "A /moved2/f",
        "A /newdir",
        "A /newdir/newsub",
        "A /newlink",
        "A /one",
        "C /opaquelow",
        "D /opaquelow/new",
        "A /opaquelow/newer",
        "C /replaced",
        "A /replaced/inner",
        "C /replaced/x",
        "D /replaced/y",
        "A /socket",
        "A /two",
        "C /untouched/deep/f",
    ];
    assert_eq!(shown(&changes), listed);

    let size = changes_size(upper.open().as_fd(), &changes, &mut Counted::new());
    let added = [
        "new content",
        "x",
        "n",
        "another",
        "x",
        "f",
        "d",
        "f",
        "g",
        "n",
        "back again",
        "linked",
        "/nowhere",
        "touched",
    ];
    assert_eq!(size, added.iter().map(|text| text.len() as u64).sum::<u64>());

    let tar = tar_of(&upper, &below, &IdMappings::default());
    let names = names(&tar);
    let marks: Vec<&str> = names
        .iter()
        .map(|name| &**name)
        .filter(|name| name.contains(".wh."))
        .collect();
    let marked = [
        ".wh.delete",
        "dir/.wh.a",
        "filetodir/.wh..wh..opq",
        ".wh.gone",
        "lowfile/.wh..wh..opq",
        ".wh.moved",
        "opaquelow/.wh..wh..opq",
        "replaced/.wh..wh..opq",
    ];
    assert_eq!(marks, marked);
    assert!(!names.contains(&"socket".to_owned()));
    let entries: BTreeMap<String, String> = entries(&tar).into_iter().collect();
    assert_eq!(entries["one"], "1 644 0:0 0 -> dir/three");
    assert_eq!(entries["two"], "1 644 0:0 0 -> dir/three");
    assert_eq!(entries[".wh.gone"], "0 0 0:0 0");
    assert_eq!(entries["chmod"], "0 4750 12:34 1");
    assert_eq!(entries["attr"], "0 644 0:0 1 user.new=2 user.old=1");

    // Other programs can read it; applied to what was there before it gives what is there now.
    let listing_of_tar = {
        let file = upper
            .tmp
            .path()
            .parent()
            .unwrap()
            .join(format!("{}.tar", upper.path().file_name().unwrap().display()));
        std::fs::write(&file, &tar).unwrap();
        let text = run("tar", &[arg("-tf"), arg(&file)]);
        std::fs::remove_file(&file).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(listing_of_tar.lines().collect::<Vec<_>>(), names);
    copy.apply(&tar).unwrap();
    let mut after = to_the_second(copy.listing());
    let mut expected = expected;
    assert!(expected.remove("socket").is_some());
    // Hard links into the lower layers are not among what is compared.
    for listing in [&mut after, &mut expected] {
        listing.retain(|_, text| !text.is_empty());
    }
    pretty_compare(&after, &expected);
}

fn pretty_compare(after: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    let keys: std::collections::BTreeSet<_> = after.keys().chain(expected.keys()).collect();
    let wrong: Vec<_> = keys
        .into_iter()
        .filter(|key| after.get(*key) != expected.get(*key))
        .map(|key| (key, after.get(key), expected.get(key)))
        .collect();
    assert!(wrong.is_empty(), "path, is, should be: {wrong:#?}");
}

/// One directory `d`, opaque in the upper tree; the lowers decide whether that hides anything.
#[test]
fn a_mark_is_written_only_where_it_hides_something() {
    if !root_or_skip() {
        return;
    }
    type Make = fn(&Tree, &Tree);
    let cases: [(&str, Make, bool); 11] = [
        ("nothing below", |_, _| {}, false),
        ("in the topmost", |top, _| top.dir("p/d").done(), true),
        ("in the bottom", |_, bottom| bottom.dir("p/d").done(), true),
        ("a file below", |_, bottom| bottom.file("p/d", "").done(), true),
        (
            "deleted in between",
            |top, bottom| {
                top.whiteout("p/d");
                bottom.dir("p/d");
            },
            false,
        ),
        (
            "parent deleted in between",
            |top, bottom| {
                top.whiteout("p");
                bottom.dir("p/d");
            },
            false,
        ),
        (
            "parent made anew in between",
            |top, bottom| {
                top.opaque("p");
                bottom.dir("p/d");
            },
            false,
        ),
        (
            "made anew below",
            |top, bottom| {
                top.opaque("p/d");
                bottom.dir("p/d");
            },
            true,
        ),
        (
            "parent is a file in between",
            |top, bottom| {
                top.file("p", "");
                bottom.dir("p/d");
            },
            false,
        ),
        (
            "parent is a link in between",
            |top, bottom| {
                {
                    top.dir("q/d").symlink("p", "q");
                    bottom.dir("p/d");
                };
            },
            false,
        ),
        (
            "whiteout only at the bottom",
            |_, bottom| bottom.whiteout("p/d").done(),
            false,
        ),
    ];
    for (what, make, marked) in cases {
        let (upper, top, bottom) = (Tree::new(), Tree::new(), Tree::new());
        upper.opaque("p/d").file("p/d/f", "");
        make(&top, &bottom);
        let below = [top.open(), bottom.open()];
        let tar = tar_of(&upper, &below, &IdMappings::default());
        let mut expected = vec!["p/", "p/d/", "p/d/.wh..wh..opq", "p/d/f"];
        if !marked {
            expected.remove(2);
        }
        assert_eq!(names(&tar), expected, "{what}");
        let changes = shown(&changes_of(&upper, &below));
        let d = if marked { "C /p/d" } else { "A /p/d" };
        assert!(changes.contains(&d.to_owned()), "{what}: {changes:?}");
        assert!(changes.contains(&"A /p/d/f".to_owned()), "{what}: {changes:?}");
    }
    // What is below an opaque directory hides nothing more.
    let (upper, bottom) = (Tree::new(), Tree::new());
    upper.opaque("d").opaque("d/e").file("d/e/f", "");
    bottom.file("d/e/f", "").settle();
    assert_eq!(
        names(&tar_of(&upper, &[bottom.open()], &IdMappings::default())),
        ["d/", "d/.wh..wh..opq", "d/e/", "d/e/f"]
    );
    assert_eq!(
        shown(&changes_of(&upper, &[bottom.open()])),
        ["C /d", "C /d/e", "C /d/e/f"]
    );
    // Marked for the other kind of mount: an ordinary directory, and its attribute stays here.
    let none = IdMappings::default();
    let tar = upper_stream(&upper.open(), &[bottom.open()], Namespace::User, &none);
    assert_eq!(names(&tar), ["d/", "d/e/", "d/e/f"]);
    rustix::fs::lsetxattr(upper.at("d"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let tar = upper_stream(&upper.open(), &[bottom.open()], Namespace::User, &none);
    assert_eq!(entries(&tar)[0], ("d/".to_owned(), "5 755 0:0 0".to_owned()));
    assert_eq!(names(&tar), ["d/", "d/.wh..wh..opq", "d/e/", "d/e/f"]);
}

/// Go gives no result at all here.
#[test]
fn a_directory_over_a_file_is_no_error() {
    if !root_or_skip() {
        return;
    }
    let (upper, top, bottom) = (Tree::new(), Tree::new(), Tree::new());
    upper.file("d/sub/f", "").opaque("e").file("e/sub/f", "");
    top.file("d", "").file("e", "");
    bottom.file("d/sub/f", "").file("e/sub/f", "");
    let below = [top.open(), bottom.open()];
    let changes = shown(&changes_of(&upper, &below));
    assert_eq!(
        changes,
        ["C /d", "A /d/sub", "A /d/sub/f", "C /e", "A /e/sub", "A /e/sub/f"]
    );
    let tar = tar_of(&upper, &below, &IdMappings::default());
    assert_eq!(
        names(&tar),
        [
            "d/",
            "d/sub/",
            "d/sub/f",
            "e/",
            "e/.wh..wh..opq",
            "e/sub/",
            "e/sub/f"
        ]
    );
}

#[test]
fn untouched_parents_appear_only_where_something_was_added_or_deleted() {
    if !root_or_skip() {
        return;
    }
    let (upper, lower) = (Tree::new(), Tree::new());
    for tree in [&upper, &lower] {
        tree.file("a/b/modified", "1").file("c/d/f", "").settle();
    }
    upper.file("a/b/modified", "22").mtime("a/b", 1_500_000_000, 0);
    lower.file("c/d/e", "").file("c/d/g", "");
    upper.whiteout("c/d/e").whiteout("c/d/g");
    for tree in [&upper, &lower] {
        tree.mtime("c/d/f", 1, 0).mtime("c/d", 1, 0).mtime("c", 1, 999);
    }
    // Seconds are enough where one side has no more.
    lower.mtime("c", 1, 0);
    let below = [lower.open()];
    let expected = [
        "C /a/b/modified",
        "C /c",
        "C /c/d",
        "D /c/d/e",
        "C /c/d/f",
        "D /c/d/g",
    ];
    assert_eq!(shown(&changes_of(&upper, &below)), expected);
}

#[test]
fn owners_are_mapped_but_deletions_always_stay() {
    if !root_or_skip() {
        return;
    }
    let (upper, lower) = (Tree::new(), Tree::new());
    lower
        .file("deleted", "")
        .file("opaque/f", "")
        .file("foreign/x", "");
    upper
        .whiteout("deleted")
        .opaque("opaque")
        .owner("opaque", 1001, 1002)
        .file("opaque/g", "");
    upper
        .owner("opaque/g", 1000, 1000)
        .opaque("foreign")
        .owner("foreign", 5, 5)
        .whiteout("known")
        .owner("known", 1003, 1004);
    upper
        .file("stranger", "")
        .owner("stranger", 5, 1000)
        .file(".wh.literal", "")
        .owner(".wh.literal", 5, 5);
    let maps = IdMappings {
        uids: vec![IdMap::new(0, 1000, 10)],
        gids: vec![IdMap::new(0, 1000, 10)],
    };
    let entries = entries(&tar_of(&upper, &[lower.open()], &maps));
    let entries: Vec<(&str, &str)> = entries.iter().map(|(name, text)| (&**name, &**text)).collect();
    let expected = [
        (".wh.literal", "0 644 0:0 0"),
        (".wh.deleted", "0 0 0:0 0"),
        ("foreign/.wh..wh..opq", "0 755 0:0 0"),
        (".wh.known", "0 0 3:4 0"),
        ("opaque/", "5 755 1:2 0"),
        ("opaque/.wh..wh..opq", "0 755 1:2 0"),
        ("opaque/g", "0 644 0:0 0"),
    ];
    assert_eq!(entries, expected);
    // Without maps owners are the host's, those of marks too.
    let plain = tar_of(&upper, &[lower.open()], &IdMappings::default());
    let plain: BTreeMap<String, String> = crate::archive::tests::out_support::entries(&plain)
        .into_iter()
        .collect();
    assert_eq!(plain[".wh.known"], "0 0 1003:1004 0");
    assert_eq!(plain["stranger"], "0 644 5:1000 0");
}

/// The kernel makes one whiteout and links it everywhere.
#[test]
fn whiteouts_that_are_one_inode_are_all_alike() {
    if !root_or_skip() {
        return;
    }
    let upper = Tree::new();
    upper
        .whiteout("a")
        .hard_link("b", "a")
        .dir("d")
        .hard_link("d/c", "a");
    let tar = tar_of(&upper, &[], &IdMappings::default());
    let expected = [
        (".wh.a", "0 0 0:0 0"),
        (".wh.b", "0 0 0:0 0"),
        ("d/", "5 755 0:0 0"),
        ("d/.wh.c", "0 0 0:0 0"),
    ];
    let entries = entries(&tar);
    assert_eq!(
        entries
            .iter()
            .map(|(name, text)| (&**name, &**text))
            .collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn many_and_deep_lowers_need_few_open_files() {
    if !root_or_skip() {
        return;
    }
    const LOWERS: usize = 150;
    let tmp = Tree::new();
    for index in 0..LOWERS {
        tmp.file(&format!("{index}/a/b/c/f{index}"), "");
    }
    let upper = Tree::new();
    for index in 0..LOWERS {
        upper
            .file(&format!("a/b/c/f{index}"), "")
            .dir(&format!("a/b/c/d{index}"));
    }
    upper.dir("a/b/e");
    let below: Vec<OwnedFd> = (0..LOWERS)
        .map(|index| crate::sys::at::open_dir(&tmp.at(&index.to_string())).unwrap())
        .collect();
    let changes = changes_of(&upper, &below);
    let modified = changes
        .iter()
        .filter(|change| change.path.to_string_lossy().contains("/f"))
        .count();
    assert_eq!(modified, LOWERS);
    assert!(
        changes.iter().all(|change| {
            let added = change.path.to_string_lossy().contains("/d") || change.path == Path::new("/a/b/e");
            added == (change.to_string().starts_with('A'))
        }),
        "{:?}",
        shown(&changes)
    );
}
