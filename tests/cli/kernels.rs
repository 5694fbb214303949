//! Kernels without overlay, where no program mounts it: both sides take the next driver, unless overlay is named.

use std::fs;

use crate::program::{Answer, Program};
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

fn a_kernel_without_overlay(set: PeerSet) {
    for program in [Program::Ours, Program::Theirs] {
        for named in [false, true] {
            let root = TestRoot::vfs().of(set);
            // What a probe of another process has found out.
            let probes = root.run().join("overlay");
            fs::create_dir_all(&probes).unwrap();
            fs::write(probes.join("overlay-false"), "no overlay here").unwrap();
            let mut command = program.bare(&root);
            command
                .env("PATH", root.scratch("no programs"))
                .env("CONTAINERS_STORAGE_CONF", "/dev/null");
            let [graph, run] = [root.graph(), root.run()];
            let command = command
                .words("--graph")
                .with([&graph])
                .words("--run")
                .with([&run]);
            let name = if named { "--storage-driver overlay" } else { "" };
            let answer = Answer::from(command.words(name).words("status").output().unwrap());
            let ends = named || (program, set) == (Program::Theirs, PeerSet::Trixie);
            let expected = match (named, program, set) {
                // It does not go on.
                (_, Program::Theirs, PeerSet::Trixie) => "no overlay here",
                (false, ..) => "Driver Name: vfs",
                (true, ..) => {
                    "native overlay not supported and fuse-overlayfs not found: backing file system is \
                     unsupported for this graph driver"
                }
            };
            let said = format!("{}{}", answer.out, answer.err);
            assert!(said.contains(expected), "{program:?}: {answer:?}");
            assert_eq!(answer.code == 0, !ends, "{program:?}: {answer:?}");
        }
    }
}
each_set!(newer fn a_kernel_without_overlay: "containers-storage");
