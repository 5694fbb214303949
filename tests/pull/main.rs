//! Pulls and pushes: with real registries filled by real programs, with a fake registry that fails on demand, and
//! compared with Podman and Skopeo.
//!
//! One file per behaviour, one binary; needs the feature `pull`. What is missing here is skipped loudly, as in
//! `tests/it`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "what was skipped and measured belongs to the output"
)]

#[path = "../support/by_toc.rs"]
mod by_toc;
#[expect(dead_code, reason = "shared with tests/it, which uses the rest")]
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/text.rs"]
mod text;

mod archives;
#[cfg(feature = "signatures")]
mod authorities;
mod caches;
mod chunked;
mod composefs;
mod converted;
mod directories;
mod fake_ranges;
mod fake_registry;
mod faults;
mod flight;
mod heal;
mod in_parts;
mod in_parts_faults;
#[cfg(feature = "signatures")]
mod keyless;
mod known_by_toc;
mod layouts;
mod library;
mod memory;
mod mirrors;
mod names;
mod odd_archives;
mod odd_blobs;
#[cfg(feature = "signatures")]
mod odd_openpgp;
mod odd_pushes;
mod odd_registry;
mod offered_layers;
#[cfg(feature = "signatures")]
mod openpgp_keys;
mod policy;
mod proxies;
mod push;
mod ranges;
mod readable;
mod records;
mod registry;
mod resume;
#[cfg(feature = "signatures")]
mod signatures;
mod signed;
mod signing_in;
mod threads;
mod tls;
mod uploads;
mod worker;

/// A file that is not listed would never run.
#[test]
fn every_file_is_listed() {
    let listed = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pull")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap();
        let is_listed = listed.lines().any(|line| line == format!("mod {module};"));
        assert!(
            module == "main" || is_listed,
            "tests/pull/main.rs does not list {name}"
        );
    }
}
