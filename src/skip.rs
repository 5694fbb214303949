//! What unit tests need that is not everywhere.

/// Says that a test did not run, and fails it where every test must (`GRAPHROOT_TEST_REQUIRE=all`).
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("GRAPHROOT_TEST_REQUIRE").is_none_or(|value| value != "all"),
        "must not be skipped: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether the test runs as root; says so if not.
pub(crate) fn root_or_skip() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Whether a program is installed; says so if not.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}
