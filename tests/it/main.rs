//! Behaviour of the library on real stores, against the real programs that share them.
//!
//! One file per behaviour, one binary. Programs that are missing make their tests print `SKIPPED`; with
//! `GRAPHROOT_TEST_REQUIRE=all` in the environment they fail instead, as in CI.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "what was skipped and measured belongs to the output"
)]

#[path = "../support/mod.rs"]
mod support;

mod additional_layers;
mod auto_userns;
mod check_beside_writers;
mod concurrency;
mod config;
mod config_places;
mod copied_stores;
mod counting_store;
mod crash;
mod diffs_for_go;
mod examples;
mod full_disk;
mod heal_kills;
mod hostile;
mod images_of_ours;
mod json_interop;
mod large_records;
mod layouts;
mod links_to_layer;
mod locking;
mod lower_layers;
mod many_links;
mod memory;
mod mount_program;
mod podman_reads_ours;
mod power_cut;
mod private_mounts;
mod quota;
mod refusing_places;
mod repair_kills;
mod rootless;
mod same_as_go;
mod selinux;
mod shared_content;
mod staged_kills;
mod stale_files;
mod streams;
mod sync_order;
mod vanishing;
mod we_read_podman;
mod worker;

/// A file that is not listed would never run.
#[test]
fn every_file_is_listed() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    let listed = include_str!("main.rs");
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(here).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let module = match name.strip_suffix(".rs") {
            Some(module) => module,
            None if entry.path().join("mod.rs").is_file() => &name,
            None => panic!("{name} is no Rust module"),
        };
        if module != "main" && !listed.lines().any(|line| line == format!("mod {module};")) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "tests/it/main.rs does not list {missing:?}");
}
