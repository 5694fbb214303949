//! The suite once more, by an ordinary user.

use crate::btrfs;
use crate::user::{self, test_again};

/// Says why not if there can be no such user here.
fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let installed = |program: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    };
    let possible = root && user::PROGRAMS.iter().all(installed);
    if !possible {
        let why = "an ordinary user is made by root, with newuidmap, setpriv and unshare";
        assert!(
            std::env::var("GRAPHROOT_TEST_REQUIRE").as_deref() != Ok("all"),
            "{why}"
        );
        eprintln!("SKIPPED: {why}");
    }
    possible
}

#[test]
fn every_driver_works_in_a_user_namespace() {
    if possible() {
        test_again(
            user::NAMESPACE,
            &[
                "::overlay::",
                "::overlay_program::",
                "::vfs::",
                "::btrfs::",
                "tree_drivers::",
            ],
            180,
            &[(btrfs::VARIABLE, btrfs::shared().unwrap())],
        );
    }
}

#[test]
fn copies_work_for_an_ordinary_user() {
    if possible() {
        test_again(&[], &["::vfs::", "::vfs_additional::"], 75, &[]);
    }
}
