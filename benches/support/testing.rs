//! The programs of Debian testing.

use std::path::PathBuf;

/// Where the programs of Debian testing are that the tests use; says so if they are not there.
pub(crate) fn testing_programs() -> Option<PathBuf> {
    let peers = std::env::var_os("GRAPHROOT_TEST_PEERS").unwrap_or("/var/cache/graphroot-peers".into());
    let bin = PathBuf::from(peers).join("forky/bin");
    if !bin.join("podman").is_file() {
        println!("SKIPPED the programs of Debian testing: tests/peers/make makes them");
        return None;
    }
    Some(bin)
}
