//! Unit tests that need root or a program, and are skipped without it.

/// Reports that a test is skipped; fails it if all tests must run (`GRAPHROOT_TEST_REQUIRE=all`).
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("GRAPHROOT_TEST_REQUIRE").is_none_or(|value| value != "all"),
        "must not be skipped: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether the test runs as root; if not, it is skipped.
pub(crate) fn root_or_skip() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Whether a program is installed; if not, the test is skipped.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}
