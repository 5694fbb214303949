//! Commands that the distribution's `containers-storage` lacks or implements differently, compared with recorded output
//! of the newest release.

use std::fs;

use crate::program::{Program, good, ours};
use crate::support::root::TestRoot;

/// A line, and the exit code, standard output and standard error of the newest program.
type RecordedStep = (&'static str, i32, &'static str, &'static str);

const STEPS: &[RecordedStep] = &[
    ("storage-layers", 0, "", ""),
    ("storage-layers -j", 0, "[]\n", ""),
    ("create-storage-layer -i S1", 0, "S1\n", ""),
    ("create-storage-layer -j -i S2 S1", 0, "\"S2\"\n", ""),
    ("storage-layers", 0, "S1\nS2\n", ""),
    ("storage-layers -j", 0, "[\"S1\",\"S2\"]\n", ""),
    ("layers -j", 0, "null\n", ""),
    ("create-layer -i L1 -n foo", 0, "L1\n\tfoo\n", ""),
    (
        "add-names -j -n foo2 -n bar L1",
        0,
        "[\"foo2\",\"bar\",\"foo\"]\n",
        "",
    ),
    ("remove-names -n nosuch L1", 0, "", ""),
    ("remove-names -j -n foo2 foo", 0, "[\"bar\",\"foo\"]\n", ""),
    ("removenames -j -n foo -n bar L1", 0, "null\n", ""),
    ("create-image -i I1 L1", 0, "I1\n", ""),
    ("get-image-dir I1", 0, "ROOT/graph/vfs-images/I1/userdata\n", ""),
    ("getimagedir I1", 0, "ROOT/graph/vfs-images/I1/userdata\n", ""),
    ("get-image-run-dir I1", 0, "ROOT/run/vfs-images/I1/userdata\n", ""),
    ("getimagerundir I1", 0, "ROOT/run/vfs-images/I1/userdata\n", ""),
    ("gc", 0, "", ""),
    ("gc -j", 0, "\"\"\n", ""),
    ("check -m 1x", 1, "", "time: invalid duration \"1x\"\n"),
    (
        "create-image -d md5:x L1",
        1,
        "",
        "validating digests for new image: digest \"md5:x\": unsupported digest algorithm: invalid input\n",
    ),
    (
        "delete-layer L1",
        1,
        "",
        "L1: deleting layer \"L1\": layer L1 used by image I1: layer is in use by an image\n",
    ),
    ("delete-image I1", 0, "", "I1: L1\n"),
    ("images -j", 0, "null\n", ""),
    ("containers -j", 0, "[]\n", ""),
    (
        "status -j",
        0,
        "[[\"Root\",\"ROOT/graph\"],[\"Run Root\",\"ROOT/run\"],[\"Driver Name\",\"vfs\"],[\"Driver \
         Options\",\"[]\"]]\n",
        "",
    ),
    (
        "status",
        0,
        "",
        "Root: ROOT/graph\nRun Root: ROOT/run\nDriver Name: vfs\nDriver Options: []\n",
    ),
    (
        "status --storage-opt vfs.sync=none --storage-opt=.ignore_chown_errors=false -j",
        0,
        "[[\"Root\",\"ROOT/graph\"],[\"Run Root\",\"ROOT/run\"],[\"Driver Name\",\"vfs\"],[\"Driver \
         Options\",\"[vfs.sync=none .ignore_chown_errors=false]\"]]\n",
        "",
    ),
];

#[test]
fn answers_are_those_of_the_newest_program() {
    let root = TestRoot::vfs();
    for (line, code, out, err) in STEPS {
        let answer = ours(&root, line);
        let text = |text: &str| text.replace(root.path().to_str().unwrap(), "ROOT");
        assert_eq!(
            (
                answer.code,
                text(&answer.out).as_str(),
                text(&answer.err).as_str()
            ),
            (*code, *out, *err),
            "{line}"
        );
    }
}

/// The fields are those of the newest program; the values come from the environment.
#[test]
fn config_is_one_line_of_json() {
    let root = TestRoot::vfs();
    let output = Program::Ours
        .on(&root)
        .arg("config")
        .env("STORAGE_DRIVER", "vfs")
        .env("STORAGE_OPTS", "vfs.a=b,c=d")
        .output()
        .unwrap();
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(config["driver"], "vfs");
    assert_eq!(config["driver-options"], serde_json::json!(["vfs.a=b", "c=d"]));
    assert!(
        config["root"].is_string() && config["runroot"].is_string(),
        "{config}"
    );
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn trees_of_layers_are_printed_as_by_the_newest_program() {
    let root = TestRoot::vfs();
    fs::write(root.path().join("x"), "").unwrap();
    for line in [
        "create-layer -i A -n one -n two",
        "create-layer -i B A",
        "create-layer -i D A",
        "create-layer -i C B",
        "create-layer -i E",
        "create-image -i I -n img C",
        "create-image -i J C",
    ] {
        good(&root, line);
    }
    let expected = "(base)\n├─A\n│ name: one\n│ name: two\n│ ├─B\n│ │ └─C\n│ │   image: I\n│ │   image name: img\n\
                    │ │   image: J\n│ └─D\n└─E\n";
    assert_eq!(good(&root, "layers -t"), expected);
    good(&root, "delete A");
    let expected = "(base)\n└─E\nA\n├─B\n│ └─C\n│   image: I\n│   image name: img\n│   image: J\n└─D\n";
    assert_eq!(good(&root, "layers --tree"), expected);
}
