//! Mistakes and errors: one line that names the item and the reason, an exit code, and an unchanged store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::program::{Answer, Program, good, ours};
use crate::support::manifest::manifest;
use crate::support::root::TestRoot;

/// The files below a directory with digests of their contents. Left out are lock files, because opening a store writes
/// to them, and directories for temporary files.
fn files(dir: &Path) -> BTreeMap<PathBuf, Option<String>> {
    manifest(dir)
        .into_iter()
        .filter(|(path, _)| path.extension().is_none_or(|end| end != "lock") && !path.ends_with("tmp"))
        .map(|(path, entry)| (path, entry.content))
        .collect()
}

fn filled() -> TestRoot {
    let root = TestRoot::vfs();
    for line in [
        "create-layer -i L1 -n base",
        "create-layer -i L2 L1",
        "create-image -i I1 -n img L2",
        "create-container -i C1 -n web img",
    ] {
        good(&root, line);
    }
    root
}

/// Runs a line that must fail without a change to the store.
#[track_caller]
fn fails(root: &TestRoot, line: &str) -> Answer {
    let before = files(&root.graph());
    let answer = ours(root, line);
    assert_ne!(answer.code, 0, "{line}: {answer:?}");
    assert_eq!(files(&root.graph()), before, "{line} changed something");
    answer
}

#[test]
fn unknown_things_are_named() {
    let root = filled();
    let data = root.path().join("data");
    fs::write(&data, "x").unwrap();
    let data = data.display();
    for line in [
        "get-names nosuch".to_owned(),
        "add-names -n a nosuch".to_owned(),
        "remove-names -n a nosuch".to_owned(),
        "set-names nosuch".to_owned(),
        "set-metadata -m a nosuch".to_owned(),
        "create-layer nosuch".to_owned(),
        "create-image nosuch".to_owned(),
        "create-container nosuch".to_owned(),
        format!("import-layer -f {data} nosuch"),
        format!("applydiff -f {data} nosuch"),
        "diff nosuch".to_owned(),
        "changes nosuch".to_owned(),
        "diffsize nosuch".to_owned(),
        "delete nosuch".to_owned(),
        "delete-layer nosuch".to_owned(),
        "delete-image nosuch".to_owned(),
        "delete-container nosuch".to_owned(),
        "unmount nosuch".to_owned(),
        "mounted nosuch".to_owned(),
        "get-image-dir nosuch".to_owned(),
        "get-image-run-dir nosuch".to_owned(),
        "get-container-dir nosuch".to_owned(),
        "get-container-run-dir nosuch".to_owned(),
        "list-layer-data nosuch".to_owned(),
        "list-image-data nosuch".to_owned(),
        "list-container-data nosuch".to_owned(),
        "get-layer-data nosuch k".to_owned(),
        "get-image-data nosuch k".to_owned(),
        "get-container-data nosuch k".to_owned(),
        format!("set-layer-data -f {data} nosuch k"),
        format!("set-image-data -f {data} nosuch k"),
        format!("set-container-data -f {data} nosuch k"),
        "get-image-data-size nosuch k".to_owned(),
        "get-container-data-digest nosuch k".to_owned(),
        "copy /etc/hostname nosuch:/x".to_owned(),
        "images-by-digest nosuch".to_owned(),
        "create-storage-layer nosuch".to_owned(),
    ] {
        let answer = fails(&root, &line);
        assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{line}: {answer:?}");
        assert_eq!(answer.err.lines().count(), 1, "{line}: {answer:?}");
        assert!(answer.err.contains("nosuch"), "{line}: {answer:?}");
    }
}

