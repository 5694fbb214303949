//! The command `graphroot`, alone and compared with `containers-storage`.
//!
//! One file per behaviour, one binary, run with `--features cli`. A test that lacks another program prints `SKIPPED`; with
//! `GRAPHROOT_TEST_REQUIRE=all` in the environment it fails instead.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    reason = "tests fail by panicking and print what they skip; other binaries use the support code too"
)]

#[cfg(feature = "pull")]
#[path = "../pull/odd_registry.rs"]
mod odd_registry;
#[path = "../support/mod.rs"]
mod support;

mod accepted_failures;
mod bad_layers;
mod check;
mod config;
mod convert;
mod copy;
mod extra_commands;
mod failing;
mod failures;
mod heal;
mod help;
mod id_mappings;
mod kernels;
#[cfg(feature = "pull")]
mod login;
mod many_layers;
mod mistakes;
mod one_store;
mod program;
mod recorded;
mod repair;
mod script;
mod side_by_side;
#[cfg(feature = "pull")]
mod transfer;

/// The tests of a file that is not listed would not run.
#[test]
fn every_file_is_listed() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli");
    let listed = include_str!("main.rs");
    for entry in std::fs::read_dir(here).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(module) = name.strip_suffix(".rs") else {
            continue;
        };
        assert!(
            module == "main" || listed.lines().any(|line| line == format!("mod {module};")),
            "{name} is not listed"
        );
    }
}
