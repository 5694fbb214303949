//! Putting streams together again that this library or another program unpacked.

use std::io::Cursor;
use std::os::fd::OwnedFd;

use super::*;
use crate::archive::tar_split::format::TarSplitWriter;
use crate::archive::tar_split::replay::Replay;
use crate::archive::tests::out_support::*;
use crate::bridge::run_to_end;
use crate::error::ErrorKind;
use crate::test_util::{TarBuilder, TarEntry as Item};

fn replay(split: &[u8], trees: &[OwnedFd], offset: u64) -> Replay<Cursor<Vec<u8>>> {
    let trees = trees.iter().map(|tree| tree.try_clone().unwrap()).collect();
    Replay::new(Cursor::new(split.to_vec()), trees, offset)
}

fn replayed(split: &[u8], trees: &[OwnedFd]) -> Result<Vec<u8>> {
    produced(|offset| replay(split, trees, offset))
}

/// A tar-split file of segments and files.
fn tar_split(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = TarSplitWriter::new(Vec::new());
    for (name, content) in lines {
        if name.is_empty() {
            writer.segment(content.as_bytes()).unwrap();
        } else {
            let mut crc = Crc::new();
            crc.update(content.as_bytes());
            writer
                .file(name.as_bytes(), content.len() as u64, crc.take())
                .unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn content_is_found_inside_the_tree_only() {
    let tree = Tree::new();
    tree.file("real/f", "inside")
        .file("etc/passwd", "layer's own")
        .symlink("lnk", "/real")
        .symlink("up", "../../..");
    let expected = "<inside><inside><layer's own><inside><inside>";
    let names = [
        "real/f",
        "./real//x/../f",
        "../../etc/passwd",
        "lnk/f",
        "/up/real/f",
    ];
    let contents = ["inside", "inside", "layer's own", "inside", "inside"];
    let mut lines = Vec::new();
    for (name, content) in names.iter().zip(contents) {
        lines.extend([("", "<"), (*name, content), ("", ">")]);
    }
    lines.push(("empty, not even there", ""));
    let out = replayed(&tar_split(&lines), &[tree.open()]).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn the_first_tree_that_has_it_counts() {
    let (own, template) = (Tree::new(), Tree::new());
    own.file("d/f", "own");
    template.file("d/f", "template").file("d/g", "g").file("e/h", "h");
    let trees = [own.open(), template.open()];
    let out = replayed(&tar_split(&[("d/f", "own"), ("d/g", "g"), ("e/h", "h")]), &trees).unwrap();
    assert_eq!(out, b"owngh");
}

#[test]
fn what_is_not_as_recorded_is_named() {
    let content = "c".repeat(300_000);
    type Damage = fn(&Tree);
    let cases: [(&str, Damage); 8] = [
        ("it is missing", |tree| {
            std::fs::remove_file(tree.at("d/f")).unwrap();
        }),
        ("it is missing", |tree| {
            std::fs::remove_dir_all(tree.at("d")).unwrap();
        }),
        ("it is missing", |tree| {
            std::fs::remove_dir_all(tree.at("d")).unwrap();
            tree.file("d", "a file");
        }),
        ("it has 3 bytes, 300000 were recorded", |tree| {
            tree.file("d/f", "ccc").done();
        }),
        ("it has 300001 bytes, 300000 were recorded", |tree| {
            tree.file("d/f", &"c".repeat(300_001)).done();
        }),
        ("file integrity checksum failed for", |tree| {
            tree.file("d/f", &("c".repeat(299_999) + "d")).done();
        }),
        ("it is not a regular file", |tree| {
            std::fs::rename(tree.at("d/f"), tree.at("other")).unwrap();
            tree.symlink("d/f", "../other");
        }),
        ("it is not a regular file", |tree| {
            std::fs::remove_file(tree.at("d/f")).unwrap();
            tree.node("d/f", rustix::fs::FileType::Fifo, (0, 0));
        }),
    ];
    for (what, damage) in cases {
        let tree = Tree::new();
        tree.file("d/f", &content);
        let split = tar_split(&[("", "head"), ("./d/f", &content), ("", "tail")]);
        assert_eq!(replayed(&split, &[tree.open()]).unwrap().len(), 300_008);
        damage(&tree);
        let mut out = Vec::new();
        let error = run_to_end(replay(&split, &[tree.open()], 0), 1 << 20, &mut out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LayerContentModified, "{what}");
        let text = error.chain();
        assert!(text.contains("\"./d/f\"") && text.contains(what), "{text}");
        // Nothing beyond the recorded size, and nothing at all where it is known to be wrong.
        let early = !what.contains("checksum");
        assert_eq!(out.len(), if early { 4 } else { 300_004 }, "{what}");
    }
    let error = replayed(&tar_split(&[("..", "x")]), &[Tree::new().open()]).unwrap_err();
    assert!(error.chain().contains("\"..\""), "{}", error.chain());
    let error = replayed(b"\x1f\x8b\x08junk", &[]).unwrap_err();
    assert!(!error.chain().is_empty());
}

#[test]
fn everything_that_was_applied_comes_back() {
    if !root_or_skip() {
        return;
    }
    let big: String = (0..50_000).map(|number| number.to_string()).collect();
    let tar = [
        Item::dir("./d/"),
        Item::file("./d/f", "content"),
        Item::hard_link("./d/l", "./d/f"),
        Item::file("d/twice", "first"),
        Item::file("./d/twice", "second"),
        Item::symlink("s", "d"),
        Item::file("s/through", "link"),
        Item::file("big", &big).xattr("user.x", "y"),
        Item::file(&b"raw\xff"[..], "raw"),
        Item::file("d/.wh.gone", "whiteout with content"),
        Item::file("n".repeat(200), "long"),
    ];
    for form in [WhiteoutFormat::Apply, OVERLAY, WhiteoutFormat::Verbatim] {
        let tar = tar.iter().cloned().collect::<TarBuilder>().build();
        let tar = [&tar[..], b"after the end"].concat();
        let layer = Layer::new(form);
        layer.apply(&tar).unwrap();
        let split = std::fs::read(layer.split_path()).unwrap();
        let root = crate::sys::at::open_dir(&layer.root()).unwrap();
        assert!(replayed(&split, &[root]).unwrap() == tar, "{form:?}");
    }
}

/// Layers that containers-storage unpacked, with its tar-split files.
#[test]
fn what_containers_storage_applied_comes_back() {
    if !root_or_skip() || !have("containers-storage") {
        return;
    }
    let source = Tree::new();
    source
        .file("d/hello", "hello\n")
        .hard_link("d/again", "d/hello")
        .file("empty", "")
        .symlink("link", "d");
    source
        .file("big", &"0123456789abcdef".repeat(40_000))
        .file("\u{e4}", "umlaut");
    source
        .file(&format!("{}/{}", "x".repeat(150), "y".repeat(150)), "long")
        .dir("dir only");
    source.file("s p a c e <&>", "odd").settle();
    std::fs::write(source.path().join(bytes(b"raw\xff")), "r").unwrap();
    let tmp = Tree::new();
    // The host's configuration may have options that one of the drivers refuses.
    tmp.file("storage.conf", "[storage]\ndriver = \"vfs\"\n");
    let mut config = std::ffi::OsString::from("CONTAINERS_STORAGE_CONF=");
    config.push(tmp.at("storage.conf"));
    for format in ["gnu", "pax", "ustar"] {
        let tar_file = tmp.at(&format!("{format}.tar"));
        let options = [format!("--format={format}")];
        let exclude = if format == "ustar" {
            "--exclude=./xxx*"
        } else {
            "--exclude=nothing"
        };
        let args = [
            arg("-C"),
            arg(source.path()),
            arg(exclude),
            arg(&options[0]),
            arg("-cf"),
            arg(&tar_file),
            arg("."),
        ];
        run("tar", &args);
        let mut tar = std::fs::read(&tar_file).unwrap();
        tar.extend(b"trailing bytes that belong to the layer");
        std::fs::write(&tar_file, &tar).unwrap();
        for driver in ["vfs", "overlay"] {
            let (graph, run_root) = (
                tmp.at(&format!("{driver}-{format}")),
                tmp.at(&format!("run-{driver}-{format}")),
            );
            let store = |command: &str, rest: &[&std::ffi::OsStr]| {
                let all = [
                    arg(command),
                    arg("-g"),
                    arg(&graph),
                    arg("-R"),
                    arg(&run_root),
                    arg("-s"),
                    arg(driver),
                ];
                let out = run(
                    "env",
                    &[&[config.as_os_str(), arg("containers-storage")], &all[..], rest].concat(),
                );
                String::from_utf8(out)
                    .unwrap()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let id = store("create-layer", &[]);
            // The driver leaves its own directory mounted on itself.
            let _mount = (driver == "overlay").then(|| Mount(graph.join(driver)));
            store("applydiff", &[arg("--file"), arg(&tar_file), arg(&id)]);
            let split = graph.join(format!("{driver}-layers/{id}.tar-split.gz"));
            let content = match driver {
                "vfs" => graph.join(format!("vfs/dir/{id}")),
                _ => graph.join(format!("overlay/{id}/diff")),
            };
            let root = || [crate::sys::at::open_dir(&content).unwrap()];
            let split = std::fs::read(split).unwrap();
            assert!(replayed(&split, &root()).unwrap() == tar, "{driver} {format}");
            std::fs::write(content.join("d/hello"), "jello\n").unwrap();
            let error = replayed(&split, &root()).unwrap_err();
            assert!(error.chain().contains("\"./d/hello\""), "{}", error.chain());
        }
    }
}