#[test]
fn flags_and_arguments() {
    let root = filled();
    for (line, err) in [
        ("layers --bogus", "flag provided but not defined: --bogus"),
        ("layers -zz", "flag provided but not defined: -zz"),
        (
            "layers -j=maybe",
            "invalid boolean value \"maybe\" for  -j: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
        ("import-layer -f", "flag needs an argument: -f"),
        ("create-layer --uidmap", "flag needs an argument: --uidmap"),
    ] {
        let answer = fails(&root, line);
        let program = env!("CARGO_BIN_EXE_graphroot");
        let name = line.split(' ').next().unwrap();
        assert_eq!(
            answer.err,
            format!("{err}\nSee '{program} {name} --help'.\n"),
            "{line}"
        );
        assert_eq!((answer.code, answer.out.as_str()), (125, ""), "{line}");
    }
    for (line, message) in [
        ("layer", "layer: more arguments required."),
        ("get-image-data img", "get-image-data: more arguments required."),
        ("layers a b", "layers: too many arguments ([a b])."),
        ("create-image a b", "create-image: too many arguments ([a b])."),
    ] {
        let answer = fails(&root, line);
        assert_eq!(
            (answer.code, answer.out.lines().next()),
            (1, Some(message)),
            "{line}"
        );
        assert!(answer.err.contains("--graph, -g="), "{answer:?}");
    }
    for (line, hint) in [
        (
            "create-image L1 --name x",
            "Flags must come before the arguments: create-image [options] ARGUMENT...\n",
        ),
        ("lyaers", "Did you mean 'layers'?\n"),
    ] {
        let answer = fails(&root, line);
        assert!(answer.code == 1 && answer.err.ends_with(hint), "{answer:?}");
    }
    let answer = fails(&root, "dedup --hash-method md5");
    let text = "--hash-method is crc, sha256 or size: invalid hash method: md5\n";
    assert_eq!((answer.code, answer.err.as_str()), (1, text));
    let answer = fails(&root, "nosuch");
    assert_eq!(
        (answer.code, answer.out.as_str()),
        (1, "nosuch: unrecognized command.\n")
    );
    assert_eq!(answer.err, "");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let root = filled();
    for (line, err) in [
        (
            "config /nosuch.conf",
            "open /nosuch.conf: no such file or directory\n",
        ),
        (
            "import-layer -f /nosuch",
            "open /nosuch: no such file or directory\n",
        ),
        ("import-layer -f /etc", "read /etc: is a directory\n"),
        ("set-image-data -f /etc img k", "read /etc: is a directory\n"),
    ] {
        let answer = fails(&root, line);
        assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{line}: {answer:?}");
        assert!(answer.err.ends_with(err), "{line}: {answer:?}");
    }
}

#[test]
fn corrupt_records_are_named_and_kept() {
    for (kind, question) in [
        ("layers", "layers"),
        ("layers", "layers -j"),
        ("layers", "create-layer"),
        ("images", "images"),
        ("images", "create-image L1"),
        ("containers", "containers -j"),
        ("containers", "create-container img"),
        ("containers", "wipe"),
    ] {
        let root = filled();
        let file = root.metadata_dir(kind).join(format!("{kind}.json"));
        fs::write(&file, "[{\"id\": \"x\", ").unwrap();
        let answer = fails(&root, question);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (1, ""),
            "{question}: {answer:?}"
        );
        assert_eq!(answer.err.lines().count(), 1, "{question}: {answer:?}");
        assert!(
            answer.err.contains(file.to_str().unwrap()),
            "{question}: {answer:?}"
        );
    }
}

#[test]
fn a_read_only_store_is_only_read() {
    let other = filled();
    let root = TestRoot::vfs();
    let before = files(&other.graph());
    let option = format!("--storage-opt vfs.imagestore={}", other.graph().display());
    let listed = good(&root, &format!("layers -q {option}"));
    assert!(listed.starts_with("L1\nL2\n"), "{listed}");
    let shown = good(&root, &format!("image {option} img"));
    assert!(shown.ends_with("Read Only: true\n"), "{shown}");
    assert!(good(&root, &format!("layer {option} L1")).ends_with("Read Only: true\n"));
    for line in [
        "delete-layer OPTION L2",
        "delete-image OPTION img",
        "delete OPTION L1",
        "mount OPTION L1",
        "set-metadata OPTION -m x L1",
        "set-layer-data OPTION -f /etc/hostname L1 k",
        "set-image-data OPTION -f /etc/hostname img k",
    ] {
        let line = line.replace("OPTION", &option);
        let answer = fails(&root, &line);
        assert_eq!(
            (answer.code, answer.err.lines().count()),
            (1, 1),
            "{line}: {answer:?}"
        );
    }
    assert_eq!(files(&other.graph()), before);
}

#[test]
fn a_store_that_does_not_open_is_reported_on_standard_output() {
    let root = TestRoot::vfs();
    let answer = ours(&root, "layers --storage-driver nosuch");
    assert_eq!((answer.code, answer.err.as_str()), (1, ""), "{answer:?}");
    assert!(answer.out.starts_with("error initializing: "), "{answer:?}");
    assert_eq!(answer.out.lines().count(), 1, "{answer:?}");
    assert!(answer.out.contains("nosuch"), "{answer:?}");
    let answer = Program::Ours.run_bare(&root, &["-s", "vfs", "layers"]);
    let expected =
        "error initializing: no storage runroot or graphroot specified: missing necessary StoreOptions\n";
    assert_eq!((answer.code, answer.out.as_str()), (1, expected));
    let unknown = ours(&root, "layers --storage-opt vfs.nosuch=1");
    assert!(
        unknown.out.starts_with("error initializing: ") && unknown.code == 1,
        "{unknown:?}"
    );
}

#[test]
fn a_closed_pipe_is_no_error_message() {
    use std::process::Stdio;
    let root = filled();
    for _ in 0..40 {
        good(&root, "create-layer");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Program::Ours
        .on(&root)
        .arg("layers")
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(141), Vec::new()));
}
