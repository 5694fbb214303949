//! What the integration tests share: temporary stores, the programs to compare with, and ways to look at results.

pub(crate) mod accepted;
pub(crate) mod btrfs;
pub(crate) mod debian;
pub(crate) mod json;
pub(crate) mod locks;
pub(crate) mod logged_disk;
pub(crate) mod loop_fs;
pub(crate) mod manifest;
pub(crate) mod oci;
pub(crate) mod peers;
pub(crate) mod root;
pub(crate) mod scripted_fs;
pub(crate) mod store;
pub(crate) mod tar;
#[expect(dead_code, reason = "other test programs include it too")]
pub(crate) mod user;
pub(crate) mod worker;

use std::path::PathBuf;

/// Whether everything that a test asks for has to be there.
fn everything_required() -> bool {
    std::env::var_os("GRAPHROOT_TEST_REQUIRE").is_some_and(|value| value == "all")
}

/// Says loudly that the current test cannot run here; panics where it has to.
pub(crate) fn missing(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    assert!(!everything_required(), "{test} cannot run: {why}");
    eprintln!("SKIPPED {test}: {why}");
}

/// Where a program lies, or `None` (and a message) if it is not installed.
pub(crate) fn require(program: &str) -> Option<PathBuf> {
    let found = peers::PeerSet::Installed.find(program);
    if found.is_none() {
        missing(&format!("{program} is not installed"));
    }
    found
}

/// Whether the test runs as root, as mounting and owners need.
pub(crate) fn require_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        missing("needs root");
    }
    root
}

/// Whether stores of this driver can be made here.
pub(crate) fn require_driver(driver: &str) -> bool {
    match driver {
        "btrfs" => btrfs::shared().map_err(missing).is_ok(),
        _ => true,
    }
}

/// Ends the test early unless it runs as root and all the programs are there.
macro_rules! needs {
    ($($program:literal),* $(,)?) => {
        if !crate::support::require_root() $(|| crate::support::require($program).is_none())* {
            return;
        }
    };
}
pub(crate) use needs;
pub(crate) use peers::each_set;
