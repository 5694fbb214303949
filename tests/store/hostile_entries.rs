//! Entries of tables of contents that lie.

use std::collections::BTreeMap;

use graphroot::ErrorKind::InvalidArchive as Invalid;
use serde_json::{Value, json};

use crate::hostile_blobs::Case;

pub(crate) const ENTRIES: &[Case] = &[
    (
        "attributes of 20 MiB",
        |d| {
            let value = "A".repeat(1 << 20);
            let xattrs: BTreeMap<_, _> = (0..20).map(|at| (format!("user.{at}"), value.clone())).collect();
            d.set("e", "xattrs", json!(xattrs));
        },
        Invalid,
        "attributes of over",
    ),
    (
        "no name",
        |d| d.set("d/a", "name", ""),
        Invalid,
        "an entry without a name",
    ),
    (
        "a name with NUL",
        |d| d.set("d/a", "name", "d/\0a"),
        Invalid,
        "NUL byte",
    ),
    (
        "a name of 5000 bytes",
        |d| d.set("d/a", "name", "x/".repeat(2500)),
        Invalid,
        "too long",
    ),
    (
        "a name twice",
        |d| d.set("d/z", "name", "d/a"),
        Invalid,
        "there twice",
    ),
    (
        "a path twice",
        |d| d.set("d/z", "name", "/x/../d/./a"),
        Invalid,
        "there twice",
    ),
    (
        "a path twice, by ..",
        |d| d.set("d/z", "name", "../../d/a"),
        Invalid,
        "there twice",
    ),
    (
        "another name",
        |d| d.set("e", "name", "../../../../etc/passwd"),
        Invalid,
        "missing in TOC",
    ),
    (
        "an unknown type",
        |d| d.set("d/a", "type", "door"),
        Invalid,
        "unknown type",
    ),
    (
        "no type",
        |d| d.set("d/a", "type", Value::Null),
        Invalid,
        "unknown type",
    ),
    (
        "another type",
        |d| d.set("p", "type", "reg"),
        Invalid,
        "the type of p",
    ),
    (
        "a link without target",
        |d| d.set("l", "linkName", Value::Null),
        Invalid,
        "a link without a target",
    ),
    (
        "a target with NUL",
        |d| d.set("l", "linkName", "a\0b"),
        Invalid,
        "NUL byte",
    ),
    (
        "another target",
        |d| d.set("l", "linkName", "/etc"),
        Invalid,
        "the link name of l",
    ),
    (
        "another hard link",
        |d| d.set("h", "linkName", "../../etc/passwd"),
        Invalid,
        "the link name of h",
    ),
    (
        "a negative mode",
        |d| d.set("d/a", "mode", -1),
        Invalid,
        "a mode of -1",
    ),
    (
        "another mode",
        |d| d.set("d/a", "mode", 0o4755),
        Invalid,
        "the mode of d/a",
    ),
    (
        "a negative owner",
        |d| d.set("d/a", "uid", -1),
        Invalid,
        "a user ID of -1",
    ),
    (
        "a group of 2^32",
        |d| d.set("d/a", "gid", 1_u64 << 32),
        Invalid,
        "a group ID of 4294967296",
    ),
    (
        "another owner",
        |d| d.set("d/a", "uid", 1000),
        Invalid,
        "the owner of d/a",
    ),
    (
        "a time in words",
        |d| d.set("d/a", "modtime", "yesterday"),
        Invalid,
        "is not a time",
    ),
    (
        "a time that is none",
        |d| d.set("d/a", "modtime", "2001-13-45T99:99:99Z"),
        Invalid,
        "is not a time",
    ),
    (
        "another time",
        |d| d.set("d/a", "modtime", "9999-12-31T23:59:59Z"),
        Invalid,
        "the time of modification of d/a",
    ),
    (
        "a time of access",
        |d| d.set("d/a", "accesstime", "2001-01-01T00:00:00Z"),
        Invalid,
        "the time of access",
    ),
    (
        "a device of 2^40",
        |d| d.set("c", "devMajor", 1_u64 << 40),
        Invalid,
        "a major device number",
    ),
    (
        "a negative device",
        |d| d.set("c", "devMinor", -3),
        Invalid,
        "a minor device number of -3",
    ),
    (
        "another device",
        |d| d.set("c", "devMinor", 1),
        Invalid,
        "the device of c",
    ),
    (
        "an attribute without name",
        |d| d.set("e", "xattrs", json!({"": "AA=="})),
        Invalid,
        "an attribute of the name",
    ),
    (
        "an attribute with NUL",
        |d| d.set("e", "xattrs", json!({"user.\0": ""})),
        Invalid,
        "an attribute of the name",
    ),
    (
        "an attribute in no base64",
        |d| d.set("e", "xattrs", json!({"user.a": "%"})),
        Invalid,
        "no base64",
    ),
    (
        "another attribute",
        |d| d.set("e", "xattrs", json!({"security.capability": "AA=="})),
        Invalid,
        "the attributes of e",
    ),
    (
        "an overlay attribute",
        |d| {
            d.set("d/", "xattrs", json!({"trusted.overlay.redirect": "L2V0Yw=="}));
        },
        Invalid,
        "the attributes of d/",
    ),
    (
        "an entry of the table only",
        |d| {
            d.entries()
                .push(json!({"type": "symlink", "name": "extra", "linkName": "/"}));
        },
        Invalid,
        "TOC contains entries not present in tar-split, incl. extra",
    ),
    (
        "an entry of the tar only",
        |d| drop(d.entries().pop()),
        Invalid,
        "missing in TOC",
    ),
    ("no entries", |d| d.entries().clear(), Invalid, "missing in TOC"),
];
