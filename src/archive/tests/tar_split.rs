//! What the tar-split data holds, above all where the tree cannot give a payload back. (Every test that applies an archive
//! checks the replay; these are the cases made for it.)

use super::*;
use crate::test_util::{TarBuilder, TarEntry as Item};

#[test]
fn an_ordinary_archive_is_recorded_by_reference() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::dir("d/"))
        .entry(Item::file("./d//hello", "hello\n"))
        .entry(Item::file(b"caf\xe9", "x"))
        .entry(Item::dir("e").size_field("00000010000"))
        .entry(Item::new(b'g', "global").content("8 a=bcd\n"))
        .entry(Item::symlink("l", "x"))
        .build();
    layer.apply(&tar).unwrap();
    let lines = layer.lines();
    assert!(matches!(&lines[0], Entry::Segment(data) if data.len() == 512));
    assert_eq!(
        lines[1],
        Entry::File {
            name: b"d/".into(),
            size: 0,
            crc: [0; 8]
        }
    );
    let crc = 0x614c_3eee_e2d8_1000_u64.to_be_bytes();
    assert_eq!(
        lines[3],
        Entry::File {
            name: b"./d//hello".into(),
            size: 6,
            crc
        }
    );
    assert!(matches!(&lines[5], Entry::File { name, size: 1, .. } if name == b"caf\xe9"));
    let names: Vec<_> = layer.file_lines().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["d/", "./d//hello", "caf\u{fffd}", "e", "global", "l"]);
    // Padding and end blocks are the last segment.
    assert!(matches!(lines.last(), Some(Entry::Segment(data)) if data.len() == 1024));
}

#[test]
fn repeated_names_come_back_in_full() {
    let big = "big content ".repeat(100_000);
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::file("a", "first"))
        .entry(Item::file("keep", "kept"))
        .entry(Item::file("./a", &big))
        .entry(Item::file("a/", "third"))
        .entry(Item::dir("d"))
        .entry(Item::dir("d/"))
        .entry(Item::file("tree/x/f", "in a tree"))
        .entry(Item::hard_link("tree/x/h", "tree/x/f"))
        .entry(Item::symlink("tree", "elsewhere"))
        .entry(Item::new(b'g', "global").content("8 a=bcd\n"))
        .entry(Item::new(b'g', "global").content("8 a=xyz\n"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read("a"), "third");
    assert_eq!(
        layer
            .file_lines()
            .into_iter()
            .filter(|(_, size)| *size > 0)
            .collect::<Vec<_>>(),
        [("keep".into(), 4)]
    );
}

#[test]
fn two_names_for_one_place_come_back_too() {
    let layer = Layer::new(WhiteoutFormat::Apply);
    let tar = TarBuilder::new()
        .entry(Item::dir("real"))
        .entry(Item::symlink("link", "/real"))
        .entry(Item::file("real/f", "first"))
        .entry(Item::file("link/f", "second"))
        .entry(Item::file("link/g", "third"))
        .entry(Item::file("real/g", "fourth"))
        .entry(Item::file("link/h", "fifth"))
        // Names through the link mean nothing after this.
        .entry(Item::dir("link"))
        .entry(Item::file("link/h", "sixth"))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.read("real/f"), "second");
    assert_eq!(layer.read("real/g"), "fourth");
    assert_eq!(layer.read("real/h"), "fifth");
    assert_eq!(layer.read("link/h"), "sixth");
    let layer = Layer::new(WhiteoutFormat::Apply);
    std::fs::create_dir_all(layer.at("usr/lib")).unwrap();
    std::os::unix::fs::symlink("usr/lib", layer.at("lib")).unwrap();
    let tar = TarBuilder::new()
        .entry(Item::file("lib/f", "in place of a link below"))
        .entry(Item::file(".wh.lib", ""))
        .build();
    layer.apply(&tar).unwrap();
    assert_eq!(layer.names(), ["lib", "lib/f", "usr", "usr/lib"]);
}

#[test]
fn payloads_that_are_not_on_disk_are_in_the_tar_split_data() {
    if !root_or_skip() {
        return;
    }
    let mut layer = Layer::new(OVERLAY);
    layer.in_user_namespace = true;
    let tar = TarBuilder::new()
        .entry(Item::file(".wh.a", "whiteout with content"))
        .entry(Item::file("d/.wh..wh..opq", "marker with content"))
        .entry(Item::file("../clamped", "outside for others"))
        .entry(Item::file("./", "the root as a file"))
        .entry(
            Item::new(b'S', "gnu-sparse")
                .gnu()
                .content("abc")
                .patch(386, "00000000000\x0000000000003")
                .patch(483, "00000000003"),
        )
        .build();
    layer.in_user_namespace = false;
    layer.apply(&tar).unwrap();
    assert!(
        layer.file_lines().iter().all(|(_, size)| *size == 0),
        "{:?}",
        layer.file_lines()
    );
}

#[test]
fn odd_endings_come_back() {
    let whole = TarBuilder::new().entry(Item::file("a", "12345")).unfinished();
    let endings = [
        Vec::new(),
        vec![0; 512],
        vec![0; 10240],
        [vec![0; 1024], b"junk after the end".to_vec()].concat(),
        [vec![0; 1024], whole.clone(), vec![7; 700_000]].concat(),
    ];
    for ending in endings {
        Layer::new(WhiteoutFormat::Apply)
            .apply(&[&whole[..], &ending].concat())
            .unwrap();
    }
    for cut in 0..507 {
        Layer::new(WhiteoutFormat::Apply)
            .apply(&whole[..whole.len() - cut])
            .unwrap();
    }
    for zeros in [0, 512, 1024, 10240] {
        let layer = Layer::new(WhiteoutFormat::Apply);
        layer.apply(&vec![0; zeros]).unwrap();
        assert_eq!(layer.lines().is_empty(), zeros == 0);
    }
}
