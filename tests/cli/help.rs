//! Usage texts, and flags before and after the command's name.

use std::os::unix::fs::symlink;

use crate::program::{Answer, Program, good, ours};
use crate::support::each_set;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;

#[test]
fn asking_for_help_has_three_outcomes() {
    let root = TestRoot::vfs();
    let asked = Program::Ours.run_bare(&root, &["--help"]);
    assert_eq!((asked.code, asked.err.as_str()), (0, ""));
    assert!(
        asked
            .out
            .starts_with("Usage: graphroot command [options [...]]\n\nCommands:\n\n  check    ")
    );
    assert!(
        asked.out.contains("\n  --help                  Print usage\n"),
        "{asked:?}"
    );
    for args in [&[][..], &["-h"], &["--bogus"], &["--graph"], &["-D"]] {
        let answer = Program::Ours.run_bare(&root, args);
        assert_eq!(answer.code, 1, "{args:?}");
        assert!(answer.out.contains("\nCommands:\n"), "{args:?}");
        assert!(
            answer
                .err
                .contains("\n  --debug, -D             Print debugging information\n"),
            "{args:?}"
        );
        assert_eq!(answer.err.contains("--help  "), !args.is_empty(), "{args:?}");
    }
    let answer = ours(&root, "layers --help");
    assert_eq!(answer.code, 125);
    assert!(
        answer
            .out
            .starts_with("Usage: graphroot layers [options [...]]\n\nList layers\n")
    );
    assert!(answer.out.contains("\n  graphroot layers --tree\n"));
    assert!(answer.err.contains("Use a tree"));
    for (line, note) in [
        (
            "create-image --help",
            "\nThe image is a record without a manifest and a config",
        ),
        ("help create-image", "from graphroot::ImageBuilder.\n\nExamples:"),
        (
            "dedup --help",
            "\nHash functions: crc (CRC-64), sha256, and size,",
        ),
        ("help pull", "dir:DIRECTORY\n"),
        ("help push", "docker-archive:saved.tar:app:1\n"),
        ("man create-image", "ImageBuilder"),
    ] {
        let answer = ours(&root, line);
        assert!(answer.out.contains(note), "{line}: {answer:?}");
    }
    assert!(!root.graph().exists(), "help opens no store");
}

/// Called as `containers-storage`, the program prints the usage of that one. The distribution's version lacks some of
/// the flags.
fn called_as_containers_storage_it_prints_that_usage(set: PeerSet) {
    let root = TestRoot::vfs().of(set);
    let link = root.path().join("containers-storage");
    symlink(env!("CARGO_BIN_EXE_graphroot"), &link).unwrap();
    for line in [
        "layers --help",
        "import-layer -zz",
        "create-container",
        "diff a b c",
        "get-names --json=x a",
        "images-by-digest",
        "set-metadata --help",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let roots = ["--graph=/g", "-R", "/r", "-s=vfs", "--storage-opt", "a=b"];
        let run = |program: &std::path::Path| -> Answer {
            let name = program.to_str().unwrap();
            let output = root.program(name).args(roots).args(&args).output().unwrap();
            let mut answer = Answer::from(output);
            answer.err = answer.err.replace(name, "PROGRAM");
            answer
        };
        let theirs = run(&set.find("containers-storage").unwrap());
        let ours = run(&link);
        assert_eq!((ours.code, &ours.out), (theirs.code, &theirs.out), "{line}");
        let lines: Vec<&str> = ours.err.lines().collect();
        let missing: Vec<&str> = theirs.err.lines().filter(|line| !lines.contains(line)).collect();
        assert_eq!(missing, Vec::<&str>::new(), "{line}: {ours:?}");
    }
}
each_set!(fn called_as_containers_storage_it_prints_that_usage: "containers-storage");

#[test]
fn global_arguments_work_before_and_after_the_command_and_the_last_wins() {
    let root = TestRoot::vfs();
    let (graph, run_root) = (
        root.graph().display().to_string(),
        root.run().display().to_string(),
    );
    good(&root, "create-layer -i L1");
    let after = Program::Ours.run_bare(
        &root,
        &[
            "-g", "/nowhere", "layers", "-g", &graph, "--run", &run_root, "-s", "vfs", "-q",
        ],
    );
    assert_eq!((after.code, after.out.as_str()), (0, "L1\n"), "{after:?}");
    let only_after = Program::Ours.run_bare(
        &root,
        &[
            "layers",
            &format!("--graph='{graph}'"),
            "-R",
            &run_root,
            "--storage-driver=vfs",
        ],
    );
    assert_eq!(
        (only_after.code, only_after.out.as_str()),
        (0, "L1\n"),
        "{only_after:?}"
    );
    let dashes = Program::Ours.run_bare(
        &root,
        &["-g", &graph, "-R", &run_root, "-s", "vfs", "--", "layers", "--"],
    );
    assert_eq!((dashes.code, dashes.out.as_str()), (0, "L1\n"), "{dashes:?}");
}

#[test]
fn the_log_goes_to_standard_error_when_asked_for() {
    let root = TestRoot::vfs();
    good(&root, "create-layer -i L1");
    for place in [["-D", "layers"], ["layers", "--debug"]] {
        let output = Program::Ours.on(&root).args(place).output().unwrap();
        let answer = Answer::from(output);
        assert_eq!((answer.code, answer.out.as_str()), (0, "L1\n"));
        let line = format!("Root: {}", root.graph().display());
        assert!(
            answer.err.contains(&line) && answer.err.contains("DEBUG"),
            "{answer:?}"
        );
    }
    let output = Program::Ours
        .on(&root)
        .arg("layers")
        .env("RUST_LOG", "graphroot=debug")
        .output()
        .unwrap();
    assert!(Answer::from(output).err.contains("Driver Name: vfs"));
}

/// As the newest `containers-storage` prints it.
#[test]
fn the_table_of_flags_shows_what_they_have_already() {
    let root = TestRoot::vfs();
    let home = root.path().join("home").display().to_string();
    let graph = format!("{home}/store");
    let answer = Program::Ours.run_bare(&root, &["--debug", "-g", &graph, "-R=/r", "-svfs-is-no-letter"]);
    assert_eq!(
        answer.code, 1,
        "a value cannot follow a letter directly: {answer:?}"
    );
    let answer = Program::Ours.run_bare(
        &root,
        &[
            "-D",
            "-g",
            &graph,
            "-R=/r",
            "-s=vfs",
            "--storage-opt",
            "a=b",
            "mount",
            "--transient-store",
            "-h",
        ],
    );
    let table = "
  --debug, -D=true            Print debugging information
  --graph, -g=~/store         Root of the storage tree
  --image-store               Root of the separate image store
  --json, -j                  Prefer JSON output
  --label, -l                 Mount Label
  --opt, -o                   Mount Options
  --read-only, --ro, -r       Mount image readonly
  --run, -R=/r                Root of the runtime state tree
  --storage-driver, -s=vfs    Storage driver to use ($STORAGE_DRIVER)
  --storage-opt=[a=b]         Set storage driver options ($STORAGE_OPTS)
  --transient-store           Transient store
  --unshare, -U               Run in a user namespace (default false)
";
    let ours: Vec<&str> = answer.err.lines().collect();
    let theirs: Vec<&str> = table.lines().collect();
    assert_eq!((answer.code, ours), (125, theirs));
}
