//! What the store does, by family of verbs, through the public API and over every driver.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    unreachable_pub,
    reason = "these are tests"
)]

#[macro_use]
mod support;
#[path = "../support/btrfs.rs"]
mod btrfs;
#[expect(dead_code, reason = "shared with tests/pull, which uses the rest")]
#[path = "../support/by_toc.rs"]
mod by_toc;
#[path = "../support/manifest.rs"]
mod manifest;
#[expect(dead_code, reason = "shared with tests/it, which uses the rest")]
#[path = "../support/oci.rs"]
mod oci;
#[path = "../support/scripted_fs.rs"]
mod scripted_fs;
#[path = "../support/text.rs"]
mod text;
#[path = "../support/user.rs"]
mod user;
#[path = "../support/zfs.rs"]
mod zfs;

mod additional;
mod additional_layers;
mod applied_diffs;
mod applied_links;
mod big_data;
mod built_images;
mod check;
mod check_records;
mod coming_from_go;
mod composefs;
mod concurrency;
mod containers;
mod copied_trees;
mod copy_to;
mod delete;
mod diff;
mod error_texts;
mod errors;
mod futures;
mod heal;
mod hostile_blobs;
mod hostile_contents;
mod hostile_entries;
mod hostile_lines;
mod hostile_parts;
mod hostile_tables;
mod images;
mod layer_model;
mod layer_rules;
mod layer_sequences;
mod layers;
mod lookups;
mod mount;
mod mount_guard;
mod names;
mod obstacles;
mod odd_damage;
mod odd_layers;
mod options;
mod rebuild;
mod rootless;
mod roots;
mod shared_inodes;
mod short_records;
mod sizes;
mod split;
mod staged_layers;
mod strays;
mod threads;
mod tree_drivers;
mod userns;
mod zfs_failures;
mod zfs_kills;
mod zfs_process;

/// A file that is not listed here would never run.
#[test]
fn every_file_is_listed() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store");
    let main = std::fs::read_to_string(dir.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap_or(&name);
        assert!(
            module == "main" || main.contains(&format!("mod {module};")),
            "{name} is not in main.rs"
        );
    }
}
