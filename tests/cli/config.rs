//! Where the store is if the command line does not say so.

use std::fs;

use serde_json::Value;

use crate::program::{Answer, Program, good};
use crate::support::needs;
use crate::support::root::TestRoot;

fn run(root: &TestRoot, arguments: &[&str]) -> Answer {
    Program::Ours.bare(root).args(arguments).output().unwrap().into()
}

#[test]
fn the_configuration_says_where_the_store_is() {
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs");
    good(&root, "create-layer -i from-flags");
    let listed = run(&root, &["layers", "-q"]);
    assert_eq!(
        (listed.code, listed.out.as_str()),
        (0, "from-flags\n"),
        "{listed:?}"
    );
}

#[test]
fn config_prints_json_to_scripts() {
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs");
    let printed: Value = serde_json::from_str(&run(&root, &["config"]).out).unwrap();
    assert_eq!(printed["root"], root.graph().to_str().unwrap());
    assert_eq!(printed["driver"], "vfs");
    let other = root.path().join("other.conf");
    fs::write(&other, "[storage]\ndriver = \"overlay\"\n").unwrap();
    let other = run(&root, &["config", other.to_str().unwrap()]);
    let printed: Value = serde_json::from_str(&other.out).unwrap();
    assert_eq!(printed["driver"], "overlay");
    assert_eq!(printed["root"], "/var/lib/containers/storage");
}

#[test]
fn config_tells_people_where_each_value_comes_from() {
    needs!("script");
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs");
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
    let root = TestRoot::in_dir(&std::env::temp_dir(), "vfs");
    let file = root.path().join("etc/storage.conf");
    fs::write(&file, "[storage]\ndriver = 3\n").unwrap();
    for command in ["config", "layers"] {
        let answer = run(&root, &[command]);
        assert_ne!(answer.code, 0, "{answer:?}");
        let said = format!("{}{}", answer.out, answer.err);
        assert!(
            said.contains(&format!("{}: line 2", file.display())),
            "{answer:?}"
        );
        assert!(said.contains("driver") && said.lines().count() == 1, "{answer:?}");
    }
}
