//! Layers whose parts agree, however odd they are.

use crate::hostile_blobs::{Member, dir, file, link, member};

/// Layers whose parts agree, however odd they are.
pub(crate) fn odd() -> Vec<(&'static str, Vec<Member>)> {
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(250));
    let too_long = "n".repeat(300);
    vec![
        ("nothing", vec![]),
        (
            "names with ..",
            vec![file("../../up", "1"), dir("d/"), file("d/../../../side", "2")],
        ),
        (
            "absolute names",
            vec![dir("/abs/"), file("/abs/file", "1"), file("//double", "2")],
        ),
        ("long names", vec![file(&long, "1"), link("symlink", "s", &long)]),
        (
            "a name that is too long for a file system",
            vec![file(&too_long, "1")],
        ),
        (
            "odd bytes",
            vec![
                file("new\nline", "1"),
                file("quote\"back\\slash", "2"),
                file("ä/\u{7f}", "3"),
            ],
        ),
        (
            "a root",
            vec![
                Member {
                    mode: 0o700,
                    owner: (5, 6),
                    ..dir("./")
                },
                file("./f", "1"),
            ],
        ),
        ("a root that is a file", vec![file(".", "1")]),
        (
            "links out of the layer",
            vec![
                link("symlink", "out", "../../../../etc"),
                file("out/planted", "1"),
            ],
        ),
        (
            "absolute links",
            vec![link("symlink", "out", "/tmp"), file("out/graphroot-planted", "1")],
        ),
        (
            "a link to itself",
            vec![link("symlink", "loop", "loop"), file("loop/f", "1")],
        ),
        (
            "a hard link out",
            vec![link("hardlink", "passwd", "../../../../../etc/passwd")],
        ),
        ("a hard link to nothing", vec![link("hardlink", "h", "none")]),
        (
            "a hard link to a directory",
            vec![dir("d/"), link("hardlink", "h", "d")],
        ),
        ("a hard link to itself", vec![link("hardlink", "h", "h")]),
        (
            "a hard link to a device",
            vec![
                Member {
                    device: (1, 3),
                    ..member("char", "c")
                },
                link("hardlink", "h", "c"),
            ],
        ),
        (
            "a hard link to a FIFO",
            vec![member("fifo", "p"), link("hardlink", "h", "p")],
        ),
        (
            "a hard link to a link",
            vec![link("symlink", "s", "/etc/passwd"), link("hardlink", "h", "s")],
        ),
        (
            "a hard link through a link",
            vec![link("symlink", "s", "/etc"), link("hardlink", "h", "s/passwd")],
        ),
        ("a file below a file", vec![file("f", "1"), file("f/g", "2")]),
        ("a file below a FIFO", vec![member("fifo", "p"), file("p/g", "2")]),
        (
            "whiteouts",
            vec![
                dir("d/"),
                file("d/.wh.gone", ""),
                file("d/.wh..wh..opq", ""),
                file(".wh.x", ""),
            ],
        ),
        ("whiteouts of nothing", vec![file(".wh.", "")]),
        (
            "whiteouts of the parent",
            vec![dir("d/"), file("d/.wh...", ""), file("d/.wh..", "")],
        ),
        ("whiteouts with content", vec![file(".wh.f", "content")]),
        (
            "a whiteout of what comes before it",
            vec![file("f", "1"), file(".wh.f", "")],
        ),
        (
            "aufs' own files",
            vec![
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/x", "1"),
                file(".wh..wh.aufs", ""),
            ],
        ),
        (
            "devices",
            vec![
                Member {
                    device: (4095, 1_048_575),
                    ..member("char", "c")
                },
                Member {
                    device: (8, 0),
                    ..member("block", "b")
                },
                Member {
                    mode: 0o777,
                    ..member("char", "whiteout")
                },
            ],
        ),
        (
            "times",
            vec![
                Member {
                    time: 253_402_300_799,
                    ..file("late", "1")
                },
                Member {
                    time: 9_223_372_037,
                    ..file("behind-2262", "1")
                },
                Member {
                    time: 0,
                    ..file("epoch", "1")
                },
                Member { time: 0, ..dir("d/") },
            ],
        ),
        (
            "owners",
            vec![Member {
                owner: (4_294_967_294, 65_534),
                mode: 0o6755,
                ..file("f", "1")
            }],
        ),
        (
            "modes",
            vec![
                Member { mode: 0, ..dir("d/") },
                Member {
                    mode: 0,
                    ..file("d/f", "1")
                },
                Member {
                    mode: 0o1777,
                    ..dir("t/")
                },
            ],
        ),
        (
            "attributes",
            vec![Member {
                xattrs: vec![
                    ("user.empty", vec![]),
                    ("user.bytes", vec![0, 255]),
                    (
                        "security.capability",
                        b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
                    ),
                ],
                ..file("f", "1")
            }],
        ),
        (
            "attributes of overlay",
            vec![Member {
                xattrs: vec![
                    ("trusted.overlay.opaque", b"y".to_vec()),
                    ("trusted.overlay.redirect", b"/etc".to_vec()),
                ],
                ..dir("d/")
            }],
        ),
        (
            "an attribute that no file can have",
            vec![Member {
                xattrs: vec![("nothing", vec![1])],
                ..file("f", "1")
            }],
        ),
        ("zeros", vec![file("z", vec![0; 5_000_000])]),
        (
            "the same content twice",
            vec![file("one", "same"), file("two", "same")],
        ),
        (
            "many chunks of one byte",
            vec![Member {
                cuts: (1..200).collect(),
                ..file("f", vec![7; 200])
            }],
        ),
        ("no directories", vec![file("a/b/c/d/e", "1")]),
    ]
}
