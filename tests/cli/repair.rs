//! `check --repair` and `check --dry-run`: what they say and what they do.

use std::fs;

use crate::program::{good, ours};
use crate::support::manifest::manifest;
use crate::support::root::TestRoot;

/// A store with an image that lacks data, a layer without a record, and one that nothing needs.
fn damaged(driver: &'static str) -> TestRoot {
    let root = TestRoot::in_dir(&std::env::temp_dir(), driver);
    let manifest = root.path().join("manifest");
    fs::write(&manifest, "{}").unwrap();
    for line in [
        "create-layer -i L1".to_owned(),
        "create-layer -i L2 L1".to_owned(),
        "create-image -i I1 -n img L2".to_owned(),
        format!("set-image-data -f {} I1 manifest", manifest.display()),
        "create-layer -i L3".to_owned(),
        "create-storage-layer -i S1".to_owned(),
    ] {
        good(&root, &line);
    }
    fs::remove_file(root.metadata_dir("images").join("I1/manifest")).unwrap();
    root
}

#[test]
fn a_dry_run_tells_everything_and_changes_nothing() {
    for driver in ["overlay", "vfs"] {
        if driver == "overlay" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let root = damaged(driver);
        let before = manifest(&root.graph());
        let answer = ours(&root, "check -m 0 --dry-run");
        assert_eq!(answer.code, 1, "{answer:?}");
        for (item, why) in [
            ("image I1", "image data item is missing"),
            ("layer L2", "it goes with its image"),
            ("layer L1", "it goes with its image"),
            ("layer L3", "layer not referenced"),
            ("layer S1", "not accounted for"),
        ] {
            let lines = answer.err.lines();
            let mut about = lines.filter(|line| line.starts_with(&format!("would remove {item}: ")));
            assert!(about.any(|line| line.contains(why)), "{item}: {answer:?}");
        }
        let after = manifest(&root.graph());
        let changed: Vec<_> = before
            .iter()
            .filter(|(path, entry)| after.get(*path) != Some(entry))
            .collect();
        assert!(
            changed
                .iter()
                .all(|(path, _)| path.to_string_lossy().contains("lock")),
            "{changed:?}"
        );
        assert_eq!(before.len(), after.len());
        let answer = ours(&root, "check -m 0 --repair");
        assert_eq!(answer.code, 0, "{answer:?}");
        for item in ["image I1", "layer L1", "layer L2", "layer L3", "layer S1"] {
            let mut lines = answer.err.lines();
            let said = format!("{item} was removed: ");
            assert!(lines.any(|line| line.starts_with(&said)), "{item}: {answer:?}");
        }
        assert_eq!(good(&root, "layers"), "");
        assert_eq!(good(&root, "storage-layers"), "");
        assert_eq!(ours(&root, "check -m 0").code, 0);
    }
}

#[test]
fn damaged_records_are_rebuilt_and_each_is_told_of() {
    let root = TestRoot::vfs();
    let manifest = root.path().join("manifest");
    fs::write(&manifest, "{}").unwrap();
    for line in [
        "create-layer -i L1".to_owned(),
        format!("create-image -n img -i {} L1", "a".repeat(64)),
        format!(
            "set-image-data -f {} {} manifest",
            manifest.display(),
            "a".repeat(64)
        ),
    ] {
        good(&root, &line);
    }
    let records = root.metadata_dir("images").join("images.json");
    fs::write(&records, "[{\"id\":\"a").unwrap();
    let answer = ours(&root, "check");
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(
        answer
            .err
            .contains("images.json: it ends in the middle of its records"),
        "{answer:?}"
    );
    let answer = ours(&root, "check -r");
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("the damaged file is kept as"), "{answer:?}");
    assert!(answer.err.contains("lost: its names and metadata"), "{answer:?}");
    assert!(good(&root, "images").contains(&"a".repeat(64)));
    assert_eq!(ours(&root, "check").code, 0);
}
