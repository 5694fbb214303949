//! What works on many layers at once, with few files open.

use crate::program::{Program, good};
use crate::support::root::TestRoot;

/// More layers than the program may have files open.
const LAYERS: usize = 150;
const OPEN_FILES: &str = "--nofile=120";

#[test]
fn a_store_of_more_layers_than_a_process_may_open_files_can_be_wiped() {
    let root = TestRoot::vfs();
    for number in 0..LAYERS {
        good(&root, &format!("create-layer -i layer-{number}"));
    }
    let mut limited = root.program("prlimit");
    let ours = Program::Ours.on(&root);
    limited
        .arg(OPEN_FILES)
        .arg("--")
        .arg(ours.get_program())
        .args(ours.get_args());
    let output = limited.arg("wipe").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(good(&root, "layers"), "");
    let left = std::fs::read_dir(root.path().join("graph/vfs/dir"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}
