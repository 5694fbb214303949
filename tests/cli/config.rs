//! The configuration decides where the store is unless global arguments do.

use std::fs;

use serde_json::Value;

use crate::program::{Program, good};
use crate::support::needs;
use crate::support::root::TestRoot;

#[test]
fn the_configuration_says_where_the_store_is() {
    let root = TestRoot::vfs();
    good(&root, "create-layer -i from-flags");
    let listed = Program::Ours.run_bare(&root, &["layers", "-q"]);
    assert_eq!(
        (listed.code, listed.out.as_str()),
        (0, "from-flags\n"),
        "{listed:?}"
    );
}

#[test]
fn config_prints_json_to_scripts() {
    let root = TestRoot::vfs();
    let printed: Value = serde_json::from_str(&Program::Ours.run_bare(&root, &["config"]).out).unwrap();
    assert_eq!(printed["root"], root.graph().to_str().unwrap());
    assert_eq!(printed["driver"], "vfs");
    let other = root.path().join("other.conf");
    fs::write(&other, "[storage]\ndriver = \"overlay\"\n").unwrap();
    let other = Program::Ours.run_bare(&root, &["config", other.to_str().unwrap()]);
    let printed: Value = serde_json::from_str(&other.out).unwrap();
    assert_eq!(printed["driver"], "overlay");
    assert_eq!(printed["root"], "/var/lib/containers/storage");
}

#[test]
fn config_on_a_terminal_shows_the_origin_of_each_value() {
    needs!("script");
    let root = TestRoot::vfs();
    let line = format!("{} config", env!("CARGO_BIN_EXE_graphroot"));
    let output = root
        .program("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    let file = root.path().join("etc/storage.conf");
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains(&format!("storage.driver = \"vfs\" ({}:2)\n", file.display())),
        "{text}"
    );
}

#[test]
fn a_mistake_in_the_configuration_is_one_line_that_names_it() {
    let root = TestRoot::vfs();
    let file = root.path().join("etc/storage.conf");
    fs::write(&file, "[storage]\ndriver = 3\n").unwrap();
    for command in ["config", "layers"] {
        let answer = Program::Ours.run_bare(&root, &[command]);
        assert_ne!(answer.code, 0, "{answer:?}");
        let text = format!("{}{}", answer.out, answer.err);
        assert!(
            text.contains(&format!("{}: line 2", file.display())),
            "{answer:?}"
        );
        assert!(text.contains("driver") && text.lines().count() == 1, "{answer:?}");
    }
}
