//! `copy` into layers, out of layers and between layers.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::program::{Program, good, ours};
use crate::support::manifest::{self, manifest};
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

fn source(root: &TestRoot) -> String {
    let dir = root.scratch("source");
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("sub/file"), "content").unwrap();
    fs::hard_link(dir.join("sub/file"), dir.join("sub/hard")).unwrap();
    std::os::unix::fs::symlink("file", dir.join("sub/link")).unwrap();
    std::os::unix::fs::chown(dir.join("sub/file"), Some(3), Some(4)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for name in ["sub/file", "sub/deep", "sub", ""] {
        fs::File::open(dir.join(name)).unwrap().set_modified(old).unwrap();
    }
    dir.display().to_string()
}

/// Both programs make the same trees, except for the times of directories that `copy` creates on the way.
fn both_programs_copy_the_same(set: PeerSet) {
    let mut trees = Vec::new();
    for program in [Program::Theirs, Program::Ours] {
        let root = TestRoot::vfs().of(set);
        let source = source(&root);
        let file = format!("{source}/sub/file");
        good(&root, "create-layer -i A -n a");
        good(&root, "create-layer -i B --uidmap 0:1000:100 --gidmap 0:2000:100");
        for line in [
            format!("copy {source} a:/dir/more"),
            format!("copy {source} {source}/sub A:again"),
            format!("copy {file} {source}/sub/link A:/one/two"),
            "copy A:/dir/more B:/from-a".to_owned(),
            format!("copy --chown 5:6 {file} B:/owned-file"),
            format!("copy --chown 7 {file} A:/owned"),
            "copy B:/from-a/sub A:/back".to_owned(),
            format!("copy B:/owned-file {}/host/", root.path().display()),
        ] {
            let answer = program.run(&root, &line);
            assert_eq!(
                (answer.code, answer.out.as_str(), answer.err.as_str()),
                (0, "", ""),
                "{line}"
            );
        }
        for line in [
            format!("copy {file} A:/dir"),
            format!("copy {source} A"),
            "copy A:/nosuch A:/x".to_owned(),
            "copy /nosuch A:/x".to_owned(),
            format!("copy {file} nosuch:/x"),
            format!("copy --chown 200 {file} B:/x"),
            format!("copy --chown x {file} B:/x"),
            format!("copy --chown 1:99999999999 {file} B:/x"),
        ] {
            let answer = program.run(&root, &line);
            assert_eq!(
                (answer.code, answer.err.lines().count()),
                (1, 1),
                "{line}: {answer:?}"
            );
        }
        assert_eq!(
            program.run(&root, "mounted A B").out,
            "",
            "everything is unmounted"
        );
        assert_eq!(root.path().join("host/owned-file").metadata().unwrap().uid(), 5);
        let content = ["A", "B"].map(|id| {
            let mut tree = manifest(&root.graph().join("vfs/dir").join(id));
            for entry in tree.values_mut() {
                // Created now: directories on the way, and links.
                if entry.mtime.0 != 1_000_000_000 {
                    entry.mtime = (0, 0);
                }
            }
            tree
        });
        trees.push(content);
    }
    for (theirs, ours) in trees[0].iter().zip(&trees[1]) {
        manifest::assert_same("containers-storage", theirs, "graphroot", ours);
    }
}
each_set!(fn both_programs_copy_the_same: "containers-storage");

#[test]
fn a_link_in_a_layer_is_resolved_inside_the_layer() {
    needs!();
    let root = TestRoot::new();
    let source = source(&root);
    let outside = root.scratch("outside");
    good(&root, "create-layer -i A");
    let place = good(&root, "mount A");
    std::os::unix::fs::symlink(&outside, std::path::Path::new(place.trim()).join("trap")).unwrap();
    let answer = ours(&root, &format!("copy {source}/sub/file A:/trap/file"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{answer:?}");
    good(&root, "unmount A");
}
