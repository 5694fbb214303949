//! Streams of complete trees.

use rustix::fs::FileType;

use super::*;
use crate::archive::diff::changes::{Change, ChangeKind};
use crate::archive::tests::out_support::*;

fn tar_of(tree: &Tree, maps: &IdMappings) -> Vec<u8> {
    let tar = tree_stream(&tree.open(), maps);
    assert!(tar.ends_with(&[0; 1024]));
    tar
}

fn sample() -> Tree {
    let tree = Tree::new();
    tree.file("a/x", "x")
        .file("a-b", "")
        .file("a.b", "content")
        .dir("empty")
        .mode("empty", 0o3755);
    tree.hard_link("z", "a/x")
        .hard_link("a/y", "a/x")
        .symlink("link", "a/x")
        .hard_link("link2", "link");
    tree.node("fifo", FileType::Fifo, (0, 0))
        .node("null", FileType::CharacterDevice, (1, 3));
    tree.node("disk", FileType::BlockDevice, (259, 66_000))
        .node("zero", FileType::CharacterDevice, (0, 0));
    tree.file(
        &format!("{}/{}/{}", "d".repeat(120), "e".repeat(130), "f".repeat(140)),
        "deep",
    );
    tree.file("\u{e4}/\u{fc}", "umlaut")
        .symlink("far", &"t".repeat(300));
    tree.file("big", &"0123456789".repeat(60_000));
    tree.xattr("big", "user.one", b"1")
        .xattr("big", "user.two", b"a\nb\0=");
    std::fs::write(tree.path().join(bytes(b"raw\xff")), "r").unwrap();
    std::fs::write(tree.path().join(bytes(b"new\nline")), "n").unwrap();
    tree.owner("a.b", 3_000_000, 77)
        .mode("a.b", 0o4711)
        .settle()
        .mtime("a-b", -5, 0);
    tree
}

#[test]
fn entries_come_in_order_and_other_programs_unpack_them() {
    if !root_or_skip() {
        return;
    }
    let tree = sample();
    let tar = tar_of(&tree, &IdMappings::default());
    let names = names(&tar);
    let start = ["a/", "a/x", "a/y", "a-b", "a.b", "big"];
    assert_eq!(names[..6], start);
    let entries: BTreeMap<String, String> = entries(&tar).into_iter().collect();
    assert_eq!(entries["z"], "1 644 0:0 0 -> a/x");
    assert_eq!(entries["link2"], "1 777 0:0 0 -> link");
    assert_eq!(entries["null"], "3 600 0:0 0");
    assert_eq!(entries["empty/"], "5 3755 0:0 0");
    assert_eq!(entries["big"], "0 644 0:0 600000 user.one=1 user.two=a\nb\0=");

    // Another program's unpacking, and ours.
    let (theirs, file) = (Tree::new(), Tree::new());
    std::fs::write(file.at("t"), &tar).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"].map(arg);
    let (input, out) = (file.at("t"), theirs.path());
    run(
        "tar",
        &[&options[..], &[arg(&input), arg("-C"), arg(out)]].concat(),
    );
    let expected = listing(tree.path());
    assert_eq!(listing(theirs.path()), expected);
    let ours = Layer::new(WhiteoutFormat::Apply);
    ours.apply(&tar).unwrap();
    assert_eq!(ours.listing(), expected);
}

#[test]
fn a_python_program_agrees() {
    if !root_or_skip() || !have("python3") {
        return;
    }
    let tree = sample();
    let file = Tree::new();
    std::fs::write(file.at("t"), tar_of(&tree, &IdMappings::default())).unwrap();
    let script = "import sys,tarfile\nfor m in tarfile.open(sys.argv[1]):\n \
                  print(ascii(m.name), m.type.decode(), oct(m.mode), m.uid, m.gid, m.size, m.mtime, \
                  m.linkname[:5], m.devmajor, m.devminor, sorted(k for k in m.pax_headers if 'xattr' in k))";
    let text = String::from_utf8(run("python3", &[arg("-c"), arg(script), arg(&file.at("t"))])).unwrap();
    for line in [
        "'a.b' 0 0o4711 3000000 77 7 1500000000  0 0 []",
        "'a-b' 0 0o644 0 0 0 -5",
        "'z' 1 0o644 0 0 0 1500000000 a/x 0 0 []",
        "'disk' 4 0o600 0 0 0 1500000000  259 66000 []",
        "'raw\\udcff' 0 0o644 0 0 1 1500000000",
        "'far' 2 0o777 0 0 0 1500000000 ttttt 0 0 []",
        "'big' 0 0o644 0 0 600000 1500000000  0 0 ['SCHILY.xattr.user.one', 'SCHILY.xattr.user.two']",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(text.lines().count(), listing(tree.path()).len());
}

#[test]
fn only_some_attributes_belong_to_a_layer() {
    if !root_or_skip() {
        return;
    }
    let tree = Tree::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for path in ["d", "f"] {
        if path == "d" {
            tree.dir(path)
        } else {
            tree.file(path, "")
        };
        for name in [
            "user.a",
            "user.overlay.opaque",
            "user.containers.override_stat",
            "user.fuseoverlayfs.origin",
            "trusted.x",
            "user.empty",
        ] {
            tree.xattr(path, name, if name == "user.empty" { b"" } else { b"v" });
        }
        tree.xattr(path, "user.with=sign", b"v");
    }
    tree.xattr("f", "security.capability", &capability);
    let entries = entries(&tar_of(&tree, &IdMappings::default()));
    assert_eq!(
        entries[0],
        ("d/".to_owned(), "5 755 0:0 0 user.a=v user.empty=".to_owned())
    );
    let capability = String::from_utf8_lossy(&capability);
    let text = format!("0 644 0:0 0 security.capability={capability} user.a=v user.empty=");
    assert_eq!(entries[1], ("f".to_owned(), text));
}

#[test]
fn an_empty_tree_is_two_blocks() {
    assert_eq!(tar_of(&Tree::new(), &IdMappings::default()), [0; 1024]);
}

#[test]
fn a_list_of_changes_becomes_entries_and_marks_in_order() {
    let tree = Tree::new();
    tree.file("a/x", "1").file("a-b", "2").settle();
    let change = |path: &str, kind| Change {
        path: path.into(),
        kind,
    };
    let changes = [
        change("/a/x", ChangeKind::Modify),
        change("/a-b", ChangeKind::Add),
        change("/a/gone", ChangeKind::Delete),
        change("/old", ChangeKind::Delete),
        change("/a", ChangeKind::Modify),
        change("/vanished", ChangeKind::Add),
        change("/vanished/too", ChangeKind::Add),
        change("/", ChangeKind::Modify),
    ];
    let tar = changes_stream(&tree.open(), &changes);
    assert_eq!(names(&tar), ["a/", "a-b", "a/.wh.gone", "a/x", ".wh.old"]);
    let mark = entries(&tar)
        .into_iter()
        .find(|(name, _)| name == ".wh.old")
        .unwrap();
    assert_eq!(mark.1, "0 0 0:0 0");
    let at = tar.windows(7).position(|part| part == b".wh.old").unwrap();
    assert_eq!(&tar[at + 136..at + 147], b"00000000000");
}
