//! Everything in which the two sides may differ, and why. What is not here has to be the same.
//!
//! Three kinds of peer are known. An *old* command (libraries before 1.44 or so, as Debian 12 has) lacks some verbs and
//! keeps some things in other places; that of Debian 13 (1.57) lies between it and the newest, which does as this library
//! does.

use crate::support::accepted::{ANY, Accepted, Age, NEW, OLD};

/// The time of an operation, as the comparison shows it.
macro_rules! now {
    () => {
        "9223372036854775807.000000000"
    };
}

/// The table.
pub(super) const ACCEPTED: &[Accepted] = &[
    // Brought to a common form before comparing; no line ever shows them.
    Accepted {
        key: "random-ids",
        why: "IDs that the store chooses are random; both sides' are replaced by one name where they first appear",
        ..ANY
    },
    Accepted {
        key: "short-links",
        why: "the overlay driver's links have random names; they are named after the layer that they lead to",
        ..ANY
    },
    Accepted {
        key: "roots",
        why: "the two sides have different directories",
        ..ANY
    },
    Accepted {
        key: "creation-times",
        why: "both sides create things a moment apart; a time within the test's run is called \"now\", in records, of \
              files and in the headers of archives; all other times are compared to the nanosecond",
        ..ANY
    },
    Accepted {
        key: "lock-records",
        why: "the token of the last writer is random; lengths are compared",
        ..ANY
    },
    Accepted {
        key: "tar-split-cuts",
        why: "a raw segment may be cut into lines anywhere, and gzip has many forms; segments are joined",
        ..ANY
    },
    Accepted {
        key: "compressed-bytes",
        why: "compressors differ; what they compress is compared byte by byte, and which compressor it was",
        ..ANY
    },
    Accepted {
        key: "order-of-changes",
        why: "the peer lists changes in the order in which it meets them, this library by path",
        ..ANY
    },
    Accepted {
        key: "names-of-old-versions",
        why: "old peers have no remove-names, and add-names that puts new names last: with them both are done by \
              get-names and set-names",
        ..OLD
    },
    Accepted {
        key: "volatile-files",
        why: "old peers keep records that may be lost in the same files as others; both files are read as one, \
              volatile records last",
        ..OLD
    },
    Accepted {
        key: "private-home",
        why: "the peer makes a private mount of the driver's home when it starts, this library when it first mounts a \
              layer",
        ..ANY
    },
    Accepted {
        key: "kernel-names",
        why: "overlayfs itself puts random values and numbers into attributes (`origin`, `uuid`) and names (`work/#…`)",
        ..ANY
    },
    // Files and directories of the store.
    Accepted {
        key: "owners-that-a-mount-maps",
        why: "peers before 1.64 record them with the container alone, not with its layer, and so find no owners above its \
              mount point that they do not contain",
        driver: Some("overlay"),
        lines: &[
            "layers.json [*].gidmap: * / null",
            "layers.json [*].uidmap: * / null",
            "answer failed: LayerNotMounted: reading the parent owners of layer * / Json(Object {\"GIDs\": Null, \"UIDs\": Null})",
            "answer .GIDs: [0] / null",
            "answer .UIDs: [0] / null",
        ],
        ..ANY
    },
    Accepted {
        key: "lower-layers",
        why: "peers before 1.64 know the layers below by link IDs alone",
        driver: Some("overlay"),
        lines: &["/graph/overlay/*/lower-layers: only in the first (file)"],
        ..ANY
    },
    Accepted {
        key: "mount-counts-file",
        why: "the peer writes mountpoints.json whenever it saves layers, this library when a count changes; no file \
              means the same as an empty list",
        lines: &[
            "/run/*-layers/mountpoints.json: only in the second (file)",
            "/run/*-layers/mountpoints.lock: content Some(\"(lock file, 0 bytes)\") / Some(\"(lock file, 64 bytes)\")",
        ],
        ..ANY
    },
    Accepted {
        key: "early-directories",
        why: "directories for temporary files and for layers are made when they are first needed, which is not the \
              same moment on both sides",
        lines: &[
            "/graph/*/tempdirs: only in the first (directory)",
            "/graph/*-layers/tmp: only in the first (directory)",
            "/graph/vfs/dir: only in the first (directory)",
            "/graph/btrfs/subvolumes: only in the first (directory)",
        ],
        ..ANY
    },
    Accepted {
        key: "old-directories",
        why: "old peers make two directories that newer ones do not",
        lines: &[
            "/graph/tmp: only in the second (directory)",
            "/graph/mounts: only in the second (directory)",
        ],
        ..OLD
    },
    Accepted {
        key: "volatile-files-of-new-versions",
        why: "old peers do not know them, see volatile-files",
        lines: &["/graph/*/volatile-*.json: only in the first (file)"],
        ..OLD
    },
    Accepted {
        key: "mode-of-the-home",
        why: "peers before 1.64 close the driver's home to others, newer ones leave that to the graph root",
        lines: &["/graph/overlay: mode 0755 / 0700"],
        ..ANY
    },
    Accepted {
        key: "cached-probes",
        why: "what the kernel can do is tried out, and noted in the run root, when the question first arises",
        lines: &["/run/overlay/*: only in the * (file)"],
        ..ANY
    },
    Accepted {
        key: "mount-points-kept",
        why: "old peers remove a layer's mount point after unmounting, newer ones make a new one",
        lines: &["/graph/overlay/*/merged: only in the first (directory)"],
        ..OLD
    },
    Accepted {
        key: "mounts-for-comparison",
        why: "the peer compares layers that it mounts writable, which leaves the kernel's traces; this library mounts \
              them read-only",
        lines: &[
            "/graph/overlay/*/work/work: only in the second (directory)",
            "/graph/overlay/*/diff: attributes  / trusted.overlay.uuid=(the kernel\\'s) ",
        ],
        ..ANY
    },
    Accepted {
        key: "left-over-mappings",
        why: "the peer leaves the mount points of ID-mapped views behind; this library removes them",
        lines: &[
            "/graph/overlay/*/mapped: only in the second (directory)",
            "/graph/overlay/*/mapped/*: only in the second (directory)",
        ],
        ..ANY
    },
    Accepted {
        key: "owners-of-mapped-roots",
        why: "old peers give the root directory of a mapped container to the host's root, and a driver's directory \
              to the first layer's owner",
        lines: &[
            "/graph/*/*: owner 300000:400000 / 0:0",
            "/graph/vfs/dir: owner 0:0 / 100000:200000",
            "/graph/vfs/dir: owner 0:0 / 300000:400000",
        ],
        ..OLD
    },
    Accepted {
        key: "owners-of-mapped-roots-on-btrfs",
        why: "the peer's driver leaves the root directory of a mapped layer to the host's root",
        driver: Some("btrfs"),
        lines: &[
            "/graph/btrfs/subvolumes/*: owner 100000:200000 / 0:0",
            "/graph/btrfs/subvolumes/*: owner 300000:400000 / 0:0",
        ],
        ..ANY
    },
    // What streams become.
    Accepted {
        key: "global-headers",
        why: "the peer makes the parent directory of a global header's made-up name; a header is no file",
        lines: &["/graph/*/PaxHeaders: only in the second (directory)"],
        ..ANY
    },
    Accepted {
        key: "implied-directories",
        why: "a directory without an entry of its own is as it is below, its times included; with the peer it is a new \
              one, or changed by what comes into it",
        lines: &[
            concat!("/graph/overlay/*/diff/*: mtime * / ", now!()),
            concat!("/graph/overlay/*/merged/*: mtime * / ", now!()),
            concat!("/graph/vfs/dir/*/*: mtime * / ", now!()),
            concat!("/graph/btrfs/subvolumes/*/*: mtime * / ", now!()),
            "diff */: mtime * / now",
        ],
        ..ANY
    },
    Accepted {
        key: "whiteouts-of-nothing",
        why: "the peer makes whiteouts of names that no layer below has",
        driver: Some("overlay"),
        lines: &["/graph/overlay/*/diff/never-there: only in the second (character device)"],
        ..ANY
    },
    Accepted {
        key: "directories-that-are-there",
        why: "the peer lists an opaque directory as deleted; this library lists what the directory had and has no more, \
              and no names that no layer below has",
        driver: Some("overlay"),
        lines: &["answer [\"/usr/share/doc modified\", * deleted\"] / [*\"/usr/share/doc deleted\"] of *"],
        ..ANY
    },
    Accepted {
        key: "time-of-the-root",
        why: "the peer makes and removes a temporary directory in the layer after unpacking, and so spoils the time \
              that the stream gives to the layer's root directory",
        lines: &[
            concat!("/graph/vfs/dir/*: mtime 1700000000.000000000 / ", now!()),
            concat!("/graph/btrfs/subvolumes/*: mtime 1700000000.000000000 / ", now!()),
        ],
        ..ANY
    },
    // What comes out.
    Accepted {
        key: "time-of-deletions",
        why: "deletions found by comparing trees have no time; the peer takes the current one, this library a fixed \
              one, so that an unchanged layer gives unchanged bytes",
        lines: &["diff *.wh.*: mtime 0 / now"],
        ..ANY
    },
    Accepted {
        key: "modes-in-old-headers",
        why: "old peers repeat the file type in the mode field of headers",
        lines: &["diff *: mode 00* / 0*"],
        ..OLD
    },
    Accepted {
        key: "owner-names-in-old-headers",
        why: "old peers look up the names of owners, in the host's lists, for headers",
        lines: &["diff *: uname  / *", "diff *: gname  / *"],
        ..OLD
    },
    Accepted {
        key: "times-of-directories",
        why: "old peers do not count a directory as modified whose time alone is another",
        by_step: true,
        lines: &[
            "answer [\"/tmp modified\"] / [] *",
            "diff *: only in the first (directory)",
        ],
        ..OLD
    },
    Accepted {
        key: "times-of-directories-on-vfs",
        why: "as times-of-directories, where overlay need not compare whole trees",
        by_step: true,
        driver: Some("vfs"),
        lines: &["answer [\"/tmp modified\"] / [] *"],
        ..OLD
    },
    Accepted {
        key: "reserves",
        why: "space is kept for the records that a deletion writes when the disk is full",
        lines: &["*/.reserve-*: only in the first (file)"],
        ..ANY
    },
    // Steps that one side refuses.
    Accepted {
        key: "names-given-twice",
        why: "a layer created with one name twice loses it at the peer's next load",
        by_step: true,
        lines: &[
            "answer .names: [\"double\"] / [\"double\",\"double\"]",
            "layers.json [*].names: [\"double\"] / [\"double\",\"double\"]",
        ],
        middle: false,
        ..NEW
    },
    Accepted {
        key: "file-to-directory",
        why: "where a layer has a directory with content in the place of a file of the layer below, the peer's \
              comparison fails",
        by_step: true,
        driver: Some("overlay"),
        lines: &["answer * / failed: *: not a directory"],
        ..ANY
    },
    Accepted {
        key: "image-mounts-on-old-vfs",
        why: "the vfs driver of old peers refuses the option `ro`, which mounting an image implies",
        by_step: true,
        driver: Some("vfs"),
        lines: &[
            "answer * / failed: vfs driver does not support mount options*",
            "mountpoints.json *",
        ],
        middle: true,
        ..OLD
    },
    Accepted {
        key: "image-mounts-on-old-btrfs",
        why: "as image-mounts-on-old-vfs, with the btrfs driver of Debian 13",
        driver: Some("btrfs"),
        lines: &[
            "answer * / failed: btrfs driver does not support mount options*",
            "mountpoints.json : * / []",
        ],
        middle: true,
        ..OLD
    },
];

/// The difference of which a line tells, if it is accepted in a step that names `differs`.
pub(super) fn accepting(
    line: &str,
    differs: Option<&str>,
    driver: &str,
    age: Age,
) -> Option<&'static Accepted> {
    crate::support::accepted::accepting(ACCEPTED, line, differs, driver, age)
}

/// Whether a step that names this difference has to show it.
pub(super) fn is_due(key: &str, driver: &str, age: Age) -> bool {
    let found = ACCEPTED.iter().find(|accepted| accepted.key == key);
    found
        .unwrap_or_else(|| panic!("{key} is not in the table"))
        .is_due(driver, age)
}

#[test]
fn every_difference_has_a_name_and_a_reason_of_its_own() {
    crate::support::accepted::check(ACCEPTED);
    assert!(
        accepting(
            "/graph/mounts: only in the second (directory)",
            None,
            "vfs",
            Age::Old
        )
        .is_some()
    );
    assert!(
        accepting(
            "/graph/mounts: only in the second (directory)",
            None,
            "vfs",
            Age::New
        )
        .is_none()
    );
    assert!(
        accepting(
            "answer [] / failed: x: not a directory",
            None,
            "overlay",
            Age::New
        )
        .is_none()
    );
}
